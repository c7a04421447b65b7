// A record of what a rank does when: computing, waiting, and messages under way. On a GPU it tells
// what the streams did, not when the host gave them their work.
#pragma once

#include <string>
#include <vector>

#include "core/moment.h"
#include "core/profiler_range.h"

namespace eyrie {

class Trace {
 public:
  enum class Kind {
    kIdle,  // not recorded
    kCompute,
    kWait,           // of the host, or of a GPU's compute stream, for an operation's completion
    kCommunication,  // from an operation's start to its completion; may overlap others
  };
  struct Span {
    Kind kind = Kind::kIdle;
    std::string name;            // e.g. "block 3 (recurrent) forward", "all-reduce"
    const char* axis = nullptr;  // of the mesh; null for computing
    int slice = 0;               // of the batch, whose pass this is part of
    size_t bytes = 0;            // communicated
    Moment begin, end;
    Moment after;  // an operation on a stream begins no sooner: the end of the one before it
  };

  explicit Trace(Device device = Device::kCpu) : device_(device) {}

  // What this rank is at while the scope lives. An inner scope interrupts the outer one, so that
  // times of computing contain no waits. Records nothing when `trace` is null. A profiler sees a
  // range of this name in either case.
  class Scope {
   public:
    Scope(Trace* trace, Kind kind, const std::string& what = {}, const char* how = "",
          const char* axis = nullptr);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    // From here to the scope's end.
    void SetSlice(int slice) const {
      if (trace_ != nullptr) trace_->current_.slice = slice;
    }

   private:
    ProfilerRange range_;
    Trace* trace_;
    Span outer_;
  };

  // Of the current scope.
  int slice() const { return current_.slice; }
  Device device() const { return device_; }
  void Add(Span span) {
    if (recording_) spans_.push_back(std::move(span));
  }
  // Outside of scopes.
  void Start() { recording_ = true; }
  void Stop() { recording_ = false; }
  bool recording() const { return recording_; }
  const std::vector<Span>& spans() const { return spans_; }

 private:
  // Records the current span up to now, and starts `next`.
  void Switch(Span next);

  Device device_;
  bool recording_ = false;
  Span current_;
  std::vector<Span> spans_;
};

}  // namespace eyrie
