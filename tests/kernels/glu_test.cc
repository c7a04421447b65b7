#include "kernels/glu/glu.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

constexpr Activation kAct = Activation::kGeluTanh;

struct Case {
  Case(DType dtype, Shape shape, TestRandom& random)
      : gate(RandomTensor(dtype, shape, random, 2)),
        value(RandomTensor(dtype, shape, random)),
        dout(RandomTensor(dtype, shape, random)) {
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : gate(Cast(other.gate.tensor, dtype)),
        value(Cast(other.value.tensor, dtype)),
        dout(Cast(other.dout.tensor, dtype)) {
    PrepareOutputs();
  }
  void PrepareOutputs() {
    for (OwnedTensor* output : {&out, &dgate, &dvalue}) {
      *output = PoisonedTensor(gate.tensor.dtype, gate.tensor.shape);
    }
  }
  void Forward() { GluForward({kAct, gate.tensor, value.tensor, out.tensor}); }
  void Backward() {
    GluBackward({kAct, gate.tensor, value.tensor, dout.tensor, dgate.tensor, dvalue.tensor});
  }
  OwnedTensor gate, value, dout, out, dgate, dvalue;
};

double GeluTanhReference(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

TEST(Glu, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t size : {1, 2, 7, 33, 130, 20001}) {
    SCOPED_TRACE(StrCat("size ", size));
    Case c(DType::kF64, {size}, random);
    c.Forward();
    // Absolute: the reference's 1 + tanh cancels for gates far below zero.
    for (int64_t i = 0; i < size; ++i) {
      const double gelu = GeluTanhReference(Get(c.gate.tensor, i));
      EXPECT_NEAR(Get(c.out.tensor, i), gelu * Get(c.value.tensor, i), 1e-13);
    }
  }
}

TEST(Glu, FloatAgreesWithDouble) {
  TestRandom random;
  Case wide(DType::kF64, {3, 33, 130}, random);
  Case narrow(wide, DType::kF32);
  for (Case* c : {&wide, &narrow}) {
    c->Forward();
    c->Backward();
  }
  EXPECT_LT(RelativeError(narrow.out.tensor, wide.out.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.dgate.tensor, wide.dgate.tensor), 2e-6);
  EXPECT_LT(RelativeError(narrow.dvalue.tensor, wide.dvalue.tensor), 1e-6);
}

TEST(Glu, GradientsMatchFiniteDifferences) {
  TestRandom random;
  Case c(DType::kF64, {3, 130}, random);
  c.Forward();
  c.Backward();
  const auto loss = [&] {
    c.Forward();
    return Dot(c.dout.tensor, c.out.tensor);
  };
  EXPECT_LT(NumericGradientCheck(loss, c.gate.tensor, c.dgate.tensor, random), 1e-6);
  EXPECT_LT(NumericGradientCheck(loss, c.value.tensor, c.dvalue.tensor, random), 1e-6);
}

TEST(Glu, LargeGatesSaturate) {
  TestRandom random;
  Case c(DType::kF32, {2, 16}, random);
  for (int64_t i = 0; i < 32; ++i) {
    Set(c.gate.tensor, i, i % 2 == 0 ? 1000 : -1000);
    Set(c.value.tensor, i, 1);
    Set(c.dout.tensor, i, 1);
  }
  c.Forward();
  c.Backward();
  for (int64_t i = 0; i < 32; ++i) {
    EXPECT_EQ(Get(c.out.tensor, i), i % 2 == 0 ? 1000 : 0);
    EXPECT_EQ(Get(c.dgate.tensor, i), i % 2 == 0 ? 1 : 0);
  }
}

TEST(Glu, ValueGradientMayReplaceTheOutputGradient) {
  TestRandom random;
  Case c(DType::kF32, {33, 130}, random);
  c.Backward();
  const OwnedTensor dgate = Clone(c.dgate.tensor);
  GluBackward({kAct, c.gate.tensor, c.value.tensor, c.dout.tensor, c.dgate.tensor, c.dout.tensor});
  EXPECT_TRUE(BitwiseEqual(c.dout.tensor, c.dvalue.tensor));
  EXPECT_TRUE(BitwiseEqual(c.dgate.tensor, dgate.tensor));
}

TEST(Glu, SumsTheRowsOfItsGradients) {
  TestRandom random;
  for (const Shape& shape :
       {Shape{1}, Shape{7}, Shape{3, 5}, Shape{2, 77, 33}, Shape{301, 130}, Shape{3, 4099}}) {
    for (const DType dtype : {DType::kF32, DType::kF64}) {
      SCOPED_TRACE(StrCat(shape.ToString(), " ", Name(dtype)));
      Case c(dtype, shape, random);
      c.Backward();
      const OwnedTensor dgate = Clone(c.dgate.tensor), dvalue = Clone(c.dvalue.tensor);
      const OwnedTensor before = RandomTensor(dtype, {shape[-1]}, random);
      OwnedTensor dgate_sum = Clone(before.tensor), dvalue_sum = Clone(before.tensor);
      OwnedTensor alone[2] = {Clone(before.tensor), Clone(before.tensor)};
      const auto run = [&](const Tensor& of_gate, const Tensor& of_value) {
        c.PrepareOutputs();
        const GluBackwardArgs args{.activation = kAct,
                                   .gate = c.gate.tensor,
                                   .value = c.value.tensor,
                                   .dout = c.dout.tensor,
                                   .dgate = c.dgate.tensor,
                                   .dvalue = c.dvalue.tensor,
                                   .dgate_sum = of_gate,
                                   .dvalue_sum = of_value};
        EXPECT_EQ(GluBackwardWorkspace(args), 0);
        GluBackward(args);
        EXPECT_TRUE(BitwiseEqual(c.dgate.tensor, dgate.tensor));
        EXPECT_TRUE(BitwiseEqual(c.dvalue.tensor, dvalue.tensor));
      };
      WithThreads(2, [&] { run(dgate_sum.tensor, dvalue_sum.tensor); });
      WithThreads(1, [&] {
        run(alone[0].tensor, {});
        run({}, alone[1].tensor);
      });
      EXPECT_TRUE(BitwiseEqual(alone[0].tensor, dgate_sum.tensor));
      EXPECT_TRUE(BitwiseEqual(alone[1].tensor, dvalue_sum.tensor));
      for (const auto& [rows, sum] :
           {std::pair{&dgate, &dgate_sum}, std::pair{&dvalue, &dvalue_sum}}) {
        const OwnedTensor expected = PlusRows(before.tensor, rows->tensor);
        EXPECT_LT(RelativeError(sum->tensor, expected.tensor), dtype == DType::kF32 ? 1e-5 : 1e-13);
      }
    }
  }
}

TEST(Glu, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  Case one(DType::kF32, {301, 130}, random);
  Case two(one, DType::kF32);
  WithThreads(1, [&] {
    one.Forward();
    one.Backward();
  });
  WithThreads(2, [&] {
    two.Forward();
    two.Backward();
  });
  EXPECT_TRUE(BitwiseEqual(one.out.tensor, two.out.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dgate.tensor, two.dgate.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dvalue.tensor, two.dvalue.tensor));
}

TEST(Glu, OtherActivationsMatchReferencesAndFiniteDifferences) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const std::pair<Activation, std::function<double(double)>> activations[] = {
      {Activation::kGeluErf, [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }},
      {Activation::kSilu, [&](double x) { return x * sigmoid(x); }},
      {Activation::kSigmoid, sigmoid},
  };
  TestRandom random;
  for (const auto& [activation, reference] : activations) {
    SCOPED_TRACE(StrCat("activation ", static_cast<int>(activation)));
    Case wide(DType::kF64, {3, 33, 7}, random);
    Case narrow(wide, DType::kF32);
    for (Case* c : {&wide, &narrow}) {
      GluForward({activation, c->gate.tensor, c->value.tensor, c->out.tensor});
      GluBackward({activation, c->gate.tensor, c->value.tensor, c->dout.tensor, c->dgate.tensor,
                   c->dvalue.tensor});
    }
    for (int64_t i = 0; i < wide.out.tensor.size(); ++i) {
      const double expected = reference(Get(wide.gate.tensor, i)) * Get(wide.value.tensor, i);
      EXPECT_NEAR(Get(wide.out.tensor, i), expected, 1e-13);
    }
    EXPECT_LT(RelativeError(narrow.out.tensor, wide.out.tensor), 1e-6);
    EXPECT_LT(RelativeError(narrow.dgate.tensor, wide.dgate.tensor), 2e-6);
    EXPECT_LT(RelativeError(narrow.dvalue.tensor, wide.dvalue.tensor), 1e-6);
    const auto loss = [&] {
      GluForward({activation, wide.gate.tensor, wide.value.tensor, wide.out.tensor});
      return Dot(wide.dout.tensor, wide.out.tensor);
    };
    EXPECT_LT(NumericGradientCheck(loss, wide.gate.tensor, wide.dgate.tensor, random), 1e-6);
    EXPECT_LT(NumericGradientCheck(loss, wide.value.tensor, wide.dvalue.tensor, random), 1e-6);
  }
}

