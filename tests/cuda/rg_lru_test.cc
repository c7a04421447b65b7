// The RG-LRU's CUDA bodies against its CPU body.
#include "kernels/rg_lru/rg_lru.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

// Documents of about `length` tokens, so that long ones carry states over many tiles.
OwnedTensor LongDocuments(int64_t batch, int64_t time, int64_t length, TestRandom& random) {
  OwnedTensor result(DType::kI32, {batch, time});
  int32_t position = 3;
  for (int64_t i = 0; i < batch * time; ++i) {
    position = random.Int(1, length) == 1 ? 0 : position + 1;
    result.tensor.data<int32_t>()[i] = position;
  }
  return result;
}

OwnedTensor Workspace(int64_t elements) { return PoisonedCuda(DType::kF32, {elements}); }

// All outputs of the four kernels, on the host in float64.
struct Results {
  OwnedTensor h, h_last, du, dzi, dzr, dh0, dlambda, dzi_sum, dzr_sum;
  OwnedTensor decay, increment, grad_decay, grad_increment;
};

// Inputs as a GPU holds them in `type`, and float64 copies of these on the host.
struct Case {
  Case(DType type, int64_t batch, int64_t time, int64_t channels, int64_t length,
       TestRandom& random)
      : dtype(type), full{batch, time, channels}, state{batch, channels} {
    for (OwnedTensor* x : {&u, &zi, &zr, &dh}) *x = Draw(full, random);
    lambda = Draw({channels}, random);
    for (int64_t c = 0; c < channels; ++c) Set(lambda.tensor, c, random.Uniform(-9, 1));
    lambda = Rounded(lambda.tensor, DType::kF32);
    positions = LongDocuments(batch, time, length, random);
    for (OwnedTensor* x : {&h0, &dh_last}) *x = RandomTensor(DType::kF64, state, random);
    for (OwnedTensor* x : {&dlambda, &dzi_sum, &dzr_sum}) {
      *x = RandomTensor(DType::kF64, {channels}, random);
    }
  }
  OwnedTensor Draw(Shape shape, TestRandom& random) const {
    return Rounded(RandomTensor(DType::kF64, shape, random).tensor, dtype);
  }

  // The backward pass reads `h`, an output of the other side.
  Results Cpu(const Tensor& h_in, bool states) const {
    Results r{PoisonedTensor(DType::kF64, full),
              PoisonedTensor(DType::kF64, state),
              PoisonedTensor(DType::kF64, full),
              PoisonedTensor(DType::kF64, full),
              PoisonedTensor(DType::kF64, full),
              PoisonedTensor(DType::kF64, state),
              Clone(dlambda.tensor),
              Clone(dzi_sum.tensor),
              Clone(dzr_sum.tensor),
              PoisonedTensor(DType::kF64, state),
              PoisonedTensor(DType::kF64, state),
              PoisonedTensor(DType::kF64, state),
              PoisonedTensor(DType::kF64, state)};
    const auto optional = [&](const Tensor& x) { return states ? x : Tensor{}; };
    RgLruForward({.u = u.tensor,
                  .zi = zi.tensor,
                  .zr = zr.tensor,
                  .lambda = lambda.tensor,
                  .positions = positions.tensor,
                  .h0 = optional(h0.tensor),
                  .h = r.h.tensor,
                  .h_last = optional(r.h_last.tensor)});
    RgLruBackward({.u = u.tensor,
                   .zi = zi.tensor,
                   .zr = zr.tensor,
                   .lambda = lambda.tensor,
                   .positions = positions.tensor,
                   .h0 = optional(h0.tensor),
                   .h = h_in,
                   .dh = dh.tensor,
                   .dh_last = optional(dh_last.tensor),
                   .du = r.du.tensor,
                   .dzi = r.dzi.tensor,
                   .dzr = r.dzr.tensor,
                   .dh0 = optional(r.dh0.tensor),
                   .dlambda = r.dlambda.tensor,
                   .dzi_sum = r.dzi_sum.tensor,
                   .dzr_sum = r.dzr_sum.tensor});
    RgLruSummary({.u = u.tensor,
                  .zi = zi.tensor,
                  .zr = zr.tensor,
                  .lambda = lambda.tensor,
                  .positions = positions.tensor,
                  .decay = r.decay.tensor,
                  .increment = r.increment.tensor});
    RgLruGradSummary({.zr = zr.tensor,
                      .lambda = lambda.tensor,
                      .positions = positions.tensor,
                      .dh = dh.tensor,
                      .decay = r.grad_decay.tensor,
                      .increment = r.grad_increment.tensor});
    return r;
  }

