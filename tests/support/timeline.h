// A run's timeline (launcher/trace_file.h) as tests read it, which must be well formed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/support/eyrie_process.h"

namespace eyrie {

// Of one rank; times in microseconds.
struct Timeline {
  struct Span {
    double begin, end;
    int slice;
    std::string name, axis;  // the mesh's axis; empty for computing
  };
  std::vector<Span> compute, waits, communication;
  std::set<std::string> threads;

  std::vector<Span> Along(const std::vector<Span>& spans, const std::string& axis) const {
    std::vector<Span> along;
    std::copy_if(spans.begin(), spans.end(), std::back_inserter(along),
                 [&](const Span& span) { return span.axis == axis; });
    return along;
  }
  // Of computing and waiting, in times of this resolution.
  void ExpectOneThingAtATime(double resolution = 0.01) const {
    std::vector<Span> busy = compute;
    busy.insert(busy.end(), waits.begin(), waits.end());
    std::sort(busy.begin(), busy.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < busy.size(); ++i) {
      EXPECT_GE(busy[i].begin, busy[i - 1].end - resolution)
          << busy[i - 1].name << ", " << busy[i].name;
    }
  }
};

inline double Overlap(const Timeline::Span& a, const Timeline::Span& b) {
  return std::max(0.0, std::min(a.end, b.end) - std::max(a.begin, b.begin));
}

// By rank.
inline std::map<int, Timeline> ReadTimelines(const std::filesystem::path& file) {
  std::map<int, Timeline> ranks;
  std::map<std::string, nlohmann::json> started;
  const nlohmann::json trace = nlohmann::json::parse(ReadFile(file));
  for (const nlohmann::json& event : trace.at("traceEvents")) {
    const std::string phase = event.at("ph");
    const int thread = event.at("tid");
    Timeline& rank = ranks[event.at("pid")];
    if (phase == "M") {
      if (event.at("name") == "thread_name") rank.threads.insert(event.at("args").at("name"));
      continue;
    }
    const std::string category = event.at("cat"), name = event.at("name");
    const double time = event.at("ts");
    EXPECT_GE(time, 0.0) << name;
    if (phase == "X") {
      const double length = event.at("dur");
      EXPECT_GE(length, 0.0) << name;
      const bool waits = category == "wait";
      EXPECT_TRUE(waits || category == "compute") << category;
      (waits ? rank.waits : rank.compute)
          .push_back({time, time + length, thread, name,
                      waits ? event.at("args").at("axis").get<std::string>() : ""});
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
    const double begin = started[id].at("ts");
    EXPECT_GE(time, begin) << name;
    EXPECT_GT(event.at("args").at("bytes").get<double>(), 0.0) << name;
    rank.communication.push_back(
        {begin, time, event.at("args").at("slice"), name, event.at("args").at("axis")});
    started.erase(id);
  }
  EXPECT_TRUE(started.empty());
  return ranks;
}

}  // namespace eyrie
