#include "kernels/selective_scan/selective_scan.h"

#include "tests/kernels/selective_scan_problem.h"

namespace eyrie {
namespace {

OwnedTensor Zeros(DType dtype, Shape shape) { return OwnedTensor(dtype, shape); }

ScanOutputs Outputs(const ScanSizes& sizes, DType dtype = DType::kF64) {
  return ScanOutputs(dtype, sizes, PoisonedTensor, Zeros);
}

ScanInputs InFloat32(const ScanInputs& in) {
  return in.Map([](const OwnedTensor& t) {
    return t.tensor.dtype == DType::kI32 ? Clone(t.tensor) : Cast(t.tensor, DType::kF32);
  });
}

// The equations as they stand.
void ReferenceForward(const ScanInputs& in, const ScanSizes& sizes, const Tensor& out,
                      const Tensor& h_last) {
  const int64_t row = sizes.row()[2];
  for (int64_t b = 0; b < sizes.batch; ++b) {
    for (int64_t e = 0; e < sizes.channels; ++e) {
      std::vector<double> h(static_cast<size_t>(sizes.states));
      for (int64_t n = 0; n < sizes.states; ++n) {
        h[static_cast<size_t>(n)] = Get(in.h0.tensor, (b * sizes.channels + e) * sizes.states + n);
      }
      for (int64_t t = 0; t < sizes.time; ++t) {
        const int64_t token = b * sizes.time + t, i = token * sizes.channels + e;
        const double delta = std::log1p(std::exp(Get(in.dt.tensor, i) + Get(in.dt_bias.tensor, e)));
        const double x = Get(in.x.tensor, i), z = Get(in.z.tensor, i);
        double y = Get(in.skip.tensor, e) * x;
        for (int64_t n = 0; n < sizes.states; ++n) {
          double& state = h[static_cast<size_t>(n)];
          const double a = -std::exp(Get(in.a_log.tensor, e * sizes.states + n));
          const double weight = Get(in.bc.tensor, token * row + sizes.before + n);
          const double read = Get(in.bc.tensor, token * row + sizes.before + sizes.states + n);
          if (Get(in.positions.tensor, token) == 0) state = 0;
          state = std::exp(delta * a) * state + delta * weight * x;
          y += read * state;
        }
        Set(out, i, y * z / (1 + std::exp(-z)));
      }
      for (int64_t n = 0; n < sizes.states; ++n) {
        Set(h_last, (b * sizes.channels + e) * sizes.states + n, h[static_cast<size_t>(n)]);
      }
    }
  }
}

TEST(SelectiveScan, ForwardMatchesReference) {
  TestRandom random;
  for (const ScanSizes& sizes :
       {ScanSizes{1, 1, 1, 1}, ScanSizes{3, 2, 5, 3, 4}, ScanSizes{2, 33, 64, 16},
        ScanSizes{1, 17, 130, 8, 1}, ScanSizes{2, 40, 65, 64, 7}}) {
    SCOPED_TRACE(sizes.ToString());
    const ScanInputs in(sizes, random);
    const ScanOutputs out = Outputs(sizes), expected = Outputs(sizes);
    ReferenceForward(in, sizes, expected.out.tensor, expected.h_last.tensor);
    ScanForward(in, out, /*states=*/true);
    EXPECT_LT(RelativeError(out.out.tensor, expected.out.tensor), 1e-12);
    EXPECT_LT(RelativeError(out.h_last.tensor, expected.h_last.tensor), 1e-12);
  }
}

TEST(SelectiveScan, FloatAgreesWithDouble) {
  TestRandom random;
  for (const ScanSizes& sizes : {ScanSizes{2, 33, 17, 5, 3}, ScanSizes{1, 50, 130, 16}}) {
    SCOPED_TRACE(sizes.ToString());
    const ScanInputs wide(sizes, random), narrow = InFloat32(wide);
    const ScanOutputs exact = Outputs(sizes), out = Outputs(sizes, DType::kF32);
    ScanForward(wide, exact, true);
    ScanBackward(wide, exact, true);
    ScanForward(narrow, out, true);
    ScanBackward(narrow, out, true);
    for (const auto& [a, b] : {std::pair{&out.out, &exact.out},
                               {&out.h_last, &exact.h_last},
                               {&out.dx, &exact.dx},
                               {&out.ddt, &exact.ddt},
                               {&out.dz, &exact.dz},
                               {&out.dbc, &exact.dbc},
                               {&out.dh0, &exact.dh0},
                               {&out.da_log, &exact.da_log},
                               {&out.dskip, &exact.dskip},
                               {&out.ddt_bias, &exact.ddt_bias}}) {
      EXPECT_LT(RelativeError(a->tensor, b->tensor, 0.1), 1e-5);
    }
  }
}

// Every input, the carried state and the handed-on gradient included.
TEST(SelectiveScan, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (const ScanSizes& sizes : {ScanSizes{1, 1, 1, 1}, ScanSizes{2, 7, 5, 3, 2},
                                 ScanSizes{2, 37, 3, 16}, ScanSizes{1, 18, 70, 4, 5}}) {
    SCOPED_TRACE(sizes.ToString());
    const ScanInputs in(sizes, random);
    const ScanOutputs out = Outputs(sizes);
    Set(in.positions.tensor, 0, 4);  // at least one sequence goes on from its carried state
    const auto loss = [&] {
      ScanForward(in, out, true);
      return Dot(in.dout.tensor, out.out.tensor) + Dot(in.dh_last.tensor, out.h_last.tensor);
    };
    loss();
    ScanBackward(in, out, true);
    const auto check = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
      return NumericGradientCheck(loss, input.tensor, gradient.tensor, random, 3e-4, 24);
    };
    EXPECT_LT(check(in.x, out.dx), 1e-6);
    EXPECT_LT(check(in.dt, out.ddt), 1e-6);
    EXPECT_LT(check(in.z, out.dz), 1e-6);
    EXPECT_LT(check(in.bc, out.dbc), 1e-6);  // zeros in front, where nothing was written
    EXPECT_LT(check(in.a_log, out.da_log), 1e-6);
    EXPECT_LT(check(in.skip, out.dskip), 1e-6);
    EXPECT_LT(check(in.dt_bias, out.ddt_bias), 1e-6);
    EXPECT_LT(check(in.h0, out.dh0), 1e-6);
  }
}

TEST(SelectiveScan, DocumentStartForgetsTheState) {
  TestRandom random;
  const ScanSizes sizes{1, 40, 17, 6};
  ScanInputs in(sizes, random);
  constexpr int64_t kStart = 21;
  for (int64_t t = 0; t < sizes.time; ++t) {
    in.positions.tensor.data<int32_t>()[t] = static_cast<int32_t>(t < kStart ? t + 3 : t - kStart);
  }
  const ScanOutputs clean = Outputs(sizes), spoilt = Outputs(sizes);
  const auto run = [&](const ScanOutputs& out) {
    ScanForward(in, out, true);
    ScanBackward(in, out, true);
    ScanSummaries(in, out);
  };
  run(clean);
  // Nothing from before reaches the second document, nor a gradient from it the first one, not even
  // a NaN.
  ScanInputs poisoned = in.Map([](const OwnedTensor& t) { return Clone(t.tensor); });
  std::swap(in, poisoned);
  Poison(in.h0.tensor);
  for (int64_t i = 0; i < 4 * sizes.channels; ++i) {
    Set(in.x.tensor, i, std::numeric_limits<double>::quiet_NaN());
  }
  run(spoilt);
  EXPECT_TRUE(std::isnan(Get(spoilt.out.tensor, (kStart - 1) * sizes.channels)));
  const auto same = [&](const OwnedTensor& a, const OwnedTensor& b, int64_t begin, int64_t end) {
    EXPECT_TRUE(BitwiseEqual(TimeSlice(a.tensor, begin, end).tensor,
                             TimeSlice(b.tensor, begin, end).tensor));
  };
  for (const auto& [a, b] : {std::pair{&clean.out, &spoilt.out},
                             {&clean.dx, &spoilt.dx},
                             {&clean.ddt, &spoilt.ddt},
                             {&clean.dz, &spoilt.dz},
                             {&clean.dbc, &spoilt.dbc}}) {
    same(*a, *b, kStart, sizes.time);
  }
  EXPECT_TRUE(BitwiseEqual(clean.h_last.tensor, spoilt.h_last.tensor));
  EXPECT_TRUE(BitwiseEqual(clean.increment.tensor, spoilt.increment.tensor));
  for (int64_t i = 0; i < sizes.state().size(); ++i) {
    EXPECT_EQ(Get(clean.decay.tensor, i), 0);
    EXPECT_EQ(Get(clean.grad_decay.tensor, i), 0);
  }
  std::swap(in, poisoned);
  for (int64_t i = kStart * sizes.channels; i < sizes.full().size(); ++i) {
    Set(in.dout.tensor, i, std::numeric_limits<double>::quiet_NaN());
  }
  run(spoilt);
  same(clean.dx, spoilt.dx, 0, kStart);
  same(clean.dbc, spoilt.dbc, 0, kStart);
  EXPECT_TRUE(BitwiseEqual(clean.dh0.tensor, spoilt.dh0.tensor));
  EXPECT_TRUE(BitwiseEqual(clean.grad_increment.tensor, spoilt.grad_increment.tensor));
}

TEST(SelectiveScan, ChunksWithCarriedStateEqualTheWhole) {
  TestRandom random;
  const ScanSizes sizes{3, 37, 70, 5, 2};
  const ScanInputs whole(sizes, random);
  const ScanOutputs expected = Outputs(sizes);
  ScanForward(whole, expected, true);
  ScanBackward(whole, expected, true);

  const std::vector<int64_t> cuts = {0, 1, 3, 10, 11, 36, 37};
  std::vector<ScanInputs> parts;
  ScanOutputs joined = Outputs(sizes);
  OwnedTensor state = Clone(whole.h0.tensor);
  const auto outputs = [&](size_t k) {
    ScanSizes part = sizes;
    part.time = cuts[k + 1] - cuts[k];
    return Outputs(part);
  };
  for (size_t k = 0; k + 1 < cuts.size(); ++k) {
    parts.push_back(whole.Map([&](const OwnedTensor& t) {
      const Shape& shape = t.tensor.shape;
      const bool in_time = shape.rank() >= 2 && shape[0] == sizes.batch && shape[1] == sizes.time;
      return in_time ? TimeSlice(t.tensor, cuts[k], cuts[k + 1]) : Clone(t.tensor);
    }));
    parts[k].h0 = std::move(state);
    const ScanOutputs out = outputs(k);
    ScanForward(parts[k], out, true);
    PasteTime(out.out.tensor, joined.out.tensor, cuts[k]);
    state = Clone(out.h_last.tensor);
  }
  EXPECT_LT(RelativeError(joined.out.tensor, expected.out.tensor), 1e-10);
  EXPECT_LT(RelativeError(state.tensor, expected.h_last.tensor), 1e-10);

  OwnedTensor dstate = Clone(whole.dh_last.tensor);
  for (size_t k = parts.size(); k-- > 0;) {
    parts[k].dh_last = std::move(dstate);
    ScanOutputs out = outputs(k);
    for (auto [from, to] : {std::pair{&joined.da_log, &out.da_log},
                            {&joined.dskip, &out.dskip},
                            {&joined.ddt_bias, &out.ddt_bias}}) {
      Copy(from->tensor, to->tensor);  // added to
    }
    ScanBackward(parts[k], out, true);
    for (auto [from, to] : {std::pair{&out.dx, &joined.dx},
                            {&out.ddt, &joined.ddt},
                            {&out.dz, &joined.dz},
                            {&out.dbc, &joined.dbc}}) {
      PasteTime(from->tensor, to->tensor, cuts[k]);
    }
    for (auto [from, to] : {std::pair{&out.da_log, &joined.da_log},
                            {&out.dskip, &joined.dskip},
                            {&out.ddt_bias, &joined.ddt_bias}}) {
      Copy(from->tensor, to->tensor);
    }
    dstate = Clone(out.dh0.tensor);
  }
  for (auto [a, b] : {std::pair{&joined.dx, &expected.dx},
                      {&joined.ddt, &expected.ddt},
                      {&joined.dz, &expected.dz},
                      {&joined.dbc, &expected.dbc},
                      {&joined.da_log, &expected.da_log},
                      {&joined.dskip, &expected.dskip},
                      {&joined.ddt_bias, &expected.ddt_bias},
                      {&dstate, &expected.dh0}}) {
    EXPECT_LT(RelativeError(a->tensor, b->tensor), 1e-10);
  }
}

TEST(SelectiveScan, SummariesAreTheMapsOfTheCarriedState) {
  TestRandom random;
  for (const ScanSizes& sizes :
       {ScanSizes{1, 1, 1, 1}, ScanSizes{3, 2, 5, 3, 1}, ScanSizes{2, 20, 70, 16}}) {
    for (const bool documents : {false, true}) {
      SCOPED_TRACE(sizes.ToString());
      const ScanInputs in(sizes, random);
      for (int64_t i = 0; i < sizes.batch * sizes.time && !documents; ++i) {
        in.positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % sizes.time + 1);
      }
      const ScanOutputs out = Outputs(sizes);
      ScanForward(in, out, true);
      ScanBackward(in, out, true);
      ScanSummaries(in, out);
      const auto mapped = [&](const OwnedTensor& decay, const OwnedTensor& state,
                              const OwnedTensor& increment) {
        OwnedTensor result = Clone(increment.tensor);
        for (int64_t i = 0; i < state.tensor.size(); ++i) {
          Set(result.tensor, i,
              Get(decay.tensor, i) * Get(state.tensor, i) + Get(increment.tensor, i));
        }
        return result;
      };
      EXPECT_LT(RelativeError(mapped(out.decay, in.h0, out.increment).tensor, out.h_last.tensor),
                1e-12);
      EXPECT_LT(RelativeError(mapped(out.grad_decay, in.dh_last, out.grad_increment).tensor,
                              out.dh0.tensor, 1e-3),
                1e-12);
    }
  }
}

