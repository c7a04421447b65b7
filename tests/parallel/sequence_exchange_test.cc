// What only the exchanges themselves can show: the maths of the stabilised scan, and the order in
// which a relay runs. Mixers' results on several ranks are tests/layers/sequence_test.cc's.
#include "parallel/sequence_exchange.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "core/tensor_math.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr int64_t kGroups = 3, kEachC = 4, kEachN = 2;

// A stabilised state with memory of its own.
struct OwnedState {
  explicit OwnedState(TestRandom& random, double magnitude)
      : c(RandomTensor(DType::kF64, {kGroups, kEachC}, random)),
        n(RandomTensor(DType::kF64, {kGroups, kEachN}, random)),
        m(RandomTensor(DType::kF64, {kGroups}, random, magnitude)) {}
  StabilisedCarryScan::State view() const { return {c.tensor, n.tensor, m.tensor}; }
  // The element's true value.
  double True(const OwnedTensor& values, int64_t i) const {
    const int64_t each = values.tensor.size() / kGroups;
    return Get(values.tensor, i) * std::exp(Get(m.tensor, i / each));
  }
  OwnedTensor c, n, m;
};

// A sum, and the sum of its terms' magnitudes, beside which its rounding errors are small.
struct Sum {
  double value, magnitude;
};
Sum Of(double value) { return {value, std::abs(value)}; }

struct Chunk {
  Chunk(TestRandom& random, double magnitude)
      : log_decay(RandomTensor(DType::kF64, {kGroups}, random, magnitude)),
        increment(random, magnitude) {}
  OwnedTensor log_decay;
  OwnedState increment;
};

TEST(StabilisedCarryScan, GivesTheTrueStatesOfOneRankAfterAnother) {
  TestRandom random;
  for (const int ranks : {1, 2, 5}) {
    for (const bool carried : {false, true}) {
      std::vector<Chunk> chunks;
      for (int rank = 0; rank < ranks; ++rank) chunks.emplace_back(random, 2.0);
      const OwnedState first(random, 2.0);
      // True values, before each chunk and after the last one.
      std::vector<std::vector<Sum>> c(1), n(1);
      for (int64_t i = 0; i < kGroups * kEachC; ++i) {
        c[0].push_back(Of(carried ? first.True(first.c, i) : 0.0));
      }
      for (int64_t i = 0; i < kGroups * kEachN; ++i) {
        n[0].push_back(Of(carried ? first.True(first.n, i) : 0.0));
      }
      for (const Chunk& chunk : chunks) {
        const auto step = [&](std::vector<std::vector<Sum>>& states, const OwnedTensor& added) {
          std::vector<Sum> next = states.back();
          for (size_t i = 0; i < next.size(); ++i) {
            const auto element = static_cast<int64_t>(i);
            const int64_t group = element / (added.tensor.size() / kGroups);
            const double decay = std::exp(Get(chunk.log_decay.tensor, group));
            const Sum increment = Of(chunk.increment.True(added, element));
            next[i] = {decay * next[i].value + increment.value,
                       decay * next[i].magnitude + increment.magnitude};
          }
          states.push_back(next);
        };
        step(c, chunk.increment.c);
        step(n, chunk.increment.n);
      }

      std::mutex mutex;
      RunRanks(ranks, [&](std::unique_ptr<Communicator> world) {
        const auto rank = static_cast<size_t>(world->rank());
        TestRandom unused;
        OwnedState entering(unused, 1.0), leaving(unused, 1.0);
        Arena arena;
        StabilisedCarryScan scan(*world, arena,
                                 {.log_decay = chunks[rank].log_decay.tensor,
                                  .increment = chunks[rank].increment.view(),
                                  .first = carried ? first.view() : StabilisedCarryScan::State{},
                                  .first_m = -1e30,
                                  .entering = entering.view(),
                                  .leaving = leaving.view()});
        scan.Wait();
        const std::lock_guard lock(mutex);
        const auto expect_all = [](const OwnedState& state, const OwnedTensor& values,
                                   const std::vector<Sum>& expected) {
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_NEAR(state.True(values, static_cast<int64_t>(i)), expected[i].value,
                        1e-12 * expected[i].magnitude);
          }
        };
        const auto expect = [&](const OwnedState& state, size_t place) {
          expect_all(state, state.c, c[place]);
          expect_all(state, state.n, n[place]);
        };
        expect(entering, rank);
        expect(leaving, static_cast<size_t>(ranks));
      });
    }
  }
}

