#include "kernels/causal_conv1d/causal_conv1d.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

// Inputs and poisoned outputs of one call in each direction; every optional tensor present.
struct Case {
  Case(DType dtype, int64_t batch, int64_t time, int64_t channels, int64_t taps, TestRandom& random,
       bool with_silu = false)
      : silu(with_silu),
        x(RandomTensor(dtype, {batch, time, channels}, random)),
        weight(RandomTensor(dtype, {taps, channels}, random)),
        bias(RandomTensor(dtype, {channels}, random)),
        positions(RandomPositions(batch, time, random, true)),
        x0(RandomTensor(dtype, {batch, taps - 1, channels}, random)),
        dy(RandomTensor(dtype, {batch, time, channels}, random)),
        dx_last(RandomTensor(dtype, {batch, taps - 1, channels}, random)) {
    PrepareOutputs();
  }
  // The same numbers in another type.
  Case(const Case& other, DType dtype)
      : silu(other.silu),
        x(Cast(other.x.tensor, dtype)),
        weight(Cast(other.weight.tensor, dtype)),
        bias(Cast(other.bias.tensor, dtype)),
        positions(Clone(other.positions.tensor)),
        x0(Cast(other.x0.tensor, dtype)),
        dy(Cast(other.dy.tensor, dtype)),
        dx_last(Cast(other.dx_last.tensor, dtype)) {
    PrepareOutputs();
  }
  // Tokens [begin, end) of `whole`, between the states given.
  Case(const Case& whole, int64_t begin, int64_t end, const Tensor& x0_in, const Tensor& dx_last_in)
      : silu(whole.silu),
        x(TimeSlice(whole.x.tensor, begin, end)),
        weight(Clone(whole.weight.tensor)),
        bias(Clone(whole.bias.tensor)),
        positions(TimeSlice(whole.positions.tensor, begin, end)),
        x0(Clone(x0_in)),
        dy(TimeSlice(whole.dy.tensor, begin, end)),
        dx_last(Clone(dx_last_in)) {
    PrepareOutputs();
  }

  void PrepareOutputs() {
    const DType dtype = x.tensor.dtype;
    y = PoisonedTensor(dtype, x.tensor.shape);
    x_last = PoisonedTensor(dtype, x0.tensor.shape);
    dx = PoisonedTensor(dtype, x.tensor.shape);
    dx0 = PoisonedTensor(dtype, x0.tensor.shape);
    dweight = OwnedTensor(dtype, weight.tensor.shape);
    dbias = OwnedTensor(dtype, bias.tensor.shape);
    dx_sum = OwnedTensor(dtype, bias.tensor.shape);
  }
  void Forward() {
    CausalConv1dForward({x.tensor, weight.tensor, bias.tensor, positions.tensor, x0.tensor,
                         y.tensor, x_last.tensor, silu});
  }
  void Backward() {
    CausalConv1dBackward({.x = x.tensor,
                          .weight = weight.tensor,
                          .positions = positions.tensor,
                          .x0 = x0.tensor,
                          .dy = dy.tensor,
                          .dx_last = dx_last.tensor,
                          .dx = dx.tensor,
                          .dx0 = dx0.tensor,
                          .dweight = dweight.tensor,
                          .dbias = dbias.tensor,
                          .dx_sum = dx_sum.tensor,
                          .silu = silu,
                          .bias = silu ? bias.tensor : Tensor{}});
  }
  double Loss() {
    Forward();
    return Dot(dy.tensor, y.tensor) + Dot(dx_last.tensor, x_last.tensor);
  }

  bool silu;
  OwnedTensor x, weight, bias, positions, x0, dy, dx_last;
  OwnedTensor y, x_last, dx, dx0, dweight, dbias, dx_sum;
};

