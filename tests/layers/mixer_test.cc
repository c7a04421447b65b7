// Every mixer of the registry, and Mamba's time-invariant variant, alone, in the first block and in
// a later one: gradients against finite differences, and any split of a sequence into chunks
// against the whole. A new mixer is tested by being registered.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tests/layers/layer_test_util.h"

namespace eyrie {
namespace {

constexpr int64_t kBatch = 2, kTokens = 19, kCapacity = 40;

struct Place {
  std::string name;  // of the test
  config::ModelConfig config;
  int64_t block;
};

class MixerTest : public testing::TestWithParam<Place> {
 protected:
  MixerTest()
      : config_(GetParam().config),
        mixer_(FindMixer(config_.pattern(0))->make(config_, GetParam().block)) {
    Declaration declare{params_, stash_, 1, "m."};
    mixer_->Declare(declare);
    StateTable table(kCapacity);
    mixer_->DeclareState(table);
    state_ = table;
    store_ = std::make_unique<ParamStore>(RandomStore(params_, mesh_, random_));
    run_ = std::make_unique<eyrie::Run>(eyrie::Run{mesh_, *store_, arena_});
    run_->pass = Pass::kTrain;
  }

  Stash MakeStash(int64_t tokens) {
    Stash stash(stash_, DType::kF64, kBatch, {.tokens = tokens});
    stash.TakeKept(arena_, Recompute::kNothing);
    return stash;
  }
  State MakeState() const { return State(state_, DType::kF64, kBatch, Device::kCpu); }
  // A state that a chunk may hand on: any numbers, but where scaled ones belong together.
  State RandomState() {
    State state = MakeState();
    const auto& slots = state_.slots();
    if (std::all_of(slots.begin(), slots.end(), [](const auto& s) { return s.scaled.empty(); })) {
      Randomise(state, random_);
      return state;
    }
    ArenaScope scope(arena_);
    const OwnedTensor positions = RandomPositions(kBatch, kTokens, random_, false);
    Forward(RandomActivations().tensor, positions.tensor, 0, kTokens, nullptr, &state);
    return state;
  }
  // What the elements of a slot are to be multiplied by for comparison with those of `reference`,
  // whose log scales may be others.
  std::vector<double> Factors(const State& state, const State& reference, SlotId scaled) const {
    std::vector<double> factors(static_cast<size_t>(state[scaled].size()), 1.0);
    for (size_t slot = 0; slot < state_.slots().size(); ++slot) {
      const auto& scales = state_.slots()[slot].scaled;
      if (std::find(scales.begin(), scales.end(), scaled) == scales.end()) continue;
      const auto id = static_cast<SlotId>(slot);
      const int64_t each = state[scaled].size() / state[id].size();
      for (size_t i = 0; i < factors.size(); ++i) {
        const int64_t group = static_cast<int64_t>(i) / each;
        factors[i] = std::exp(Get(state[id], group) - Get(reference[id], group));
      }
    }
    return factors;
  }
  bool IsLogScale(SlotId id) const {
    return !state_.slots()[static_cast<size_t>(id)].scaled.empty();
  }
  OwnedTensor RandomActivations() {
    return RandomTensor(DType::kF64, {kBatch, kTokens, config_.width()}, random_);
  }

  // The mixer on part [begin, end) of x.
  struct Piece {
    OwnedTensor x, y, positions;
    Stash stash;
  };
  Piece Forward(const Tensor& x, const Tensor& positions, int64_t begin, int64_t end,
                const State* before, State* after) {
    Piece piece{TimeSlice(x, begin, end), {}, TimeSlice(positions, begin, end), {}};
    piece.y = PoisonedTensor(DType::kF64, piece.x.tensor.shape);
    run_->positions = piece.positions.tensor;
    piece.stash = MakeStash(end - begin);
    mixer_->Forward(*run_, piece.x.tensor, {.y = piece.y.tensor, .residual = {}}, piece.stash,
                    {before, after});
    return piece;
  }
  OwnedTensor Backward(Piece& piece, const Tensor& dy, const State* before, const State* dafter,
                       State* dbefore) {
    OwnedTensor dx = PoisonedTensor(DType::kF64, piece.x.tensor.shape);
    run_->positions = piece.positions.tensor;
    mixer_->Backward(*run_, piece.x.tensor, dy, dx.tensor, piece.stash, {before, nullptr},
                     {dafter, dbefore});
    return dx;
  }