  Results Cuda(bool states, bool of_zi = true, bool of_zr = true) const {
    const OwnedTensor u_ = ToCuda(u.tensor, dtype), zi_ = ToCuda(zi.tensor, dtype);
    const OwnedTensor zr_ = ToCuda(zr.tensor, dtype), lambda_ = ToCuda(lambda.tensor, DType::kF32);
    const OwnedTensor positions_ = ToCuda(positions.tensor), dh_ = ToCuda(dh.tensor, dtype);
    const OwnedTensor h0_ = ToCuda(h0.tensor, DType::kF32);
    const OwnedTensor dh_last_ = ToCuda(dh_last.tensor, DType::kF32);
    const Results r{PoisonedCuda(dtype, full),           PoisonedCuda(DType::kF32, state),
                    PoisonedCuda(dtype, full),           PoisonedCuda(dtype, full),
                    PoisonedCuda(dtype, full),           PoisonedCuda(DType::kF32, state),
                    ToCuda(dlambda.tensor, DType::kF32), ToCuda(dzi_sum.tensor, DType::kF32),
                    ToCuda(dzr_sum.tensor, DType::kF32), PoisonedCuda(DType::kF32, state),
                    PoisonedCuda(DType::kF32, state),    PoisonedCuda(DType::kF32, state),
                    PoisonedCuda(DType::kF32, state)};
    const OwnedTensor forward = Workspace(RgLruForwardWorkspace(u_.tensor));
    const OwnedTensor backward = Workspace(RgLruBackwardWorkspace(u_.tensor));
    const OwnedTensor summary = Workspace(RgLruSummaryWorkspace(u_.tensor));
    const auto optional = [&](const Tensor& x) { return states ? x : Tensor{}; };
    RgLruForward({.u = u_.tensor,
                  .zi = zi_.tensor,
                  .zr = zr_.tensor,
                  .lambda = lambda_.tensor,
                  .positions = positions_.tensor,
                  .h0 = optional(h0_.tensor),
                  .h = r.h.tensor,
                  .h_last = optional(r.h_last.tensor),
                  .workspace = forward.tensor});
    RgLruBackward({.u = u_.tensor,
                   .zi = zi_.tensor,
                   .zr = zr_.tensor,
                   .lambda = lambda_.tensor,
                   .positions = positions_.tensor,
                   .h0 = optional(h0_.tensor),
                   .h = r.h.tensor,
                   .dh = dh_.tensor,
                   .dh_last = optional(dh_last_.tensor),
                   .du = r.du.tensor,
                   .dzi = r.dzi.tensor,
                   .dzr = r.dzr.tensor,
                   .dh0 = optional(r.dh0.tensor),
                   .dlambda = r.dlambda.tensor,
                   .dzi_sum = of_zi ? r.dzi_sum.tensor : Tensor{},
                   .dzr_sum = of_zr ? r.dzr_sum.tensor : Tensor{},
                   .workspace = backward.tensor});
    RgLruSummary({.u = u_.tensor,
                  .zi = zi_.tensor,
                  .zr = zr_.tensor,
                  .lambda = lambda_.tensor,
                  .positions = positions_.tensor,
                  .decay = r.decay.tensor,
                  .increment = r.increment.tensor,
                  .workspace = summary.tensor});
    RgLruGradSummary({.zr = zr_.tensor,
                      .lambda = lambda_.tensor,
                      .positions = positions_.tensor,
                      .dh = dh_.tensor,
                      .decay = r.grad_decay.tensor,
                      .increment = r.grad_increment.tensor,
                      .workspace = summary.tensor});
    return {ToHost(r.h.tensor),
            ToHost(r.h_last.tensor),
            ToHost(r.du.tensor),
            ToHost(r.dzi.tensor),
            ToHost(r.dzr.tensor),
            ToHost(r.dh0.tensor),
            ToHost(r.dlambda.tensor),
            ToHost(r.dzi_sum.tensor),
            ToHost(r.dzr_sum.tensor),
            ToHost(r.decay.tensor),
            ToHost(r.increment.tensor),
            ToHost(r.grad_decay.tensor),
            ToHost(r.grad_increment.tensor)};
  }

