// Tasks that take turns whenever they would wait, and the record of it.
#include "parallel/scheduler.h"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator_wrapper.h"
#include "parallel/observed_mesh.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

using std::chrono::milliseconds;

TEST(Scheduler, TurnsGoRound) {
  Scheduler scheduler;
  std::string order;
  std::vector<std::function<void()>> tasks;
  for (const int turns : {3, 1, 2}) {
    tasks.push_back([&, turns, name = static_cast<char>('a' + tasks.size())] {
      for (int i = 0; i < turns; ++i) {
        order += name;
        scheduler.Yield();
      }
    });
  }
  scheduler.Run(tasks);
  EXPECT_EQ(order, "abcaca");
  scheduler.Yield();  // nobody to let go first
  EXPECT_EQ(order, "abcaca");
}

TEST(Scheduler, AnExceptionEndsAllTasks) {
  Scheduler scheduler;
  int unwound = 0;
  struct Guard {
    ~Guard() { ++count; }
    int& count;
  };
  const auto forever = [&] {
    const Guard guard{unwound};
    while (true) scheduler.Yield();
  };
  const auto fails = [&] {
    const Guard guard{unwound};
    scheduler.Yield();
    throw std::runtime_error("slice 1");
  };
  for (int repeat = 0; repeat < 2; ++repeat) {
    unwound = 0;
    try {
      scheduler.Run({forever, fails, forever});
      FAIL();
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "slice 1");
    }
    EXPECT_EQ(unwound, 3);
  }
  // Before the last one's first turn.
  unwound = 0;
  EXPECT_THROW(scheduler.Run({[&] { throw std::runtime_error("slice 0"); }, forever}),
               std::runtime_error);
  EXPECT_EQ(unwound, 0);
}

// Every rank starts the operations of all tasks in the same order, although ranks have different
// messages to wait for: the fake communicator would mix them up, or never return.
TEST(Scheduler, RanksWithUnequalMessagesKeepOneOrder) {
  RunRanks(3, [](std::unique_ptr<Communicator> world) {
    const Mesh plain({.sequence = 3}, std::move(world));
    Scheduler scheduler;
    const Mesh mesh = YieldingMesh(plain, scheduler, nullptr);
    Communicator& group = mesh.sequence();
    const int rank = group.rank();
    std::string order;
    std::vector<std::function<void()>> tasks;
    for (int task = 0; task < 2; ++task) {
      tasks.push_back([&, task] {
        for (int round = 0; round < 5; ++round) {
          double from_left = -1, mine = 100 * task + 10 * round + rank, sum = mine;
          const auto one = [](double& x) { return Tensor{&x, DType::kF64, Device::kCpu, {1}}; };
          std::vector<Communicator::Message> sent, received;
          if (rank > 0) received.push_back({one(from_left), rank - 1});
          if (rank < 2) sent.push_back({one(mine), rank + 1});
          order += static_cast<char>('a' + task);
          Event exchanged = group.Exchange(sent, received);
          Event first = group.AllReduce(one(sum), ReduceOp::kSum);
          exchanged.Wait();
          first.Wait();
          EXPECT_EQ(from_left, rank > 0 ? mine - 1 : -1);
          EXPECT_EQ(sum, 3 * (mine - rank) + 3);
        }
      });
    }
    scheduler.Run(tasks);
    // An exchange without messages is a turn like any other.
    EXPECT_EQ(order, "ababababab");
  });
}

double Milliseconds(const Trace::Span& a) { return 1e3 * a.end.SecondsSince(a.begin); }

TEST(Trace, AnInnerScopeInterruptsTheOuterOne) {
  Trace trace;
  { const Trace::Scope early(&trace, Trace::Kind::kCompute, "early"); }
  trace.Start();
  {
    const Trace::Scope outer(&trace, Trace::Kind::kCompute, "layer", " forward");
    std::this_thread::sleep_for(milliseconds(2));
    {
      const Trace::Scope idle(&trace, Trace::Kind::kIdle);
      idle.SetSlice(1);
      const Trace::Scope other(&trace, Trace::Kind::kCompute, "other");
      std::this_thread::sleep_for(milliseconds(2));
    }
  }
  trace.Stop();
  { const Trace::Scope late(&trace, Trace::Kind::kCompute, "late"); }
  const auto& spans = trace.spans();
  ASSERT_EQ(spans.size(), 3u);
  for (const size_t i : {0, 1, 2}) {
    EXPECT_EQ(spans[i].name, i == 1 ? "other" : "layer forward");
    EXPECT_EQ(spans[i].slice, i == 1 ? 1 : 0);
    if (i > 0) {
      EXPECT_GE(spans[i].begin.SecondsSince(spans[i - 1].end), 0.0);
    }
    EXPECT_GE(Milliseconds(spans[i]), i < 2 ? 2.0 : 0.0);
  }
}

