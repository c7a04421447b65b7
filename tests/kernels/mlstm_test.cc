#include "kernels/mlstm/mlstm.h"

#include "tests/kernels/mlstm_problem.h"

namespace eyrie {
namespace {

// Exponential input gates; sigmoid ones; and those without a normaliser.
const MlstmOptions kExponential{}, kSigmoid{.stabilised = false, .epsilon = 0.1},
    kLinear{.stabilised = false, .normalised = false};
const std::pair<const char*, MlstmOptions> kKinds[] = {
    {"exponential", kExponential}, {"sigmoid", kSigmoid}, {"linear", kLinear}};

MlstmOptions WithChunk(MlstmOptions options, int64_t chunk) {
  options.chunk = chunk;
  return options;
}

TEST(Mlstm, MatchesTheDefinition) {
  TestRandom random;
  for (const auto& [kind, options] : kKinds) {
    for (const MlstmSizes& sizes : {MlstmSizes{2, 1, 3, 5, 7}, MlstmSizes{1, 2, 1, 1, 1},
                                    MlstmSizes{2, 33, 3, 4, 6}, MlstmSizes{1, 130, 2, 6, 3}}) {
      for (const int64_t chunk : {0, 1, 7, 16, 200}) {
        for (const bool with_state : {false, true}) {
          SCOPED_TRACE(StrCat(kind, " T ", sizes.time, " chunk ", chunk, " state ", with_state));
          MlstmProblem p(DType::kF64, sizes, WithChunk(options, chunk), random, 2);
          if (options.stabilised) p.options.epsilon = 1e-3;
          if (random.Int(0, 1) == 0) p.UseOneDocument();
          p.with_state = with_state;
          p.Forward();
          const MlstmReference expected(p);
          EXPECT_LT(RelativeError(p.h.tensor, expected.h.tensor), 1e-11);
          EXPECT_LT(RelativeError(p.maximum.tensor, expected.maximum.tensor), 1e-12);
          EXPECT_LT(RelativeError(p.normaliser.tensor, expected.normaliser.tensor), 1e-11);
          if (!with_state) continue;
          EXPECT_LT(RelativeError(p.after.c.tensor, expected.after.c.tensor), 1e-12);
          EXPECT_LT(RelativeError(p.after.n.tensor, expected.after.n.tensor), 1e-12);
          EXPECT_LT(RelativeError(p.after.m.tensor, expected.after.m.tensor), 1e-12);
        }
      }
    }
  }
}

// The loss is a random linear function of the outputs and of the state handed on, whose stabiliser
// counts as constant; without the normaliser's gradient, so do the denominators.
TEST(Mlstm, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (const auto& [kind, kind_options] : kKinds) {
    for (const int64_t chunk : {1, 4, 64}) {
      for (const bool with_state : {false, true}) {
        for (const bool normaliser_gradient : {false, true}) {
          SCOPED_TRACE(StrCat(kind, " chunk ", chunk, " state ", with_state,
                              " normaliser's gradient ", normaliser_gradient));
          MlstmOptions options = WithChunk(kind_options, chunk);
          options.normaliser_gradient = normaliser_gradient;
          if (options.stabilised) options.epsilon = 0;  // what makes h depend on m
          const auto draw = [&] {
            MlstmProblem p(DType::kF64, {2, 11, 2, 3, 4}, options, random);
            p.with_state = with_state;
            // One sequence lies in one document, so that the states before and after it meet.
            for (int64_t t = 0; t < 11; ++t) Set(p.positions.tensor, t, static_cast<double>(t + 3));
            p.Forward();
            return p;
          };
          MlstmProblem p = draw();
          while (options.normalised && p.DistanceFromKinks() < 5e-3) p = draw();
          p.Backward();

          const OwnedTensor after_m = Clone(p.after.m.tensor);
          std::vector<double> denominators;
          for (int64_t i = 0; i < p.log_i.tensor.size(); ++i) {
            denominators.push_back(p.TrueDenominator(i));
          }
          const auto loss = [&] {
            p.Forward();
            double sum = 0;
            for (int64_t i = 0; i < p.h.tensor.size(); ++i) {
              const int64_t row = i / p.sizes.values;
              const double constant =
                  normaliser_gradient
                      ? 1
                      : p.TrueDenominator(row) / denominators[static_cast<size_t>(row)];
              sum += constant * Get(p.h.tensor, i) * Get(p.dh.tensor, i);
            }
            for (int64_t state = 0; with_state && state < after_m.tensor.size(); ++state) {
              double along = 0;
              const auto add = [&](const Tensor& x, const Tensor& dx) {
                const int64_t size = x.size() / after_m.tensor.size();
                for (int64_t i = state * size; i < (state + 1) * size; ++i) {
                  along += Get(x, i) * Get(dx, i);
                }
              };
              add(p.after.c.tensor, p.dafter.c.tensor);
              add(p.after.n.tensor, p.dafter.n.tensor);
              sum += along * std::exp(Get(p.after.m.tensor, state) - Get(after_m.tensor, state));
            }
            return sum;
          };
          const auto check = [&](const char* name, const OwnedTensor& x, const OwnedTensor& dx) {
            EXPECT_LT(NumericGradientCheck(loss, x.tensor, dx.tensor, random), 1e-7) << name;
          };
          check("q", p.q, p.dq);
          check("k", p.k, p.dk);
          check("v", p.v, p.dv);
          check("log_i", p.log_i, p.dlog_i);
          check("log_f", p.log_f, p.dlog_f);
          if (!with_state) continue;
          check("before.c", p.before.c, p.dbefore.c);
          check("before.n", p.before.n, p.dbefore.n);
        }
      }
    }
  }
}

// The recurrent form, the parallel one and those between them; also where gates are wide open and
// shut.
TEST(Mlstm, AnyChunkSizeIsTheSame) {
  TestRandom random;
  for (const auto& [kind, options] : kKinds) {
    for (const double extreme : {0.0, 50.0}) {
      MlstmProblem recurrent(DType::kF64, {2, 150, 2, 5, 3}, WithChunk(options, 1), random, 2);
      for (int64_t i = 0; extreme > 0 && i < recurrent.log_i.tensor.size(); ++i) {
        const double y = random.Int(0, 1) == 0 ? extreme : -extreme;
        Set(recurrent.log_i.tensor, i, options.stabilised ? y : LogSigmoid(y));
        Set(recurrent.log_f.tensor, i, LogSigmoid(random.Int(0, 2) > 0 ? extreme : -extreme));
      }
      if (random.Int(0, 1) == 0) recurrent.UseOneDocument();
      recurrent.Forward();
      recurrent.Backward();
      for (const int64_t chunk : {0, 2, 7, 64, 149, 151}) {
        SCOPED_TRACE(StrCat(kind, " gates of ", extreme, " chunk ", chunk));
        MlstmProblem p(recurrent, DType::kF64);
        p.options.chunk = chunk;
        p.Forward();
        p.Backward();
        ExpectSameOutputs(p, recurrent, 1e-9);
        EXPECT_TRUE(BitwiseEqual(p.maximum.tensor, recurrent.maximum.tensor));
      }
    }
  }
}

TEST(Mlstm, AnySplitInTimeEqualsTheWhole) {
  TestRandom random;
  for (int trial = 0; trial < 12; ++trial) {
    const auto& [kind, options] = kKinds[trial % 3];
    const int64_t time = random.Int(2, 150), cut = random.Int(1, time - 1);
    SCOPED_TRACE(StrCat(kind, " T ", time, " cut at ", cut));
    MlstmProblem whole(DType::kF64, {2, time, 3, 4, 6}, WithChunk(options, random.Int(0, 40)),
                       random);
    whole.options.normaliser_gradient = trial % 2 == 0;
    if (trial < 6) whole.UseOneDocument();
    whole.Forward();
    whole.Backward();
    MlstmProblem first(whole, 0, cut), second(whole, cut, time);
    first.Forward();
    second.before = first.after.CastTo(DType::kF64);
    second.Forward();
    second.Backward();
    first.dafter = second.dbefore.CastTo(DType::kF64);
    first.Backward();
    for (size_t i = 0; i < whole.outputs_over_time().size(); ++i) {
      const auto [name, expected] = whole.outputs_over_time()[i];
      OwnedTensor joined = PoisonedTensor(DType::kF64, expected.shape);
      PasteTime(first.outputs_over_time()[i].second, joined.tensor, 0);
      PasteTime(second.outputs_over_time()[i].second, joined.tensor, cut);
      EXPECT_LT(RelativeError(joined.tensor, expected), 1e-11) << name;
    }
    EXPECT_LT(RelativeError(second.after.c.tensor, whole.after.c.tensor), 1e-12);
    EXPECT_LT(RelativeError(second.after.n.tensor, whole.after.n.tensor), 1e-12);
    EXPECT_LT(RelativeError(second.after.m.tensor, whole.after.m.tensor), 1e-12);
    EXPECT_LT(RelativeError(first.dbefore.c.tensor, whole.dbefore.c.tensor), 1e-11);
    EXPECT_LT(RelativeError(first.dbefore.n.tensor, whole.dbefore.n.tensor), 1e-11);
  }
}

TEST(Mlstm, AnEmptyStateIsNone) {
  TestRandom random;
  MlstmProblem none(DType::kF64, {2, 20, 2, 3, 5}, WithChunk(kExponential, 8), random);
  none.UseOneDocument();
  MlstmProblem empty(none, DType::kF64);
  none.with_state = false;
  FillZero(empty.before.c.tensor);
  FillZero(empty.before.n.tensor);
  for (int64_t i = 0; i < empty.before.m.tensor.size(); ++i) {
    Set(empty.before.m.tensor, i, kMlstmEmpty);
  }
  FillZero(empty.dafter.c.tensor);
  FillZero(empty.dafter.n.tensor);
  for (const MlstmProblem* p : {&none, &empty}) {
    p->Forward();
    p->Backward();
  }
  for (size_t i = 0; i < none.outputs().size(); ++i) {
    EXPECT_TRUE(BitwiseEqual(none.outputs()[i].second, empty.outputs()[i].second))
        << none.outputs()[i].first;
  }
}

TEST(Mlstm, ProductsOfOutputsMayBeGiven) {
  TestRandom random;
  MlstmProblem problem(DType::kF64, {2, 37, 2, 6, 9}, {}, random);
  const MlstmProblem expected(problem, DType::kF64);
  for (const MlstmProblem* each : {&expected, static_cast<const MlstmProblem*>(&problem)}) {
    each->Forward();
  }
  problem.GiveProducts();
  expected.Backward();
  problem.Backward();
  ExpectSameOutputs(problem, expected, 1e-12);
}

TEST(Mlstm, PackedDocumentsEqualDocumentsAlone) {
  TestRandom random;
  for (const auto& [kind, options] : kKinds) {
    SCOPED_TRACE(kind);
    const int64_t time = 90;
    MlstmProblem packed(DType::kF64, {1, time, 2, 4, 3}, WithChunk(options, 16), random, 4);
    packed.with_state = false;
    const int64_t cuts[] = {0, random.Int(1, 40), random.Int(41, 80), time};
    for (size_t document = 0; document < 3; ++document) {
      for (int64_t t = cuts[document]; t < cuts[document + 1]; ++t) {
        Set(packed.positions.tensor, t, static_cast<double>(t - cuts[document]));
      }
    }
    packed.Forward();
    packed.Backward();
    for (size_t document = 0; document < 3; ++document) {
      MlstmProblem alone(packed, cuts[document], cuts[document + 1]);
      alone.Forward();
      alone.Backward();
      for (size_t i = 0; i < alone.outputs().size(); ++i) {
        const auto [name, output] = alone.outputs()[i];
        const OwnedTensor part =
            TimeSlice(packed.outputs()[i].second, cuts[document], cuts[document + 1]);
        EXPECT_LT(RelativeError(output, part.tensor), 1e-11) << name;
      }
    }
  }
}

// What ranks that hold chunks of a sequence do with summaries.
TEST(Mlstm, SummariesAreTheMapsOfTheStates) {
  TestRandom random;
  for (const auto& [kind, options] : kKinds) {
    for (const int64_t time : {1, 7, 64, 129}) {
      for (const bool one_document : {false, true}) {
        SCOPED_TRACE(StrCat(kind, " T ", time, " one document ", one_document));
        MlstmProblem p(DType::kF64, {2, time, 3, 4, 6}, WithChunk(options, 16), random);
        if (!options.stabilised) FillZero(p.before.m.tensor);
        if (one_document) p.UseOneDocument();
        p.Forward();
        p.Backward();
        OwnedTensor log_decay = PoisonedTensor(DType::kF64, {2, 3});
        const auto increment = OwnedMlstmState::Poisoned(DType::kF64, p.sizes);
        MlstmSummary({.k = p.k.tensor,
                      .v = p.v.tensor,
                      .log_i = p.log_i.tensor,
                      .log_f = p.log_f.tensor,
                      .positions = p.positions.tensor,
                      .log_decay = log_decay.tensor,
                      .increment = increment.whole(),
                      .options = p.options});
        // x := exp(weight) x + exp(other) y, with a factor for each head.
        const auto combine = [](const Tensor& x, const OwnedTensor& weight, const Tensor& y,
                                const OwnedTensor& other) {
          OwnedTensor result = Clone(x);
          const int64_t size = x.size() / weight.tensor.size();
          for (int64_t i = 0; i < x.size(); ++i) {
            Set(result.tensor, i,
                std::exp(Get(weight.tensor, i / size)) * Get(x, i) +
                    std::exp(Get(other.tensor, i / size)) * Get(y, i));
          }
          return result;
        };
        OwnedTensor m = Clone(increment.m.tensor), old = Clone(m.tensor), added = Clone(m.tensor);
        for (int64_t i = 0; i < 6; ++i) {
          const double exponent = Get(log_decay.tensor, i) + Get(p.before.m.tensor, i);
          Set(m.tensor, i, std::max(exponent, Get(increment.m.tensor, i)));
          Set(old.tensor, i, exponent - Get(m.tensor, i));
          Set(added.tensor, i, Get(increment.m.tensor, i) - Get(m.tensor, i));
        }
        EXPECT_LT(RelativeError(m.tensor, p.after.m.tensor), 1e-12);
        const OwnedTensor c = combine(p.before.c.tensor, old, increment.c.tensor, added);
        const OwnedTensor n = combine(p.before.n.tensor, old, increment.n.tensor, added);
        EXPECT_LT(RelativeError(c.tensor, p.after.c.tensor), 1e-12);
        EXPECT_LT(RelativeError(n.tensor, p.after.n.tensor), 1e-12);
        const bool crosses = one_document || Get(p.positions.tensor, time - 1) >= time;
        EXPECT_EQ(Get(log_decay.tensor, 0) > kMlstmEmpty, crosses);

        OwnedTensor decay = PoisonedTensor(DType::kF64, {2, 3});
        const OwnedTensor increment_c = PoisonedTensor(DType::kF64, p.before.c.tensor.shape);
        const OwnedTensor increment_n = PoisonedTensor(DType::kF64, p.before.n.tensor.shape);
        MlstmGradSummary({.q = p.q.tensor,
                          .log_f = p.log_f.tensor,
                          .positions = p.positions.tensor,
                          .before_m = p.before.m.tensor,
                          .after_m = p.after.m.tensor,
                          .h = p.h.tensor,
                          .maximum = p.maximum.tensor,
                          .normaliser = p.normaliser.tensor,
                          .dh = p.dh.tensor,
                          .decay = decay.tensor,
                          .increment_c = increment_c.tensor,
                          .increment_n = increment_n.tensor,
                          .options = p.options});
        EXPECT_EQ(Get(decay.tensor, 0) > 0, crosses);
        OwnedTensor zero(DType::kF64, {2, 3});
        for (int64_t i = 0; i < 6; ++i) {
          Set(decay.tensor, i, std::log(std::max(Get(decay.tensor, i), 1e-300)));
        }
        const OwnedTensor dc = combine(p.dafter.c.tensor, decay, increment_c.tensor, zero);
        const OwnedTensor dn = combine(p.dafter.n.tensor, decay, increment_n.tensor, zero);
        EXPECT_LT(RelativeError(dc.tensor, p.dbefore.c.tensor), 1e-11);
        EXPECT_LT(RelativeError(dn.tensor, p.dbefore.n.tensor), 1e-11);
      }
    }
  }
}

TEST(Mlstm, FloatAgreesWithDouble) {
  TestRandom random;
  for (const auto& [kind, options] : kKinds) {
    for (const int64_t chunk : {0, 1}) {
      SCOPED_TRACE(StrCat(kind, " chunk ", chunk));
      const int64_t time = chunk == 1 ? 60 : 300;
      const MlstmProblem narrow(DType::kF32, {2, time, 3, 64, 32}, WithChunk(options, chunk),
                                random),
          wide(narrow, DType::kF64);
      for (const MlstmProblem* p : {&wide, &narrow}) {
        p->Forward();
        p->Backward();
      }
      ExpectSameOutputs(narrow, wide, 1e-4);
    }
  }
}

TEST(Mlstm, FloatIsFiniteAtExtremeGates) {
  TestRandom random;
  for (const int64_t chunk : {0, 1}) {
    const MlstmProblem p(DType::kF32, {1, 200, 2, 8, 8}, WithChunk(kExponential, chunk), random);
    for (int64_t i = 0; i < p.log_i.tensor.size(); ++i) {
      Set(p.log_i.tensor, i, random.Int(0, 1) == 0 ? -200 : 200);
      Set(p.log_f.tensor, i, random.Int(0, 9) == 0 ? -200 : 0);
    }
    p.Forward();
    p.Backward();
    for (const auto& [name, output] : p.outputs()) {
      for (int64_t i = 0; i < output.size(); ++i) {
        ASSERT_TRUE(std::isfinite(Get(output, i))) << name << " chunk " << chunk;
      }
    }
  }
}

TEST(Mlstm, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  for (const MlstmSizes& sizes : {MlstmSizes{2, 130, 3, 32, 32}, MlstmSizes{1, 1100, 1, 64, 128},
                                  MlstmSizes{1, 1, 3, 64, 64}}) {
    SCOPED_TRACE(StrCat("T ", sizes.time));
    const MlstmProblem one(DType::kF32, sizes, kExponential, random), three(one, DType::kF32);
    for (const auto& [p, threads] : {std::pair{&one, 1}, {&three, 3}}) {
      WithThreads(threads, [&] {
        p->Forward();
        p->Backward();
      });
    }
    for (size_t i = 0; i < one.outputs().size(); ++i) {
      EXPECT_TRUE(BitwiseEqual(one.outputs()[i].second, three.outputs()[i].second))
          << one.outputs()[i].first;
    }
  }
}

TEST(Mlstm, RejectsWhatDoesNotFit) {
  TestRandom random;
  const MlstmProblem good(DType::kF32, {2, 5, 3, 4, 6}, kExponential, random);
  const auto refused = [&](const std::function<void(MlstmProblem&)>& spoil) {
    MlstmProblem p(good, DType::kF32);
    spoil(p);
    EXPECT_THROW(p.Forward(), Error);
    EXPECT_THROW(p.Backward(), Error);
  };
  refused([](MlstmProblem& p) { p.q = OwnedTensor(DType::kF32, {2, 5, 3, 5}); });
  refused([](MlstmProblem& p) { p.v = OwnedTensor(DType::kF32, {2, 5, 2, 6}); });
  refused([](MlstmProblem& p) { p.v = OwnedTensor(DType::kF64, {2, 5, 3, 6}); });
  refused([](MlstmProblem& p) { p.log_i = OwnedTensor(DType::kF32, {2, 5, 4}); });
  refused([](MlstmProblem& p) { p.log_f = OwnedTensor(DType::kF64, {2, 5, 3}); });
  refused([](MlstmProblem& p) { p.before.c = OwnedTensor(DType::kF32, {2, 3, 6, 4}); });
  refused([](MlstmProblem& p) { p.before.m = OwnedTensor(); });
  refused([](MlstmProblem& p) { p.positions = OwnedTensor(DType::kI32, {2, 6}); });
  refused([](MlstmProblem& p) { p.options.normalised = false; });
  refused([](MlstmProblem& p) { p.options.chunk = -1; });
}

// Several chunks take their states, c and n, besides what one chunk takes.
TEST(Mlstm, WorkspaceOnGpusIsKnownWithoutOne) {
  const auto workspace = [](int64_t chunk, Device device) {
    const OwnedTensor q(DType::kF32, {1, 256, 3, 64}, device),
        v(DType::kF32, {1, 256, 3, 32}, device);
    return MlstmWorkspace(q.tensor, v.tensor, {.chunk = chunk});
  };
  EXPECT_EQ(workspace(64, Device::kMeta), 0);
  const int64_t one = workspace(256, Device::kMetaCuda);
  EXPECT_GT(one, 3 * 64 * (32 + 1));
  EXPECT_EQ(workspace(64, Device::kMetaCuda), one + 4 * 3 * 64 * (32 + 1));
}

// On GPUs alone, of wide heads in bfloat16: in that type between four chunks.
TEST(Mlstm, MemoriesAreLeftWhereBackwardWouldMakeThemAgain) {
  const auto memories = [](int64_t tokens, int64_t width, DType dtype, Device device) {
    const OwnedTensor q(dtype, {1, tokens, 3, width}, device), v(dtype, {1, tokens, 3, 64}, device);
    return MlstmMemories(q.tensor, v.tensor, {.chunk = 64});
  };
  EXPECT_EQ(memories(256, 640, DType::kBF16, Device::kMetaCuda), 3 * (3 * 640 * 64 / 2 + 5 * 640));
  EXPECT_EQ(memories(256, 640, DType::kBF16, Device::kMeta), 0);
  EXPECT_EQ(memories(256, 640, DType::kF32, Device::kMetaCuda), 0);
  EXPECT_EQ(memories(256, 512, DType::kBF16, Device::kMetaCuda), 0);
  EXPECT_EQ(memories(1, 640, DType::kBF16, Device::kMetaCuda), 0);
}

}  // namespace
}  // namespace eyrie
