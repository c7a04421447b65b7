#include "kernels/slstm/slstm.h"

#include <array>

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

using State = std::array<OwnedTensor, 4>;  // y, c, n, m

SlstmState View(const State& state) {
  return {state[0].tensor, state[1].tensor, state[2].tensor, state[3].tensor};
}
State CastState(const State& state, DType dtype) {
  State result;
  for (size_t i = 0; i < 4; ++i) {
    if (state[i].tensor.defined()) result[i] = Cast(state[i].tensor, dtype);
  }
  return result;
}

struct Case {
  Case(DType dtype, int64_t batch, int64_t tokens, int64_t heads, int64_t units, TestRandom& random,
       double scale = 1)
      : x(RandomTensor(dtype, {batch, tokens, heads, 4, units}, random, scale)),
        r(RandomTensor(dtype, {heads, units, 4, units}, random,
                       1 / std::sqrt(static_cast<double>(units)))),
        bias(RandomTensor(dtype, {heads, 4, units}, random)),
        positions(RandomPositions(batch, tokens, random, true)),
        dy(RandomTensor(dtype, {batch, tokens, heads, units}, random)) {
    for (OwnedTensor& part : before) part = RandomTensor(dtype, state(), random);
    for (int64_t i = 0; i < state().size(); ++i) {
      Set(before[2].tensor, i, static_cast<float>(random.Uniform(0.5, 3)));
    }
    for (size_t i = 0; i < 3; ++i) dafter[i] = RandomTensor(dtype, state(), random);
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : x(Cast(other.x.tensor, dtype)),
        r(Cast(other.r.tensor, dtype)),
        bias(Cast(other.bias.tensor, dtype)),
        positions(Clone(other.positions.tensor)),
        dy(Cast(other.dy.tensor, dtype)),
        before(CastState(other.before, dtype)),
        dafter(CastState(other.dafter, dtype)),
        exponential_forget(other.exponential_forget) {
    PrepareOutputs();
  }
  // Tokens [begin, end) of another.
  Case(const Case& other, int64_t begin, int64_t end) : Case(other, other.x.tensor.dtype) {
    x = TimeSlice(other.x.tensor, begin, end);
    positions = TimeSlice(other.positions.tensor, begin, end);
    dy = TimeSlice(other.dy.tensor, begin, end);
    PrepareOutputs();
  }
  Shape state() const { return {x.tensor.dim(0), x.tensor.dim(2), x.tensor.dim(4)}; }
  void PrepareOutputs() {
    const DType dtype = x.tensor.dtype;
    y = PoisonedTensor(dtype, dy.tensor.shape);
    dx = PoisonedTensor(dtype, x.tensor.shape);
    dr = OwnedTensor(dtype, r.tensor.shape);
    dbias = OwnedTensor(dtype, bias.tensor.shape);
    for (OwnedTensor& part : after) part = PoisonedTensor(dtype, state());
    for (size_t i = 0; i < 3; ++i) dbefore[i] = PoisonedTensor(dtype, state());
  }
  SlstmForwardArgs forward(bool states = true) const {
    return {.x = x.tensor,
            .r = r.tensor,
            .bias = bias.tensor,
            .positions = positions.tensor,
            .exponential_forget = exponential_forget,
            .before = states ? View(before) : SlstmState{},
            .y = y.tensor,
            .after = states ? View(after) : SlstmState{}};
  }
  SlstmBackwardArgs backward(bool states = true) const {
    return {.x = x.tensor,
            .r = r.tensor,
            .bias = bias.tensor,
            .positions = positions.tensor,
            .exponential_forget = exponential_forget,
            .before = states ? View(before) : SlstmState{},
            .y = y.tensor,
            .dy = dy.tensor,
            .dafter = states ? View(dafter) : SlstmState{},
            .dx = dx.tensor,
            .dr = dr.tensor,
            .dbias = dbias.tensor,
            .dbefore = states ? View(dbefore) : SlstmState{}};
  }
  void Run(bool states = true) const {
    SlstmForward(forward(states));
    SlstmBackward(backward(states));
  }
  std::vector<Tensor> outputs() const {
    std::vector<Tensor> all{y.tensor, dx.tensor, dr.tensor, dbias.tensor};
    for (const OwnedTensor& part : after) all.push_back(part.tensor);
    for (size_t i = 0; i < 3; ++i) all.push_back(dbefore[i].tensor);
    return all;
  }

  OwnedTensor x, r, bias, positions, dy;
  State before, dafter;
  bool exponential_forget = false;
  OwnedTensor y, dx, dr, dbias;
  State after, dbefore;
};

// The equations, unit by unit.
struct Reference {
  Reference(const Case& c, bool states)
      : y(DType::kF64, c.dy.tensor.shape), after(CastState(c.before, DType::kF64)) {
    const int64_t batch = c.x.tensor.dim(0), tokens = c.x.tensor.dim(1), heads = c.x.tensor.dim(2);
    const int64_t units = c.x.tensor.dim(4);
    for (OwnedTensor& part : after) {
      if (!states) FillZero(part.tensor);
    }
    for (int64_t bh = 0; bh < batch * heads; ++bh) {
      const int64_t b = bh / heads, h = bh % heads;
      for (int64_t t = 0; t < tokens; ++t) {
        const auto reset = [&](OwnedTensor& part) {
          for (int64_t j = 0; j < units; ++j) Set(part.tensor, bh * units + j, 0);
        };
        if (Get(c.positions.tensor, b * tokens + t) == 0) {
          for (OwnedTensor& part : after) reset(part);
        }
        const int64_t row = (b * tokens + t) * heads + h;
        std::vector<double> now;
        for (int64_t j = 0; j < units; ++j) {
          double p[4];
          for (int64_t g = 0; g < 4; ++g) {
            p[g] = Get(c.x.tensor, (row * 4 + g) * units + j) +
                   Get(c.bias.tensor, (h * 4 + g) * units + j);
            for (int64_t u = 0; u < units; ++u) {
              p[g] += Get(after[0].tensor, bh * units + u) *
                      Get(c.r.tensor, ((h * units + u) * 4 + g) * units + j);
            }
          }
          const int64_t at = bh * units + j;
          const double n = Get(after[2].tensor, at);
          const double kept = Get(after[3].tensor, at) +
                              (c.exponential_forget ? p[1] : -std::log1p(std::exp(-p[1])));
          const double m = n == 0 ? p[0] : std::max(kept, p[0]);
          const double forget = n == 0 ? 0 : std::exp(kept - m), input = std::exp(p[0] - m);
          Set(after[1].tensor, at, forget * Get(after[1].tensor, at) + input * std::tanh(p[2]));
          Set(after[2].tensor, at, forget * n + input);
          Set(after[3].tensor, at, m);
          now.push_back(Get(after[1].tensor, at) / Get(after[2].tensor, at) /
                        (1 + std::exp(-p[3])));
        }
        for (int64_t j = 0; j < units; ++j) {
          Set(after[0].tensor, bh * units + j, now[static_cast<size_t>(j)]);
          Set(y.tensor, row * units + j, now[static_cast<size_t>(j)]);
        }
      }
    }
  }
  OwnedTensor y;
  State after;
};

TEST(Slstm, MatchesTheEquations) {
  TestRandom random;
  for (bool exponential : {false, true}) {
    for (bool states : {false, true}) {
      for (const auto& [batch, tokens, heads, units] : {std::array<int64_t, 4>{1, 1, 1, 1},
                                                        {2, 1, 3, 5},
                                                        {3, 33, 1, 7},
                                                        {1, 20, 2, 33},
                                                        {5, 9, 3, 16}}) {
        SCOPED_TRACE(StrCat("B ", batch, " T ", tokens, " H ", heads, " d ", units, " states ",
                            states, " exponential ", exponential));
        Case c(DType::kF64, batch, tokens, heads, units, random);
        c.exponential_forget = exponential;
        SlstmForward(c.forward(states));
        const Reference expected(c, states);
        EXPECT_LT(RelativeError(c.y.tensor, expected.y.tensor), 1e-12);
        for (size_t i = 0; states && i < 4; ++i) {
          EXPECT_LT(RelativeError(c.after[i].tensor, expected.after[i].tensor), 1e-12) << i;
        }
      }
    }
  }
}

// m counts as constant: only what does not change with the scale of c and n together can be
// compared, here a sum of weights times c / n and log(n) + m after the last token.
TEST(Slstm, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (bool exponential : {false, true}) {
    for (bool states : {false, true}) {
      for (const auto& [batch, tokens, heads, units] :
           {std::array<int64_t, 4>{1, 1, 1, 3}, {2, 12, 3, 5}, {3, 7, 1, 9}}) {
        SCOPED_TRACE(StrCat("B ", batch, " T ", tokens, " H ", heads, " d ", units, " states ",
                            states, " exponential ", exponential));
        Case c(DType::kF64, batch, tokens, heads, units, random);
        c.exponential_forget = exponential;
        const State weights = CastState(c.dafter, DType::kF64);
        SlstmForward(c.forward(states));
        const int64_t size = c.state().size();
        for (int64_t i = 0; i < size; ++i) {
          const double cell = Get(c.after[1].tensor, i), n = Get(c.after[2].tensor, i);
          const double along = Get(weights[1].tensor, i), level = Get(weights[2].tensor, i);
          Set(c.dafter[1].tensor, i, along / n);
          Set(c.dafter[2].tensor, i, -along * cell / (n * n) + level / n);
        }
        SlstmBackward(c.backward(states));
        const auto loss = [&] {
          SlstmForward(c.forward(states));
          double sum = Dot(c.dy.tensor, c.y.tensor);
          if (!states) return sum;
          for (int64_t i = 0; i < size; ++i) {
            const double n = Get(c.after[2].tensor, i);
            sum += Get(weights[0].tensor, i) * Get(c.after[0].tensor, i) +
                   Get(weights[1].tensor, i) * Get(c.after[1].tensor, i) / n +
                   Get(weights[2].tensor, i) * (std::log(n) + Get(c.after[3].tensor, i));
          }
          return sum;
        };
        const auto check = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
          EXPECT_LT(NumericGradientCheck(loss, input.tensor, gradient.tensor, random), 1e-6);
        };
        check(c.x, c.dx);
        check(c.r, c.dr);
        check(c.bias, c.dbias);
        for (size_t i = 0; states && i < 3; ++i) check(c.before[i], c.dbefore[i]);
      }
    }
  }
}

