#include "kernels/mlstm/mlstm_gates.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

struct Case {
  Case(DType dtype, Shape shape, TestRandom& random, double spread)
      : i(RandomTensor(dtype, shape, random, spread)),
        f(RandomTensor(dtype, shape, random, spread)),
        bias_i(RandomTensor(dtype, {shape[-1]}, random)),
        bias_f(RandomTensor(dtype, {shape[-1]}, random)),
        dlog_i(RandomTensor(dtype, shape, random)),
        dlog_f(RandomTensor(dtype, shape, random)) {
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : i(Cast(other.i.tensor, dtype)),
        f(Cast(other.f.tensor, dtype)),
        bias_i(Cast(other.bias_i.tensor, dtype)),
        bias_f(Cast(other.bias_f.tensor, dtype)),
        dlog_i(Cast(other.dlog_i.tensor, dtype)),
        dlog_f(Cast(other.dlog_f.tensor, dtype)),
        input(other.input),
        forget(other.forget),
        soft_cap(other.soft_cap) {
    PrepareOutputs();
  }
  void PrepareOutputs() {
    const DType dtype = i.tensor.dtype;
    for (OwnedTensor* output : {&log_i, &log_f, &di, &df}) {
      *output = PoisonedTensor(dtype, i.tensor.shape);
    }
    dbias_i = OwnedTensor(dtype, bias_i.tensor.shape);
    dbias_f = OwnedTensor(dtype, bias_i.tensor.shape);
  }
  void Forward() const {
    MlstmGatesForward({.i = i.tensor,
                       .f = f.tensor,
                       .bias_i = bias_i.tensor,
                       .bias_f = bias_f.tensor,
                       .input = input,
                       .forget = forget,
                       .soft_cap = soft_cap,
                       .log_i = log_i.tensor,
                       .log_f = log_f.tensor});
  }
  void Backward() const {
    MlstmGatesBackward({.i = i.tensor,
                        .f = f.tensor,
                        .bias_i = bias_i.tensor,
                        .bias_f = bias_f.tensor,
                        .input = input,
                        .forget = forget,
                        .soft_cap = soft_cap,
                        .dlog_i = dlog_i.tensor,
                        .dlog_f = dlog_f.tensor,
                        .di = di.tensor,
                        .df = df.tensor,
                        .dbias_i = dbias_i.tensor,
                        .dbias_f = dbias_f.tensor});
  }
  std::vector<Tensor> outputs() const {
    return {log_i.tensor, log_f.tensor, di.tensor, df.tensor, dbias_i.tensor, dbias_f.tensor};
  }

  OwnedTensor i, f, bias_i, bias_f, dlog_i, dlog_f;
  MlstmGate input = MlstmGate::kExponential, forget = MlstmGate::kSigmoid;
  double soft_cap = 0;
  OwnedTensor log_i, log_f, di, df, dbias_i, dbias_f;
};

double Expected(double x, MlstmGate gate, double cap) {
  const double y = cap > 0 ? cap * std::tanh(x / cap) : x;
  if (gate == MlstmGate::kExponential) return y;
  return y < -700 ? y : -std::log1p(std::exp(-y));
}

TEST(MlstmGates, MatchTheFormula) {
  TestRandom random;
  for (const double cap : {0.0, 15.0}) {
    for (const MlstmGate gate : {MlstmGate::kExponential, MlstmGate::kSigmoid}) {
      for (const Shape& shape : {Shape{1, 1}, Shape{3, 7, 5}, Shape{2, 3000, 4}}) {
        Case c(DType::kF64, shape, random, 10);
        c.soft_cap = cap;
        c.input = gate;
        c.Forward();
        const OwnedTensor log_i(DType::kF64, shape), log_f(DType::kF64, shape);
        for (int64_t i = 0; i < shape.size(); ++i) {
          const int64_t head = i % shape[-1];
          Set(log_i.tensor, i,
              Expected(Get(c.i.tensor, i) + Get(c.bias_i.tensor, head), gate, cap));
          Set(log_f.tensor, i,
              Expected(Get(c.f.tensor, i) + Get(c.bias_f.tensor, head), MlstmGate::kSigmoid, cap));
        }
        EXPECT_LT(RelativeError(c.log_i.tensor, log_i.tensor), 1e-14);
        EXPECT_LT(RelativeError(c.log_f.tensor, log_f.tensor), 1e-14);
      }
    }
  }
}

TEST(MlstmGates, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (const double cap : {0.0, 3.0}) {
    for (const MlstmGate input : {MlstmGate::kExponential, MlstmGate::kSigmoid}) {
      Case c(DType::kF64, {2, 9, 3}, random, 2);
      c.soft_cap = cap;
      c.input = input;
      c.forget = input == MlstmGate::kSigmoid ? MlstmGate::kExponential : MlstmGate::kSigmoid;
      const auto loss = [&] {
        c.Forward();
        return Dot(c.log_i.tensor, c.dlog_i.tensor) + Dot(c.log_f.tensor, c.dlog_f.tensor);
      };
      c.Backward();
      EXPECT_LT(NumericGradientCheck(loss, c.i.tensor, c.di.tensor, random), 1e-9);
      EXPECT_LT(NumericGradientCheck(loss, c.f.tensor, c.df.tensor, random), 1e-9);
      EXPECT_LT(NumericGradientCheck(loss, c.bias_i.tensor, c.dbias_i.tensor, random), 1e-9);
      EXPECT_LT(NumericGradientCheck(loss, c.bias_f.tensor, c.dbias_f.tensor, random), 1e-9);
      // Gradients of biases are added to.
      const OwnedTensor once = Clone(c.dbias_f.tensor);
      c.Backward();
      for (int64_t i = 0; i < once.tensor.size(); ++i) {
        EXPECT_EQ(Get(c.dbias_f.tensor, i), 2 * Get(once.tensor, i));
      }
    }
  }
}

// A log-sigmoid of -200 is -200, not minus infinity, and one of 50 not yet 0.
TEST(MlstmGates, FloatKeepsTheExtremes) {
  TestRandom random;
  Case c(DType::kF32, {4, 1}, random, 1);
  FillZero(c.bias_f.tensor);
  const double inputs[] = {-200, -50, 50, 80};
  for (int64_t i = 0; i < 4; ++i) Set(c.f.tensor, i, inputs[i]);
  c.Forward();
  c.Backward();
  EXPECT_EQ(Get(c.log_f.tensor, 0), -200);
  EXPECT_EQ(Get(c.log_f.tensor, 1), -50);
  for (int64_t i = 2; i < 4; ++i) {
    EXPECT_NEAR(Get(c.log_f.tensor, i) / -std::exp(-inputs[i]), 1, 1e-5);
  }
  EXPECT_EQ(Get(c.df.tensor, 0), Get(c.dlog_f.tensor, 0));
  EXPECT_NEAR(Get(c.df.tensor, 2), 0, 1e-20);
}

TEST(MlstmGates, FloatAgreesWithDouble) {
  TestRandom random;
  Case narrow(DType::kF32, {2, 2000, 6}, random, 4);
  narrow.soft_cap = 15;
  const Case wide(narrow, DType::kF64);
  for (const Case* c : std::initializer_list<const Case*>{&narrow, &wide}) {
    c->Forward();
    c->Backward();
  }
  for (size_t i = 0; i < wide.outputs().size(); ++i) {
    EXPECT_LT(RelativeError(narrow.outputs()[i], wide.outputs()[i]), 2e-6) << "output " << i;
  }
}

TEST(MlstmGates, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  const Case one(DType::kF32, {2, 3001, 5}, random, 4), three(one, DType::kF32);
  for (const auto& [threads, c] : {std::pair{1, &one}, {3, &three}}) {
    WithThreads(threads, [run = c] {
      run->Forward();
      run->Backward();
    });
  }
  for (size_t i = 0; i < one.outputs().size(); ++i) {
    EXPECT_TRUE(BitwiseEqual(one.outputs()[i], three.outputs()[i])) << "output " << i;
  }
}

TEST(MlstmGates, RejectsWhatDoesNotFit) {
  TestRandom random;
  const Case good(DType::kF32, {2, 5, 3}, random, 1);
  const auto refused = [&](const std::function<void(Case&)>& spoil) {
    Case c(good, DType::kF32);
    spoil(c);
    EXPECT_THROW(c.Forward(), Error);
    EXPECT_THROW(c.Backward(), Error);
  };
  refused([](Case& c) { c.f = OwnedTensor(DType::kF32, {2, 5, 4}); });
  refused([](Case& c) { c.f = OwnedTensor(DType::kF64, {2, 5, 3}); });
  refused([](Case& c) { c.bias_i = OwnedTensor(DType::kF32, {2}); });
  refused([](Case& c) { c.bias_f = OwnedTensor(DType::kF64, {3}); });
  refused([](Case& c) { c.soft_cap = -1; });
}

}  // namespace
}  // namespace eyrie