// Walks back from each token while its document lasts, on the joined sequence [x0; x].
OwnedTensor ReferenceForward(const Case& c) {
  const int64_t batch = c.x.tensor.dim(0), time = c.x.tensor.dim(1), channels = c.x.tensor.dim(2);
  const int64_t taps = c.weight.tensor.dim(0);
  OwnedTensor y(DType::kF64, c.x.tensor.shape);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < time; ++t) {
      for (int64_t r = 0; r < channels; ++r) {
        double sum = Get(c.bias.tensor, r);
        int64_t position = static_cast<int64_t>(Get(c.positions.tensor, b * time + t));
        for (int64_t s = 0; s < taps && position >= 0; ++s, --position) {
          const double input =
              t >= s ? Get(c.x.tensor, (b * time + t - s) * channels + r)
                     : Get(c.x0.tensor, (b * (taps - 1) + taps - 1 + t - s) * channels + r);
          sum += Get(c.weight.tensor, (taps - 1 - s) * channels + r) * input;
        }
        Set(y.tensor, (b * time + t) * channels + r, c.silu ? sum / (1 + std::exp(-sum)) : sum);
      }
    }
  }
  return y;
}

TEST(CausalConv1d, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t batch : {1, 3}) {
    for (int64_t time : {1, 2, 3, 7, 33}) {
      for (int64_t channels : {1, 5, 17, 64, 130, 1100}) {
        for (int64_t taps : {1, 2, 4, 8}) {
          for (bool silu : {false, true}) {
            SCOPED_TRACE(StrCat("B ", batch, " T ", time, " C ", channels, " K ", taps,
                                silu ? " SiLU" : ""));
            Case c(DType::kF64, batch, time, channels, taps, random, silu);
            const OwnedTensor expected = ReferenceForward(c);
            c.Forward();
            EXPECT_LT(RelativeError(c.y.tensor, expected.tensor), 1e-13);
          }
        }
      }
    }
  }
}

TEST(CausalConv1d, LastInputsAreHandedOn) {
  TestRandom random;
  for (int64_t time : {1, 2, 3, 7}) {
    Case c(DType::kF32, 2, time, 5, 4, random);
    c.Forward();
    OwnedTensor joined = PoisonedTensor(DType::kF32, {2, 3 + time, 5});
    PasteTime(c.x0.tensor, joined.tensor, 0);
    PasteTime(c.x.tensor, joined.tensor, 3);
    EXPECT_TRUE(BitwiseEqual(c.x_last.tensor, TimeSlice(joined.tensor, time, time + 3).tensor));
  }
}

TEST(CausalConv1d, FloatAgreesWithDouble) {
  TestRandom random;
  for (bool silu : {false, true}) {
    SCOPED_TRACE(silu ? "SiLU" : "");
    Case wide(DType::kF64, 3, 33, 130, 4, random, silu);
    Case narrow(wide, DType::kF32);
    for (Case* c : {&wide, &narrow}) {
      c->Forward();
      c->Backward();
    }
    EXPECT_LT(RelativeError(narrow.y.tensor, wide.y.tensor), 1e-6);
    EXPECT_LT(RelativeError(narrow.dx.tensor, wide.dx.tensor), 1e-6);
    EXPECT_LT(RelativeError(narrow.dx0.tensor, wide.dx0.tensor), 1e-6);
    EXPECT_LT(RelativeError(narrow.dweight.tensor, wide.dweight.tensor), 2e-6);
    EXPECT_LT(RelativeError(narrow.dbias.tensor, wide.dbias.tensor), 2e-6);
    EXPECT_LT(RelativeError(narrow.dx_sum.tensor, wide.dx_sum.tensor), 2e-6);
  }
}

// Every input, x0 and the gradient handed on by x_last included; T shorter than K-1 too.
TEST(CausalConv1d, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (int64_t time : {1, 2, 3, 7, 33}) {
    for (int64_t taps : {1, 4, 8}) {
      for (bool silu : {false, true}) {
        SCOPED_TRACE(StrCat("T ", time, " K ", taps, silu ? " SiLU" : ""));
        Case c(DType::kF64, 3, time, 5, taps, random, silu);
        Set(c.positions.tensor, 0, 2);  // at least one sequence reads its state
        c.Forward();
        c.Backward();
        const auto loss = [&] { return c.Loss(); };
        const auto check = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
          return NumericGradientCheck(loss, input.tensor, gradient.tensor, random);
        };
        EXPECT_LT(check(c.x, c.dx), 1e-6);
        EXPECT_LT(check(c.weight, c.dweight), 1e-6);
        EXPECT_LT(check(c.bias, c.dbias), 1e-6);
        EXPECT_LT(check(c.x0, c.dx0), 1e-6);
      }
    }
  }
}