TEST(Slstm, FloatAgreesWithDouble) {
  TestRandom random;
  for (bool exponential : {false, true}) {
    Case wide(DType::kF64, 3, 65, 2, 40, random);
    wide.exponential_forget = exponential;
    const Case narrow(wide, DType::kF32);
    wide.Run();
    narrow.Run();
    const std::vector<Tensor> expected = wide.outputs(), actual = narrow.outputs();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LT(RelativeError(actual[i], expected[i], 0.1), 2e-5) << i;
    }
  }
}

// With the state and its gradients handed on, chunks are the whole.
TEST(Slstm, SplitInTimeIsTheWhole) {
  TestRandom random;
  const Case whole(DType::kF64, 2, 31, 3, 9, random);
  whole.Run();
  for (int64_t cut : {1, 15, 30}) {
    Case first(whole, 0, cut), second(whole, cut, 31);
    SlstmForward(first.forward());
    second.before = CastState(first.after, DType::kF64);
    second.Run();
    first.dafter = CastState(second.dbefore, DType::kF64);
    SlstmBackward(first.backward());
    const OwnedTensor y = PoisonedTensor(DType::kF64, whole.y.tensor.shape);
    const OwnedTensor dx = PoisonedTensor(DType::kF64, whole.dx.tensor.shape);
    for (const auto& [part, begin] : {std::pair<const Case&, int64_t>{first, 0}, {second, cut}}) {
      PasteTime(part.y.tensor, y.tensor, begin);
      PasteTime(part.dx.tensor, dx.tensor, begin);
    }
    const auto sum = [](const OwnedTensor& a, const OwnedTensor& b) {
      OwnedTensor result = Clone(a.tensor);
      for (int64_t i = 0; i < a.tensor.size(); ++i) {
        Set(result.tensor, i, Get(a.tensor, i) + Get(b.tensor, i));
      }
      return result;
    };
    EXPECT_LT(RelativeError(y.tensor, whole.y.tensor), 1e-12);
    EXPECT_LT(RelativeError(dx.tensor, whole.dx.tensor), 1e-12);
    EXPECT_LT(RelativeError(sum(first.dr, second.dr).tensor, whole.dr.tensor), 1e-12);
    EXPECT_LT(RelativeError(sum(first.dbias, second.dbias).tensor, whole.dbias.tensor), 1e-12);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_LT(RelativeError(second.after[i].tensor, whole.after[i].tensor), 1e-12);
      if (i == 3) continue;
      EXPECT_LT(RelativeError(first.dbefore[i].tensor, whole.dbefore[i].tensor, 1e-6), 1e-12);
    }
  }
}

