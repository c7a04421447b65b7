#include "launcher/trace_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/memory.h"
#include "launcher/agree.h"

namespace eyrie {
namespace {

using nlohmann::json;

// Threads of a rank's process: the slices from 0 on, then the axes of the mesh.
constexpr int kFirstAxis = 1000;
const std::vector<std::string> kAxes = {"tensor", "sequence", "data", "replicas", "world"};

// Text of whatever length, in units that communicators know, blanks at its end.
OwnedTensor Pack(const std::string& text) {
  const auto words = static_cast<int64_t>((text.size() + 3) / 4);
  OwnedTensor packed(DType::kI32, {words});
  std::memset(packed.tensor.raw, ' ', packed.tensor.bytes());
  std::memcpy(packed.tensor.raw, text.data(), text.size());
  return packed;
}

void Name(const char* what, int pid, int tid, const std::string& name, std::string& lines) {
  lines += json{{"name", what}, {"ph", "M"}, {"pid", pid}, {"tid", tid}, {"args", {{"name", name}}}}
               .dump() +
           ",\n";
}

}  // namespace

TraceFile::TraceFile(const std::string& path, const Mesh& mesh) : path_(path) {
  Collectively(mesh.world(), [&] {
    if (!mesh.is_root()) return;
    out_.open(path, std::ios::binary | std::ios::trunc);
    if (!out_) ThrowBadInput("run.trace: cannot write ", path);
  });
  // The nearest that ranks on different nodes have to one clock.
  mesh.world().Barrier();
  origin_ = Trace::Clock::now();
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
    const auto microseconds = [&](Trace::Clock::time_point time) {
      return std::chrono::duration<double, std::micro>(time - origin_).count();
    };
    json event = {{"name", span.name}, {"pid", rank}, {"ts", microseconds(span.begin)}};
    if (span.axis != nullptr) event["args"]["axis"] = span.axis;
    if (span.kind != Trace::Kind::kCommunication) {
      threads.try_emplace(span.slice, StrCat("slice ", span.slice));
      event["cat"] = span.kind == Trace::Kind::kCompute ? "compute" : "wait";
      event["ph"] = "X";
      event["tid"] = span.slice;
      event["dur"] = microseconds(span.end) - microseconds(span.begin);
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
    event["ts"] = microseconds(span.end);
    lines += event.dump() + ",\n";
  }
  for (const auto& [tid, name] : threads) Name("thread_name", rank, tid, name, lines);
  return lines;
}

void TraceFile::Write(const Mesh& mesh) {
  if (written_) return;
  written_ = true;
  trace_.Stop();
  Communicator& world = mesh.world();
  OwnedTensor mine = Pack(Events(mesh));
  const OwnedTensor length(DType::kI32, {1}), lengths(DType::kI32, {world.size()});
  *length.tensor.data<int32_t>() = static_cast<int32_t>(mine.tensor.size());
  world.AllGather(length.tensor, lengths.tensor).Wait();
  std::string all;
  const auto append = [&](const Tensor& text) {
    all.append(static_cast<const char*>(text.raw), text.bytes());
  };
  if (world.rank() == 0) {
    append(mine.tensor);
    for (int rank = 1; rank < world.size(); ++rank) {
      const OwnedTensor theirs(DType::kI32, {lengths.tensor.data<int32_t>()[rank]});
      world.Exchange({}, {{theirs.tensor, rank}}).Wait();
      append(theirs.tensor);
    }
  } else {
    world.Exchange({{mine.tensor, 0}}, {}).Wait();
  }
  Collectively(world, [&] {
    if (!mesh.is_root()) return;
    // Every line ended in a comma.
    all.resize(all.rfind(','));
    out_ << "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n" << all << "\n]}\n";
    out_.close();
    if (!out_) ThrowFailure("run.trace: cannot write ", path_);
  });
}

}  // namespace eyrie
