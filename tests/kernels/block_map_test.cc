#include "kernels/block_map/block_map.h"

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

constexpr int64_t kShapes[][2] = {{1, 4}, {3, 12}, {7, 64}, {701, 20}, {65, 516}};  // rows, C

// Maps of one x, their outputs and gradients, and `gates` numbers that read the outputs.
struct Case {
  Case(DType dtype, int64_t rows, int64_t width, size_t maps, TestRandom& random, int64_t gates = 0)
      : x(RandomTensor(dtype, {rows, width}, random)),
        dx(RandomTensor(dtype, {rows, width}, random)) {
    if (gates > 0) dgates.push_back(RandomTensor(dtype, {rows, gates}, random));
    for (size_t m = 0; gates > 0 && m < maps; ++m) {
      gates_w.push_back(RandomTensor(dtype, {gates, width}, random));
    }
    for (size_t m = 0; m < maps; ++m) {
      w.push_back(RandomTensor(dtype, {width / 4, 4, 4}, random));
      dy.push_back(RandomTensor(dtype, {rows, width}, random));
    }
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : x(Cast(other.x.tensor, dtype)), dx(Cast(other.dx.tensor, dtype)) {
    for (const OwnedTensor& each : other.dgates) dgates.push_back(Cast(each.tensor, dtype));
    for (const OwnedTensor& each : other.gates_w) gates_w.push_back(Cast(each.tensor, dtype));
    for (size_t m = 0; m < other.w.size(); ++m) {
      w.push_back(Cast(other.w[m].tensor, dtype));
      dy.push_back(Cast(other.dy[m].tensor, dtype));
    }
    PrepareOutputs();
  }
  void PrepareOutputs() {
    if (!dgates.empty()) {
      gate_sums.push_back(PoisonedTensor(x.tensor.dtype, dgates[0].tensor.shape));
    }
    for (size_t m = 0; m < w.size(); ++m) {
      y.push_back(PoisonedTensor(x.tensor.dtype, x.tensor.shape));
      dw.emplace_back(x.tensor.dtype, w[m].tensor.shape);
      if (!gates_w.empty()) dgates_w.emplace_back(x.tensor.dtype, gates_w[m].tensor.shape);
    }
  }
  void Forward(bool accumulate_gates = false) const {
    BlockMapForwardArgs args{.x = x.tensor, .accumulate_gates = accumulate_gates};
    if (!gate_sums.empty()) args.gates = gate_sums[0].tensor;
    for (size_t m = 0; m < w.size(); ++m) {
      args.maps.push_back({w[m].tensor, y[m].tensor});
      if (!gates_w.empty()) args.maps.back().gates_w = gates_w[m].tensor;
    }
    BlockMapForward(args);
  }
  void Backward(bool accumulate) const {
    BlockMapBackwardArgs args{.x = x.tensor, .dx = dx.tensor, .accumulate = accumulate};
    for (size_t m = 0; m < w.size(); ++m) {
      args.maps.push_back({w[m].tensor, dy[m].tensor, dw[m].tensor});
      if (gates_w.empty()) continue;
      args.maps.back().gates_w = gates_w[m].tensor;
      args.maps.back().dgates_w = dgates_w[m].tensor;
    }
    if (!dgates.empty()) args.dgates = dgates[0].tensor;
    BlockMapBackward(args);
  }

  // The sum over outputs and gates of their gradients times them: a loss.
  double Loss() const {
    Forward();
    double sum = 0;
    for (size_t m = 0; m < w.size(); ++m) sum += Dot(y[m].tensor, dy[m].tensor);
    if (!gate_sums.empty()) sum += Dot(gate_sums[0].tensor, dgates[0].tensor);
    return sum;
  }

  OwnedTensor x, dx;
  std::vector<OwnedTensor> w, dy, y, dw;
  std::vector<OwnedTensor> gates_w, gate_sums, dgates, dgates_w;  // none, or with gates
};

TEST(BlockMap, ForwardMatchesReference) {
  TestRandom random;
  for (const auto& [rows, width] : kShapes) {
    for (const size_t maps : {1, 2}) {
      SCOPED_TRACE(StrCat(rows, " x ", width, " maps ", maps));
      const Case c(DType::kF64, rows, width, maps, random);
      const Case narrow(c, DType::kF32);
      c.Forward();
      narrow.Forward();
      for (size_t m = 0; m < maps; ++m) {
        OwnedTensor expected(DType::kF64, {rows, width});
        for (int64_t i = 0; i < rows * width; ++i) {
          const int64_t channel = i % width;
          double sum = 0;
          for (int64_t in = 0; in < 4; ++in) {
            sum += Get(c.w[m].tensor, 4 * channel + in) * Get(c.x.tensor, i - channel % 4 + in);
          }
          Set(expected.tensor, i, sum);
        }
        EXPECT_LT(RelativeError(c.y[m].tensor, expected.tensor), 1e-14);
        EXPECT_LT(RelativeError(narrow.y[m].tensor, expected.tensor), 1e-6);
      }
    }
  }
}

TEST(BlockMap, GatesMatchReference) {
  TestRandom random;
  for (const auto& [rows, width] : kShapes) {
    for (const size_t maps : {1, 2}) {
      for (const int64_t gates : {1, 6, 9}) {
        SCOPED_TRACE(StrCat(rows, " x ", width, " maps ", maps, " gates ", gates));
        const Case c(DType::kF64, rows, width, maps, random, gates);
        const Case narrow(c, DType::kF32);
        c.Forward();
        narrow.Forward();
        OwnedTensor expected(DType::kF64, {rows, gates});
        for (int64_t i = 0; i < rows * gates; ++i) {
          double sum = 0;
          for (size_t m = 0; m < maps; ++m) {
            for (int64_t channel = 0; channel < width; ++channel) {
              sum += Get(c.gates_w[m].tensor, i % gates * width + channel) *
                     Get(c.y[m].tensor, i / gates * width + channel);
            }
          }
          Set(expected.tensor, i, sum);
        }
        EXPECT_LT(RelativeError(c.gate_sums[0].tensor, expected.tensor), 1e-13);
        EXPECT_LT(RelativeError(narrow.gate_sums[0].tensor, expected.tensor), 1e-5);

        c.Forward(/*accumulate_gates=*/true);
        for (int64_t i = 0; i < rows * gates; ++i) {
          EXPECT_NEAR(Get(c.gate_sums[0].tensor, i), 2 * Get(expected.tensor, i), 1e-11);
        }
      }
    }
  }
}

TEST(BlockMap, GradientsAreThoseOfFiniteDifferences) {
  TestRandom random;
  for (const size_t maps : {1, 2}) {
    for (const int64_t gates : {0, 1, 6}) {
      SCOPED_TRACE(StrCat("maps ", maps, " gates ", gates));
      const Case c(DType::kF64, 19, 24, maps, random, gates);
      const auto loss = [&] { return c.Loss(); };
      Poison(c.dx.tensor);
      c.Backward(/*accumulate=*/false);
      EXPECT_LT(NumericGradientCheck(loss, c.x.tensor, c.dx.tensor, random), 1e-9);
      for (size_t m = 0; m < maps; ++m) {
        EXPECT_LT(NumericGradientCheck(loss, c.w[m].tensor, c.dw[m].tensor, random), 1e-9);
        if (gates == 0) continue;
        EXPECT_LT(NumericGradientCheck(loss, c.gates_w[m].tensor, c.dgates_w[m].tensor, random),
                  1e-9);
      }
    }
  }
}

TEST(BlockMap, GradientsAreAddedTo) {
  TestRandom random;
  for (const auto& [rows, width] : kShapes) {
    for (const size_t maps : {1, 2}) {
      SCOPED_TRACE(StrCat(rows, " x ", width, " maps ", maps));
      const Case c(DType::kF64, rows, width, maps, random, /*gates=*/2);
      const OwnedTensor before = Clone(c.dx.tensor);
      c.Backward(/*accumulate=*/true);
      const OwnedTensor sum = Clone(c.dx.tensor), once = Clone(c.dw[maps - 1].tensor);
      const OwnedTensor gates_once = Clone(c.dgates_w[maps - 1].tensor);
      c.Backward(/*accumulate=*/false);
      for (int64_t i = 0; i < rows * width; ++i) {
        EXPECT_NEAR(Get(sum.tensor, i), Get(before.tensor, i) + Get(c.dx.tensor, i), 1e-12);
      }
      for (int64_t i = 0; i < once.tensor.size(); ++i) {
        EXPECT_NEAR(Get(c.dw[maps - 1].tensor, i), 2 * Get(once.tensor, i), 1e-11);
      }
      for (int64_t i = 0; i < gates_once.tensor.size(); ++i) {
        EXPECT_NEAR(Get(c.dgates_w[maps - 1].tensor, i), 2 * Get(gates_once.tensor, i), 1e-11);
      }
    }
  }
}

TEST(BlockMap, SumsDoNotDependOnThreads) {
  TestRandom random;
  const Case one(DType::kF32, 1500, 36, 2, random, 3), four(one, DType::kF32);
  WithThreads(1, [&] { one.Backward(false); });
  WithThreads(4, [&] { four.Backward(false); });
  EXPECT_TRUE(BitwiseEqual(one.dx.tensor, four.dx.tensor));
  for (const size_t m : {0, 1}) {
    EXPECT_TRUE(BitwiseEqual(one.dw[m].tensor, four.dw[m].tensor));
    EXPECT_TRUE(BitwiseEqual(one.dgates_w[m].tensor, four.dgates_w[m].tensor));
  }
}

TEST(BlockMap, RefusesWrongShapes) {
  const OwnedTensor x(DType::kF32, {3, 8}), w(DType::kF32, {2, 4, 4}), odd(DType::kF32, {3, 6});
  const Tensor good = x.tensor, bad = odd.tensor, maps = w.tensor;
  const auto forward = [](const Tensor& in, std::vector<BlockMapForwardArgs::Map> of) {
    BlockMapForward({.x = in, .maps = std::move(of)});
  };
  EXPECT_NO_THROW(forward(good, {{maps, good}}));
  EXPECT_THROW(forward(bad, {{maps, bad}}), Error);
  EXPECT_THROW(forward(good, {{maps, bad}}), Error);
  EXPECT_THROW(forward(good, {{good, good}}), Error);
  EXPECT_THROW(forward(good, {}), Error);
  EXPECT_THROW(forward(good, {{maps, good}, {maps, good}, {maps, good}}), Error);
  const OwnedTensor two(DType::kF32, {3, 2}), thin(DType::kF32, {2, 8});
  const auto with_gates = [&](const Tensor& gates, const Tensor& gates_w) {
    BlockMapForward({.x = good, .maps = {{maps, good, gates_w}}, .gates = gates});
  };
  EXPECT_NO_THROW(with_gates(two.tensor, thin.tensor));
  EXPECT_THROW(with_gates(two.tensor, {}), Error);
  EXPECT_THROW(with_gates({}, thin.tensor), Error);
  EXPECT_THROW(with_gates(thin.tensor, thin.tensor), Error);
  EXPECT_THROW(with_gates(two.tensor, good), Error);
  const auto backward = [&](const Tensor& dy, const Tensor& dw, const Tensor& dx) {
    BlockMapBackward({.x = good, .maps = {{maps, dy, dw}}, .dx = dx});
  };
  EXPECT_NO_THROW(backward(good, maps, good));
  EXPECT_THROW(backward(bad, maps, good), Error);
  EXPECT_THROW(backward(good, good, good), Error);
  EXPECT_THROW(backward(good, maps, bad), Error);
  const auto gated = [&](const Tensor& dgates, const Tensor& gates_w, const Tensor& dgates_w) {
    BlockMapBackward(
        {.x = good, .maps = {{maps, good, maps, gates_w, dgates_w}}, .dgates = dgates, .dx = good});
  };
  EXPECT_NO_THROW(gated(two.tensor, thin.tensor, thin.tensor));
  EXPECT_THROW(gated(two.tensor, {}, thin.tensor), Error);
  EXPECT_THROW(gated(two.tensor, thin.tensor, {}), Error);
  EXPECT_THROW(gated({}, thin.tensor, thin.tensor), Error);
  EXPECT_THROW(gated(thin.tensor, thin.tensor, thin.tensor), Error);
  EXPECT_THROW(gated(two.tensor, good, thin.tensor), Error);
  EXPECT_THROW(gated(two.tensor, thin.tensor, good), Error);
}

// A line of sums for every chunk of rows, and one for their total; gates of so many channels.
TEST(BlockMap, WorkspaceOnGpusIsKnownWithoutOne) {
  const auto workspace = [](Device device, int64_t maps, int64_t gates) {
    const OwnedTensor x(DType::kF32, {100, 64}, device);
    return BlockMapBackwardWorkspace(x.tensor, maps, gates);
  };
  const int64_t lines = CeilDiv(100, ColumnSumChunk(100, 64)) + 1;
  EXPECT_EQ(workspace(Device::kMeta, 2, 8), 0);
  EXPECT_EQ(workspace(Device::kMetaCuda, 1, 0), lines * 64 * 4);
  EXPECT_EQ(workspace(Device::kMetaCuda, 2, 0), lines * 64 * 8);
  EXPECT_EQ(workspace(Device::kMetaCuda, 2, 6), lines * 64 * 14);
  const auto forward = [](Device device, int64_t width, int64_t gates) {
    return BlockMapForwardWorkspace(OwnedTensor(DType::kF32, {100, width}, device).tensor, gates);
  };
  EXPECT_EQ(forward(Device::kMeta, 64, 6), 0);
  EXPECT_EQ(forward(Device::kMetaCuda, 64, 0), 0);
  EXPECT_EQ(forward(Device::kMetaCuda, 64, 6), 600);
  EXPECT_EQ(forward(Device::kMetaCuda, 132, 6), 1200);
}

}  // namespace
}  // namespace eyrie