TEST(ObservedMesh, OperationsTakeAtLeastTheLatencyWhileTheRankComputes) {
  RunRanks(2, [](std::unique_ptr<Communicator> world) {
    const Mesh plain({.tensor = 2}, std::move(world));
    Trace trace;
    trace.Start();
    const Mesh mesh = ObservedMesh(plain, &trace, milliseconds(20));
    double x = 1, y = 2;
    const auto start = Moment::Clock::now();
    Event a = mesh.tensor().AllReduce(Tensor{&x, DType::kF64, Device::kCpu, {1}}, ReduceOp::kSum);
    Event b = mesh.tensor().AllReduce(Tensor{&y, DType::kF64, Device::kCpu, {1}}, ReduceOp::kSum);
    a.Wait();
    EXPECT_GE(Moment::Clock::now() - start, milliseconds(20));
    // They travelled at the same time: a look tells that the second one is there too.
    std::this_thread::sleep_until(start + milliseconds(60));
    mesh.world().Progress();
    EXPECT_EQ(x, 2);
    EXPECT_EQ(y, 4);
    // A group of one has no network.
    mesh.sequence().AllReduce(Tensor{&x, DType::kF64, Device::kCpu, {1}}, ReduceOp::kSum).Wait();

    int waits = 0;
    std::vector<Trace::Span> under_way;
    for (const Trace::Span& span : trace.spans()) {
      EXPECT_EQ(span.name, "all-reduce");
      EXPECT_STREQ(span.axis, "tensor");
      if (span.kind == Trace::Kind::kCommunication) {
        under_way.push_back(span);
      } else {
        ++waits;
      }
    }
    EXPECT_EQ(waits, 1);
    ASSERT_EQ(under_way.size(), 2u);
    EXPECT_GE(Milliseconds(under_way[0]), 20.0);
    EXPECT_GE(Milliseconds(under_way[1]), 20.0);
    EXPECT_EQ(under_way[0].bytes, 8u);
    b.Wait();
    EXPECT_EQ(trace.spans().size(), 3u);
  });
}

// Operations whose completion is known from the start, as that of a GPU's streams.
class StreamingCommunicator final : public CommunicatorWrapper {
 public:
  using CommunicatorWrapper::CommunicatorWrapper;

 private:
  class Pending final : public Event::Pending {
   public:
    explicit Pending(Event inner) : inner_(std::move(inner)) {}
    void Wait() override { inner_.Wait(); }
    std::optional<Moment> Completion() override { return end_; }

   private:
    Event inner_;
    Moment end_ = Moment::OnHost();
  };
  Event Started(const Operation& /*operation*/, Event event) override {
    return Event(std::make_unique<Pending>(std::move(event)));
  }
};

TEST(ObservedMesh, TakesAStreamsWordForWhenAnOperationEnds) {
  RunRanks(2, [](std::unique_ptr<Communicator> world) {
    const Mesh plain({.tensor = 2}, std::move(world));
    const Mesh streaming(plain, [](const char* /*axis*/, Communicator& inner) {
      return std::make_unique<StreamingCommunicator>(inner);
    });
    Trace trace;
    const Mesh mesh = ObservedMesh(streaming, &trace, milliseconds(0));
    double x = 1;
    const Tensor view{&x, DType::kF64, Device::kCpu, {1}};
    // Given before the recording starts.
    Event early = mesh.tensor().AllReduce(view, ReduceOp::kSum);
    trace.Start();
    early.Wait();
    std::vector<Event> events;
    for (int i = 0; i < 2; ++i) events.push_back(mesh.tensor().AllReduce(view, ReduceOp::kSum));
    const Moment given = Moment::OnHost();
    std::this_thread::sleep_for(milliseconds(2));
    events.clear();
    EXPECT_EQ(x, 8);

    std::vector<Trace::Span> under_way;
    for (const Trace::Span& span : trace.spans()) {
      if (span.kind == Trace::Kind::kCommunication) under_way.push_back(span);
    }
    ASSERT_EQ(under_way.size(), 2u);
    for (const Trace::Span& span : under_way) {
      EXPECT_GE(span.end.SecondsSince(span.begin), 0.0);
      EXPECT_LE(span.end.SecondsSince(given), 0.0);
    }
    EXPECT_EQ(under_way[1].after.SecondsSince(under_way[0].end), 0.0);
  });
}

}  // namespace
}  // namespace eyrie
