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

// The sums of the rows of dgate and dvalue: both or either, twice, also with dvalue in place of
// dout.
TEST(CudaGlu, SumsTheRowsOfItsGradients) {
  TestRandom random;
  const std::pair<Shape, Activation> cases[] = {
      {{1, 1}, Activation::kGeluTanh},        {{1, 8}, Activation::kSilu},
      {{7, 5}, Activation::kGeluErf},         {{31, 264}, Activation::kGeluTanh},
      {{33, 33}, Activation::kSigmoid},       {{2, 77, 256}, Activation::kNone},
      {{3, 333, 130}, Activation::kGeluTanh}, {{1501, 648}, Activation::kGeluErf},
      {{1603, 1032}, Activation::kGeluTanh},  {{40001, 8}, Activation::kGeluTanh},
      {{20003, 33}, Activation::kSilu},       {{3, 20000}, Activation::kSilu},
  };
  for (const auto& [shape, activation] : cases) {
    const int64_t width = shape[-1];
    const OwnedTensor gate = RandomTensor(DType::kF32, shape, random, 2);
    const OwnedTensor value = RandomTensor(DType::kF32, shape, random);
    const OwnedTensor dout = RandomTensor(DType::kF32, shape, random);
    const OwnedTensor before = RandomTensor(DType::kF32, {width}, random);
    for (const DType dtype : kCudaTypes) {
      SCOPED_TRACE(StrCat(shape.ToString(), " ", Name(dtype)));
      const OwnedTensor g = Rounded(gate.tensor, dtype), v = Rounded(value.tensor, dtype);
      const OwnedTensor d = Rounded(dout.tensor, dtype);
      Outputs expected{{}, PoisonedTensor(DType::kF64, shape), PoisonedTensor(DType::kF64, shape)};
      GluBackward({.activation = activation,
                   .gate = g.tensor,
                   .value = v.tensor,
                   .dout = d.tensor,
                   .dgate = expected.dgate.tensor,
                   .dvalue = expected.dvalue.tensor});

      const OwnedTensor there_g = ToCuda(gate.tensor, dtype), there_v = ToCuda(value.tensor, dtype);
      // dgate, dvalue and their sums on the host, the sums absent where not asked for.
      struct Result {
        OwnedTensor dgate, dvalue, dgate_sum, dvalue_sum;
      };
      const auto run = [&](bool of_gate, bool of_value, bool in_place) {
        const OwnedTensor there_d = ToCuda(dout.tensor, dtype);
        const OwnedTensor dgate = PoisonedCuda(dtype, shape), dvalue = PoisonedCuda(dtype, shape);
        const OwnedTensor dgate_sum = ToCuda(before.tensor), dvalue_sum = ToCuda(before.tensor);
        GluBackwardArgs args{.activation = activation,
                             .gate = there_g.tensor,
                             .value = there_v.tensor,
                             .dout = there_d.tensor,
                             .dgate = dgate.tensor,
                             .dvalue = in_place ? there_d.tensor : dvalue.tensor};
        if (of_gate) args.dgate_sum = dgate_sum.tensor;
        if (of_value) args.dvalue_sum = dvalue_sum.tensor;
        const OwnedTensor workspace = PoisonedCuda(DType::kF32, {GluBackwardWorkspace(args)});
        args.workspace = workspace.tensor;
        GluBackward(args);
        return Result{ToHost(dgate.tensor), ToHost(args.dvalue), ToHost(dgate_sum.tensor),
                      ToHost(dvalue_sum.tensor)};
      };
      const Result both = run(true, true, false);
      EXPECT_LT(RelativeError(both.dgate.tensor, expected.dgate.tensor), Tolerance(dtype));
      EXPECT_LT(RelativeError(both.dvalue.tensor, expected.dvalue.tensor), Tolerance(dtype));
      // Of what was stored: roundings to bfloat16 included.
      for (const auto& [rows, sum] :
           {std::pair{&both.dgate, &both.dgate_sum}, std::pair{&both.dvalue, &both.dvalue_sum}}) {
        const OwnedTensor total = PlusRows(before.tensor, rows->tensor);
        EXPECT_LT(RelativeError(sum->tensor, total.tensor), 1e-5);
      }
      const OwnedTensor untouched = Cast(before.tensor, DType::kF64);
      for (const bool in_place : {false, true}) {
        for (const auto& [of_gate, of_value] :
             {std::pair{true, true}, std::pair{true, false}, std::pair{false, true}}) {
          const Result again = run(of_gate, of_value, in_place);
          EXPECT_TRUE(BitwiseEqual(again.dgate.tensor, both.dgate.tensor));
          EXPECT_TRUE(BitwiseEqual(again.dvalue.tensor, both.dvalue.tensor));
          EXPECT_TRUE(
              BitwiseEqual(again.dgate_sum.tensor, (of_gate ? both.dgate_sum : untouched).tensor));
          EXPECT_TRUE(BitwiseEqual(again.dvalue_sum.tensor,
                                   (of_value ? both.dvalue_sum : untouched).tensor));
        }
      }
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
  const OwnedTensor sum = ZeroCuda(DType::kBF16, {5}), workspace = ZeroCuda(DType::kF32, {5});
  EXPECT_THROW(GluBackward({.gate = narrow.tensor,
                            .value = narrow.tensor,
                            .dout = narrow.tensor,
                            .dgate = narrow.tensor,
                            .dvalue = narrow.tensor,
                            .dgate_sum = sum.tensor,
                            .workspace = workspace.tensor}),
               Error);
}

TEST(CudaGlu, RefusesToSumWithoutAWorkspace) {
  const OwnedTensor x = ZeroCuda(DType::kF32, {3, 5}), sum = ZeroCuda(DType::kF32, {5});
  const GluBackwardArgs args{.gate = x.tensor,
                             .value = x.tensor,
                             .dout = x.tensor,
                             .dgate = x.tensor,
                             .dvalue = x.tensor,
                             .dgate_sum = sum.tensor};
  EXPECT_EQ(GluBackwardWorkspace(args), 5);
  EXPECT_THROW(GluBackward(args), Error);
}

}  // namespace
}  // namespace eyrie
