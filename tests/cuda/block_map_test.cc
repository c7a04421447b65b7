// CUDA bodies of the block maps against the CPU's in float64.
#include "kernels/block_map/block_map.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

constexpr int64_t kGates[] = {0, 3, 6, 8, 33};

struct Case {
  OwnedTensor x, dx, forward_workspace, workspace;
  std::vector<OwnedTensor> w, dy, y, dw;
  std::vector<OwnedTensor> gates_w, gate_sums, dgates, dgates_w;  // none, or with gates

  void Run(bool accumulate) const {
    BlockMapForwardArgs forward{
        .x = x.tensor, .accumulate_gates = accumulate, .workspace = forward_workspace.tensor};
    BlockMapBackwardArgs backward{
        .x = x.tensor, .dx = dx.tensor, .accumulate = accumulate, .workspace = workspace.tensor};
    for (size_t m = 0; m < w.size(); ++m) {
      forward.maps.push_back({w[m].tensor, y[m].tensor});
      backward.maps.push_back({w[m].tensor, dy[m].tensor, dw[m].tensor});
      if (gates_w.empty()) continue;
      forward.maps.back().gates_w = gates_w[m].tensor;
      backward.maps.back().gates_w = gates_w[m].tensor;
      backward.maps.back().dgates_w = dgates_w[m].tensor;
    }
    if (!dgates.empty()) {
      forward.gates = gate_sums[0].tensor;
      backward.dgates = dgates[0].tensor;
    }
    BlockMapForward(forward);
    BlockMapBackward(backward);
  }
};

using RowsAndWidth = std::pair<int64_t, int64_t>;
class CudaBlockMapOfShape : public testing::TestWithParam<std::tuple<DType, RowsAndWidth>> {};

