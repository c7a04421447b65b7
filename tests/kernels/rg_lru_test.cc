#include "kernels/rg_lru/rg_lru.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

// Inputs and poisoned outputs of one call in each direction; every optional tensor present.
struct Case {
  Case(DType dtype, int64_t batch, int64_t time, int64_t channels, TestRandom& random)
      : u(RandomTensor(dtype, {batch, time, channels}, random)),
        zi(RandomTensor(dtype, {batch, time, channels}, random)),
        zr(RandomTensor(dtype, {batch, time, channels}, random)),
        lambda(RandomTensor(dtype, {channels}, random)),
        positions(RandomPositions(batch, time, random, true)),
        h0(RandomTensor(dtype, {batch, channels}, random)),
        dh(RandomTensor(dtype, {batch, time, channels}, random)),
        dh_last(RandomTensor(dtype, {batch, channels}, random)) {
    for (int64_t c = 0; c < channels; ++c) {
      Set(lambda.tensor, c, static_cast<double>(static_cast<float>(random.Uniform(-5, 1))));
    }
    PrepareOutputs();
  }
  // The same numbers in another type.
  Case(const Case& other, DType dtype)
      : u(Cast(other.u.tensor, dtype)),
        zi(Cast(other.zi.tensor, dtype)),
        zr(Cast(other.zr.tensor, dtype)),
        lambda(Cast(other.lambda.tensor, dtype)),
        positions(Clone(other.positions.tensor)),
        h0(Cast(other.h0.tensor, dtype)),
        dh(Cast(other.dh.tensor, dtype)),
        dh_last(Cast(other.dh_last.tensor, dtype)) {
    PrepareOutputs();
  }
  // Tokens [begin, end) of `whole`, starting from the state `h0_in` and handed `dh_last_in`.
  Case(const Case& whole, int64_t begin, int64_t end, const Tensor& h0_in, const Tensor& dh_last_in)
      : u(TimeSlice(whole.u.tensor, begin, end)),
        zi(TimeSlice(whole.zi.tensor, begin, end)),
        zr(TimeSlice(whole.zr.tensor, begin, end)),
        lambda(Clone(whole.lambda.tensor)),
        positions(TimeSlice(whole.positions.tensor, begin, end)),
        h0(Clone(h0_in)),
        dh(TimeSlice(whole.dh.tensor, begin, end)),
        dh_last(Clone(dh_last_in)) {
    PrepareOutputs();
  }

  void PrepareOutputs() {
    const DType dtype = u.tensor.dtype;
    const Shape full = u.tensor.shape;
    h = PoisonedTensor(dtype, full);
    h_last = PoisonedTensor(dtype, h0.tensor.shape);
    du = PoisonedTensor(dtype, full);
    dzi = PoisonedTensor(dtype, full);
    dzr = PoisonedTensor(dtype, full);
    dh0 = PoisonedTensor(dtype, h0.tensor.shape);
    dlambda = OwnedTensor(dtype, lambda.tensor.shape);
    dzi_sum = OwnedTensor(dtype, lambda.tensor.shape);
    dzr_sum = OwnedTensor(dtype, lambda.tensor.shape);
  }
  void Forward() {
    RgLruForward({u.tensor, zi.tensor, zr.tensor, lambda.tensor, positions.tensor, h0.tensor,
                  h.tensor, h_last.tensor});
  }
  void Backward() {
    RgLruBackward({u.tensor, zi.tensor, zr.tensor, lambda.tensor, positions.tensor, h0.tensor,
                   h.tensor, dh.tensor, dh_last.tensor, du.tensor, dzi.tensor, dzr.tensor,
                   dh0.tensor, dlambda.tensor, dzi_sum.tensor, dzr_sum.tensor});
  }
  // A scalar that depends on both outputs; its gradient is what Backward computes.
  double Loss() {
    Forward();
    return Dot(dh.tensor, h.tensor) + Dot(dh_last.tensor, h_last.tensor);
  }

  OwnedTensor u, zi, zr, lambda, positions, h0, dh, dh_last;
  OwnedTensor h, h_last, du, dzi, dzr, dh0, dlambda, dzi_sum, dzr_sum;
};

