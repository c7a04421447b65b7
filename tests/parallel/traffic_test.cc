// Counted communication against sums written out by hand.
#include "parallel/traffic.h"

#include <gtest/gtest.h>

#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

TEST(Traffic, CountsWhatIsSent) {
  constexpr int kRanks = 4;
  RunRanks(kRanks, [](std::unique_ptr<Communicator> world) {
    Traffic sent;
    const auto group = MakeCountingCommunicator(std::move(world), sent);
    const auto after = [&](const Event&) { return std::exchange(sent, {}); };
    const OwnedTensor small(DType::kF32, {10}), large(DType::kF32, {40});
    // 3/4 of 40 and 160 bytes, in two phases of two messages or in one.
    EXPECT_EQ(after(group->AllReduce(small.tensor, ReduceOp::kSum)), (Traffic{60, 4}));
    EXPECT_EQ(after(group->AllGather(small.tensor, large.tensor)), (Traffic{120, 2}));
    EXPECT_EQ(after(group->ReduceScatter(large.tensor, small.tensor)), (Traffic{120, 2}));
    EXPECT_EQ(after(group->Broadcast(large.tensor, 1)), (Traffic{240, 4}));
    // A group made of it counts with it.
    const auto pair = group->Split(group->rank() / 2, group->rank());
    ASSERT_EQ(pair->size(), 2);
    EXPECT_EQ(after(pair->AllReduce(small.tensor, ReduceOp::kSum)), (Traffic{40, 2}));
    if (pair->rank() == 0) {
      EXPECT_EQ(after(pair->Exchange({{small.tensor, 1}}, {})), (Traffic{40, 1}));
    } else {
      EXPECT_EQ(after(pair->Exchange({}, {{small.tensor, 0}})), (Traffic{0, 0}));
    }
  });
}

TEST(Traffic, AbsentRanksStandWhereTheMeshPutsThem) {
  constexpr MeshShape kShape{.data = 2, .sequence = 3, .tensor = 2};
  RunRanks(kShape.ranks(), [kShape](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    const Mesh real(kShape, std::move(world)), absent(kShape, AbsentGroups(kShape, rank));
    const auto expect = [](const Communicator& a, const Communicator& b) {
      EXPECT_EQ(a.rank(), b.rank());
      EXPECT_EQ(a.size(), b.size());
    };
    expect(absent.world(), real.world());
    expect(absent.tensor(), real.tensor());
    expect(absent.sequence(), real.sequence());
    expect(absent.data(), real.data());
    expect(absent.replicas(), real.replicas());
  });
}

}  // namespace
}  // namespace eyrie
