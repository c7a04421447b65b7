#include "launcher/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw/adamw.h"

namespace eyrie {
namespace {

// AdamWArgs::decays of each of the store's stretches in turn. Parameters have padding between them,
// of zeros that stay zeros, and lie in groups of their own.
std::vector<int32_t> DecaysOf(const ParamStore& params) {
  static_assert(BucketPlan::kAlign % kDecayGroup == 0);
  std::vector<int32_t> decays;
  auto part = params.owned().begin();
  for (const auto& [place, buckets] : params.stretches()) {
    const size_t first = decays.size();
    decays.resize(first + static_cast<size_t>(DecayWords(place.size)));
    for (; part != params.owned().end() && part->owned < place.owned + place.size; ++part) {
      if (!params.table().spec(part->param).weight_decay) continue;
      const int64_t begin = part->owned - place.owned, end = begin + part->range.size();
      for (int64_t group = begin / kDecayGroup; group * kDecayGroup < end; ++group) {
        auto& word = decays[first + static_cast<size_t>(group / 32)];
        word = static_cast<int32_t>(static_cast<uint32_t>(word) | uint32_t{1} << group % 32);
      }
    }
  }
  return decays;
}

}  // namespace

Optimizer::Optimizer(const config::OptimizerConfig& config, ParamStore& params, const Mesh& mesh)
    : config_(config),
      params_(params),
      mesh_(mesh),
      dtype_(params.precision().moments),
      m_(static_cast<size_t>(params.plan().owned_elements()) * SizeOf(dtype_), params.device()),
      v_(m_.bytes(), params.device()),
      squares_(DType::kF64, {1}, params.device()) {
  int64_t words = 0;
  for (const auto& [place, buckets] : params.stretches()) words += DecayWords(place.size);
  decays_ = Buffer(static_cast<size_t>(words) * sizeof(int32_t), params.device());
  if (!IsMeta(params.device())) {
    std::vector<int32_t> decays = DecaysOf(params);
    Copy(Tensor{decays.data(), DType::kI32, Device::kCpu, {words}},
         decays_.At(0, DType::kI32, {words}));
  }

  bool counts = false;  // the part before
  for (const BucketPlan::Part& own : params.owned()) {
    const bool counted =
        mesh.tensor().rank() == 0 || params.table().spec(own.param).shard_axis >= 0;
    if (counted && !counts) counted_.push_back({own.flat, own.owned, 0});
    if (counted) counted_.back().size = own.owned + own.range.size() - counted_.back().owned;
    counts = counted;
  }
  int64_t elements = 0;
  for (const BucketPlan::Stretch& place : counted_) {
    elements = std::max(elements, SumOfSquaresWorkspace(params.owned_grad(place)));
  }
  if (elements > 0) workspace_ = OwnedTensor(DType::kF32, {elements}, params.device());
}

Tensor Optimizer::At(const Buffer& moment, const BucketPlan::Stretch& place) const {
  return moment.At(static_cast<size_t>(place.owned) * SizeOf(dtype_), dtype_, {place.size});
}

double Optimizer::GradNorm() {
  FillZero(squares_.tensor);
  for (const BucketPlan::Stretch& place : counted_) {
    SumOfSquares(params_.owned_grad(place), squares_.tensor, workspace_.tensor);
  }
  double sum = 0.0;  // where nothing is computed there is nothing to read
  if (!IsMeta(params_.device())) {
    Copy(squares_.tensor, Tensor{&sum, DType::kF64, Device::kCpu, {1}});
  }
  // Owned parts differ from replica to replica with ZeRO, and are all there is without.
  Communicator& others = params_.plan().sharded() ? mesh_.world() : mesh_.tensor();
  return std::sqrt(AllReduceValue(others, sum, ReduceOp::kSum));
}

void Optimizer::Step(int64_t step, double learning_rate, double grad_norm) {
  const double clip = config_.gradient_clip();
  const double scale = clip > 0 && grad_norm > clip ? clip / grad_norm : 1.0;
  params_.GatherDone();
  int bucket = 0;    // all before it are on their way
  int64_t word = 0;  // of decays_
  for (const auto& [place, buckets] : params_.stretches()) {
    const int64_t words = DecayWords(place.size);
    AdamW({.param = params_.owned_master(place),
           .grad = params_.owned_grad(place),
           .m = At(m_, place),
           .v = At(v_, place),
           .copy = params_.owned_copy(place),
           .decays = decays_.At(static_cast<size_t>(word) * sizeof(int32_t), DType::kI32, {words}),
           .rate = learning_rate,
           .beta1 = config_.beta1(),
           .beta2 = config_.beta2(),
           .epsilon = config_.epsilon(),
           .weight_decay = config_.weight_decay(),
           .grad_scale = scale,
           .step = step});
    word += words;
    for (const int end = bucket + buckets; bucket < end;) params_.Gather(bucket++);
  }
}

}  // namespace eyrie