double Logistic(double x) { return 1 / (1 + std::exp(-x)); }

// Equations 1-4 of the paper as they stand, with the power and the plain square root.
OwnedTensor ReferenceForward(const Case& c) {
  const int64_t batch = c.u.tensor.dim(0), time = c.u.tensor.dim(1), channels = c.u.tensor.dim(2);
  OwnedTensor h(DType::kF64, c.u.tensor.shape);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t r = 0; r < channels; ++r) {
      double state = Get(c.h0.tensor, b * channels + r);
      for (int64_t t = 0; t < time; ++t) {
        const int64_t i = (b * time + t) * channels + r;
        const double input = Logistic(Get(c.zi.tensor, i)) * Get(c.u.tensor, i);
        const double base = Logistic(-Get(c.lambda.tensor, r));
        const double a = std::pow(base, 8 * Logistic(Get(c.zr.tensor, i)));
        const bool start = Get(c.positions.tensor, b * time + t) == 0;
        state = start ? input : a * state + std::sqrt(1 - a * a) * input;
        Set(h.tensor, i, state);
      }
    }
  }
  return h;
}

TEST(RgLru, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t batch : {1, 3}) {
    for (int64_t time : {1, 2, 3, 7, 33}) {
      for (int64_t channels : {1, 5, 17, 64, 130, 1100}) {
        SCOPED_TRACE(StrCat("B ", batch, " T ", time, " R ", channels));
        Case c(DType::kF64, batch, time, channels, random);
        const OwnedTensor expected = ReferenceForward(c);
        c.Forward();
        EXPECT_LT(RelativeError(c.h.tensor, expected.tensor), 1e-12);
        const OwnedTensor last = TimeSlice(c.h.tensor, time - 1, time);
        EXPECT_TRUE(BitwiseEqual(c.h_last.tensor, last.tensor.View(c.h_last.tensor.shape)));
      }
    }
  }
}

TEST(RgLru, FloatAgreesWithDouble) {
  TestRandom random;
  for (int64_t channels : {17, 130, 1100}) {
    SCOPED_TRACE(StrCat("R ", channels));
    Case wide(DType::kF64, 3, 33, channels, random);
    Case narrow(wide, DType::kF32);
    for (Case* c : {&wide, &narrow}) {
      c->Forward();
      c->Backward();
    }
    EXPECT_LT(RelativeError(narrow.h.tensor, wide.h.tensor), 2e-6);
    EXPECT_LT(RelativeError(narrow.h_last.tensor, wide.h_last.tensor), 2e-6);
    EXPECT_LT(RelativeError(narrow.du.tensor, wide.du.tensor), 5e-6);
    EXPECT_LT(RelativeError(narrow.dzi.tensor, wide.dzi.tensor), 5e-6);
    EXPECT_LT(RelativeError(narrow.dzr.tensor, wide.dzr.tensor), 2e-5);
    EXPECT_LT(RelativeError(narrow.dh0.tensor, wide.dh0.tensor), 2e-5);
    EXPECT_LT(RelativeError(narrow.dlambda.tensor, wide.dlambda.tensor), 1e-4);
    EXPECT_LT(RelativeError(narrow.dzi_sum.tensor, wide.dzi_sum.tensor), 1e-5);
    EXPECT_LT(RelativeError(narrow.dzr_sum.tensor, wide.dzr_sum.tensor), 1e-4);
  }
}

// Every input, the carried state and the handed-on gradient included.
TEST(RgLru, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (int64_t time : {1, 2, 7, 33}) {
    for (int64_t channels : {1, 5, 130}) {
      SCOPED_TRACE(StrCat("T ", time, " R ", channels));
      Case c(DType::kF64, 3, time, channels, random);
      // At least one sequence goes on from its carried state.
      Set(c.positions.tensor, 0, 4);
      c.Forward();
      c.Backward();
      const auto loss = [&] { return c.Loss(); };
      const auto check = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
        return NumericGradientCheck(loss, input.tensor, gradient.tensor, random, 3e-4, 24);
      };
      EXPECT_LT(check(c.u, c.du), 1e-6);
      EXPECT_LT(check(c.zi, c.dzi), 1e-6);
      EXPECT_LT(check(c.zr, c.dzr), 1e-6);
      EXPECT_LT(check(c.lambda, c.dlambda), 1e-6);
      EXPECT_LT(check(c.h0, c.dh0), 1e-6);
    }
  }
}