TEST(CausalConv1d, NeverLooksAcrossADocumentStart) {
  TestRandom random;
  Case c(DType::kF64, 1, 6, 5, 4, random);
  const int32_t positions[] = {0, 1, 2, 0, 1, 0};
  std::copy_n(positions, 6, c.positions.tensor.data<int32_t>());
  c.Forward();
  c.Backward();
  const OwnedTensor y = Clone(c.y.tensor), dx = Clone(c.dx.tensor);
  Poison(c.x0.tensor);
  for (int64_t i = 0; i < 3 * 5; ++i) Set(c.x.tensor, i, random.Normal());
  for (int64_t i = 3 * 5; i < 5 * 5; ++i) Set(c.dy.tensor, i, random.Normal());
  c.Forward();
  c.Backward();
  EXPECT_TRUE(BitwiseEqual(TimeSlice(c.y.tensor, 3, 6).tensor, TimeSlice(y.tensor, 3, 6).tensor));
  // Rows 3 to 5 are in x_last, so only the first document's rows are compared.
  EXPECT_TRUE(BitwiseEqual(TimeSlice(c.dx.tensor, 0, 3).tensor, TimeSlice(dx.tensor, 0, 3).tensor));
  for (int64_t i = 0; i < c.dx0.tensor.size(); ++i) EXPECT_EQ(Get(c.dx0.tensor, i), 0);
}

TEST(CausalConv1d, ChunksWithCarriedStateEqualTheWhole) {
  TestRandom random;
  const int64_t batch = 3, time = 33, channels = 17, taps = 4;
  Case whole(DType::kF64, batch, time, channels, taps, random, /*with_silu=*/true);
  whole.Forward();
  whole.Backward();

  const std::vector<int64_t> cuts = {0, 1, 3, 4, 5, 15, 31, 33};
  OwnedTensor y = PoisonedTensor(DType::kF64, whole.x.tensor.shape);
  OwnedTensor state = Clone(whole.x0.tensor);
  std::vector<OwnedTensor> states;
  for (size_t k = 0; k + 1 < cuts.size(); ++k) {
    Case part(whole, cuts[k], cuts[k + 1], state.tensor, whole.dx_last.tensor);
    part.Forward();
    PasteTime(part.y.tensor, y.tensor, cuts[k]);
    states.push_back(std::move(state));
    state = Clone(part.x_last.tensor);
  }
  EXPECT_TRUE(BitwiseEqual(y.tensor, whole.y.tensor));
  EXPECT_TRUE(BitwiseEqual(state.tensor, whole.x_last.tensor));

  OwnedTensor dx = PoisonedTensor(DType::kF64, whole.x.tensor.shape);
  OwnedTensor dweight(DType::kF64, {taps, channels}), dbias(DType::kF64, {channels});
  OwnedTensor dstate = Clone(whole.dx_last.tensor);
  for (size_t k = cuts.size() - 1; k-- > 0;) {
    Case part(whole, cuts[k], cuts[k + 1], states[k].tensor, dstate.tensor);
    Copy(dweight.tensor, part.dweight.tensor);  // added to
    Copy(dbias.tensor, part.dbias.tensor);
    part.Backward();
    PasteTime(part.dx.tensor, dx.tensor, cuts[k]);
    Copy(part.dweight.tensor, dweight.tensor);
    Copy(part.dbias.tensor, dbias.tensor);
    dstate = Clone(part.dx0.tensor);
  }
  EXPECT_LT(RelativeError(dx.tensor, whole.dx.tensor), 1e-10);
  EXPECT_LT(RelativeError(dweight.tensor, whole.dweight.tensor), 1e-10);
  EXPECT_LT(RelativeError(dbias.tensor, whole.dbias.tensor), 1e-10);
  EXPECT_LT(RelativeError(dstate.tensor, whole.dx0.tensor), 1e-10);
}

