#include "kernels/lightning_attention/lightning_attention.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

struct Case {
  Case(DType dtype, int64_t batch, int64_t time, int64_t heads, int64_t keys, int64_t values,
       TestRandom& random)
      : q(RandomTensor(dtype, {batch, time, heads, keys}, random)),
        k(RandomTensor(dtype, {batch, time, heads, keys}, random)),
        v(RandomTensor(dtype, {batch, time, heads, values}, random)),
        dout(RandomTensor(dtype, {batch, time, heads, values}, random)),
        s0(RandomTensor(dtype, {batch, heads, keys, values}, random)),
        ds_last(RandomTensor(dtype, {batch, heads, keys, values}, random)),
        rate(dtype, {heads}),
        positions(RandomPositions(batch, time, random, true)) {
    // From a memory of a token or two to one of 10^5.
    for (int64_t h = 0; h < heads; ++h) {
      Set(rate.tensor, h,
          static_cast<double>(std::exp(static_cast<float>(random.Uniform(-11, 0)))));
    }
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : q(Cast(other.q.tensor, dtype)),
        k(Cast(other.k.tensor, dtype)),
        v(Cast(other.v.tensor, dtype)),
        dout(Cast(other.dout.tensor, dtype)),
        s0(Cast(other.s0.tensor, dtype)),
        ds_last(Cast(other.ds_last.tensor, dtype)),
        rate(Cast(other.rate.tensor, dtype)),
        positions(Clone(other.positions.tensor)) {
    PrepareOutputs();
  }
  // Tokens [begin, end) of another, with its outputs' memory of its own.
  Case(const Case& other, int64_t begin, int64_t end)
      : q(TimeSlice(other.q.tensor, begin, end)),
        k(TimeSlice(other.k.tensor, begin, end)),
        v(TimeSlice(other.v.tensor, begin, end)),
        dout(TimeSlice(other.dout.tensor, begin, end)),
        s0(Clone(other.s0.tensor)),
        ds_last(Clone(other.ds_last.tensor)),
        rate(Clone(other.rate.tensor)),
        positions(TimeSlice(other.positions.tensor, begin, end)) {
    PrepareOutputs();
  }
  void PrepareOutputs() {
    const DType dtype = q.tensor.dtype;
    o = PoisonedTensor(dtype, v.tensor.shape);
    dq = PoisonedTensor(dtype, q.tensor.shape);
    dk = PoisonedTensor(dtype, q.tensor.shape);
    dv = PoisonedTensor(dtype, v.tensor.shape);
    s_last = PoisonedTensor(dtype, s0.tensor.shape);
    ds0 = PoisonedTensor(dtype, s0.tensor.shape);
  }
  void Forward(bool with_state = true) {
    LightningAttentionForward({.q = q.tensor,
                               .k = k.tensor,
                               .v = v.tensor,
                               .rate = rate.tensor,
                               .positions = positions.tensor,
                               .s0 = with_state ? s0.tensor : Tensor{},
                               .o = o.tensor,
                               .s_last = with_state ? s_last.tensor : Tensor{}});
  }
  void Backward(bool with_state = true) {
    LightningAttentionBackward({.q = q.tensor,
                                .k = k.tensor,
                                .v = v.tensor,
                                .rate = rate.tensor,
                                .positions = positions.tensor,
                                .s0 = with_state ? s0.tensor : Tensor{},
                                .dout = dout.tensor,
                                .ds_last = with_state ? ds_last.tensor : Tensor{},
                                .dq = dq.tensor,
                                .dk = dk.tensor,
                                .dv = dv.tensor,
                                .ds0 = with_state ? ds0.tensor : Tensor{}});
  }
  std::vector<Tensor> outputs() const {
    return {o.tensor, s_last.tensor, dq.tensor, dk.tensor, dv.tensor, ds0.tensor};
  }

  OwnedTensor q, k, v, dout, s0, ds_last, rate, positions;
  OwnedTensor o, s_last, dq, dk, dv, ds0;
};

// The recurrence, token by token.
struct Reference {
  explicit Reference(const Case& c, bool with_state)
      : o(DType::kF64, c.v.tensor.shape), s_last(DType::kF64, c.s0.tensor.shape) {
    const int64_t batch = c.k.tensor.dim(0), time = c.k.tensor.dim(1), heads = c.k.tensor.dim(2);
    const int64_t dk = c.k.tensor.dim(3), dv = c.v.tensor.dim(3);
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> state(static_cast<size_t>(dk * dv));
        const int64_t first = (b * heads + h) * dk * dv;
        for (size_t i = 0; with_state && i < state.size(); ++i) {
          state[i] = Get(c.s0.tensor, first + static_cast<int64_t>(i));
        }
        for (int64_t t = 0; t < time; ++t) {
          const bool starts = Get(c.positions.tensor, b * time + t) == 0;
          const double decay = starts ? 0 : std::exp(-Get(c.rate.tensor, h));
          const int64_t row = (b * time + t) * heads + h;
          for (int64_t j = 0; j < dv; ++j) {
            double sum = 0;
            for (int64_t i = 0; i < dk; ++i) {
              double& s = state[static_cast<size_t>(i * dv + j)];
              s = decay * s + Get(c.k.tensor, row * dk + i) * Get(c.v.tensor, row * dv + j);
              sum += s * Get(c.q.tensor, row * dk + i);
            }
            Set(o.tensor, row * dv + j, sum);
          }
        }
        for (size_t i = 0; i < state.size(); ++i) {
          Set(s_last.tensor, first + static_cast<int64_t>(i), state[i]);
        }
      }
    }
  }
  OwnedTensor o, s_last;
};

