// CUDA bodies of the gated linear unit against the CPU's in float64.
#include "kernels/glu/glu.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

struct Outputs {
  OwnedTensor out, dgate, dvalue;
};

TEST(CudaGlu, MatchesTheCpu) {
  TestRandom random;
  std::vector<std::pair<DType, Activation>> cases;
  for (DType dtype : kCudaTypes) {
    for (const Activation activation :
         {Activation::kGeluTanh, Activation::kGeluErf, Activation::kSilu, Activation::kSigmoid,
          Activation::kNone}) {
      cases.emplace_back(dtype, activation);
    }
  }
  for (const auto& [dtype, activation] : cases) {
    for (int64_t size : {1, 7, 33, 2048, 100003}) {
      SCOPED_TRACE(
          StrCat(Name(dtype), " activation ", static_cast<int>(activation), " size ", size));
      const OwnedTensor gate = RandomTensor(DType::kF32, {size}, random, 2);
      const OwnedTensor value = RandomTensor(DType::kF32, {size}, random);
      const OwnedTensor dout = RandomTensor(DType::kF32, {size}, random);
      const auto run = [&](const OwnedTensor& g, const OwnedTensor& v, const OwnedTensor& d,
                           Outputs& to) {
        GluForward(
            {.activation = activation, .gate = g.tensor, .value = v.tensor, .out = to.out.tensor});
        GluBackward({.activation = activation,
                     .gate = g.tensor,
                     .value = v.tensor,
                     .dout = d.tensor,
                     .dgate = to.dgate.tensor,
                     .dvalue = to.dvalue.tensor});
      };
      Outputs expected{PoisonedTensor(DType::kF64, {size}), PoisonedTensor(DType::kF64, {size}),
                       PoisonedTensor(DType::kF64, {size})};
      run(Rounded(gate.tensor, dtype), Rounded(value.tensor, dtype), Rounded(dout.tensor, dtype),
          expected);
      const OwnedTensor g = ToCuda(gate.tensor, dtype), v = ToCuda(value.tensor, dtype);
      const OwnedTensor d = ToCuda(dout.tensor, dtype);
      Outputs there{PoisonedCuda(dtype, {size}), PoisonedCuda(dtype, {size}),
                    PoisonedCuda(dtype, {size})};
      run(g, v, d, there);
      const double tolerance = Tolerance(dtype);
      const OwnedTensor dvalue = ToHost(there.dvalue.tensor);
      EXPECT_LT(RelativeError(ToHost(there.out.tensor).tensor, expected.out.tensor), tolerance);
      EXPECT_LT(RelativeError(ToHost(there.dgate.tensor).tensor, expected.dgate.tensor), tolerance);
      EXPECT_LT(RelativeError(dvalue.tensor, expected.dvalue.tensor), tolerance);

      // In place of dout, the same bits.
      GluBackward({.activation = activation,
                   .gate = g.tensor,
                   .value = v.tensor,
                   .dout = d.tensor,
                   .dgate = there.dgate.tensor,
                   .dvalue = d.tensor});
      EXPECT_TRUE(BitwiseEqual(ToHost(d.tensor).tensor, dvalue.tensor));
    }
  }
}

TEST(CudaGlu, LargeGatesSaturate) {
  const OwnedTensor gate(DType::kF32, {2}), one(DType::kF32, {2});
  Set(gate.tensor, 0, 1000);
  Set(gate.tensor, 1, -1000);
  Set(one.tensor, 0, 1);
  Set(one.tensor, 1, 1);
  const OwnedTensor g = ToCuda(gate.tensor), v = ToCuda(one.tensor);
  const OwnedTensor out = PoisonedCuda(DType::kF32, {2}), dgate = PoisonedCuda(DType::kF32, {2});
  const OwnedTensor dvalue = PoisonedCuda(DType::kF32, {2});
  GluForward({.gate = g.tensor, .value = v.tensor, .out = out.tensor});
  GluBackward({.gate = g.tensor,
               .value = v.tensor,
               .dout = v.tensor,
               .dgate = dgate.tensor,
               .dvalue = dvalue.tensor});
  for (int i : {0, 1}) {
    EXPECT_EQ(Get(ToHost(out.tensor).tensor, i), i == 0 ? 1000 : 0);
    EXPECT_EQ(Get(ToHost(dgate.tensor).tensor, i), i == 0 ? 1 : 0);
    EXPECT_EQ(Get(ToHost(dvalue.tensor).tensor, i), i == 0 ? 1000 : 0);
  }
}

TEST(CudaGlu, RefusesWrongTypes) {
  const OwnedTensor wide = ZeroCuda(DType::kF32, {5}), narrow = ZeroCuda(DType::kBF16, {5});
  EXPECT_THROW(GluForward({.gate = wide.tensor, .value = narrow.tensor, .out = wide.tensor}),
               Error);
}

}  // namespace
}  // namespace eyrie
