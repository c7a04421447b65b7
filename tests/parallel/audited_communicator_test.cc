// The communicator that finds out who touches what is under way does so.
#include "tests/support/audited_communicator.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

// Ranks that add up their numbers 1 and 2, one of which may write while the sum is under way.
void AddUp(bool writes) {
  RunRanks(2, [&](std::unique_ptr<Communicator> world) {
    AuditedCommunicator audited(*world);
    const OwnedTensor sum(DType::kF64, {1});
    double& value = *sum.tensor.data<double>();
    value = audited.rank() + 1;
    Event event = audited.AllReduce(sum.tensor, ReduceOp::kSum);
    EXPECT_TRUE(std::isnan(value));
    if (writes && audited.rank() == 0) value = 7;
    event.Wait();
    EXPECT_EQ(value, 3);
  });
}

TEST(AuditedCommunicatorTest, HidesResultsUntilTheyAreWaitedFor) { AddUp(/*writes=*/false); }

TEST(AuditedCommunicatorTest, FindsWhoWritesWhereAResultWillBe) {
  EXPECT_NONFATAL_FAILURE_ON_ALL_THREADS(AddUp(/*writes=*/true), "of an all-reduce under way");
}

TEST(AuditedCommunicatorTest, FindsWhoWritesOverWhatIsSent) {
  const auto gather = [] {
    RunRanks(2, [](std::unique_ptr<Communicator> world) {
      AuditedCommunicator audited(*world);
      const OwnedTensor own(DType::kF64, {1}), all(DType::kF64, {2});
      *own.tensor.data<double>() = audited.rank();
      Event event = audited.AllGather(own.tensor, all.tensor);
      if (audited.rank() == 1) *own.tensor.data<double>() = 7;
      event.Wait();
      EXPECT_EQ(all.tensor.data<double>()[1], 1);
    });
  };
  EXPECT_NONFATAL_FAILURE_ON_ALL_THREADS(gather(), "of an all-gather under way");
}

}  // namespace
}  // namespace eyrie
