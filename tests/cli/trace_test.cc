// The timeline that `run.trace` asks for: well formed, and slices of a batch compute while messages
// of others are under way.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/support/training_test.h"

namespace eyrie {
namespace {

using nlohmann::json;

struct Span {
  double begin, end;
  int slice;
};

// What one rank of a trace tells of an axis of the mesh.
struct Timeline {
  std::vector<Span> compute, communication, waits;
};

// Of an operation's time, how long another slice computed.
double OtherSlicesComputed(const Timeline& timeline, const Span& operation) {
  double sum = 0.0;
  for (const Span& span : timeline.compute) {
    if (span.slice == operation.slice) continue;
    sum += std::max(0.0, std::min(span.end, operation.end) - std::max(span.begin, operation.begin));
  }
  return sum;
}

class TraceTest : public TrainingTest {
 protected:
  ProcessResult TrainBriefly(std::vector<std::string> settings) {
    settings.insert(settings.end(), {"train.steps=4", "train.validation_interval=0",
                                     "checkpoint.resume=never", "train.micro_batch_size=4"});
    std::filesystem::remove_all(run_);
    return Train(2, settings);
  }

  // Trains on two ranks with 5 ms from one to the other, and reads the trace of each.
  std::map<int, Timeline> Record(const std::string& axis, int slices) {
    const std::string file = (directory_ / (axis + std::to_string(slices) + ".json")).string();
    const ProcessResult result =
        TrainBriefly({"parallel." + axis + "=2", "train.batch_slices=" + std::to_string(slices),
                      "run.network_delay_us=5000", "run.trace=" + file, "run.trace_steps=2"});
    EXPECT_EQ(result.code, 0) << result.err;
    const json trace = json::parse(ReadFile(file));
    std::map<int, Timeline> ranks;
    std::map<std::string, json> started;
    std::set<std::string> names, optimizer;
    for (const json& event : trace.at("traceEvents")) {
      const std::string phase = event.at("ph");
      const int rank = event.at("pid"), thread = event.at("tid");
      if (phase == "M") {
        names.insert(std::to_string(rank) + " " + event.at("args").at("name").get<std::string>());
        continue;
      }
      const std::string category = event.at("cat"), name = event.at("name");
      const double time = event.at("ts");
      EXPECT_GE(time, 0.0);
      if (phase == "X") {
        const double length = event.at("dur");
        EXPECT_GE(length, 0.0);
        const Span span{time, time + length, thread};
        EXPECT_LT(thread, slices);
        if (category == "compute") ranks[rank].compute.push_back(span);
        if (category == "compute" && name == "optimizer") {
          optimizer.insert(std::to_string(rank) + " at " + std::to_string(time));
        }
        if (category == "wait" && event.at("args").at("axis") == axis) {
          ranks[rank].waits.push_back(span);
        }
        continue;
      }
      EXPECT_EQ(category, "communication");
      const std::string id = event.at("id");
      if (phase == "b") {
        EXPECT_TRUE(started.emplace(id, event).second) << id;
        continue;
      }
      EXPECT_EQ(phase, "e");
      EXPECT_EQ(started.count(id), 1u) << id;
      const json& args = event.at("args");
      const Span span{started[id].at("ts"), time, args.at("slice")};
      EXPECT_GE(span.end - span.begin, 4999.0) << name;
      if (args.at("axis") == axis) ranks[rank].communication.push_back(span);
      started.erase(id);
    }
    EXPECT_TRUE(started.empty());
    for (const char* expected : {"0 slice 0", "1 slice 0"}) EXPECT_TRUE(names.contains(expected));
    EXPECT_EQ(names.contains("1 slice 1"), slices == 2);
    EXPECT_EQ(optimizer.size(), 4u);  // two ranks, two steps
    return ranks;
  }
};

TEST_F(TraceTest, SlicesComputeWhileMessagesTravel) {
  for (const std::string axis : {"tensor", "sequence"}) {
    SCOPED_TRACE(axis);
    std::map<int, Timeline> whole = Record(axis, 1), sliced = Record(axis, 2);
    ASSERT_EQ(whole.size(), 2u);
    ASSERT_EQ(sliced.size(), 2u);
    for (const int rank : {0, 1}) {
      const auto hidden = [](const Timeline& timeline) {
        return std::count_if(
            timeline.communication.begin(), timeline.communication.end(),
            [&](const Span& operation) { return OtherSlicesComputed(timeline, operation) > 0; });
      };
      // Each slice has operations of its own, and nearly all are hidden: only a slice that is alone
      // has nothing to wait with, and what is done once a step.
      const auto operations = static_cast<double>(sliced[rank].communication.size());
      EXPECT_GT(whole[rank].communication.size(), 20u);
      EXPECT_GT(operations, 1.8 * static_cast<double>(whole[rank].communication.size()));
      EXPECT_EQ(hidden(whole[rank]), 0);
      EXPECT_GT(static_cast<double>(hidden(sliced[rank])), 0.9 * operations);
      // One thing at a time.
      std::vector<Span> busy = sliced[rank].compute;
      busy.insert(busy.end(), sliced[rank].waits.begin(), sliced[rank].waits.end());
      std::sort(busy.begin(), busy.end(),
                [](const Span& a, const Span& b) { return a.begin < b.begin; });
      for (size_t i = 1; i < busy.size(); ++i) EXPECT_GE(busy[i].begin, busy[i - 1].end - 0.01);
    }
  }
}

TEST_F(TraceTest, BadInputNamesTheField) {
  for (const auto& [setting, culprit] :
       {std::pair<std::string, std::string>{"train.batch_slices=3", "train.batch_slices = 3"},
        {"train.batch_slices=0", "train.batch_slices"},
        {"run.trace_steps=0", "run.trace_steps"},
        {"run.network_delay_us=-1", "run.network_delay_us"},
        {"run.trace=" + (directory_ / "none" / "trace.json").string(), "run.trace"}}) {
    ExpectBadInput(TrainBriefly({setting}), {culprit});
  }
}

}  // namespace
}  // namespace eyrie