TEST(RgLru, DocumentStartForgetsTheState) {
  TestRandom random;
  Case c(DType::kF64, 1, 6, 17, random);
  const int32_t positions[] = {0, 1, 2, 0, 0, 1};
  std::copy_n(positions, 6, c.positions.tensor.data<int32_t>());
  Poison(c.h0.tensor);  // must not be read into any result
  c.Forward();
  c.Backward();
  for (int64_t t : {0, 3, 4}) {
    for (int64_t r = 0; r < 17; ++r) {
      const int64_t i = t * 17 + r;
      const double input = Logistic(Get(c.zi.tensor, i)) * Get(c.u.tensor, i);
      EXPECT_NEAR(Get(c.h.tensor, i), input, 1e-14);
      EXPECT_EQ(Get(c.dzr.tensor, i), 0);
    }
  }
  for (int64_t r = 0; r < 17; ++r) {
    EXPECT_EQ(Get(c.dh0.tensor, r), 0);
    EXPECT_TRUE(std::isfinite(Get(c.dlambda.tensor, r)));
  }
  // The first document's gradients do not depend on what comes after it.
  const OwnedTensor before = TimeSlice(c.du.tensor, 0, 3);
  for (int64_t i = 3 * 17; i < 6 * 17; ++i) Set(c.dh.tensor, i, random.Normal());
  c.Backward();
  EXPECT_TRUE(BitwiseEqual(TimeSlice(c.du.tensor, 0, 3).tensor, before.tensor));
}

TEST(RgLru, ChunksWithCarriedStateEqualTheWhole) {
  TestRandom random;
  const int64_t batch = 3, time = 33, channels = 130;
  Case whole(DType::kF64, batch, time, channels, random);
  whole.Forward();
  whole.Backward();

  const std::vector<int64_t> cuts = {0, 1, 3, 10, 11, 32, 33};
  OwnedTensor h = PoisonedTensor(DType::kF64, whole.u.tensor.shape);
  OwnedTensor state = Clone(whole.h0.tensor);
  std::vector<OwnedTensor> states;
  for (size_t k = 0; k + 1 < cuts.size(); ++k) {
    Case part(whole, cuts[k], cuts[k + 1], state.tensor, whole.dh_last.tensor);
    part.Forward();
    PasteTime(part.h.tensor, h.tensor, cuts[k]);
    states.push_back(std::move(state));
    state = Clone(part.h_last.tensor);
  }
  EXPECT_LT(RelativeError(h.tensor, whole.h.tensor), 1e-10);
  EXPECT_LT(RelativeError(state.tensor, whole.h_last.tensor), 1e-10);

  OwnedTensor du = PoisonedTensor(DType::kF64, whole.u.tensor.shape);
  OwnedTensor dzi = Clone(du.tensor), dzr = Clone(du.tensor);
  OwnedTensor dlambda(DType::kF64, {channels});
  OwnedTensor dstate = Clone(whole.dh_last.tensor);
  for (size_t k = cuts.size() - 1; k-- > 0;) {
    Case part(whole, cuts[k], cuts[k + 1], states[k].tensor, dstate.tensor);
    Copy(dlambda.tensor, part.dlambda.tensor);  // added to
    part.Forward();
    part.Backward();
    PasteTime(part.du.tensor, du.tensor, cuts[k]);
    PasteTime(part.dzi.tensor, dzi.tensor, cuts[k]);
    PasteTime(part.dzr.tensor, dzr.tensor, cuts[k]);
    Copy(part.dlambda.tensor, dlambda.tensor);
    dstate = Clone(part.dh0.tensor);
  }
  EXPECT_LT(RelativeError(du.tensor, whole.du.tensor), 1e-10);
  EXPECT_LT(RelativeError(dzi.tensor, whole.dzi.tensor), 1e-10);
  EXPECT_LT(RelativeError(dzr.tensor, whole.dzr.tensor), 1e-10);
  EXPECT_LT(RelativeError(dlambda.tensor, whole.dlambda.tensor), 1e-10);
  EXPECT_LT(RelativeError(dstate.tensor, whole.dh0.tensor), 1e-10);
}

