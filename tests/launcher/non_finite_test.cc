// The first value that is not finite, agreed on by ranks.
#include "launcher/non_finite.h"

#include <gtest/gtest.h>

#include <limits>
#include <mutex>

#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

struct Fault {
  int rank = -1;
  int microbatch = 0;
  std::string layer;  // or "parameter"
  double value = std::numeric_limits<double>::quiet_NaN();
};

// The reports of data 2 x tensor 2, over two microbatches of 4 samples through two layers.
std::vector<std::string> Reports(const std::vector<Fault>& faults) {
  std::vector<std::string> reports(4);
  RunRanks(4, [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh({2, 1, 2}, std::move(world));
    const int rank = mesh.world().rank();
    ParamTable table;
    table.Add({.name = "w", .shape = {2}, .init = InitNormal(1.0)});
    ParamStore params(table, mesh, DType::kF32, true);
    Arena arena;
    Run run{mesh, params, arena};
    {
      NonFiniteSearch search(run);
      for (int microbatch = 0; microbatch < 2; ++microbatch) {
        search.Begin(100 + 8 * microbatch + 4 * mesh.data().rank(), 4);
        const auto value = [&](const std::string& layer) {
          for (const Fault& fault : faults) {
            if (fault.rank == rank && fault.microbatch == microbatch && fault.layer == layer) {
              return fault.value;
            }
          }
          return 1.0;
        };
        for (const std::string layer : {"block 0 (recurrent)", "block 0 (geglu)"}) {
          OwnedTensor y(DType::kF32, {2, 3});
          y.tensor.data<float>()[5] = static_cast<float>(value(layer));
          run.Show(Seen::kOutput, layer, y.tensor);
        }
        double loss = value("head");
        run.Show(Seen::kOutput, "head", {.raw = &loss, .dtype = DType::kF64, .shape = {1}});
        OwnedTensor dx(DType::kF32, {2, 3});
        dx.tensor.data<float>()[0] = static_cast<float>(value("backward"));
        run.Show(Seen::kGradient, "block 0 (geglu)", dx.tensor);
        params.grad(0).data<float>()[1] += static_cast<float>(value("parameter"));
        search.End();
      }
      reports[static_cast<size_t>(rank)] = search.Report();
    }
    EXPECT_FALSE(run.observe);
  });
  return reports;
}

TEST(NonFinite, TheEarliestRankSpeaksAlone) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(
      Reports({{3, 1, "block 0 (geglu)"}, {2, 1, "block 0 (geglu)"}, {0, 1, "head"}}),
      (std::vector<std::string>{
          "", "", "the output of block 0 (geglu), in samples 112 to 115, on data rank 1", ""}));
  // The earlier microbatch, however late in it.
  EXPECT_EQ(Reports({{3, 1, "block 0 (recurrent)"}, {1, 0, "parameter", -infinity}}),
            (std::vector<std::string>{
                "", "the gradient of w, in samples 100 to 103, on data rank 0", "", ""}));
  EXPECT_EQ(
      Reports({{3, 0, "backward", infinity}}),
      (std::vector<std::string>{
          "", "", "", "the gradient from block 0 (geglu), in samples 104 to 107, on data rank 1"}));
  EXPECT_EQ(Reports({{0, 1, "head"}})[0],
            "the output of head, in samples 108 to 111, on data rank 0");
}

TEST(NonFinite, NothingFoundIsSaidOnce) {
  const auto reports = Reports({});
  EXPECT_NE(reports[0], "");
  for (size_t rank = 1; rank < 4; ++rank) EXPECT_EQ(reports[rank], "");
}

}  // namespace
}  // namespace eyrie
