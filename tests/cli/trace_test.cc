// The timeline that `run.trace` asks for: well formed, and slices of a batch compute while messages
// of others are under way.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/support/timeline.h"
#include "tests/support/training_test.h"

namespace eyrie {
namespace {

// Of an operation's time, how long another slice computed.
double OtherSlicesComputed(const Timeline& timeline, const Timeline::Span& operation) {
  double sum = 0.0;
  for (const Timeline::Span& span : timeline.compute) {
    if (span.slice != operation.slice) sum += Overlap(span, operation);
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
    std::map<int, Timeline> ranks = ReadTimelines(file);
    EXPECT_EQ(ranks.size(), 2u);
    for (auto& [rank, timeline] : ranks) {
      int optimizer = 0;
      for (const Timeline::Span& span : timeline.compute) {
        EXPECT_LT(span.slice, slices);
        optimizer += span.name == "optimizer";
      }
      EXPECT_EQ(optimizer, 2);  // a step
      for (const Timeline::Span& span : timeline.communication) {
        EXPECT_GE(span.end - span.begin, 4999.0) << span.name;
      }
      EXPECT_TRUE(timeline.threads.contains("slice 0"));
      EXPECT_EQ(timeline.threads.contains("slice 1"), slices == 2);
      timeline.ExpectOneThingAtATime();
      timeline.communication = timeline.Along(timeline.communication, axis);
    }
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
        return std::count_if(timeline.communication.begin(), timeline.communication.end(),
                             [&](const Timeline::Span& operation) {
                               return OtherSlicesComputed(timeline, operation) > 0;
                             });
      };
      // Each slice has operations of its own, and nearly all are hidden: only a slice that is alone
      // has nothing to wait with, and what is done once a step.
      const auto operations = static_cast<double>(sliced[rank].communication.size());
      EXPECT_GT(whole[rank].communication.size(), 20u);
      EXPECT_GT(operations, 1.8 * static_cast<double>(whole[rank].communication.size()));
      EXPECT_EQ(hidden(whole[rank]), 0);
      EXPECT_GT(static_cast<double>(hidden(sliced[rank])), 0.9 * operations);
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
