// CUDA bodies of the gated LayerNorm against the CPU's in float64.
#include "kernels/gated_norm/gated_layer_norm.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

// N rows of G groups of D on one device, and what a forward and a backward pass make of them.
struct Case {
  OwnedTensor x, weight, skip, s, gate, dout, out, mean, rstd, x_dx, dx, ds, dgate, dweight, dskip,
      workspace;

  // What is absent where there is no skip.
  GatedLayerNormBackwardArgs backward(Activation activation, bool skips) const {
    const auto optional = [&](const OwnedTensor& tensor) {
      return skips ? tensor.tensor : Tensor{};
    };
    return {.x = x.tensor,
            .weight = weight.tensor,
            .skip = optional(skip),
            .s = optional(s),
            .activation = activation,
            .gate = gate.tensor,
            .mean = mean.tensor,
            .rstd = rstd.tensor,
            .dout = dout.tensor,
            .dx = dx.tensor,
            .ds = optional(ds),
            .dgate = dgate.tensor,
            .x_dx = x_dx.tensor,
            .epsilon = 1e-2,
            .dweight = dweight.tensor,
            .dskip = optional(dskip),
            .workspace = workspace.tensor};
  }
  void Run(Activation activation, bool skips) const {
    const GatedLayerNormBackwardArgs args = backward(activation, skips);
    GatedLayerNormForward({.x = args.x,
                           .weight = args.weight,
                           .skip = args.skip,
                           .s = args.s,
                           .activation = activation,
                           .gate = args.gate,
                           .epsilon = 1e-2,
                           .out = out.tensor,
                           .mean = args.mean,
                           .rstd = args.rstd});
    GatedLayerNormBackward(args);
  }
};

class CudaGatedLayerNorm : public testing::TestWithParam<DType> {
 protected:
  // Both passes, twice on the GPU and once on the CPU.
  void Compare(int64_t rows, int64_t groups, int64_t width, Activation activation, bool skips) {
    SCOPED_TRACE(StrCat("N ", rows, " G ", groups, " D ", width, " skip ", skips,
                        activation == Activation::kSilu ? " SiLU" : " sigmoid"));
    const DType dtype = GetParam();
    const Shape shape{rows, groups, width}, row{groups, width}, statistics{rows, groups};
    Case here, one, two;
    for (const auto which : {&Case::mean, &Case::rstd, &Case::x_dx}) {
      here.*which = PoisonedTensor(DType::kF64, statistics);
      for (Case* there : {&one, &two}) there->*which = PoisonedCuda(DType::kF32, statistics);
    }
    for (const auto which :
         {&Case::x, &Case::s, &Case::gate, &Case::dout, &Case::weight, &Case::skip}) {
      const bool of_group = which == &Case::weight || which == &Case::skip;
      const OwnedTensor random =
          RandomTensor(DType::kF32, of_group ? row : shape, random_, of_group ? 0.3 : 1);
      here.*which = Rounded(random.tensor, dtype);
      for (Case* there : {&one, &two}) there->*which = ToCuda(random.tensor, dtype);
    }
    for (const auto which : {&Case::out, &Case::dx, &Case::ds, &Case::dgate}) {
      here.*which = PoisonedTensor(DType::kF64, shape);
      for (Case* there : {&one, &two}) there->*which = PoisonedCuda(dtype, shape);
    }
    for (const auto which : {&Case::dweight, &Case::dskip}) {
      const OwnedTensor random = RandomTensor(DType::kF32, row, random_);
      here.*which = Cast(random.tensor, DType::kF64);
      for (Case* there : {&one, &two}) there->*which = ToCuda(random.tensor);
    }
    for (Case* there : {&one, &two}) {
      there->workspace =
          PoisonedCuda(DType::kF32, {GatedLayerNormBackwardWorkspace(
                                        there->x.tensor, skips ? there->skip.tensor : Tensor{})});
    }
    for (const Case* c : {&here, &one, &two}) c->Run(activation, skips);

    const auto compare = [&](const OwnedTensor Case::*which, double bound) {
      const OwnedTensor result = ToHost((one.*which).tensor);
      // Gradients may cancel: their errors are measured by the size of what they are made of.
      const double floor = std::sqrt(static_cast<double>(result.tensor.size()));
      EXPECT_LT(RelativeError(result.tensor, (here.*which).tensor, floor), bound);
      EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost((two.*which).tensor).tensor));
    };
    for (const auto which : {&Case::out, &Case::dx, &Case::dgate}) {
      compare(which, Tolerance(dtype));
    }
    for (const auto which : {&Case::mean, &Case::rstd, &Case::x_dx, &Case::dweight}) {
      compare(which, 1e-5);
    }
    if (!skips) return;
    compare(&Case::ds, Tolerance(dtype));
    compare(&Case::dskip, 1e-5);
  }

  TestRandom random_;
};