  DType dtype;
  Shape full, state;
  OwnedTensor u, zi, zr, lambda, positions, h0, dh, dh_last;
  OwnedTensor dlambda, dzi_sum, dzr_sum;  // what they hold before the backward pass
};

void ExpectClose(const Results& cuda, const Results& cpu, DType dtype, bool states) {
  const double bound = Tolerance(dtype), floor = 0.1;
  const auto error = [&](const OwnedTensor& a, const OwnedTensor& b) {
    return RelativeError(a.tensor, b.tensor, floor);
  };
  EXPECT_LT(error(cuda.h, cpu.h), bound);
  EXPECT_LT(error(cuda.du, cpu.du), bound);
  EXPECT_LT(error(cuda.dzi, cpu.dzi), bound);
  EXPECT_LT(error(cuda.dzr, cpu.dzr), bound);
  EXPECT_LT(error(cuda.dlambda, cpu.dlambda), bound);
  EXPECT_LT(error(cuda.dzi_sum, cpu.dzi_sum), bound);
  EXPECT_LT(error(cuda.dzr_sum, cpu.dzr_sum), bound);
  EXPECT_LT(error(cuda.decay, cpu.decay), bound);
  EXPECT_LT(error(cuda.increment, cpu.increment), bound);
  EXPECT_LT(error(cuda.grad_decay, cpu.grad_decay), bound);
  EXPECT_LT(error(cuda.grad_increment, cpu.grad_increment), bound);
  if (!states) return;
  EXPECT_LT(error(cuda.h_last, cpu.h_last), bound);
  EXPECT_LT(error(cuda.dh0, cpu.dh0), bound);
}

void Compare(DType dtype, const Shape& full, int64_t length, bool states) {
  TestRandom random;
  SCOPED_TRACE(StrCat(Name(dtype), " ", full.ToString(), states ? " with" : " without", " states"));
  const Case c(dtype, full[0], full[1], full[2], length, random);
  const Results cuda = c.Cuda(states);
  ExpectClose(cuda, c.Cpu(cuda.h.tensor, states), dtype, states);
}

TEST(CudaRgLru, MatchesTheCpuBody) {
  for (DType dtype : kCudaTypes) {
    for (const Shape& full :
         {Shape{1, 1, 1}, Shape{2, 1, 64}, Shape{3, 1, 5}, Shape{7, 1, 2562}, Shape{3, 33, 5},
          Shape{2, 63, 130}, Shape{1, 64, 72}, Shape{2, 65, 8}, Shape{1, 200, 1100}}) {
      for (bool states : {true, false}) Compare(dtype, full, 40, states);
    }
  }
}

// More tiles than a group holds, whole groups and not, over documents longer than a group.
TEST(CudaRgLru, CarriesStatesOverManyTiles) {
  for (DType dtype : kCudaTypes) {
    for (const Shape& full : {Shape{2, 1024, 64}, Shape{1, 1025, 17}, Shape{2, 2500, 136}}) {
      Compare(dtype, full, 5000, true);
    }
  }
}

