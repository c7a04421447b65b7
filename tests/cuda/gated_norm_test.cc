// CUDA bodies of the gated norm against the CPU's in float64.
#include "kernels/gated_norm/gated_norm.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

struct Outputs {
  OwnedTensor squares, along, out, dx, dgate;
};

void RunAll(const OwnedTensor& x, const OwnedTensor& gate, const OwnedTensor& dout,
            const Outputs& to) {
  const int64_t width = 3 * x.tensor.dim(-1);
  RowProducts({.a = x.tensor, .b = x.tensor, .sums = to.squares.tensor});
  RowProducts({.a = dout.tensor, .b = gate.tensor, .c = x.tensor, .sums = to.along.tensor});
  GatedNormForward({.x = x.tensor,
                    .gate = gate.tensor,
                    .squares = to.squares.tensor,
                    .width = width,
                    .epsilon = 1e-2,
                    .out = to.out.tensor});
  GatedNormBackward({.x = x.tensor,
                     .gate = gate.tensor,
                     .squares = to.squares.tensor,
                     .width = width,
                     .epsilon = 1e-2,
                     .along = to.along.tensor,
                     .dout = dout.tensor,
                     .dx = to.dx.tensor,
                     .dgate = to.dgate.tensor});
}

TEST(CudaGatedNorm, MatchesTheCpu) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const int64_t rows : {1, 3, 130}) {
      for (const int64_t width : {1, 7, 64, 1000, 4096}) {
        SCOPED_TRACE(StrCat(Name(dtype), " N ", rows, " C ", width));
        const Shape shape{rows, width};
        const OwnedTensor x = RandomTensor(DType::kF32, shape, random);
        const OwnedTensor gate = RandomTensor(DType::kF32, shape, random);
        const OwnedTensor dout = RandomTensor(DType::kF32, shape, random);
        const auto outputs = [&](const auto& make) {
          return Outputs{make(Shape{rows}, true), make(Shape{rows}, true), make(shape, false),
                         make(shape, false), make(shape, false)};
        };
        const Outputs expected =
            outputs([](const Shape& size, bool) { return PoisonedTensor(DType::kF64, size); });
        RunAll(Rounded(x.tensor, dtype), Rounded(gate.tensor, dtype), Rounded(dout.tensor, dtype),
               expected);
        const auto poisoned = [&](const Shape& size, bool full) {
          return PoisonedCuda(full ? DType::kF32 : dtype, size);
        };
        const Outputs one = outputs(poisoned), two = outputs(poisoned);
        for (const Outputs* there : {&one, &two}) {
          RunAll(ToCuda(x.tensor, dtype), ToCuda(gate.tensor, dtype), ToCuda(dout.tensor, dtype),
                 *there);
        }
        OwnedTensor Outputs::*const all[] = {&Outputs::squares, &Outputs::along, &Outputs::out,
                                             &Outputs::dx, &Outputs::dgate};
        for (const auto output : all) {
          const OwnedTensor result = ToHost((one.*output).tensor);
          // A sum of mixed signs may nearly vanish.
          EXPECT_LT(RelativeError(result.tensor, (expected.*output).tensor, 1e-2),
                    Tolerance(dtype));
          EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost((two.*output).tensor).tensor));
        }
      }
    }
  }
}

TEST(CudaGatedNorm, RefusesWrongTypes) {
  const OwnedTensor x = ZeroCuda(DType::kBF16, {5, 8}), sums = ZeroCuda(DType::kBF16, {5});
  EXPECT_THROW(RowProducts({.a = x.tensor, .b = x.tensor, .sums = sums.tensor}), Error);
}

}  // namespace
}  // namespace eyrie