TEST(CausalConv1d, AbsentStateMeansZeros) {
  TestRandom random;
  for (int64_t time : {1, 2, 7}) {
    Case c(DType::kF64, 2, time, 5, 4, random);
    Set(c.positions.tensor, 0, 3);
    FillZero(c.x0.tensor);
    FillZero(c.dx_last.tensor);
    c.Forward();
    c.Backward();
    Case d(c, DType::kF64);
    CausalConv1dForward(
        {d.x.tensor, d.weight.tensor, d.bias.tensor, d.positions.tensor, {}, d.y.tensor, {}});
    CausalConv1dBackward({d.x.tensor,
                          d.weight.tensor,
                          d.positions.tensor,
                          {},
                          d.dy.tensor,
                          {},
                          d.dx.tensor,
                          {},
                          d.dweight.tensor,
                          d.dbias.tensor});
    EXPECT_TRUE(BitwiseEqual(c.y.tensor, d.y.tensor));
    EXPECT_TRUE(BitwiseEqual(c.dx.tensor, d.dx.tensor));
    EXPECT_TRUE(BitwiseEqual(c.dweight.tensor, d.dweight.tensor));
    EXPECT_TRUE(BitwiseEqual(c.dbias.tensor, d.dbias.tensor));
  }
}

TEST(CausalConv1d, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  for (int64_t channels : {70, 261, 700, 1029}) {
    for (int threads : {2, 3}) {
      SCOPED_TRACE(StrCat("C ", channels, " threads ", threads));
      Case one(DType::kF32, 1 + threads % 2, 8192 / channels + 1, channels, 4, random,
               /*with_silu=*/channels % 2 == 0);
      Case many(one, DType::kF32);
      for (Case* c : {&one, &many}) {
        WithThreads(c == &one ? 1 : threads, [&] {
          c->Forward();
          c->Backward();
        });
      }
      EXPECT_TRUE(BitwiseEqual(one.y.tensor, many.y.tensor));
      EXPECT_TRUE(BitwiseEqual(one.dx.tensor, many.dx.tensor));
      EXPECT_TRUE(BitwiseEqual(one.dx0.tensor, many.dx0.tensor));
      EXPECT_TRUE(BitwiseEqual(one.dweight.tensor, many.dweight.tensor));
      EXPECT_TRUE(BitwiseEqual(one.dbias.tensor, many.dbias.tensor));
      EXPECT_TRUE(BitwiseEqual(one.dx_sum.tensor, many.dx_sum.tensor));
    }
  }
}

// To whatever is there; rows that x_last hands a gradient, and T shorter than K-1, included.
TEST(CausalConv1d, SumOfInputGradientsIsAddedTo) {
  TestRandom random;
  for (int64_t time : {1, 2, 3, 7, 33}) {
    for (int64_t taps : {1, 4, 8}) {
      for (bool silu : {false, true}) {
        SCOPED_TRACE(StrCat("T ", time, " K ", taps, silu ? " SiLU" : ""));
        Case c(DType::kF64, 3, time, 130, taps, random, silu);
        const OwnedTensor before = RandomTensor(DType::kF64, {130}, random);
        c.dx_sum = Clone(before.tensor);
        c.Backward();
        const OwnedTensor expected = PlusRows(before.tensor, c.dx.tensor);
        EXPECT_LT(RelativeError(c.dx_sum.tensor, expected.tensor), 1e-13);
      }
    }
  }
}

TEST(CausalConv1d, RejectsWrongShapes) {
  TestRandom random;
  Case c(DType::kF32, 2, 5, 3, 4, random);
  OwnedTensor state(DType::kF32, {2, 4, 3});
  EXPECT_THROW(CausalConv1dForward({c.x.tensor,
                                    c.weight.tensor,
                                    c.bias.tensor,
                                    c.positions.tensor,
                                    state.tensor,
                                    c.y.tensor,
                                    {}}),
               Error);
  Case nine(DType::kF32, 2, 5, 3, 9, random);
  EXPECT_THROW(nine.Forward(), Error);
  Case without_bias(DType::kF32, 2, 5, 3, 4, random, /*with_silu=*/true);
  EXPECT_NO_THROW(without_bias.Backward());
  without_bias.dx_sum = OwnedTensor(DType::kF32, {4});
  EXPECT_THROW(without_bias.Backward(), Error);
  without_bias.dx_sum = {};
  EXPECT_NO_THROW(without_bias.Backward());
  without_bias.bias = {};
  EXPECT_THROW(without_bias.Backward(), Error);
}

}  // namespace
}  // namespace eyrie
