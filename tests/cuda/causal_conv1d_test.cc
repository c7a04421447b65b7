// The causal convolution's CUDA bodies against its CPU body.
#include "kernels/causal_conv1d/causal_conv1d.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

// All outputs of both kernels, on the host in float64.
struct Results {
  OwnedTensor y, x_last, dx, dx0, dweight, dbias, dx_sum;
};

// Inputs as a GPU holds them in `type`, and float64 copies of these on the host.
struct Case {
  Case(DType type, int64_t batch, int64_t time, int64_t channels, int64_t taps, bool with_silu,
       TestRandom& random)
      : dtype(type),
        silu(with_silu),
        full{batch, time, channels},
        state{batch, taps - 1, channels} {
    for (OwnedTensor* tensor : {&x, &dy}) *tensor = Draw(full, random);
    for (OwnedTensor* tensor : {&x0, &dx_last}) *tensor = Draw(state, random);
    weight = Draw({taps, channels}, random);
    bias = Draw({channels}, random);
    positions = RandomPositions(batch, time, random, true);
    dweight = RandomTensor(DType::kF64, {taps, channels}, random);
    dbias = RandomTensor(DType::kF64, {channels}, random);
    dx_sum = RandomTensor(DType::kF64, {channels}, random);
  }
  OwnedTensor Draw(Shape shape, TestRandom& random) const {
    return Rounded(RandomTensor(DType::kF64, shape, random).tensor, dtype);
  }
  // With one tap the state has no rows: it is absent.
  bool HasState(bool states) const { return states && state[1] > 0; }

  Results Cpu(bool states) const {
    Results r{PoisonedTensor(DType::kF64, full),
              PoisonedTensor(DType::kF64, state),
              PoisonedTensor(DType::kF64, full),
              PoisonedTensor(DType::kF64, state),
              Clone(dweight.tensor),
              Clone(dbias.tensor),
              Clone(dx_sum.tensor)};
    const auto optional = [&](const Tensor& t) { return HasState(states) ? t : Tensor{}; };
    CausalConv1dForward({.x = x.tensor,
                         .weight = weight.tensor,
                         .bias = bias.tensor,
                         .positions = positions.tensor,
                         .x0 = optional(x0.tensor),
                         .y = r.y.tensor,
                         .x_last = optional(r.x_last.tensor),
                         .silu = silu});
    CausalConv1dBackward({.x = x.tensor,
                          .weight = weight.tensor,
                          .positions = positions.tensor,
                          .x0 = optional(x0.tensor),
                          .dy = dy.tensor,
                          .dx_last = optional(dx_last.tensor),
                          .dx = r.dx.tensor,
                          .dx0 = optional(r.dx0.tensor),
                          .dweight = r.dweight.tensor,
                          .dbias = r.dbias.tensor,
                          .dx_sum = r.dx_sum.tensor,
                          .silu = silu,
                          .bias = silu ? bias.tensor : Tensor{}});
    return r;
  }

  Results Cuda(bool states, bool summed = true) const {
    const OwnedTensor x_ = ToCuda(x.tensor, dtype), weight_ = ToCuda(weight.tensor, dtype);
    const OwnedTensor bias_ = ToCuda(bias.tensor, dtype), positions_ = ToCuda(positions.tensor);
    const OwnedTensor x0_ = ToCuda(x0.tensor, dtype), dy_ = ToCuda(dy.tensor, dtype);
    const OwnedTensor dx_last_ = ToCuda(dx_last.tensor, dtype);
    const Results r{PoisonedCuda(dtype, full),           PoisonedCuda(dtype, state),
                    PoisonedCuda(dtype, full),           PoisonedCuda(dtype, state),
                    ToCuda(dweight.tensor, DType::kF32), ToCuda(dbias.tensor, DType::kF32),
                    ToCuda(dx_sum.tensor, DType::kF32)};
    const OwnedTensor workspace =
        PoisonedCuda(DType::kF32, {CausalConv1dBackwardWorkspace(x_.tensor, weight.tensor.dim(0))});
    const auto optional = [&](const Tensor& t) { return HasState(states) ? t : Tensor{}; };
    CausalConv1dForward({.x = x_.tensor,
                         .weight = weight_.tensor,
                         .bias = bias_.tensor,
                         .positions = positions_.tensor,
                         .x0 = optional(x0_.tensor),
                         .y = r.y.tensor,
                         .x_last = optional(r.x_last.tensor),
                         .silu = silu});
    CausalConv1dBackward({.x = x_.tensor,
                          .weight = weight_.tensor,
                          .positions = positions_.tensor,
                          .x0 = optional(x0_.tensor),
                          .dy = dy_.tensor,
                          .dx_last = optional(dx_last_.tensor),
                          .dx = r.dx.tensor,
                          .dx0 = optional(r.dx0.tensor),
                          .dweight = r.dweight.tensor,
                          .dbias = r.dbias.tensor,
                          .dx_sum = summed ? r.dx_sum.tensor : Tensor{},
                          .workspace = workspace.tensor,
                          .silu = silu,
                          .bias = silu ? bias_.tensor : Tensor{}});
    return {ToHost(r.y.tensor),     ToHost(r.x_last.tensor),  ToHost(r.dx.tensor),
            ToHost(r.dx0.tensor),   ToHost(r.dweight.tensor), ToHost(r.dbias.tensor),
            ToHost(r.dx_sum.tensor)};
  }

