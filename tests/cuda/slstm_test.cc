// The sLSTM's CUDA bodies against its CPU body. Heads that divide by 8 and have at most 512 units
// go to the persistent kernels where the type is bfloat16, all others to the plain ones.
#include "kernels/slstm/slstm.h"

#include <array>
#include <tuple>

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

using State = std::array<OwnedTensor, 4>;  // y, c, n, m

SlstmState View(const State& state, bool given) {
  if (!given) return {};
  return {state[0].tensor, state[1].tensor, state[2].tensor, state[3].tensor};
}

struct Sizes {
  int64_t batch, tokens, heads, units;
  Shape gates() const { return {batch, tokens, heads, 4, units}; }
  Shape cells() const { return {batch, tokens, heads, units}; }
  Shape state() const { return {batch, heads, units}; }
};

// All outputs, on the host in float64.
struct Results {
  OwnedTensor y, dx, dr, dbias;
  State after, dbefore;

  std::vector<Tensor> all(bool states) const {
    std::vector<Tensor> tensors{y.tensor, dx.tensor, dr.tensor, dbias.tensor};
    for (size_t i = 0; states && i < 4; ++i) tensors.push_back(after[i].tensor);
    for (size_t i = 0; states && i < 3; ++i) tensors.push_back(dbefore[i].tensor);
    return tensors;
  }
};

// Inputs as a GPU holds them, in float64 on the host.
struct Case {
  Case(DType type, const Sizes& s, TestRandom& random) : dtype(type), sizes(s) {
    const auto draw = [&](Shape shape, DType rounded, double scale) {
      return Rounded(RandomTensor(DType::kF32, shape, random, scale).tensor, rounded);
    };
    x = draw(s.gates(), dtype, 1);
    r = draw({s.heads, s.units, 4, s.units}, dtype, 0.5 / std::sqrt(static_cast<double>(s.units)));
    bias = draw({s.heads, 4, s.units}, DType::kF32, 1);
    dy = draw(s.cells(), dtype, 1);
    dr = draw(r.tensor.shape, DType::kF32, 1);
    dbias = draw(bias.tensor.shape, DType::kF32, 1);
    positions = RandomPositions(s.batch, s.tokens, random, true);
    before[0] = draw(s.state(), dtype, 1);
    for (size_t i = 1; i < 4; ++i) before[i] = draw(s.state(), DType::kF32, 1);
    for (int64_t i = 0; i < s.state().size(); ++i) {
      Set(before[2].tensor, i, static_cast<float>(random.Uniform(0.5, 3)));
    }
    for (size_t i = 0; i < 3; ++i) dafter[i] = draw(s.state(), DType::kF32, 1);
  }

  // On the device and in the type that `copy` and `poisoned` give; the backward pass starts from
  // `y_in`, or from the y of the forward pass.
  template <class Copy, class Poisoned, class Workspace>
  Results Run(bool states, const Copy& copy, const Poisoned& poisoned, const Workspace& scratch,
              const Tensor& y_in) const {
    const OwnedTensor x_ = copy(x.tensor, dtype), r_ = copy(r.tensor, dtype);
    const OwnedTensor bias_ = copy(bias.tensor, DType::kF32), dy_ = copy(dy.tensor, dtype);
    const OwnedTensor positions_ = copy(positions.tensor, DType::kI32);
    State before_, dafter_;
    for (size_t i = 0; i < 4; ++i) before_[i] = copy(before[i].tensor, DType::kF32);
    for (size_t i = 0; i < 3; ++i) dafter_[i] = copy(dafter[i].tensor, DType::kF32);
    Results result{.y = poisoned(sizes.cells(), dtype),
                   .dx = poisoned(sizes.gates(), dtype),
                   .dr = copy(dr.tensor, DType::kF32),
                   .dbias = copy(dbias.tensor, DType::kF32)};
    for (OwnedTensor& part : result.after) part = poisoned(sizes.state(), DType::kF32);
    for (size_t i = 0; i < 3; ++i) result.dbefore[i] = poisoned(sizes.state(), DType::kF32);
    const OwnedTensor forward = scratch(SlstmForwardWorkspace(x_.tensor));
    const OwnedTensor backward = scratch(SlstmBackwardWorkspace(x_.tensor));
    SlstmForward({.x = x_.tensor,
                  .r = r_.tensor,
                  .bias = bias_.tensor,
                  .positions = positions_.tensor,
                  .exponential_forget = exponential_forget,
                  .before = View(before_, states),
                  .y = result.y.tensor,
                  .after = View(result.after, states),
                  .workspace = forward.tensor});
    SlstmBackward({.x = x_.tensor,
                   .r = r_.tensor,
                   .bias = bias_.tensor,
                   .positions = positions_.tensor,
                   .exponential_forget = exponential_forget,
                   .before = View(before_, states),
                   .y = y_in.defined() ? y_in : result.y.tensor,
                   .dy = dy_.tensor,
                   .dafter = View(dafter_, states),
                   .dx = result.dx.tensor,
                   .dr = result.dr.tensor,
                   .dbias = result.dbias.tensor,
                   .dbefore = View(result.dbefore, states),
                   .workspace = backward.tensor});
    return result;
  }
  Results Cuda(bool states) const {
    Results there = Run(
        states, [](const Tensor& from, DType type) { return ToCuda(from, type); },
        [](Shape shape, DType type) { return PoisonedCuda(type, shape); },
        [](int64_t elements) { return PoisonedCuda(DType::kF32, {elements}); }, {});
    Results here{ToHost(there.y.tensor), ToHost(there.dx.tensor), ToHost(there.dr.tensor),
                 ToHost(there.dbias.tensor)};
    for (size_t i = 0; i < 4; ++i) here.after[i] = ToHost(there.after[i].tensor);
    for (size_t i = 0; i < 3; ++i) here.dbefore[i] = ToHost(there.dbefore[i].tensor);
    return here;
  }
  Results Cpu(bool states, const Tensor& y_in) const {
    return Run(
        states, [](const Tensor& from, DType) { return Clone(from); },
        [](Shape shape, DType) { return PoisonedTensor(DType::kF64, shape); },
        [](int64_t) { return OwnedTensor(); }, y_in);
  }