TEST(RgLru, AbsentStateMeansZeros) {
  TestRandom random;
  Case c(DType::kF64, 2, 5, 17, random);
  Set(c.positions.tensor, 0, 3);
  FillZero(c.h0.tensor);
  FillZero(c.dh_last.tensor);
  c.Forward();
  c.Backward();
  Case d(c, DType::kF64);
  RgLruForward({d.u.tensor,
                d.zi.tensor,
                d.zr.tensor,
                d.lambda.tensor,
                d.positions.tensor,
                {},
                d.h.tensor,
                {}});
  RgLruBackward({d.u.tensor,
                 d.zi.tensor,
                 d.zr.tensor,
                 d.lambda.tensor,
                 d.positions.tensor,
                 {},
                 d.h.tensor,
                 d.dh.tensor,
                 {},
                 d.du.tensor,
                 d.dzi.tensor,
                 d.dzr.tensor,
                 {},
                 d.dlambda.tensor});
  EXPECT_TRUE(BitwiseEqual(c.h.tensor, d.h.tensor));
  EXPECT_TRUE(BitwiseEqual(c.du.tensor, d.du.tensor));
  EXPECT_TRUE(BitwiseEqual(c.dzi.tensor, d.dzi.tensor));
  EXPECT_TRUE(BitwiseEqual(c.dzr.tensor, d.dzr.tensor));
  EXPECT_TRUE(BitwiseEqual(c.dlambda.tensor, d.dlambda.tensor));
}

TEST(RgLru, LambdaGradientIsAddedTo) {
  TestRandom random;
  Case c(DType::kF64, 2, 7, 5, random);
  c.Forward();
  c.Backward();
  const OwnedTensor once = Clone(c.dlambda.tensor);
  c.Backward();
  for (int64_t r = 0; r < 5; ++r) {
    EXPECT_NEAR(Get(c.dlambda.tensor, r), 2 * Get(once.tensor, r), 1e-12);
  }
}

// To whatever is there, both or either alone; nothing else depends on them.
TEST(RgLru, SumsOfGateGradientsAreAddedTo) {
  TestRandom random;
  for (const Shape& full : {Shape{1, 1, 1}, Shape{3, 7, 5}, Shape{2, 33, 130}, Shape{1, 9, 4100}}) {
    SCOPED_TRACE(full.ToString());
    Case c(DType::kF64, full[0], full[1], full[2], random);
    c.Forward();
    c.Backward();
    const OwnedTensor du = Clone(c.du.tensor), dlambda = Clone(c.dlambda.tensor);
    const OwnedTensor before = RandomTensor(DType::kF64, {full[2]}, random);
    for (const auto& [of_zi, of_zr] : {std::pair{true, true}, std::pair{true, false},
                                       std::pair{false, true}, std::pair{false, false}}) {
      c.PrepareOutputs();
      c.Forward();
      c.dzi_sum = of_zi ? Clone(before.tensor) : OwnedTensor();
      c.dzr_sum = of_zr ? Clone(before.tensor) : OwnedTensor();
      c.Backward();
      EXPECT_TRUE(BitwiseEqual(c.du.tensor, du.tensor));
      EXPECT_TRUE(BitwiseEqual(c.dlambda.tensor, dlambda.tensor));
      for (const auto& [rows, sum] :
           {std::pair{&c.dzi, &c.dzi_sum}, std::pair{&c.dzr, &c.dzr_sum}}) {
        if (!sum->tensor.defined()) continue;
        const OwnedTensor expected = PlusRows(before.tensor, rows->tensor);
        EXPECT_LT(RelativeError(sum->tensor, expected.tensor), 1e-13);
      }
    }
  }
}