TEST_P(CudaBlockMapOfShape, MatchesTheCpu) {
  TestRandom random;
  const auto& [dtype, shape_of_x] = GetParam();
  const auto [rows, width] = shape_of_x;
  size_t turn = static_cast<size_t>(random.Int(0, 4));
  for (const int64_t maps : {1, 2}) {
    for (const bool accumulate : {false, true}) {
      const int64_t gates = kGates[turn++ % std::size(kGates)];
      SCOPED_TRACE(StrCat(Name(dtype), " ", rows, " x ", width, " maps ", maps, " accumulate ",
                          accumulate, " gates ", gates));
      const Shape shape{rows, width}, weights{width / 4, 4, 4};
      const OwnedTensor x = RandomTensor(DType::kF32, shape, random);
      const OwnedTensor dx = RandomTensor(DType::kF32, shape, random);
      Case here{.x = Rounded(x.tensor, dtype), .dx = Rounded(dx.tensor, dtype)};
      const auto there = [&] {
        Case c{.x = ToCuda(x.tensor, dtype),
               .dx = accumulate ? ToCuda(dx.tensor, dtype) : PoisonedCuda(dtype, shape)};
        c.forward_workspace =
            PoisonedCuda(DType::kF32, {BlockMapForwardWorkspace(c.x.tensor, gates)});
        c.workspace =
            PoisonedCuda(DType::kF32, {BlockMapBackwardWorkspace(c.x.tensor, maps, gates)});
        return c;
      };
      Case one = there(), two = there();
      for (int64_t m = 0; m < maps; ++m) {
        const OwnedTensor w = RandomTensor(DType::kF32, weights, random);
        const OwnedTensor dy = RandomTensor(DType::kF32, shape, random);
        const OwnedTensor dw = RandomTensor(DType::kF32, weights, random);
        here.w.push_back(Rounded(w.tensor, dtype));
        here.dy.push_back(Rounded(dy.tensor, dtype));
        here.y.push_back(PoisonedTensor(DType::kF64, shape));
        here.dw.push_back(Cast(dw.tensor, DType::kF64));
        for (Case* c : {&one, &two}) {
          c->w.push_back(ToCuda(w.tensor, dtype));
          c->dy.push_back(ToCuda(dy.tensor, dtype));
          c->y.push_back(PoisonedCuda(dtype, shape));
          c->dw.push_back(ToCuda(dw.tensor));
        }
      }
      const auto give = [&](std::vector<OwnedTensor> Case::*member, const Shape& of) {
        const OwnedTensor value = RandomTensor(DType::kF32, of, random);
        (here.*member).push_back(Rounded(value.tensor, dtype));
        for (Case* c : {&one, &two}) (c->*member).push_back(ToCuda(value.tensor, dtype));
      };
      if (gates > 0) {
        give(&Case::dgates, {rows, gates});
        OwnedTensor sums = RandomTensor(DType::kF32, {rows, gates}, random);
        if (!accumulate) Poison(sums.tensor);
        here.gate_sums.push_back(Cast(sums.tensor, DType::kF64));
        for (Case* c : {&one, &two}) c->gate_sums.push_back(ToCuda(sums.tensor));
      }
      for (int64_t m = 0; gates > 0 && m < maps; ++m) {
        give(&Case::gates_w, {gates, width});
        const OwnedTensor dgates_w = RandomTensor(DType::kF32, {gates, width}, random);
        here.dgates_w.push_back(Cast(dgates_w.tensor, DType::kF64));
        for (Case* c : {&one, &two}) c->dgates_w.push_back(ToCuda(dgates_w.tensor));
      }
      for (const Case* c : {&here, &one, &two}) c->Run(accumulate);
      const auto compare = [&](const OwnedTensor& first, const OwnedTensor& second,
                               const OwnedTensor& expected, double bound) {
        const OwnedTensor result = ToHost(first.tensor);
        EXPECT_LT(RelativeError(result.tensor, expected.tensor), bound);
        EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost(second.tensor).tensor));
      };
      compare(one.dx, two.dx, here.dx, Tolerance(dtype));
      // In bfloat16 the gates' weights are sums of two such numbers.
      const double of_gates = dtype == DType::kBF16 ? 1e-4 : 1e-5;
      if (gates > 0) compare(one.gate_sums[0], two.gate_sums[0], here.gate_sums[0], of_gates);
      for (size_t m = 0; m < here.w.size(); ++m) {
        compare(one.y[m], two.y[m], here.y[m], Tolerance(dtype));
        compare(one.dw[m], two.dw[m], here.dw[m], 1e-5);
        if (gates == 0) continue;
        compare(one.dgates_w[m], two.dgates_w[m], here.dgates_w[m], 1e-5);
      }
    }
  }
}
// The last ones have several tiles of rows a block.
INSTANTIATE_TEST_SUITE_P(Shapes, CudaBlockMapOfShape,
                         InBothTypes(testing::Values(
                             RowsAndWidth{1, 4}, RowsAndWidth{3, 12}, RowsAndWidth{130, 64},
                             RowsAndWidth{701, 20}, RowsAndWidth{65, 516}, RowsAndWidth{1500, 2048},
                             RowsAndWidth{70001, 20}, RowsAndWidth{60003, 24})),
                         kNameOfParameter);

TEST(CudaBlockMap, RefusesWrongTypesAndMissingWorkspace) {
  const OwnedTensor narrow = ZeroCuda(DType::kBF16, {3, 8}), wide = ZeroCuda(DType::kF32, {3, 8});
  const OwnedTensor w = ZeroCuda(DType::kF32, {2, 4, 4}), here(DType::kF32, {3, 8});
  const auto forward = [&](const Tensor& x, const Tensor& y) {
    BlockMapForward({.x = x, .maps = {{w.tensor, y}}});
  };
  EXPECT_THROW(forward(narrow.tensor, narrow.tensor), Error);
  EXPECT_THROW(forward(wide.tensor, here.tensor), Error);
  EXPECT_THROW(
      BlockMapBackward(
          {.x = wide.tensor, .maps = {{w.tensor, wide.tensor, w.tensor}}, .dx = wide.tensor}),
      Error);
}

}  // namespace
}  // namespace eyrie