  DType dtype;
  Sizes sizes;
  bool exponential_forget = false;
  OwnedTensor x, r, bias, positions, dy;
  OwnedTensor dr, dbias;  // what they hold before the backward pass
  State before, dafter;
};

void Compare(const Case& c, bool states) {
  SCOPED_TRACE(StrCat(Name(c.dtype), " ", c.sizes.cells().ToString(), " states ", states,
                      " exponential ", c.exponential_forget));
  const Results cuda = c.Cuda(states), cpu = c.Cpu(states, cuda.y.tensor);
  const std::vector<Tensor> actual = cuda.all(states), expected = cpu.all(states);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LT(RelativeError(actual[i], expected[i], 0.1), Tolerance(c.dtype)) << "output " << i;
  }
  const Results again = c.Cuda(states);
  const std::vector<Tensor> repeated = again.all(states);
  for (size_t i = 0; i < repeated.size(); ++i) {
    EXPECT_TRUE(BitwiseEqual(actual[i], repeated[i])) << "output " << i;
  }
}

using TypeAndSizes = std::tuple<DType, Sizes>;
class CudaSlstmOfSizes : public testing::TestWithParam<TypeAndSizes> {};

std::string NameOfTest(const testing::TestParamInfo<TypeAndSizes>& test) {
  const auto& [dtype, sizes] = test.param;
  return StrCat(Name(dtype), "_", sizes.batch, "x", sizes.tokens, "x", sizes.heads, "x",
                sizes.units);
}

TEST_P(CudaSlstmOfSizes, MatchesTheCpu) {
  TestRandom random;
  for (const bool states : {false, true}) {
    Case c(std::get<0>(GetParam()), std::get<1>(GetParam()), random);
    c.exponential_forget = random.Int(0, 1) == 1;
    Compare(c, states);
  }
}

// Clusters of 1, 2, 4, 8 and 16 blocks, full and not; several groups of sequences.
INSTANTIATE_TEST_SUITE_P(
    Types, CudaSlstmOfSizes,
    InBothTypes(testing::Values(Sizes{1, 1, 1, 1}, Sizes{2, 1, 3, 8}, Sizes{3, 2, 1, 8},
                                Sizes{3, 33, 2, 5}, Sizes{2, 17, 3, 32}, Sizes{17, 9, 2, 40},
                                Sizes{5, 20, 1, 64}, Sizes{16, 12, 2, 128}, Sizes{33, 7, 1, 136},
                                Sizes{3, 10, 1, 256}, Sizes{2, 9, 2, 384}, Sizes{16, 6, 4, 512},
                                Sizes{9, 5, 1, 520})),
    NameOfTest);

class CudaSlstm : public testing::TestWithParam<DType> {
 protected:
  TestRandom random_;
};

