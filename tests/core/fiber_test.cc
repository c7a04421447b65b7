// Functions that stop in the middle and go on.
#include "core/fiber.h"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <vector>

namespace eyrie {
namespace {

TEST(Fiber, GoesOnWhereItPaused) {
  std::vector<int> order;
  std::unique_ptr<Fiber> fiber;
  fiber = std::make_unique<Fiber>([&] {
    for (int i = 0; i < 3; ++i) {
      order.push_back(i);
      fiber->Pause();
    }
  });
  EXPECT_TRUE(order.empty());
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(fiber->done());
    fiber->Resume();
    order.push_back(10 + i);
  }
  EXPECT_TRUE(fiber->done());
  EXPECT_EQ(order, (std::vector<int>{0, 10, 1, 11, 2, 12, 13}));
}

// Each has its own deep stack, and its own exceptions under way.
TEST(Fiber, ExceptionsUnwindTheirOwnStack) {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<int> caught;
  struct Counted {
    explicit Counted(int& n) : alive(n) { ++alive; }
    ~Counted() { --alive; }
    int& alive;
  };
  int alive = 0;
  for (int i = 0; i < 3; ++i) {
    fibers.push_back(std::make_unique<Fiber>([&, i] {
      const std::function<void(int)> dive = [&](int depth) {
        const Counted counted(alive);
        if (depth % 100 == 0) fibers[static_cast<size_t>(i)]->Pause();
        if (depth == 0) throw std::runtime_error(std::to_string(i));
        dive(depth - 1);
      };
      try {
        dive(1000);
      } catch (const std::runtime_error& error) {
        caught.push_back(std::stoi(error.what()));
      }
    }));
  }
  for (int round = 0; round < 12; ++round) {
    for (const auto& fiber : fibers) fiber->Resume();
    if (round == 5) {
      EXPECT_EQ(alive, 3 * 501);
    }
    EXPECT_EQ(caught.size(), round < 11 ? 0u : 3u);
  }
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(caught, (std::vector<int>{0, 1, 2}));
}

TEST(Fiber, OneThatNeverStartsIsDropped) {
  const auto token = std::make_shared<int>(7);
  {
    const Fiber fiber([token] { FAIL() << *token; });
  }
  EXPECT_EQ(token.use_count(), 1);
}

}  // namespace
}  // namespace eyrie
