// Lightning attention on the GPU: how a pass is cut into chunks, and the scan over their states.
#include <algorithm>

#include "kernels/lightning_attention/lightning_attention_cuda.h"
#include "kernels/lightning_attention/lightning_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kThreads = 256;

// Each chunk's increment in `states` becomes the state that enters it; `leaving`, unless null, is
// what leaves the last one. `view` is that of the chunks.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ScanKernel(const LightningView<T> view, const float* entering, float* states, float* leaving) {
  const int size = view.keys * view.values, head = static_cast<int>(blockIdx.x);
  const int i = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= size) return;
  const int64_t at = static_cast<int64_t>(head) * size + i;
  float state = entering == nullptr ? 0.0f : entering[at];
  for (int chunk = 0; chunk < view.chunks; ++chunk) {
    const float decay = view.ChunkDecay(head / view.heads, head % view.heads, chunk);
    float& place = states[view.State(head, chunk) + i];
    const float increment = place;
    place = state;
    state = fmaf(decay, state, increment);
  }
  if (leaving != nullptr) leaving[at] = state;
}

__global__ void DecaysKernel(const LightningView<float> view, float* decays, int count) {
  const int head = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (head < count) decays[head] = view.ChunkDecay(head / view.heads, head % view.heads, 0);
}

void RunChunks(const LightningView<float>& view, int sequences, bool) {
  LightningChunksPlain(view, sequences);
}
void RunChunks(const LightningView<__nv_bfloat16>& view, int sequences, bool tensor_cores) {
  tensor_cores ? LightningChunksMma(view, sequences) : LightningChunksPlain(view, sequences);
}

}  // namespace

void LightningPassCuda(const LightningPass& pass, const Tensor& workspace) {
  const char* kernel = "LightningAttention";
  const int64_t keys = pass.k.dim(3), values = pass.v.dim(3);
  EYRIE_CHECK(keys <= kMaxLightningCudaWidth && values <= kMaxLightningCudaWidth, kernel,
              ": heads of ", keys, " keys and ", values, " values, at most ",
              kMaxLightningCudaWidth);
  const int sequences = static_cast<int>(pass.k.dim(0));
  const LightningChunks chunks(pass.k, pass.v);
  DispatchCuda(kernel, pass.k, [&]<class T>(T) {
    LightningView<T> view{.q = pass.q.data<T>(),
                          .k = pass.k.data<T>(),
                          .v = pass.v.data<T>(),
                          .o = pass.o.data<T>(),
                          .rate = pass.rate.data<float>(),
                          .positions = pass.positions.data<int32_t>(),
                          .tokens = static_cast<int>(pass.k.dim(1)),
                          .heads = static_cast<int>(pass.k.dim(2)),
                          .keys = static_cast<int>(keys),
                          .values = static_cast<int>(values),
                          .reverse = pass.reverse,
                          .chunk = static_cast<int>(chunks.tokens),
                          .chunks = static_cast<int>(chunks.count),
                          .entering = pass.entering.data<float>(),
                          .leaving = pass.leaving.data<float>(),
                          .key_stride = static_cast<int>(pass.transposed ? 1 : values),
                          .value_stride = static_cast<int>(pass.transposed ? keys : 1)};
    // A single token is not worth a tile.
    const bool tensor_cores = FitsLightningTensorCores(pass.k, pass.v) && view.tokens > 1 &&
                              AllFitVectors<T>(keys, {view.q, view.k}) &&
                              AllFitVectors<T>(values, {view.v, view.o});
    if (chunks.count > 1) {
      float* states = workspace.data<float>();
      LightningView<T> increments = view;
      increments.q = nullptr;
      increments.o = nullptr;
      increments.entering = nullptr;
      increments.leaving = states;
      RunChunks(increments, sequences, tensor_cores);
      const dim3 grid(static_cast<unsigned>(sequences * view.heads),
                      Pieces(keys * values, kThreads));
      Launch(kernel, ScanKernel<T>, grid, dim3(kThreads), 0, view, view.entering, states,
             view.leaving);
      view.entering = states;
      view.leaving = nullptr;
      if (view.o == nullptr) return;
    }
    RunChunks(view, sequences, tensor_cores);
  });
}

void LightningDecaysCuda(const Tensor& rate, const Tensor& positions, const Tensor& decay) {
  const int tokens = static_cast<int>(positions.dim(1)), count = static_cast<int>(decay.size());
  const LightningView<float> view{.rate = rate.data<float>(),
                                  .positions = positions.data<int32_t>(),
                                  .tokens = tokens,
                                  .heads = static_cast<int>(rate.dim(0)),
                                  .chunk = tokens,
                                  .chunks = 1};
  Launch("LightningAttention", DecaysKernel, Pieces(count, kThreads), kThreads, 0, view,
         decay.data<float>(), count);
}

}  // namespace eyrie