// Not even a NaN crosses a document's start: packed documents are documents alone.
TEST(Slstm, PackedDocumentsAreDocumentsAlone) {
  TestRandom random;
  constexpr int64_t kTokens = 23, kStart = 9;
  Case packed(DType::kF64, 1, kTokens, 2, 6, random);
  for (int64_t t = 0; t < kTokens; ++t) {
    Set(packed.positions.tensor, t, static_cast<double>(t < kStart ? t + 4 : t - kStart));
  }
  const Case first(packed, 0, kStart), second(packed, kStart, kTokens);
  packed.Run();
  first.Run(false);
  second.Run();
  const auto expect_same = [&](const Case& alone, int64_t begin, int64_t end) {
    for (const auto which : {&Case::y, &Case::dx}) {
      EXPECT_LT(RelativeError(TimeSlice((packed.*which).tensor, begin, end).tensor,
                              (alone.*which).tensor),
                1e-12);
    }
  };
  expect_same(second, kStart, kTokens);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_LT(RelativeError(packed.after[i].tensor, second.after[i].tensor), 1e-12);
  }
  // The first, which has a state before it, gets no gradient from the second.
  Case continued(packed, 0, kStart);
  for (OwnedTensor& part : continued.dafter) {
    if (part.tensor.defined()) FillZero(part.tensor);
  }
  continued.Run();
  expect_same(continued, 0, kStart);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_LT(RelativeError(packed.dbefore[i].tensor, continued.dbefore[i].tensor), 1e-12);
  }

  Poison(packed.before[1].tensor);
  for (int64_t i = 0; i < kStart * 48; ++i) {
    Set(packed.x.tensor, i, std::numeric_limits<double>::quiet_NaN());
  }
  packed.Run();
  EXPECT_TRUE(std::isnan(Get(packed.y.tensor, 0)));
  expect_same(second, kStart, kTokens);
}