TEST(SelectiveScan, AbsentStateMeansZerosAndGateMayBeOverwritten) {
  TestRandom random;
  const ScanSizes sizes{2, 20, 17, 5};
  ScanInputs in(sizes, random);
  Set(in.positions.tensor, 0, 3);
  FillZero(in.h0.tensor);
  FillZero(in.dh_last.tensor);
  const ScanOutputs with = Outputs(sizes);
  ScanForward(in, with, true);
  ScanBackward(in, with, true);
  ScanOutputs without = Outputs(sizes);
  ScanForward(in, without, false);
  // dz in the memory of dout.
  const ScanInputs aliased = in.Map([](const OwnedTensor& t) { return Clone(t.tensor); });
  without.dz = OwnedTensor();
  ScanBackward(aliased, without, false);
  EXPECT_TRUE(BitwiseEqual(with.out.tensor, without.out.tensor));
  EXPECT_TRUE(BitwiseEqual(with.dx.tensor, without.dx.tensor));
  EXPECT_TRUE(BitwiseEqual(with.ddt.tensor, without.ddt.tensor));
  EXPECT_TRUE(BitwiseEqual(with.dz.tensor, aliased.dout.tensor));
  EXPECT_TRUE(BitwiseEqual(with.dbc.tensor, without.dbc.tensor));
  EXPECT_TRUE(BitwiseEqual(with.da_log.tensor, without.da_log.tensor));
  // Gradients of parameters are added to.
  ScanBackward(in, with, true);
  for (int64_t i = 0; i < with.da_log.tensor.size(); ++i) {
    EXPECT_NEAR(Get(with.da_log.tensor, i), 2 * Get(without.da_log.tensor, i), 1e-11);
  }
}