// Each way to divide a group among threads, its limits and what is one beyond them.
TEST_P(CudaGatedLayerNorm, MatchesTheCpu) {
  for (const int64_t width : {1, 5, 32, 33, 64, 65, 72, 128, 130, 136, 256, 264, 512, 520, 1024,
                              1032, 1280, 1999, 2048}) {
    for (const int64_t groups : {1, 3, 4}) {
      for (const int64_t rows : {1, 37}) {
        const Activation activation = groups == 4 ? Activation::kSigmoid : Activation::kSilu;
        Compare(rows, groups, width, activation, groups != 1);
      }
    }
  }
}

// More rows than stripes, and groups that no warp has to itself.
TEST_P(CudaGatedLayerNorm, ManyRows) {
  Compare(9001, 3, 8, Activation::kSilu, true);
  Compare(9001, 1, 72, Activation::kSigmoid, false);
  Compare(4501, 5, 40, Activation::kSilu, true);
  Compare(1201, 4, 1024, Activation::kSilu, true);
  Compare(601, 1, 2048, Activation::kSigmoid, false);
}

TEST_P(CudaGatedLayerNorm, AGradientMayReplaceThatOfTheOutput) {
  const DType dtype = GetParam();
  const Shape shape{33, 2, 136}, row{2, 136};
  Case c;
  for (const auto which : {&Case::x, &Case::s, &Case::gate, &Case::dout, &Case::dx, &Case::ds,
                           &Case::dgate, &Case::out}) {
    c.*which = ToCuda(RandomTensor(dtype, shape, random_).tensor);
  }
  for (const auto which : {&Case::weight, &Case::skip}) {
    c.*which = ToCuda(RandomTensor(dtype, row, random_).tensor);
  }
  for (const auto which : {&Case::mean, &Case::rstd}) c.*which = ZeroCuda(DType::kF32, {66});
  for (const auto which : {&Case::dweight, &Case::dskip}) c.*which = ZeroCuda(DType::kF32, row);
  c.workspace =
      PoisonedCuda(DType::kF32, {GatedLayerNormBackwardWorkspace(c.x.tensor, c.skip.tensor)});
  c.Run(Activation::kSilu, true);
  GatedLayerNormBackwardArgs in_place = c.backward(Activation::kSilu, true);
  in_place.dx = in_place.dout;
  GatedLayerNormBackward(in_place);
  EXPECT_TRUE(BitwiseEqual(ToHost(c.dx.tensor).tensor, ToHost(c.dout.tensor).tensor));
}

TEST_P(CudaGatedLayerNorm, RejectsWrongTypesWideGroupsAndMissingWorkspace) {
  const DType dtype = GetParam();
  const auto refuses = [&](int64_t width, DType statistics, bool workspace) {
    const OwnedTensor x = ZeroCuda(dtype, {3, 1, width}), weight = ZeroCuda(dtype, {1, width});
    const OwnedTensor mean = ZeroCuda(statistics, {3}), dweight = ZeroCuda(DType::kF32, {1, width});
    const OwnedTensor space =
        ZeroCuda(DType::kF32, {GatedLayerNormBackwardWorkspace(x.tensor, {})});
    const auto run = [&] {
      GatedLayerNormBackward({.x = x.tensor,
                              .weight = weight.tensor,
                              .gate = x.tensor,
                              .mean = mean.tensor,
                              .rstd = mean.tensor,
                              .dout = x.tensor,
                              .dx = x.tensor,
                              .dgate = ZeroCuda(dtype, {3, 1, width}).tensor,
                              .dweight = dweight.tensor,
                              .workspace = workspace ? space.tensor : Tensor{}});
    };
    try {
      run();
    } catch (const Error&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refuses(8, DType::kF32, true));
  EXPECT_TRUE(refuses(8, DType::kF32, false));
  EXPECT_TRUE(refuses(8, DType::kBF16, true));
  EXPECT_TRUE(refuses(2056, DType::kF32, true));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaGatedLayerNorm, testing::ValuesIn(kCudaTypes),
                         kNameOfParameter);

}  // namespace
}  // namespace eyrie