  DType dtype;
  bool silu;
  Shape full, state;
  OwnedTensor x, weight, bias, positions, x0, dy, dx_last;
  OwnedTensor dweight, dbias, dx_sum;  // what they hold before the backward pass
};

void Compare(DType dtype, const Shape& full, int64_t taps, bool states, bool silu) {
  TestRandom random;
  SCOPED_TRACE(StrCat(Name(dtype), " ", full.ToString(), " K ", taps, states ? " with" : " without",
                      " states", silu ? ", SiLU" : ""));
  const Case c(dtype, full[0], full[1], full[2], taps, silu, random);
  const Results cuda = c.Cuda(states), cpu = c.Cpu(states);
  const auto error = [&](const OwnedTensor& a, const OwnedTensor& b) {
    return RelativeError(a.tensor, b.tensor, /*floor=*/0.1);
  };
  const double bound = Tolerance(dtype);
  EXPECT_LT(error(cuda.y, cpu.y), bound);
  EXPECT_LT(error(cuda.dx, cpu.dx), bound);
  EXPECT_LT(error(cuda.dweight, cpu.dweight), bound);
  EXPECT_LT(error(cuda.dbias, cpu.dbias), bound);
  EXPECT_LT(error(cuda.dx_sum, cpu.dx_sum), bound);
  if (!c.HasState(states)) return;
  EXPECT_EQ(error(cuda.x_last, cpu.x_last), 0);
  EXPECT_LT(error(cuda.dx0, cpu.dx0), bound);
}

TEST(CudaCausalConv1d, MatchesTheCpuBodyForEachNumberOfTaps) {
  for (DType dtype : kCudaTypes) {
    for (int64_t taps = 1; taps <= 8; ++taps) {
      for (const Shape& full :
           {Shape{1, 1, 1}, Shape{2, 2, 5}, Shape{2, 7, 72}, Shape{1, 33, 264}}) {
        for (bool states : {true, false}) {
          for (bool silu : {false, true}) Compare(dtype, full, taps, states, silu);
        }
      }
    }
  }
}

// Over the seams of spans and blocks, in whole and broken groups of tokens. Many sequences have
// longer spans.
TEST(CudaCausalConv1d, MatchesTheCpuBodyOverManySpans) {
  for (DType dtype : kCudaTypes) {
    for (int64_t taps : {4, 7}) {
      for (const Shape& full : {Shape{2, 256, 130}, Shape{1, 600, 1032}, Shape{3, 261, 77},
                                Shape{140, 600, 9}, Shape{210, 601, 12}}) {
        for (bool silu : {false, true}) Compare(dtype, full, taps, true, silu);
      }
    }
  }
}

TEST(CudaCausalConv1d, SameBitsInEachRun) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    const Case c(dtype, 3, 700, 264, 4, /*with_silu=*/true, random);
    const Results first = c.Cuda(true), second = c.Cuda(true);
    EXPECT_TRUE(BitwiseEqual(first.y.tensor, second.y.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dx.tensor, second.dx.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dx0.tensor, second.dx0.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dweight.tensor, second.dweight.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dbias.tensor, second.dbias.tensor));
    EXPECT_TRUE(BitwiseEqual(first.dx_sum.tensor, second.dx_sum.tensor));
  }
}

// Without it, all else has the same bits.
TEST(CudaCausalConv1d, SumOfInputGradientsIsOptional) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (bool silu : {false, true}) {
      const Case c(dtype, 2, 300, 77, 4, silu, random);
      const Results with = c.Cuda(true), without = c.Cuda(true, /*summed=*/false);
      EXPECT_TRUE(BitwiseEqual(without.dx.tensor, with.dx.tensor));
      EXPECT_TRUE(BitwiseEqual(without.dweight.tensor, with.dweight.tensor));
      EXPECT_TRUE(BitwiseEqual(without.dbias.tensor, with.dbias.tensor));
      EXPECT_TRUE(
          BitwiseEqual(without.dx_sum.tensor, Rounded(c.dx_sum.tensor, DType::kF32).tensor));
    }
  }
}

TEST(CudaCausalConv1d, RejectsWrongTypes) {
  const OwnedTensor x = ZeroCuda(DType::kBF16, {1, 3, 8}), y = ZeroCuda(DType::kBF16, {1, 3, 8});
  const OwnedTensor weight = ZeroCuda(DType::kBF16, {4, 8}), bias = ZeroCuda(DType::kBF16, {8});
  const OwnedTensor positions = ZeroCuda(DType::kI32, {1, 3});
  const OwnedTensor wrong = ZeroCuda(DType::kF32, {1, 3, 8});
  const OwnedTensor wrong_state = ZeroCuda(DType::kF32, {1, 3, 8});
  const CausalConv1dForwardArgs good{.x = x.tensor,
                                     .weight = weight.tensor,
                                     .bias = bias.tensor,
                                     .positions = positions.tensor,
                                     .y = y.tensor};
  EXPECT_NO_THROW(CausalConv1dForward(good));
  CausalConv1dForwardArgs bad = good;
  bad.y = wrong.tensor;
  EXPECT_THROW(CausalConv1dForward(bad), Error);
  bad = good;
  bad.x0 = wrong_state.tensor;
  EXPECT_THROW(CausalConv1dForward(bad), Error);
}

}  // namespace
}  // namespace eyrie
