// How ranks of a node share its cores.
#include "launcher/job.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <vector>

#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

std::vector<int> CoresOfThisThread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(static_cast<size_t>(core), &set)) cores.push_back(core);
  }
  return cores;
}

// What each of `ranks` ranks gets, threads of this process, each bound to the cores that it is
// given, unless they are none.
std::vector<int> Shares(const std::vector<std::vector<int>>& bound) {
  std::vector<int> shares(bound.size());
  RunRanks(static_cast<int>(bound.size()), [&](std::unique_ptr<Communicator> world) {
    const auto rank = static_cast<size_t>(world->rank());
    if (!bound[rank].empty()) {
      cpu_set_t set;
      CPU_ZERO(&set);
      for (const int core : bound[rank]) CPU_SET(static_cast<size_t>(core), &set);
      EXPECT_EQ(sched_setaffinity(0, sizeof(set), &set), 0);
    }
    shares[rank] = ShareOfCores(*world);
  });
  return shares;
}

TEST(ShareOfCores, RanksThatNobodyBoundShareTheNode) {
  const int cores = static_cast<int>(CoresOfThisThread().size());
  EXPECT_EQ(Shares({{}}), std::vector<int>{cores});
  EXPECT_EQ(Shares({{}, {}}), std::vector<int>(2, std::max(1, cores / 2)));
  EXPECT_EQ(Shares(std::vector<std::vector<int>>(static_cast<size_t>(cores) + 1)),
            std::vector<int>(static_cast<size_t>(cores) + 1, 1));
}

TEST(ShareOfCores, BoundRanksUseWhatTheyHaveAndShareWhatOthersHaveToo) {
  const std::vector<int> cores = CoresOfThisThread();
  if (cores.size() < 2) GTEST_SKIP() << "one core";
  const std::vector<int> first = {cores[0]}, both = {cores[0], cores[1]};
  EXPECT_EQ(Shares({first, {cores[1]}}), (std::vector<int>{1, 1}));
  EXPECT_EQ(Shares({both}), std::vector<int>{2});
  // As a job's share of a node, or a socket, holds all of its ranks there.
  EXPECT_EQ(Shares({both, both}), (std::vector<int>{1, 1}));
  EXPECT_EQ(Shares({both, first}), (std::vector<int>{1, 1}));
}

}  // namespace
}  // namespace eyrie