TEST(SelectiveScan, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  for (const int64_t channels : {70, 261}) {
    const ScanSizes sizes{2, 40, channels, 7, 3};
    const ScanInputs in = InFloat32(ScanInputs(sizes, random));
    const ScanOutputs one = Outputs(sizes, DType::kF32), many = Outputs(sizes, DType::kF32);
    for (const auto& [threads, out] : {std::pair{1, &one}, {3, &many}}) {
      WithThreads(threads, [&, out = out] {
        ScanForward(in, *out, true);
        ScanBackward(in, *out, true);
        ScanSummaries(in, *out);
      });
    }
    for (auto [a, b] : {std::pair{&one.out, &many.out},
                        {&one.h_last, &many.h_last},
                        {&one.dx, &many.dx},
                        {&one.ddt, &many.ddt},
                        {&one.dz, &many.dz},
                        {&one.dbc, &many.dbc},
                        {&one.da_log, &many.da_log},
                        {&one.dskip, &many.dskip},
                        {&one.ddt_bias, &many.ddt_bias},
                        {&one.decay, &many.decay},
                        {&one.grad_increment, &many.grad_increment}}) {
      EXPECT_TRUE(BitwiseEqual(a->tensor, b->tensor));
    }
  }
}

TEST(SelectiveScan, RejectsWrongShapesAndTypes) {
  TestRandom random;
  const ScanSizes sizes{1, 3, 5, 2};
  const ScanInputs good(sizes, random);
  const ScanOutputs out = Outputs(sizes);
  EXPECT_NO_THROW(ScanForward(good, out, true));
  const auto rejects = [&](OwnedTensor ScanInputs::*member, OwnedTensor wrong) {
    ScanInputs bad = good.Map([](const OwnedTensor& t) { return Clone(t.tensor); });
    bad.*member = std::move(wrong);
    EXPECT_THROW(ScanForward(bad, out, true), Error);
  };
  rejects(&ScanInputs::dt, OwnedTensor(DType::kF64, {1, 4, 5}));
  rejects(&ScanInputs::z, OwnedTensor(DType::kF32, {1, 3, 5}));
  rejects(&ScanInputs::bc, OwnedTensor(DType::kF64, {1, 3, 3}));
  rejects(&ScanInputs::a_log, OwnedTensor(DType::kF64, {5, 65}));
  rejects(&ScanInputs::h0, OwnedTensor(DType::kF64, {1, 2, 5}));
}

}  // namespace
}  // namespace eyrie