// Gates far beyond what float32's exponential can hold.
TEST(Slstm, ExtremeGatesStayFinite) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (bool exponential : {false, true}) {
      for (double size : {50.0, 200.0}) {
        Case c(dtype, 2, 40, 2, 8, random);
        c.exponential_forget = exponential;
        for (int64_t i = 0; i < c.x.tensor.size(); ++i) {
          Set(c.x.tensor, i, random.Int(0, 1) == 0 ? -size : size);
        }
        c.Run();
        for (const Tensor& output : c.outputs()) {
          for (int64_t i = 0; i < output.size(); ++i) ASSERT_TRUE(std::isfinite(Get(output, i)));
        }
        // From nothing, too.
        c.Run(false);
        const Reference expected(Case(c, DType::kF64), false);
        EXPECT_LT(RelativeError(c.y.tensor, Cast(expected.y.tensor, dtype).tensor), 1e-3);
      }
    }
  }
}

TEST(Slstm, ParameterGradientsAreAddedTo) {
  TestRandom random;
  const Case c(DType::kF64, 2, 7, 2, 5, random);
  c.Run();
  const OwnedTensor dr = Clone(c.dr.tensor), dbias = Clone(c.dbias.tensor);
  SlstmBackward(c.backward());
  for (const auto& [twice, once] :
       {std::pair{c.dr.tensor, dr.tensor}, {c.dbias.tensor, dbias.tensor}}) {
    for (int64_t i = 0; i < once.size(); ++i) {
      EXPECT_NEAR(Get(twice, i), 2 * Get(once, i), 1e-11);
    }
  }
}

TEST(Slstm, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  for (int64_t heads : {1, 3}) {
    const Case one(DType::kF32, 5, 40, heads, 72, random), two(one, DType::kF32);
    WithThreads(1, [&] { one.Run(); });
    WithThreads(2, [&] { two.Run(); });
    const std::vector<Tensor> expected = one.outputs(), actual = two.outputs();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(BitwiseEqual(actual[i], expected[i])) << heads << " " << i;
    }
  }
}

TEST(Slstm, RejectsWrongShapes) {
  TestRandom random;
  const Case c(DType::kF32, 2, 3, 2, 5, random);
  EXPECT_NO_THROW(c.Run());
  const OwnedTensor wrong(DType::kF32, {2}), other_type(DType::kF64, c.r.tensor.shape);
  const auto rejects = [&](Tensor SlstmForwardArgs::*member, const Tensor& value) {
    SlstmForwardArgs bad = c.forward();
    bad.*member = value;
    EXPECT_THROW(SlstmForward(bad), Error);
  };
  for (const auto member : {&SlstmForwardArgs::x, &SlstmForwardArgs::r, &SlstmForwardArgs::bias,
                            &SlstmForwardArgs::positions, &SlstmForwardArgs::y}) {
    rejects(member, wrong.tensor);
    rejects(member, {});
  }
  rejects(&SlstmForwardArgs::r, other_type.tensor);
  SlstmForwardArgs half_a_state = c.forward();
  half_a_state.before.m = {};
  EXPECT_THROW(SlstmForward(half_a_state), Error);
  SlstmBackwardArgs with_m = c.backward();
  with_m.dafter.m = c.before[3].tensor;
  EXPECT_THROW(SlstmBackward(with_m), Error);
  SlstmBackwardArgs bad = c.backward();
  bad.dbefore.y = wrong.tensor;
  EXPECT_THROW(SlstmBackward(bad), Error);
}

}  // namespace
}  // namespace eyrie
