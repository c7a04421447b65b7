// What holds of the CPU bodies of LayerNorm and of RMSNorm alike.
#include "tests/kernels/norm_problem.h"

namespace eyrie {
namespace {

template <class Problem>
class Norm : public testing::Test {
 protected:
  TestRandom random_;
};
using Problems = testing::Types<LayerNormProblem, RmsNormProblem>;
TYPED_TEST_SUITE(Norm, Problems);

TYPED_TEST(Norm, FloatAgreesWithDouble) {
  const TypeParam wide = RandomNorm<TypeParam>(DType::kF64, {3, 33, 3, 130}, this->random_);
  const TypeParam narrow = CastNorm(wide, DType::kF32);
  RunNorm(wide, true);
  RunNorm(narrow, true);
  for (const auto which : TypeParam::kOutputs) {
    EXPECT_LT(RelativeError((narrow.*which).tensor, (wide.*which).tensor),
              which == &NormTensors::dweight ? 2e-6 : 1e-6);
  }
}

// The loss holds the residual stream itself, whose gradient arrives as dresidual.
TYPED_TEST(Norm, GradientsMatchFiniteDifferences) {
  for (const bool with_residual : {false, true}) {
    for (const int64_t groups : {1, 3}) {
      for (const int64_t width : {TypeParam::kNarrowest, int64_t{5}, int64_t{130}}) {
        SCOPED_TRACE(StrCat("residual ", with_residual, " G ", groups, " D ", width));
        const TypeParam p =
            RandomNorm<TypeParam>(DType::kF64, {7, 3, groups, width}, this->random_);
        RunNorm(p, with_residual);
        const auto loss = [&] {
          TypeParam::Run(p.forward());
          return Dot(p.dy.tensor, p.y.tensor) +
                 (with_residual ? Dot(p.dresidual.tensor, p.x.tensor) : 0.0);
        };
        const auto error = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
          return NumericGradientCheck(loss, input.tensor, gradient.tensor, this->random_);
        };
        EXPECT_LT(error(p.x, p.dx), 1e-6);
        EXPECT_LT(error(p.weight, p.dweight), 1e-6);
      }
    }
  }
}

TYPED_TEST(Norm, InputGradientMayReplaceTheResidual) {
  const TypeParam p = RandomNorm<TypeParam>(DType::kF32, {33, 2, 65}, this->random_);
  RunNorm(p, true);
  auto in_place = p.backward(true);
  in_place.dx = in_place.dresidual;
  TypeParam::Run(in_place);
  EXPECT_TRUE(BitwiseEqual(p.dresidual.tensor, p.dx.tensor));
}

TYPED_TEST(Norm, WeightGradientIsAddedTo) {
  const TypeParam p = RandomNorm<TypeParam>(DType::kF64, {33, 2, 5}, this->random_);
  RunNorm(p, false);
  const OwnedTensor once = Clone(p.dweight.tensor);
  TypeParam::Run(p.backward(false));
  for (int64_t j = 0; j < once.tensor.size(); ++j) {
    EXPECT_NEAR(Get(p.dweight.tensor, j), 2 * Get(once.tensor, j), 1e-12);
  }
}

TYPED_TEST(Norm, SameBitsWithAnyNumberOfThreads) {
  const TypeParam one = RandomNorm<TypeParam>(DType::kF32, {701, 5, 26}, this->random_),
                  two = CastNorm(one, DType::kF32);
  WithThreads(1, [&] { RunNorm(one, true); });
  WithThreads(2, [&] { RunNorm(two, true); });
  for (const auto which : TypeParam::kOutputs) {
    EXPECT_TRUE(BitwiseEqual((one.*which).tensor, (two.*which).tensor));
  }
}

}  // namespace
}  // namespace eyrie
