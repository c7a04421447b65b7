#include "kernels/gated_norm/gated_layer_norm.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

struct Case {
  static constexpr double kEpsilon = 1e-2;  // large enough for its place to matter

  Case(DType dtype, Shape shape, Activation act, bool skip_past, TestRandom& random)
      : activation(act), skips(skip_past) {
    const Shape group{shape[-2], shape[-1]};
    for (OwnedTensor* tensor : {&x, &s, &gate, &dout}) {
      *tensor = RandomTensor(dtype, shape, random);
    }
    for (OwnedTensor* tensor : {&weight, &skip}) *tensor = RandomTensor(dtype, group, random, 0.3);
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype) : activation(other.activation), skips(other.skips) {
    for (const auto which :
         {&Case::x, &Case::s, &Case::gate, &Case::dout, &Case::weight, &Case::skip}) {
      this->*which = Cast((other.*which).tensor, dtype);
    }
    PrepareOutputs();
  }
  void PrepareOutputs() {
    const DType dtype = x.tensor.dtype;
    const Shape statistics{x.tensor.size() / x.tensor.dim(-1)};
    for (OwnedTensor* tensor : {&mean, &rstd, &x_dx}) *tensor = PoisonedTensor(dtype, statistics);
    for (OwnedTensor* tensor : {&out, &dx, &ds, &dgate}) {
      *tensor = PoisonedTensor(dtype, x.tensor.shape);
    }
    for (OwnedTensor* tensor : {&dweight, &dskip})
      *tensor = OwnedTensor(dtype, weight.tensor.shape);
  }
  Tensor IfSkips(const OwnedTensor& tensor) const { return skips ? tensor.tensor : Tensor{}; }
  GatedLayerNormForwardArgs forward() const {
    return {.x = x.tensor,
            .weight = weight.tensor,
            .skip = IfSkips(skip),
            .s = IfSkips(s),
            .activation = activation,
            .gate = gate.tensor,
            .epsilon = kEpsilon,
            .out = out.tensor,
            .mean = mean.tensor,
            .rstd = rstd.tensor};
  }
  GatedLayerNormBackwardArgs backward() const {
    return {.x = x.tensor,
            .weight = weight.tensor,
            .skip = IfSkips(skip),
            .s = IfSkips(s),
            .activation = activation,
            .gate = gate.tensor,
            .mean = mean.tensor,
            .rstd = rstd.tensor,
            .dout = dout.tensor,
            .dx = dx.tensor,
            .ds = IfSkips(ds),
            .dgate = dgate.tensor,
            .x_dx = x_dx.tensor,
            .epsilon = kEpsilon,
            .dweight = dweight.tensor,
            .dskip = IfSkips(dskip)};
  }
  void Run() const {
    GatedLayerNormForward(forward());
    GatedLayerNormBackward(backward());
  }
  // All that is written.
  std::vector<Tensor> outputs() const {
    std::vector<Tensor> all = {out.tensor, mean.tensor,  rstd.tensor,
                               dx.tensor,  dgate.tensor, dweight.tensor};
    if (skips) all.insert(all.end(), {ds.tensor, dskip.tensor});
    return all;
  }

  Activation activation;
  bool skips;
  OwnedTensor x, weight, skip, s, gate, dout;
  OwnedTensor out, mean, rstd, x_dx, dx, ds, dgate, dweight, dskip;
};

// Calls body(activation, whether there is a skip) for each kind.
template <class Body>
void ForKinds(const Body& body) {
  for (const Activation activation : {Activation::kSilu, Activation::kSigmoid}) {
    for (const bool skips : {false, true}) {
      SCOPED_TRACE(StrCat(activation == Activation::kSilu ? "SiLU" : "sigmoid", " skip ", skips));
      body(activation, skips);
    }
  }
}

TEST(GatedLayerNorm, ForwardMatchesReference) {
  TestRandom random;
  ForKinds([&](Activation activation, bool skips) {
    for (const int64_t rows : {1, 3, 700}) {
      for (const int64_t groups : {1, 5}) {
        for (const int64_t width : {1, 17, 64, 130}) {
          SCOPED_TRACE(StrCat("N ", rows, " G ", groups, " D ", width));
          const Case c(DType::kF64, {rows, groups, width}, activation, skips, random);
          GatedLayerNormForward(c.forward());
          OwnedTensor expected(DType::kF64, {rows, groups, width});
          for (int64_t group = 0; group < rows * groups; ++group) {
            const int64_t first = group * width;
            double mean = 0, variance = 0;
            for (int64_t j = 0; j < width; ++j) mean += Get(c.x.tensor, first + j);
            mean /= static_cast<double>(width);
            for (int64_t j = 0; j < width; ++j) {
              variance += std::pow(Get(c.x.tensor, first + j) - mean, 2);
            }
            const double root = std::sqrt(variance / static_cast<double>(width) + Case::kEpsilon);
            EXPECT_NEAR(Get(c.mean.tensor, group), mean, 1e-13);
            EXPECT_NEAR(Get(c.rstd.tensor, group) * root, 1, 1e-13);
            for (int64_t j = 0; j < width; ++j) {
              const int64_t column = group % groups * width + j;
              const double z = Get(c.gate.tensor, first + j);
              double value =
                  (Get(c.x.tensor, first + j) - mean) / root * (1 + Get(c.weight.tensor, column));
              if (skips) value += Get(c.skip.tensor, column) * Get(c.s.tensor, first + j);
              const double act = (activation == Activation::kSilu ? z : 1) / (1 + std::exp(-z));
              Set(expected.tensor, first + j, value * act);
            }
          }
          EXPECT_LT(RelativeError(c.out.tensor, expected.tensor), 1e-13);
        }
      }
    }
  });
}