// With a decay this close to one the square root's slope would be about 1e8.
TEST(RgLru, SlopeOfTheSquareRootIsBounded) {
  TestRandom random;
  Case c(DType::kF64, 1, 1, 1, random);
  Set(c.positions.tensor, 0, 1);
  Set(c.lambda.tensor, 0, -40);
  c.Forward();
  c.Backward();
  const double softplus = std::log1p(std::exp(-40.0));
  const double i = Logistic(Get(c.zi.tensor, 0)), r = Logistic(Get(c.zr.tensor, 0));
  const double delta = Get(c.dh.tensor, 0) + Get(c.dh_last.tensor, 0);
  const double dm = delta * i * Get(c.u.tensor, 0);
  const double dl = delta * Get(c.h0.tensor, 0) - 2 * dm * 1000;
  const double dzr = -8 * softplus * dl * r * (1 - r);
  EXPECT_NEAR(Get(c.dzr.tensor, 0) / dzr, 1, 1e-10);
}

// Widths that leave a remainder, cut into blocks in several ways.
TEST(RgLru, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t channels : {70, 131, 261, 700, 1029}) {
      for (int threads : {2, 3, 4}) {
        SCOPED_TRACE(StrCat(Name(dtype), " R ", channels, " threads ", threads));
        Case one(dtype, 1 + threads % 2, 8192 / channels + 1, channels, random);
        Case many(one, dtype);
        for (Case* c : {&one, &many}) {
          WithThreads(c == &one ? 1 : threads, [&] {
            c->Forward();
            c->Backward();
          });
        }
        EXPECT_TRUE(BitwiseEqual(one.h.tensor, many.h.tensor));
        EXPECT_TRUE(BitwiseEqual(one.h_last.tensor, many.h_last.tensor));
        EXPECT_TRUE(BitwiseEqual(one.du.tensor, many.du.tensor));
        EXPECT_TRUE(BitwiseEqual(one.dzi.tensor, many.dzi.tensor));
        EXPECT_TRUE(BitwiseEqual(one.dzr.tensor, many.dzr.tensor));
        EXPECT_TRUE(BitwiseEqual(one.dh0.tensor, many.dh0.tensor));
        EXPECT_TRUE(BitwiseEqual(one.dlambda.tensor, many.dlambda.tensor));
        EXPECT_TRUE(BitwiseEqual(one.dzi_sum.tensor, many.dzi_sum.tensor));
        EXPECT_TRUE(BitwiseEqual(one.dzr_sum.tensor, many.dzr_sum.tensor));
      }
    }
  }
}

TEST(RgLru, RejectsWrongShapesAndTypes) {
  TestRandom random;
  Case c(DType::kF32, 2, 3, 5, random);
  OwnedTensor wrong(DType::kF32, {2, 4, 5});
  EXPECT_THROW(RgLruForward({c.u.tensor,
                             wrong.tensor,
                             c.zr.tensor,
                             c.lambda.tensor,
                             c.positions.tensor,
                             {},
                             c.h.tensor,
                             {}}),
               Error);
  EXPECT_THROW(
      RgLruForward(
          {c.u.tensor, c.zi.tensor, c.zr.tensor, c.lambda.tensor, c.positions.tensor, {}, {}, {}}),
      Error);
  OwnedTensor other_type(DType::kF64, {2, 3, 5});
  EXPECT_THROW(RgLruForward({c.u.tensor,
                             other_type.tensor,
                             c.zr.tensor,
                             c.lambda.tensor,
                             c.positions.tensor,
                             {},
                             c.h.tensor,
                             {}}),
               Error);
  EXPECT_NO_THROW(c.Backward());
  c.dzr_sum = OwnedTensor(DType::kF32, {4});
  EXPECT_THROW(c.Backward(), Error);
  c.dzr_sum = OwnedTensor(DType::kF64, {5});
  EXPECT_THROW(c.Backward(), Error);
}

}  // namespace
}  // namespace eyrie