// Equal sequences, more of them than run at once: each must give the same bits, and a second run
// must give them again.
TEST(CudaRgLru, SameBitsInEachSequenceAndRun) {
  TestRandom random;
  constexpr int64_t kBatch = 9, kTime = 2100, kChannels = 264;
  for (DType dtype : kCudaTypes) {
    SCOPED_TRACE(Name(dtype));
    const Case one(dtype, 1, kTime, kChannels, 1000, random);
    Case all(dtype, kBatch, 1, kChannels, 1000, random);  // its [B, T, R] tensors are replaced
    const auto repeat = [&](const OwnedTensor& from) {
      Shape shape = from.tensor.shape;
      shape.Set(0, kBatch);
      OwnedTensor result(from.tensor.dtype, shape);
      for (int64_t b = 0; b < kBatch; ++b) Copy(from.tensor, result.tensor.Rows(b, b + 1));
      return result;
    };
    all.full = Shape{kBatch, kTime, kChannels};
    all.u = repeat(one.u);
    all.zi = repeat(one.zi);
    all.zr = repeat(one.zr);
    all.dh = repeat(one.dh);
    all.h0 = repeat(one.h0);
    all.dh_last = repeat(one.dh_last);
    all.positions = repeat(one.positions);
    const Results first = all.Cuda(true), second = all.Cuda(true);
    const auto same = [&](const OwnedTensor& a, const OwnedTensor& b) {
      EXPECT_TRUE(BitwiseEqual(a.tensor, b.tensor));
      for (int64_t i = 1; i < kBatch; ++i) {
        EXPECT_TRUE(BitwiseEqual(a.tensor.Rows(i, i + 1), a.tensor.Rows(0, 1))) << i;
      }
    };
    same(first.h, second.h);
    same(first.h_last, second.h_last);
    same(first.du, second.du);
    same(first.dzi, second.dzi);
    same(first.dzr, second.dzr);
    same(first.dh0, second.dh0);
    same(first.decay, second.decay);
    same(first.increment, second.increment);
    same(first.grad_decay, second.grad_decay);
    same(first.grad_increment, second.grad_increment);
    EXPECT_TRUE(BitwiseEqual(first.dlambda.tensor, second.dlambda.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dzi_sum.tensor, second.dzi_sum.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dzr_sum.tensor, second.dzr_sum.tensor));
  }
}

// With either or none, all else has the same bits.
TEST(CudaRgLru, SumsOfGateGradientsAreOptional) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (const Shape& full : {Shape{1, 1, 1}, Shape{3, 130, 77}, Shape{2, 65, 136}}) {
      const Case c(dtype, full[0], full[1], full[2], 40, random);
      const Results both = c.Cuda(true);
      const OwnedTensor zi_before = Rounded(c.dzi_sum.tensor, DType::kF32);
      const OwnedTensor zr_before = Rounded(c.dzr_sum.tensor, DType::kF32);
      for (const auto& [of_zi, of_zr] :
           {std::pair{true, false}, std::pair{false, true}, std::pair{false, false}}) {
        SCOPED_TRACE(StrCat(Name(dtype), " ", full.ToString(), " ", of_zi, of_zr));
        const Results r = c.Cuda(true, of_zi, of_zr);
        EXPECT_TRUE(BitwiseEqual(r.du.tensor, both.du.tensor));
        EXPECT_TRUE(BitwiseEqual(r.dzi.tensor, both.dzi.tensor));
        EXPECT_TRUE(BitwiseEqual(r.dzr.tensor, both.dzr.tensor));
        EXPECT_TRUE(BitwiseEqual(r.dlambda.tensor, both.dlambda.tensor));
        EXPECT_TRUE(BitwiseEqual(r.dzi_sum.tensor, (of_zi ? both.dzi_sum : zi_before).tensor));
        EXPECT_TRUE(BitwiseEqual(r.dzr_sum.tensor, (of_zr ? both.dzr_sum : zr_before).tensor));
      }
    }
  }
}

