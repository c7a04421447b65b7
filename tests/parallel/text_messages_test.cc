// Bytes of any length among the ranks of a group.
#include "parallel/text_messages.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

// Every byte, as a serialised message holds them, and lengths that are no whole words.
std::string Bytes(int length) {
  std::string bytes;
  for (int i = 0; i < length; ++i) bytes += static_cast<char>(255 - i);
  return bytes;
}

TEST(TextMessages, TheRootsTextReachesAll) {
  RunRanks(3, [](std::unique_ptr<Communicator> world) {
    for (const int length : {0, 1, 4, 257}) {
      const std::string mine = world->rank() == 0 ? Bytes(length) : "another's";
      EXPECT_EQ(BroadcastText(*world, mine), Bytes(length));
    }
  });
}

TEST(TextMessages, TheRootGetsEveryRanksText) {
  RunRanks(4, [](std::unique_ptr<Communicator> world) {
    std::vector<std::string> got;
    // One of them is empty.
    const std::string mine = Bytes(5 * (3 - world->rank()));
    GatherText(*world, mine, [&](const std::string& text) { got.push_back(text); });
    std::vector<std::string> expected;
    if (world->rank() == 0) expected = {Bytes(10), Bytes(5), Bytes(0), Bytes(15)};
    EXPECT_EQ(got, expected);
  });
}

}  // namespace
}  // namespace eyrie