// One document, far longer than what its first tokens are remembered for.
TEST_P(CudaSlstm, LongDocuments) {
  for (const Sizes& sizes : {Sizes{4, 400, 1, 64}, {2, 200, 2, 24}}) {
    Case c(GetParam(), sizes, random_);
    for (int64_t i = 0; i < sizes.batch * sizes.tokens; ++i) {
      Set(c.positions.tensor, i, static_cast<double>(i % sizes.tokens + 3));
    }
    Compare(c, true);
  }
}

// Not even a NaN crosses a document's start.
TEST_P(CudaSlstm, DocumentStartForgetsEverything) {
  constexpr int64_t kTokens = 25, kStart = 12;
  for (const int64_t units : {40, 5}) {
    Case c(GetParam(), {2, kTokens, 2, units}, random_);
    for (int64_t i = 0; i < 2 * kTokens; ++i) {
      const int64_t t = i % kTokens;
      Set(c.positions.tensor, i, static_cast<double>(t < kStart ? t + 1 : t - kStart));
    }
    const Results clean = c.Cuda(true);
    Poison(c.before[0].tensor);
    Poison(c.before[1].tensor);
    for (int64_t i = 0; i < kStart * 2 * 4 * units; ++i) {
      Set(c.x.tensor, i, std::numeric_limits<double>::quiet_NaN());
    }
    const Results spoilt = c.Cuda(true);
    EXPECT_TRUE(std::isnan(Get(spoilt.y.tensor, 0)));
    for (const auto which : {&Results::y, &Results::dx}) {
      EXPECT_TRUE(BitwiseEqual(TimeSlice((clean.*which).tensor, kStart, kTokens).tensor,
                               TimeSlice((spoilt.*which).tensor, kStart, kTokens).tensor));
    }
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_TRUE(BitwiseEqual(clean.after[i].tensor, spoilt.after[i].tensor)) << i;
    }
  }
}

// Gates far beyond what float32's exponential can hold.
TEST_P(CudaSlstm, ExtremeGatesStayFinite) {
  for (const bool exponential : {false, true}) {
    for (const double size : {50.0, 200.0}) {
      Case c(GetParam(), {2, 30, 2, 32}, random_);
      c.exponential_forget = exponential;
      for (int64_t i = 0; i < c.x.tensor.size(); ++i) {
        Set(c.x.tensor, i, random_.Int(0, 1) == 0 ? -size : size);
      }
      for (const bool states : {true, false}) {
        const Results results = c.Cuda(states);
        for (const Tensor& output : results.all(states)) {
          for (int64_t i = 0; i < output.size(); ++i) ASSERT_TRUE(std::isfinite(Get(output, i)));
        }
      }
    }
  }
}

TEST_P(CudaSlstm, RejectsWrongTypesAndMissingWorkspace) {
  const DType dtype = GetParam();
  const OwnedTensor x = ZeroCuda(dtype, {1, 3, 2, 4, 8}), r = ZeroCuda(dtype, {2, 8, 4, 8});
  const OwnedTensor bias = ZeroCuda(DType::kF32, {2, 4, 8}), y = ZeroCuda(dtype, {1, 3, 2, 8});
  const OwnedTensor positions = ZeroCuda(DType::kI32, {1, 3});
  const OwnedTensor state = ZeroCuda(DType::kF32, {1, 2, 8}),
                    wrong = ZeroCuda(DType::kI32, {2, 4, 8});
  const OwnedTensor workspace = PoisonedCuda(DType::kF32, {SlstmForwardWorkspace(x.tensor)});
  const SlstmForwardArgs good{.x = x.tensor,
                              .r = r.tensor,
                              .bias = bias.tensor,
                              .positions = positions.tensor,
                              .before = {state.tensor, state.tensor, state.tensor, state.tensor},
                              .y = y.tensor,
                              .workspace = workspace.tensor};
  EXPECT_NO_THROW(SlstmForward(good));
  SlstmForwardArgs bad = good;
  bad.bias = wrong.tensor;
  EXPECT_THROW(SlstmForward(bad), Error);
  bad = good;
  bad.before.m = wrong.tensor.View({1, 2, 32});
  EXPECT_THROW(SlstmForward(bad), Error);
  bad = good;
  bad.workspace = {};
  EXPECT_THROW(SlstmForward(bad), Error);
}

INSTANTIATE_TEST_SUITE_P(Types, CudaSlstm, testing::ValuesIn(kCudaTypes), kNameOfParameter);

}  // namespace
}  // namespace eyrie