TEST(GatedLayerNorm, GradientsMatchFiniteDifferences) {
  TestRandom random;
  ForKinds([&](Activation activation, bool skips) {
    for (const int64_t groups : {1, 3}) {
      for (const int64_t width : {2, 5, 130}) {
        SCOPED_TRACE(StrCat("G ", groups, " D ", width));
        const Case c(DType::kF64, {7, 3, groups, width}, activation, skips, random);
        c.Run();
        const auto loss = [&] {
          GatedLayerNormForward(c.forward());
          return Dot(c.dout.tensor, c.out.tensor);
        };
        const auto check = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
          EXPECT_LT(NumericGradientCheck(loss, input.tensor, gradient.tensor, random), 1e-6);
        };
        check(c.x, c.dx);
        for (int64_t group = 0; group < c.x_dx.tensor.size(); ++group) {
          double product = 0;
          for (int64_t j = group * width; j < (group + 1) * width; ++j) {
            product += Get(c.x.tensor, j) * Get(c.dx.tensor, j);
          }
          EXPECT_NEAR(Get(c.x_dx.tensor, group), product, 1e-12 * static_cast<double>(width));
        }
        check(c.gate, c.dgate);
        check(c.weight, c.dweight);
        if (!skips) continue;
        check(c.s, c.ds);
        check(c.skip, c.dskip);
      }
    }
  });
}

TEST(GatedLayerNorm, FloatAgreesWithDouble) {
  TestRandom random;
  ForKinds([&](Activation activation, bool skips) {
    const Case wide(DType::kF64, {3, 33, 3, 130}, activation, skips, random);
    const Case narrow(wide, DType::kF32);
    wide.Run();
    narrow.Run();
    for (size_t i = 0; i < wide.outputs().size(); ++i) {
      EXPECT_LT(RelativeError(narrow.outputs()[i], wide.outputs()[i]), 3e-6) << "output " << i;
    }
  });
}

TEST(GatedLayerNorm, AGradientMayReplaceThatOfTheOutput) {
  TestRandom random;
  for (const auto which : {&GatedLayerNormBackwardArgs::dx, &GatedLayerNormBackwardArgs::ds,
                           &GatedLayerNormBackwardArgs::dgate}) {
    const Case c(DType::kF32, {33, 2, 65}, Activation::kSilu, true, random);
    c.Run();
    GatedLayerNormBackwardArgs in_place = c.backward();
    const OwnedTensor expected = Clone(in_place.*which);
    in_place.*which = in_place.dout;
    GatedLayerNormBackward(in_place);
    EXPECT_TRUE(BitwiseEqual(c.dout.tensor, expected.tensor));
  }
}

TEST(GatedLayerNorm, ParametersGradientsAreAddedTo) {
  TestRandom random;
  const Case c(DType::kF64, {33, 2, 5}, Activation::kSilu, true, random);
  c.Run();
  for (const Tensor& gradient : {c.dweight.tensor, c.dskip.tensor}) {
    const OwnedTensor once = Clone(gradient);
    GatedLayerNormBackward(c.backward());
    for (int64_t j = 0; j < 10; ++j) {
      EXPECT_NEAR(Get(gradient, j), 2 * Get(once.tensor, j), 1e-12);
    }
    for (const Tensor& sum : {c.dweight.tensor, c.dskip.tensor}) FillZero(sum);
    GatedLayerNormBackward(c.backward());
  }
}

TEST(GatedLayerNorm, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  const Case one(DType::kF32, {701, 5, 26}, Activation::kSilu, true, random);
  const Case two(one, DType::kF32);
  WithThreads(1, [&] { one.Run(); });
  WithThreads(2, [&] { two.Run(); });
  for (size_t i = 0; i < one.outputs().size(); ++i) {
    EXPECT_TRUE(BitwiseEqual(one.outputs()[i], two.outputs()[i])) << "output " << i;
  }
}

TEST(GatedLayerNorm, RejectsWrongShapes) {
  TestRandom random;
  const Case c(DType::kF32, {3, 2, 5}, Activation::kSilu, true, random);
  const OwnedTensor wrong(DType::kF32, {10}), other_type(DType::kF64, {2, 5});
  EXPECT_NO_THROW(c.Run());
  using Forward = GatedLayerNormForwardArgs;
  const auto rejects = [&](Tensor Forward::*member, const Tensor& value) {
    Forward bad = c.forward();
    bad.*member = value;
    EXPECT_THROW(GatedLayerNormForward(bad), Error);
  };
  for (const auto member : {&Forward::weight, &Forward::skip, &Forward::s, &Forward::gate,
                            &Forward::out, &Forward::mean, &Forward::rstd}) {
    rejects(member, wrong.tensor);
    rejects(member, {});
  }
  rejects(&Forward::skip, other_type.tensor);
  Forward other_gate = c.forward();
  other_gate.activation = Activation::kGeluErf;
  EXPECT_THROW(GatedLayerNormForward(other_gate), Error);
  using Backward = GatedLayerNormBackwardArgs;
  for (const auto member : {&Backward::dout, &Backward::dx, &Backward::ds, &Backward::dgate,
                            &Backward::dweight, &Backward::dskip}) {
    Backward bad = c.backward();
    bad.*member = wrong.tensor;
    EXPECT_THROW(GatedLayerNormBackward(bad), Error);
  }
}

}  // namespace
}  // namespace eyrie
