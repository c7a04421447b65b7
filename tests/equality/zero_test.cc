// The optimiser's state shared out among the replicas: trains as one rank does, under mpirun.
#include <gtest/gtest.h>

#include "tests/equality/layouts.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// Buckets of 512 float32: dozens for the small model, so that many are under way at once.
const std::vector<std::string> kZero = {"parallel.zero=OPTIMIZER_STATE",
                                        "parallel.bucket_bytes=2048", "train.micro_batch_size=1"};
constexpr Layout kD4 = {"d4", 1, 4, 4};

std::vector<std::string> With(std::vector<std::string> settings, const std::string& more) {
  settings.push_back(more);
  return settings;
}

class ZeroTest : public LayoutsTest {};

TEST_F(ZeroTest, TwentyStepsEqualOneRank) {
  const auto one = Train("one", kOne);
  ASSERT_EQ(one.size(), 20u);
  for (const Layout& layout : {Layout{"d2", 1, 2, 2}, kD4, kT2D2, Layout{"s2", 1, 1, 2, 2},
                               Layout{"t2d2s2", 2, 2, 8, 2}}) {
    ExpectSame(Train(layout.name, layout, kZero), one, 1e-5, layout.name);
  }
  // Small buckets without ZeRO, one large one with it, on replicas that it changes nothing for.
  ExpectSame(Train("plain", kT2D2, {"parallel.bucket_bytes=2048"}), one, 1e-5, "plain");
  ExpectSame(Train("large", kT2D2, {kZero[0]}), one, 1e-5, "large");
  ExpectSame(Train("alone", kT4, kZero), one, 1e-5, "alone");
  ExpectSame(Train("recompute", kT2D2, With(kZero, "train.recompute=BLOCKS")), one, 1e-5,
             "recompute");
  ExpectSame(
      Train("recompute-d2s2", Layout{"d2s2", 1, 2, 4, 2}, With(kZero, "train.recompute=BLOCKS")),
      one, 1e-5, "recompute d2s2");
}

TEST_F(ZeroTest, TheSameLayoutTwiceIsBitwiseEqual) {
  for (const Layout& layout : {kD4, kT2D2}) {
    ExpectBitwise("a", "b", layout, kZero);
  }
}

TEST_F(ZeroTest, ResumesWithAndWithout) {
  const auto one = Train("one", kOne);
  // Shared out over four, then not, with other cuts; and the other way round.
  Train("out", kD4, With(kZero, "train.stop_after=10"));
  ExpectSame(Train("out", kT2D2), one, 1e-5, "d4 with ZeRO to t2d2");
  Train("in", kT2D2, {"train.stop_after=10"});
  ExpectSame(Train("in", kD4, kZero), one, 1e-5, "t2d2 to d4 with ZeRO");
  // In parts on the same layout: the very same run.
  const auto whole = Train("whole", kT2D2, kZero);
  Train("parts", kT2D2, With(kZero, "train.stop_after=7"));
  ExpectSame(Train("parts", kT2D2, kZero), whole, 0.0, "parts");
}

}  // namespace
}  // namespace eyrie
