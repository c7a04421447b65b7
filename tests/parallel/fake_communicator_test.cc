// The stand-in for MPI that other tests rely on.
#include "tests/support/fake_communicator.h"

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "parallel/mesh.h"

namespace eyrie {
namespace {

TEST(FakeCommunicator, RunsEveryCollective) {
  constexpr int kRanks = 3;
  RunRanks(kRanks, [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    EXPECT_EQ(world->size(), kRanks);
    const OwnedTensor in(DType::kF32, {kRanks}), all(DType::kF32, {kRanks, kRanks});
    const OwnedTensor part(DType::kF32, {1});
    float* values = in.tensor.data<float>();
    for (int i = 0; i < kRanks; ++i) values[i] = static_cast<float>(10 * rank + i);

    world->AllGather(in.tensor, all.tensor).Wait();
    for (int i = 0; i < kRanks * kRanks; ++i) {
      EXPECT_EQ(all.tensor.data<float>()[i], static_cast<float>(10 * (i / kRanks) + i % kRanks));
    }
    world->ReduceScatter(in.tensor, part.tensor).Wait();
    EXPECT_EQ(part.tensor.data<float>()[0], static_cast<float>(30 + 3 * rank));
    world->Barrier();
    world->Broadcast(in.tensor, 1).Wait();
    EXPECT_EQ(values[2], 12.0f);
    EXPECT_EQ(AllReduceValue(*world, rank + 1.0, ReduceOp::kSum), 6.0);
    EXPECT_EQ(AllReduceValue(*world, rank + 1.0, ReduceOp::kMax), 3.0);
  });
}

TEST(FakeCommunicator, SplitsIntoTheAxesOfAMesh) {
  const MeshShape shape{2, 3, 2};
  RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    const Mesh mesh(shape, std::move(world));
    const int tensor = rank % 2, sequence = rank / 2 % 3, data = rank / 6;
    EXPECT_EQ(mesh.tensor().rank(), tensor);
    EXPECT_EQ(mesh.sequence().rank(), sequence);
    EXPECT_EQ(mesh.data().rank(), data);
    EXPECT_EQ(mesh.replicas().rank(), data * 3 + sequence);
    EXPECT_EQ(mesh.tensor().size(), 2);
    EXPECT_EQ(mesh.sequence().size(), 3);
    EXPECT_EQ(mesh.data().size(), 2);
    EXPECT_EQ(mesh.replicas().size(), 6);
    EXPECT_EQ(mesh.is_root(), rank == 0);
    // Sums of world ranks tell who is in each group.
    const auto sum = [&](Communicator& group) {
      return AllReduceValue(group, rank, ReduceOp::kSum);
    };
    EXPECT_EQ(sum(mesh.tensor()), 2 * (rank - tensor) + 1);
    EXPECT_EQ(sum(mesh.sequence()), 3 * (rank - 2 * sequence) + 6);
    EXPECT_EQ(sum(mesh.data()), 2 * (rank - 6 * data) + 6);
    EXPECT_EQ(sum(mesh.replicas()), 30 + 6 * tensor);
  });
}

}  // namespace
}  // namespace eyrie