TEST(LightningAttention, MatchesTheRecurrence) {
  TestRandom random;
  for (int64_t batch : {1, 2}) {
    for (int64_t time : {1, 2, 33, 63, 64, 65, 200}) {
      for (const auto& [dk, dv] : {std::pair<int64_t, int64_t>{1, 1}, {5, 7}, {16, 8}}) {
        for (bool with_state : {false, true}) {
          SCOPED_TRACE(StrCat("B ", batch, " T ", time, " dk ", dk, " dv ", dv));
          Case c(DType::kF64, batch, time, 3, dk, dv, random);
          // Runs of a few tokens, then documents longer than a tile.
          if (random.Int(0, 1) == 0) {
            for (int64_t i = 0; i < batch * time; ++i) {
              Set(c.positions.tensor, i, static_cast<double>((i % time + 5) % 90));
            }
          }
          c.Forward(with_state);
          const Reference expected(c, with_state);
          EXPECT_LT(RelativeError(c.o.tensor, expected.o.tensor), 1e-12);
          if (!with_state) continue;
          EXPECT_LT(RelativeError(c.s_last.tensor, expected.s_last.tensor), 1e-12);
        }
      }
    }
  }
}

// The loss is a random linear function of the outputs and of the state handed on.
TEST(LightningAttention, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (int64_t time : {1, 7, 64, 130}) {
    for (bool with_state : {false, true}) {
      SCOPED_TRACE(StrCat("T ", time, " state ", with_state));
      Case c(DType::kF64, 2, time, 2, 5, 3, random);
      const auto loss = [&] {
        c.Forward(with_state);
        return Dot(c.o.tensor, c.dout.tensor) +
               (with_state ? Dot(c.s_last.tensor, c.ds_last.tensor) : 0);
      };
      c.Backward(with_state);
      EXPECT_LT(NumericGradientCheck(loss, c.q.tensor, c.dq.tensor, random), 1e-8);
      EXPECT_LT(NumericGradientCheck(loss, c.k.tensor, c.dk.tensor, random), 1e-8);
      EXPECT_LT(NumericGradientCheck(loss, c.v.tensor, c.dv.tensor, random), 1e-8);
      if (!with_state) continue;
      EXPECT_LT(NumericGradientCheck(loss, c.s0.tensor, c.ds0.tensor, random), 1e-8);
    }
  }
}

TEST(LightningAttention, AnySplitInTimeEqualsTheWhole) {
  TestRandom random;
  for (int trial = 0; trial < 6; ++trial) {
    const int64_t time = random.Int(2, 150), cut = random.Int(1, time - 1);
    SCOPED_TRACE(StrCat("T ", time, " cut at ", cut));
    Case whole(DType::kF64, 2, time, 3, 4, 6, random);
    whole.Forward();
    whole.Backward();
    Case first(whole, 0, cut), second(whole, cut, time);
    first.Forward();
    second.s0 = Clone(first.s_last.tensor);
    second.Forward();
    second.Backward();
    first.ds_last = Clone(second.ds0.tensor);
    first.Backward();
    OwnedTensor Case::*const over_time[] = {&Case::o, &Case::dq, &Case::dk, &Case::dv};
    for (const auto output : over_time) {
      OwnedTensor joined = PoisonedTensor(DType::kF64, (whole.*output).tensor.shape);
      PasteTime((first.*output).tensor, joined.tensor, 0);
      PasteTime((second.*output).tensor, joined.tensor, cut);
      EXPECT_LT(RelativeError(joined.tensor, (whole.*output).tensor), 1e-12);
    }
    EXPECT_LT(RelativeError(second.s_last.tensor, whole.s_last.tensor), 1e-12);
    EXPECT_LT(RelativeError(first.ds0.tensor, whole.ds0.tensor), 1e-12);
  }
}

