// CUDA bodies of AdamW and the sum of squares against the CPU's in float64.
#include "kernels/adamw/adamw.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

// What a step reads and writes, on one device.
struct State {
  OwnedTensor param, grad, m, v, copy, decays;

  // From element `begin` on.
  void Step(AdamWArgs args, int64_t begin, bool with_copy) const {
    const auto part = [&](const OwnedTensor& t) { return t.tensor.Rows(begin, t.tensor.dim(0)); };
    args.param = part(param);
    args.grad = part(grad);
    args.m = part(m);
    args.v = part(v);
    args.copy = with_copy ? part(copy) : Tensor{};
    args.decays = decays.tensor.Rows(0, DecayWords(args.param.size()));
    AdamW(args);
  }
};

// `moments` is the type of m and v. Vectors fit where begin = 0.
void Compare(int64_t size, int64_t begin, DType moments, DType copies, bool with_copy,
             TestRandom& random) {
  SCOPED_TRACE(StrCat("n ", size, " from ", begin, " moments ", Name(moments), " copies ",
                      Name(copies), " ", with_copy));
  const AdamWArgs args{.rate = random.Uniform(1e-2, 1e-1),
                       .beta1 = random.Uniform(0.5, 0.95),
                       .beta2 = random.Uniform(0.9, 0.999),
                       .weight_decay = random.Uniform(0, 0.2),
                       .grad_scale = random.Uniform(0.1, 1),
                       .step = random.Int(1, 9)};
  const OwnedTensor param = RandomTensor(DType::kF32, {size}, random);
  const OwnedTensor grad = RandomTensor(DType::kF32, {size}, random);
  const OwnedTensor m = RandomTensor(DType::kF32, {size}, random);
  const OwnedTensor v = RandomTensor(DType::kF32, {size}, random);
  for (int64_t i = 0; i < size; ++i) Set(v.tensor, i, 0.5 + std::abs(Get(v.tensor, i)));
  const OwnedTensor decays(DType::kI32, {DecayWords(size)});
  for (int64_t word = 0; word < DecayWords(size); ++word) {
    decays.tensor.data<int32_t>()[word] = static_cast<int32_t>(random.Int(-1 << 30, 1 << 30));
  }
  const State here{Cast(param.tensor, DType::kF64),     Cast(grad.tensor, DType::kF64),
                   Rounded(m.tensor, moments),          Rounded(v.tensor, moments),
                   PoisonedTensor(DType::kF64, {size}), Clone(decays.tensor)};
  const State there{ToCuda(param.tensor),         ToCuda(grad.tensor),
                    ToCuda(m.tensor, moments),    ToCuda(v.tensor, moments),
                    PoisonedCuda(copies, {size}), ToCuda(decays.tensor)};
  here.Step(args, begin, with_copy);
  there.Step(args, begin, with_copy);
  // The moments are rounded where they are stored, after the parameter has moved by them.
  const OwnedTensor moved = ToHost(there.param.tensor);
  EXPECT_LT(RelativeError(moved.tensor, here.param.tensor), 1e-6);
  EXPECT_LT(RelativeError(ToHost(there.m.tensor).tensor, here.m.tensor), Tolerance(moments));
  EXPECT_LT(RelativeError(ToHost(there.v.tensor).tensor, here.v.tensor), Tolerance(moments));
  const OwnedTensor copy = ToHost(there.copy.tensor);
  int64_t wrong = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double value = Get(copy.tensor, i);
    if (!with_copy || i < begin) {
      wrong += std::isnan(value) ? 0 : 1;
    } else {
      // Rounded to nearest even, bit for bit.
      wrong += value == Get(Rounded(moved.tensor.Rows(i, i + 1), copies).tensor, 0) ? 0 : 1;
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST(CudaAdamW, MatchesTheCpu) {
  TestRandom random;
  for (int64_t size : {2, 7, 130, 20011}) {
    for (int64_t begin : {0, 1}) {
      for (DType moments : kCudaTypes) {
        for (DType copies : kCudaTypes) {
          for (bool with_copy : {false, true}) {
            Compare(size, begin, moments, copies, with_copy, random);
          }
        }
      }
    }
  }
}

TEST(CudaAdamW, RefusesWrongTypes) {
  const OwnedTensor wide = ZeroCuda(DType::kF32, {4}), narrow = ZeroCuda(DType::kBF16, {4});
  const auto step = [&](const OwnedTensor& param, const OwnedTensor& m, const OwnedTensor& v) {
    AdamW({.param = param.tensor, .grad = param.tensor, .m = m.tensor, .v = v.tensor});
  };
  EXPECT_NO_THROW(step(wide, wide, wide));
  EXPECT_THROW(step(narrow, wide, wide), Error);
  EXPECT_THROW(step(wide, narrow, wide), Error);
}

TEST(CudaSumOfSquares, MatchesTheCpu) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (int64_t size : {1, 7, 8192, 100003, 9000001}) {
      SCOPED_TRACE(StrCat(Name(dtype), " size ", size));
      const OwnedTensor values = RandomTensor(dtype, {size}, random);
      const OwnedTensor there = ToCuda(values.tensor);
      // From the start of the memory, and from where vectors do not fit.
      for (int64_t begin : {0, 1}) {
        const Tensor part = there.tensor.Rows(begin, size);
        const OwnedTensor exact = Cast(values.tensor.Rows(begin, size), DType::kF64);
        const OwnedTensor expected(DType::kF64, {1});
        SumOfSquares(exact.tensor, expected.tensor, {});
        const OwnedTensor workspace = PoisonedCuda(DType::kF32, {SumOfSquaresWorkspace(part)});
        const OwnedTensor one = ZeroCuda(DType::kF64, {1});
        SumOfSquares(part, one.tensor, workspace.tensor);
        EXPECT_LT(RelativeError(ToHost(one.tensor).tensor, expected.tensor), 1e-12);
        const double once = Get(ToHost(one.tensor).tensor, 0);
        SumOfSquares(part, one.tensor, workspace.tensor);  // it is added to, the same bits
        EXPECT_EQ(Get(ToHost(one.tensor).tensor, 0), 2 * once);
      }
    }
  }
}

}  // namespace
}  // namespace eyrie