// Where true values have no floating-point number, and where a document's start forgets.
TEST(StabilisedCarryScan, StaysFinite) {
  constexpr int kRanks = 3;
  RunRanks(kRanks, [&](std::unique_ptr<Communicator> world) {
    const OwnedTensor log_decay(DType::kF32, {2}), one(DType::kF32, {2}), m(DType::kF32, {2});
    OwnedTensor c = PoisonedTensor(DType::kF32, {2}), n = PoisonedTensor(DType::kF32, {2});
    OwnedTensor entering_m = PoisonedTensor(DType::kF32, {2});
    log_decay.tensor.data<float>()[0] = 900;     // grows by e^900 a chunk
    log_decay.tensor.data<float>()[1] = -1e30f;  // forgets
    Fill(one.tensor, 1.0);
    Fill(m.tensor, 500.0);
    Arena arena;
    StabilisedCarryScan scan(*world, arena,
                             {.log_decay = log_decay.tensor,
                              .increment = {one.tensor, one.tensor, m.tensor},
                              .first_m = -1e30,
                              .entering = {c.tensor, n.tensor, entering_m.tensor}});
    scan.Wait();
    if (world->rank() == 0) {
      EXPECT_EQ(Get(c.tensor, 0), 0.0);
      return;
    }
    EXPECT_EQ(Get(entering_m.tensor, 0), 500 + 900 * (world->rank() - 1));
    EXPECT_EQ(Get(entering_m.tensor, 1), 500);
    for (const OwnedTensor* values : {&c, &n}) {
      // What earlier chunks added is nothing beside what grew from the first one.
      EXPECT_EQ(Get(values->tensor, 0), 1.0);
      EXPECT_EQ(Get(values->tensor, 1), 1.0);
    }
  });
}

TEST(Relay, HandsTheStateFromRankToRank) {
  for (const int ranks : {1, 2, 5}) {
    for (const auto direction : {CarryScan::Direction::kForward, CarryScan::Direction::kBackward}) {
      std::mutex mutex;
      std::vector<int> order;
      RunRanks(ranks, [&](std::unique_ptr<Communicator> world) {
        const bool forward = direction == CarryScan::Direction::kForward;
        const int rank = world->rank(), place = forward ? rank : ranks - 1 - rank;
        OwnedTensor entering(DType::kF32, {2}), other(DType::kI32, {1});
        OwnedTensor leaving(DType::kF32, {2}), other_leaving(DType::kI32, {1});
        Relay(*world, direction, {entering.tensor, other.tensor},
              {leaving.tensor, other_leaving.tensor}, [&] {
                const std::lock_guard lock(mutex);
                order.push_back(place);
                EXPECT_EQ(Get(entering.tensor, 0), place == 0 ? 0 : 10 * place);
                EXPECT_EQ(Get(entering.tensor, 1), place == 0 ? 0 : place);
                EXPECT_EQ(Get(other.tensor, 0), place == 0 ? 0 : -place);
                Set(leaving.tensor, 0, 10 * (place + 1));
                Set(leaving.tensor, 1, place + 1);
                Set(other_leaving.tensor, 0, -(place + 1));
              });
      });
      ASSERT_EQ(order.size(), static_cast<size_t>(ranks));
      for (int place = 0; place < ranks; ++place)
        EXPECT_EQ(order[static_cast<size_t>(place)], place);
    }
  }
}

}  // namespace
}  // namespace eyrie