TEST(LightningAttention, SummariesAreTheMapsOfTheStates) {
  TestRandom random;
  for (int64_t time : {1, 7, 64, 129}) {
    for (bool one_document : {false, true}) {
      SCOPED_TRACE(StrCat("T ", time, " one document ", one_document));
      Case c(DType::kF64, 2, time, 3, 4, 6, random);
      for (int64_t i = 0; one_document && i < 2 * time; ++i) {
        Set(c.positions.tensor, i, static_cast<double>(i % time + 3));
      }
      c.Forward();
      c.Backward();
      OwnedTensor decay = PoisonedTensor(DType::kF64, {2, 3});
      OwnedTensor increment = PoisonedTensor(DType::kF64, c.s0.tensor.shape);
      const auto mapped = [&](const Tensor& state) {
        OwnedTensor result = Clone(increment.tensor);
        for (int64_t i = 0; i < state.size(); ++i) {
          Set(result.tensor, i,
              Get(result.tensor, i) + Get(decay.tensor, i / (4 * 6)) * Get(state, i));
        }
        return result;
      };
      LightningAttentionSummary({.k = c.k.tensor,
                                 .v = c.v.tensor,
                                 .rate = c.rate.tensor,
                                 .positions = c.positions.tensor,
                                 .decay = decay.tensor,
                                 .increment = increment.tensor});
      EXPECT_LT(RelativeError(mapped(c.s0.tensor).tensor, c.s_last.tensor), 1e-12);
      EXPECT_EQ(Get(decay.tensor, 0) > 0,
                one_document || Get(c.positions.tensor, time - 1) >= time);
      LightningAttentionGradSummary({.q = c.q.tensor,
                                     .rate = c.rate.tensor,
                                     .positions = c.positions.tensor,
                                     .dout = c.dout.tensor,
                                     .decay = decay.tensor,
                                     .increment = increment.tensor});
      EXPECT_LT(RelativeError(mapped(c.ds_last.tensor).tensor, c.ds0.tensor), 1e-12);
    }
  }
}

TEST(LightningAttention, FloatAgreesWithDouble) {
  TestRandom random;
  Case wide(DType::kF64, 2, 300, 3, 64, 32, random), narrow(wide, DType::kF32);
  for (Case* c : {&wide, &narrow}) {
    c->Forward();
    c->Backward();
  }
  for (size_t i = 0; i < wide.outputs().size(); ++i) {
    EXPECT_LT(RelativeError(narrow.outputs()[i], wide.outputs()[i]), 1e-5) << "output " << i;
  }
}

TEST(LightningAttention, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  Case one(DType::kF32, 2, 130, 3, 32, 32, random), two(one, DType::kF32);
  for (const auto& [c, threads] : {std::pair{&one, 1}, {&two, 2}}) {
    WithThreads(threads, [&] {
      c->Forward();
      c->Backward();
    });
  }
  for (size_t i = 0; i < one.outputs().size(); ++i) {
    EXPECT_TRUE(BitwiseEqual(one.outputs()[i], two.outputs()[i])) << "output " << i;
  }
}

TEST(LightningAttention, RejectsWrongShapesAndTypes) {
  TestRandom random;
  const Case good(DType::kF32, 2, 5, 3, 4, 6, random);
  const auto refused = [&](const std::function<void(Case&)>& spoil) {
    Case c(good, DType::kF32);
    spoil(c);
    EXPECT_THROW(c.Forward(), Error);
    EXPECT_THROW(c.Backward(), Error);
  };
  refused([](Case& c) { c.q = OwnedTensor(DType::kF32, {2, 5, 3, 5}); });
  refused([](Case& c) { c.v = OwnedTensor(DType::kF32, {2, 5, 2, 6}); });
  refused([](Case& c) { c.rate = OwnedTensor(DType::kF32, {4}); });
  refused([](Case& c) { c.rate = OwnedTensor(DType::kF64, {3}); });
  refused([](Case& c) { c.s0 = OwnedTensor(DType::kF32, {2, 3, 6, 4}); });
  refused([](Case& c) { c.positions = OwnedTensor(DType::kI32, {2, 6}); });
}

}  // namespace
}  // namespace eyrie
