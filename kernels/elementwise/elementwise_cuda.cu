#include "kernels/column_sum.cuh"
#include "kernels/cuda_elementwise.cuh"
#include "kernels/elementwise/elementwise_cuda.h"

namespace eyrie {
namespace {

template <class T>
struct AddOperation {
  const T *a, *b;
  T* out;

  template <int N>
  __device__ void At(int64_t i) const {
    const Vector<T, N> left = LoadVector<N>(a + i), right = LoadVector<N>(b + i);
    Vector<T, N> sum;
#pragma unroll
    for (int j = 0; j < N; ++j) sum.Set(j, left[j] + right[j]);
    StoreVector(out + i, sum);
  }
};

// y := row. A block of 8 warps covers 8 rows of 32 vectors of columns.
constexpr int kRowWarps = 8;
template <class T, int kWidth>
__global__ void __launch_bounds__(32 * kRowWarps)
    RowKernel(const T* __restrict__ row, T* __restrict__ y, int64_t rows, int64_t width) {
  const int64_t column = (int64_t{blockIdx.y} * 32 + threadIdx.x % 32) * kWidth;
  const int64_t r = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32;
  if (column >= width || r >= rows) return;
  StoreVector(y + r * width + column, LoadVector<kWidth>(row + column));
}

}  // namespace

void AddCuda(const Tensor& a, const Tensor& b, const Tensor& out) {
  DispatchCuda("Add", a, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const AddOperation<T> add{a.data<T>(), b.data<T>(), out.data<T>()};
    LaunchElementwise<kWidth>("Add", a.size(), Aligned<kWidth>(add.a, add.b, add.out), add);
  });
}

void BroadcastRowsCuda(const Tensor& bias, const Tensor& y) {
  const char* kernel = "BroadcastRows";
  const int64_t width = bias.size(), rows = y.size() / width;
  DispatchCuda(kernel, y, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T* from = bias.data<T>();
    T* to = y.data<T>();
    const bool vectors = Aligned<kWidth>(from, to) && width % kWidth == 0;
    const dim3 grid(Pieces(rows, kRowWarps), Pieces(width, 32 * (vectors ? kWidth : 1)));
    Launch(kernel, vectors ? RowKernel<T, kWidth> : RowKernel<T, 1>, grid, 32 * kRowWarps, 0, from,
           to, rows, width);
  });
}

void SumRowsCuda(const Tensor& dy, const Tensor& dbias, const Tensor& workspace) {
  const char* kernel = "SumRows";
  const int64_t width = dbias.size(), rows = dy.size() / width;
  if (rows == 0) return;
  const int64_t chunk = ColumnSumChunk(rows, width);
  const unsigned chunks = Pieces(rows, chunk);
  float* partial = workspace.data<float>();
  DispatchCuda(kernel, dy, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>, kWarps = 8;
    const T* x = dy.data<T>();
    const bool vectors = FitsVectors<T>(x, width);
    LaunchEarly(
        kernel,
        vectors ? ColumnSumKernel<T, kWidth, kWarps, false> : ColumnSumKernel<T, 1, kWarps, false>,
        dim3(chunks, Pieces(width, 32 * (vectors ? kWidth : 1))), 32 * kWarps, 0, x, rows, chunk,
        width, partial);
  });
  AddColumnSums(kernel, partial, chunks, width, dbias.data<float>());
}

}  // namespace eyrie