  TestRandom random_;
  config::ModelConfig config_;
  std::unique_ptr<Mixer> mixer_;
  ParamTable params_;
  StashTable stash_;
  StateTable state_;
  Mesh mesh_;
  std::unique_ptr<ParamStore> store_;
  Arena arena_;
  std::unique_ptr<eyrie::Run> run_;
};

// The loss is a random linear function of the output and of the state handed on, whose log scales
// count as constant.
TEST_P(MixerTest, GradientsMatchFiniteDifferences) {
  const OwnedTensor positions = RandomPositions(kBatch, kTokens, random_, true);
  OwnedTensor x = RandomActivations();
  const OwnedTensor dy = RandomActivations();
  State before = RandomState(), after = MakeState(), dbefore = MakeState(), dafter = MakeState();
  Randomise(dafter, random_);
  State reference = MakeState();
  {
    ArenaScope scope(arena_);
    Forward(x.tensor, positions.tensor, 0, kTokens, &before, &reference);
  }
  const auto loss = [&] {
    ArenaScope scope(arena_);
    const Piece piece = Forward(x.tensor, positions.tensor, 0, kTokens, &before, &after);
    double sum = Dot(piece.y.tensor, dy.tensor);
    for (size_t slot = 0; slot < after.size(); ++slot) {
      const auto id = static_cast<SlotId>(slot);
      if (IsLogScale(id)) continue;
      const std::vector<double> factors = Factors(after, reference, id);
      for (size_t i = 0; i < factors.size(); ++i) {
        const auto element = static_cast<int64_t>(i);
        sum += factors[i] * Get(after[id], element) * Get(dafter[id], element);
      }
    }
    return sum;
  };

  // Of the differences. Through exponential gates a longer one is too long.
  constexpr double kStep = 1e-4;
  store_->ZeroGrads();
  for (size_t slot = 0; slot < dbefore.size(); ++slot) Poison(dbefore[static_cast<SlotId>(slot)]);
  ArenaScope scope(arena_);
  Piece piece = Forward(x.tensor, positions.tensor, 0, kTokens, &before, &after);
  const OwnedTensor dx = Backward(piece, dy.tensor, &before, &dafter, &dbefore);

  EXPECT_LT(NumericGradientCheck(loss, x.tensor, dx.tensor, random_, kStep), 1e-6) << "x";
  for (size_t slot = 0; slot < before.size(); ++slot) {
    const auto id = static_cast<SlotId>(slot);
    if (IsLogScale(id)) continue;
    EXPECT_LT(NumericGradientCheck(loss, before[id], dbefore[id], random_, kStep, 64, 1e-3), 1e-6)
        << "state " << state_.slots()[slot].name;
  }
  for (ParamId id = 0; id < static_cast<ParamId>(params_.specs().size()); ++id) {
    EXPECT_LT(NumericGradientCheck(loss, store_->value(id), store_->grad(id), random_, kStep), 1e-6)
        << params_.spec(id).name;
  }
}

TEST_P(MixerTest, AnySplitIntoChunksEqualsTheWhole) {
  for (int trial = 0; trial < 5; ++trial) {
    ArenaScope scope(arena_);
    const OwnedTensor positions = RandomPositions(kBatch, kTokens, random_, false);
    const OwnedTensor x = RandomActivations(), dy = RandomActivations();
    State end = MakeState(), dend = MakeState();
    Randomise(dend, random_);
    store_->ZeroGrads();
    Piece whole = Forward(x.tensor, positions.tensor, 0, kTokens, nullptr, &end);
    const OwnedTensor whole_dx = Backward(whole, dy.tensor, nullptr, &dend, nullptr);
    const OwnedTensor whole_grads = Clone(store_->flat_grads());

    const std::vector<int64_t> cuts = RandomCuts(kTokens, random_);
    std::vector<State> states, gradients;
    for (size_t i = 0; i < cuts.size(); ++i) {
      states.push_back(MakeState());
      gradients.push_back(MakeState());
    }
    std::vector<Piece> pieces;
    OwnedTensor y(DType::kF64, x.tensor.shape), dx(DType::kF64, x.tensor.shape);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      pieces.push_back(
          Forward(x.tensor, positions.tensor, cuts[i], cuts[i + 1], &states[i], &states[i + 1]));
      PasteTime(pieces.back().y.tensor, y.tensor, cuts[i]);
    }
    store_->ZeroGrads();
    for (size_t i = pieces.size(); i-- > 0;) {
      const OwnedTensor piece_dy = TimeSlice(dy.tensor, cuts[i], cuts[i + 1]);
      const State* dafter = i + 1 == pieces.size() ? &dend : &gradients[i + 1];
      PasteTime(Backward(pieces[i], piece_dy.tensor, &states[i], dafter, &gradients[i]).tensor,
                dx.tensor, cuts[i]);
    }
    EXPECT_LT(RelativeError(y.tensor, whole.y.tensor), 1e-10);
    EXPECT_LT(RelativeError(dx.tensor, whole_dx.tensor), 1e-10);
    EXPECT_LT(RelativeError(store_->flat_grads(), whole_grads.tensor), 1e-10);
    for (size_t slot = 0; slot < end.size(); ++slot) {
      const auto id = static_cast<SlotId>(slot);
      // Rows before the sequence's start hold zeros in both.
      EXPECT_LT(RelativeError(states.back()[id], end[id]), 1e-10);
    }
  }
}

// Recomputation fills the stash with the same bits, given no output and no communication.
TEST_P(MixerTest, RecomputedStashIsTheSame) {
  ArenaScope scope(arena_);
  const OwnedTensor positions = RandomPositions(kBatch, kTokens, random_, true);
  const OwnedTensor x = RandomActivations();
  State before = RandomState(), after = MakeState();
  const Piece kept = Forward(x.tensor, positions.tensor, 0, kTokens, &before, &after);
  run_->pass = Pass::kRecompute;
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kBlocks}) {
    Stash again = MakeStash(kTokens);
    for (size_t slot = 0; slot < stash_.slots().size(); ++slot) {
      const auto id = static_cast<SlotId>(slot);
      if (stash_.slots()[slot].elements) continue;  // a reusable one, which has not been taken
      if (stash_.slots()[slot].Outlives(recompute)) {
        Copy(kept.stash[id], again[id]);
      } else {
        Poison(again[id]);
      }
    }
    if (recompute == Recompute::kBlocks) {
      mixer_->Forward(*run_, x.tensor, {}, again, {&before, nullptr});
    } else {
      mixer_->Refill(*run_, x.tensor, again, {&before, nullptr});
    }
    for (size_t slot = 0; slot < stash_.slots().size(); ++slot) {
      const auto id = static_cast<SlotId>(slot);
      if (stash_.slots()[slot].kept() || stash_.slots()[slot].elements) continue;
      EXPECT_TRUE(BitwiseEqual(kept.stash[id], again[id])) << stash_.slots()[slot].name;
    }
  }
}

// A rank that holds whole sequences has no room for the states of others.
TEST_P(MixerTest, StashOfWholeSequencesHoldsNothingButTokens) {
  ArenaScope scope(arena_);
  const Stash stash = MakeStash(kTokens);
  for (size_t slot = 0; slot < stash_.slots().size(); ++slot) {
    if (!stash_.slots()[slot].kept()) continue;
    const int64_t rows = stash[static_cast<SlotId>(slot)].dim(1);
    EXPECT_TRUE(rows == 0 || rows == kTokens) << stash_.slots()[slot].name << " " << rows;
  }
}

std::vector<Place> AllPlaces() {
  std::vector<Place> places;
  for (const int64_t block : {0, 1}) {
    for (const MixerEntry& entry : MixerRegistry()) {
      places.push_back({entry.name, SmallModel({entry.name}, 3), block});
    }
    places.push_back({"time_invariant_mamba", SmallTimeInvariant(3), block});
  }
  return places;
}
INSTANTIATE_TEST_SUITE_P(Registry, MixerTest, testing::ValuesIn(AllPlaces()), [](const auto& test) {
  return StrCat(test.param.name, "_block_", test.param.block);
});

}  // namespace
}  // namespace eyrie
