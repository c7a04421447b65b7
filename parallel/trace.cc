#include "parallel/trace.h"

#include <exception>
#include <utility>

namespace eyrie {

Trace::Scope::Scope(Trace* trace, Kind kind, const std::string& what, const char* how,
                    const char* axis)
    : range_(what, how), trace_(trace) {
  if (trace_ == nullptr) return;
  outer_ = trace_->current_;
  trace_->Switch({.kind = kind, .name = what + how, .axis = axis, .slice = outer_.slice});
}

Trace::Scope::~Scope() {
  if (trace_ == nullptr) return;
  // On a GPU that has failed there is nothing more to record; the error is on its way.
  if (std::uncaught_exceptions() > 0) trace_->Stop();
  trace_->Switch(std::move(outer_));
}

void Trace::Switch(Span next) {
  if (recording_) {
    current_.end = next.begin = Moment::Of(device_);
    if (current_.kind != Kind::kIdle) Add(std::move(current_));
  }
  current_ = std::move(next);
}

}  // namespace eyrie