// Not even a NaN crosses a document's start, be it in the state or in the document before.
TEST(CudaRgLru, DocumentStartForgetsEverything) {
  TestRandom random;
  constexpr int64_t kTime = 300, kStart = 150, kChannels = 72;
  Case c(DType::kF32, 1, kTime, kChannels, 1 << 20, random);
  for (int64_t t = 0; t < kTime; ++t) {
    c.positions.tensor.data<int32_t>()[t] = static_cast<int32_t>(t < kStart ? t + 1 : t - kStart);
  }
  // A slow decay, which does not vanish before the document ends.
  Set(c.lambda.tensor, 0, -5);
  const Results clean = c.Cuda(true);
  Poison(c.h0.tensor);
  for (int64_t i = 0; i < 20 * kChannels; ++i) {
    for (OwnedTensor* x : {&c.u, &c.zi, &c.zr}) {
      Set(x->tensor, i, std::numeric_limits<double>::quiet_NaN());
    }
  }
  const Results spoilt = c.Cuda(true);
  EXPECT_TRUE(std::isnan(Get(spoilt.h.tensor, (kStart - 1) * kChannels)));
  for (const auto& [a, b] : {std::pair{&clean.h, &spoilt.h}, std::pair{&clean.du, &spoilt.du},
                             std::pair{&clean.dzi, &spoilt.dzi}, std::pair{&clean.dzr, &spoilt.dzr},
                             std::pair{&clean.increment, &spoilt.increment}}) {
    const Shape shape = a->tensor.shape;
    if (shape.rank() == 2) {
      EXPECT_TRUE(BitwiseEqual(a->tensor, b->tensor));
      continue;
    }
    EXPECT_TRUE(BitwiseEqual(TimeSlice(a->tensor, kStart, kTime).tensor,
                             TimeSlice(b->tensor, kStart, kTime).tensor));
  }
}

TEST(CudaRgLru, RejectsWrongTypesAndMissingWorkspace) {
  const OwnedTensor x = ZeroCuda(DType::kBF16, {1, 3, 8}), wrong = ZeroCuda(DType::kF32, {1, 3, 8});
  const OwnedTensor lambda = ZeroCuda(DType::kF32, {8}), low_lambda = ZeroCuda(DType::kBF16, {8});
  const OwnedTensor positions = ZeroCuda(DType::kI32, {1, 3});
  const OwnedTensor state = ZeroCuda(DType::kF32, {1, 8}), low = ZeroCuda(DType::kBF16, {1, 8});
  const OwnedTensor workspace = Workspace(RgLruForwardWorkspace(x.tensor));
  const OwnedTensor h = ZeroCuda(DType::kBF16, {1, 3, 8});
  const RgLruForwardArgs good{.u = x.tensor,
                              .zi = x.tensor,
                              .zr = x.tensor,
                              .lambda = lambda.tensor,
                              .positions = positions.tensor,
                              .h0 = state.tensor,
                              .h = h.tensor,
                              .workspace = workspace.tensor};
  EXPECT_NO_THROW(RgLruForward(good));
  const auto rejects = [&](Tensor RgLruForwardArgs::*member, const Tensor& value) {
    RgLruForwardArgs bad = good;
    bad.*member = value;
    EXPECT_THROW(RgLruForward(bad), Error);
  };
  rejects(&RgLruForwardArgs::zi, wrong.tensor);
  rejects(&RgLruForwardArgs::h, wrong.tensor);
  rejects(&RgLruForwardArgs::h0, low.tensor);
  rejects(&RgLruForwardArgs::lambda, low_lambda.tensor);
  rejects(&RgLruForwardArgs::workspace, Tensor{});
}

}  // namespace
}  // namespace eyrie
