#include "launcher/trace_file.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "launcher/agree.h"
#include "parallel/text_messages.h"

namespace eyrie {
namespace {

using nlohmann::json;

// Threads of a rank's process: the slices from 0 on, then the axes of the mesh.
constexpr int kFirstAxis = 1000;
const std::vector<std::string> kAxes = {"tensor", "sequence", "data", "replicas", "world"};

void Name(const char* what, int pid, int tid, const std::string& name, std::string& lines) {
  lines += json{{"name", what}, {"ph", "M"}, {"pid", pid}, {"tid", tid}, {"args", {{"name", name}}}}
               .dump() +
           ",\n";
}

}  // namespace

TraceFile::TraceFile(const std::string& path, Device device, const Mesh& mesh)
    : path_(path), trace_(device) {
  Collectively(mesh.world(), [&] {
    if (!mesh.is_root()) return;
    out_.open(path, std::ios::binary | std::ios::trunc);
    if (!out_) ThrowBadInput("run.trace: cannot write ", path);
  });
}

void TraceFile::Start(const Mesh& mesh) {
  // The nearest that ranks on different nodes have to one clock.
  Synchronize(trace_.device());
  mesh.world().Barrier();
  origin_ = Moment::OnBoth(trace_.device());
  trace_.Start();
}

std::string TraceFile::Events(const Mesh& mesh) const {
  const int rank = mesh.world().rank();
  std::string lines;
  Name("process_name", rank, 0,
       StrCat("rank ", rank, " (data ", mesh.data().rank(), ", sequence ", mesh.sequence().rank(),
              ", tensor ", mesh.tensor().rank(), ")"),
       lines);
  std::map<int, std::string> threads;
  int id = 0;
  for (const Trace::Span& span : trace_.spans()) {
    const auto microseconds = [&](const Moment& moment) {
      return 1e6 * moment.SecondsSince(origin_);
    };
    const double begin = std::max(microseconds(span.begin), microseconds(span.after));
    const double end = microseconds(span.end);
    json event = {{"name", span.name}, {"pid", rank}, {"ts", begin}};
    if (span.axis != nullptr) event["args"]["axis"] = span.axis;
    if (span.kind != Trace::Kind::kCommunication) {
      threads.try_emplace(span.slice, StrCat("slice ", span.slice));
      event["cat"] = span.kind == Trace::Kind::kCompute ? "compute" : "wait";
      event["ph"] = "X";
      event["tid"] = span.slice;
      event["dur"] = end - begin;
      lines += event.dump() + ",\n";
      continue;
    }
    const auto axis = std::find(kAxes.begin(), kAxes.end(), span.axis);
    const int tid = kFirstAxis + static_cast<int>(axis - kAxes.begin());
    threads.try_emplace(tid, StrCat(span.axis, " axis"));
    event["cat"] = "communication";
    event["tid"] = tid;
    event["id"] = StrCat(rank, ".", id++);
    event["args"]["slice"] = span.slice;
    event["args"]["bytes"] = span.bytes;
    event["ph"] = "b";
    lines += event.dump() + ",\n";
    event["ph"] = "e";
    event["ts"] = end;
    lines += event.dump() + ",\n";
  }
  for (const auto& [tid, name] : threads) Name("thread_name", rank, tid, name, lines);
  return lines;
}

void TraceFile::Write(const Mesh& mesh) {
  if (written_) return;
  written_ = true;
  trace_.Stop();
  if (mesh.is_root()) out_ << "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [";
  bool first = true;
  GatherText(mesh.world(), Events(mesh), [&](const std::string& events) {
    // Every line ends in a comma.
    if (!std::exchange(first, false)) out_ << ',';
    out_ << '\n' << std::string_view(events).substr(0, events.rfind(','));
  });
  Collectively(mesh.world(), [&] {
    if (!mesh.is_root()) return;
    out_ << "\n]}\n";
    out_.close();
    if (!out_) ThrowFailure("run.trace: cannot write ", path_);
  });
}

}  // namespace eyrie