TEST(Glu, WithoutAnActivationIsAProduct) {
  TestRandom random;
  Case c(DType::kF32, {3, 33}, random);
  GluForward({Activation::kNone, c.gate.tensor, c.value.tensor, c.out.tensor});
  GluBackward({Activation::kNone, c.gate.tensor, c.value.tensor, c.dout.tensor, c.dgate.tensor,
               c.dvalue.tensor});
  const auto product = [&](const OwnedTensor& a, const OwnedTensor& b, int64_t i) {
    return static_cast<double>(a.tensor.data<float>()[i] * b.tensor.data<float>()[i]);
  };
  for (int64_t i = 0; i < c.out.tensor.size(); ++i) {
    EXPECT_EQ(Get(c.out.tensor, i), product(c.gate, c.value, i));
    EXPECT_EQ(Get(c.dgate.tensor, i), product(c.dout, c.value, i));
    EXPECT_EQ(Get(c.dvalue.tensor, i), product(c.dout, c.gate, i));
  }
}

TEST(Glu, RejectsWrongShapes) {
  TestRandom random;
  Case c(DType::kF32, {3, 5}, random);
  OwnedTensor wrong(DType::kF32, {5, 3});
  EXPECT_THROW(GluForward({kAct, c.gate.tensor, wrong.tensor, c.out.tensor}), Error);
  OwnedTensor short_sum(DType::kF32, {3}), wide_sum(DType::kF64, {5});
  for (const OwnedTensor* sum : {&short_sum, &wide_sum}) {
    GluBackwardArgs args{kAct,          c.gate.tensor,  c.value.tensor,
                         c.dout.tensor, c.dgate.tensor, c.dvalue.tensor};
    args.dgate_sum = sum->tensor;
    EXPECT_THROW(GluBackward(args), Error);
    args.dgate_sum = {};
    args.dvalue_sum = sum->tensor;
    EXPECT_THROW(GluBackward(args), Error);
  }
}

}  // namespace
}  // namespace eyrie
