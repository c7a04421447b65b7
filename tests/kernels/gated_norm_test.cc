#include "kernels/gated_norm/gated_norm.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

constexpr double kEpsilon = 1e-2;  // large enough for its place to matter

struct Case {
  Case(DType dtype, Shape shape, TestRandom& random)
      : x(RandomTensor(dtype, shape, random)),
        gate(RandomTensor(dtype, shape, random)),
        dout(RandomTensor(dtype, shape, random)) {
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : x(Cast(other.x.tensor, dtype)),
        gate(Cast(other.gate.tensor, dtype)),
        dout(Cast(other.dout.tensor, dtype)) {
    PrepareOutputs();
  }
  void PrepareOutputs() {
    const DType dtype = x.tensor.dtype;
    const Shape rows{x.tensor.size() / x.tensor.dim(-1), 1};
    for (OwnedTensor* sums : {&squares, &along}) *sums = PoisonedTensor(dtype, rows);
    for (OwnedTensor* output : {&out, &dx, &dgate}) {
      *output = PoisonedTensor(dtype, x.tensor.shape);
    }
  }
  // `parts` ranks would hold as many columns, with the same squares.
  void Forward(int64_t parts = 1) {
    RowProducts({.a = x.tensor, .b = x.tensor, .sums = squares.tensor});
    Scale(squares.tensor, parts);
    GatedNormForward({.x = x.tensor,
                      .gate = gate.tensor,
                      .squares = squares.tensor,
                      .width = parts * x.tensor.dim(-1),
                      .epsilon = kEpsilon,
                      .out = out.tensor});
  }
  void Backward(int64_t parts = 1) {
    RowProducts({.a = dout.tensor, .b = gate.tensor, .c = x.tensor, .sums = along.tensor});
    Scale(along.tensor, parts);
    GatedNormBackward({.x = x.tensor,
                       .gate = gate.tensor,
                       .squares = squares.tensor,
                       .width = parts * x.tensor.dim(-1),
                       .epsilon = kEpsilon,
                       .along = along.tensor,
                       .dout = dout.tensor,
                       .dx = dx.tensor,
                       .dgate = dgate.tensor});
  }
  static void Scale(const Tensor& sums, int64_t factor) {
    for (int64_t i = 0; i < sums.size(); ++i) {
      Set(sums, i, static_cast<double>(factor) * Get(sums, i));
    }
  }
  std::vector<Tensor> outputs() const {
    return {squares.tensor, out.tensor, along.tensor, dx.tensor, dgate.tensor};
  }

  OwnedTensor x, gate, dout, squares, along, out, dx, dgate;
};

TEST(GatedNorm, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t rows : {1, 3, 200}) {
    for (int64_t width : {1, 5, 64, 130}) {
      SCOPED_TRACE(StrCat("N ", rows, " C ", width));
      Case c(DType::kF64, {rows, width}, random);
      c.Forward();
      OwnedTensor expected(DType::kF64, {rows, width});
      for (int64_t row = 0; row < rows; ++row) {
        double mean = 0;
        for (int64_t i = row * width; i < (row + 1) * width; ++i) {
          mean += std::pow(Get(c.x.tensor, i), 2) / static_cast<double>(width);
        }
        for (int64_t i = row * width; i < (row + 1) * width; ++i) {
          Set(expected.tensor, i,
              Get(c.gate.tensor, i) * Get(c.x.tensor, i) / std::sqrt(mean + kEpsilon));
        }
      }
      EXPECT_LT(RelativeError(c.out.tensor, expected.tensor), 1e-13);
    }
  }
}

TEST(GatedNorm, GradientsMatchFiniteDifferences) {
  TestRandom random;
  Case c(DType::kF64, {2, 3, 17}, random);
  const auto loss = [&] {
    c.Forward();
    return Dot(c.out.tensor, c.dout.tensor);
  };
  c.Forward();
  c.Backward();
  EXPECT_LT(NumericGradientCheck(loss, c.x.tensor, c.dx.tensor, random), 1e-8);
  EXPECT_LT(NumericGradientCheck(loss, c.gate.tensor, c.dgate.tensor, random), 1e-8);
}

// A row that holds the same columns twice, halved: each half has the results of the whole.
TEST(GatedNorm, RowsMayBeCut) {
  TestRandom random;
  Case half(DType::kF64, {7, 9}, random), whole(DType::kF64, {7, 18}, random);
  for (int64_t i = 0; i < whole.x.tensor.size(); ++i) {
    const int64_t from = i / 18 * 9 + i % 9;
    Set(whole.x.tensor, i, Get(half.x.tensor, from));
    Set(whole.gate.tensor, i, Get(half.gate.tensor, from));
    Set(whole.dout.tensor, i, Get(half.dout.tensor, from));
  }
  half.Forward(2);
  half.Backward(2);
  whole.Forward();
  whole.Backward();
  for (int64_t i = 0; i < whole.x.tensor.size(); ++i) {
    const int64_t from = i / 18 * 9 + i % 9;
    EXPECT_NEAR(Get(whole.out.tensor, i), Get(half.out.tensor, from), 1e-13);
    EXPECT_NEAR(Get(whole.dx.tensor, i), Get(half.dx.tensor, from), 1e-13);
    EXPECT_NEAR(Get(whole.dgate.tensor, i), Get(half.dgate.tensor, from), 1e-13);
  }
}

TEST(GatedNorm, FloatAgreesWithDouble) {
  TestRandom random;
  Case wide(DType::kF64, {33, 130}, random), narrow(wide, DType::kF32);
  for (Case* c : {&wide, &narrow}) {
    c->Forward();
    c->Backward();
  }
  for (size_t i = 0; i < wide.outputs().size(); ++i) {
    EXPECT_LT(RelativeError(narrow.outputs()[i], wide.outputs()[i]), 1e-5) << "output " << i;
  }
}

TEST(GatedNorm, RejectsWrongShapes) {
  TestRandom random;
  Case c(DType::kF32, {7, 9}, random);
  c.gate = OwnedTensor(DType::kF32, {7, 8});
  EXPECT_THROW(c.Forward(), Error);
  Case d(DType::kF32, {7, 9}, random);
  d.squares = OwnedTensor(DType::kF32, {8});
  EXPECT_THROW(d.Forward(), Error);
  Case e(DType::kF32, {7, 9}, random);
  e.Forward();
  EXPECT_THROW(
      GatedNormForward({e.x.tensor, e.gate.tensor, e.squares.tensor, 8, 1e-6, e.out.tensor}),
      Error);
}

}  // namespace
}  // namespace eyrie
