#include "parallel/observed_mesh.h"

#include <algorithm>
#include <exception>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/communicator_wrapper.h"

namespace eyrie {
namespace {

using Clock = Moment::Clock;

class Transfer;

// What the communicators of a mesh share.
struct Observer {
  Trace* trace;
  std::chrono::microseconds latency;
  std::vector<Transfer*> under_way;
};

// An operation that has been started. If `add`, its span is added when this rank learns of its
// completion.
class Transfer final : public Event::Pending {
 public:
  Transfer(std::shared_ptr<Observer> observer, Trace::Span span, bool add, Event inner)
      : observer_(std::move(observer)),
        span_(std::move(span)),
        add_(add),
        range_(std::in_place, span_.name),
        inner_(std::move(inner)) {
    observer_->under_way.push_back(this);
  }
  ~Transfer() override {
    if (std::uncaught_exceptions() == 0) Transfer::Wait();
    if (!done_) Leave();
  }
  void Wait() override {
    if (done_) return;
    const Trace::Scope waiting(observer_->trace, Trace::Kind::kWait, span_.name, "", span_.axis);
    inner_.Wait();
    std::this_thread::sleep_until(Arrival());
    Complete();
  }
  bool Progress() override {
    if (!done_ && inner_.Progress() && Clock::now() >= Arrival()) Complete();
    return done_;
  }

 private:
  Clock::time_point Arrival() const { return begin_ + observer_->latency; }
  void Complete() {
    range_.reset();
    if (add_) {
      span_.end = Moment::OnHost();
      observer_->trace->Add(span_);
    }
    Leave();
    done_ = true;
  }
  void Leave() { std::erase(observer_->under_way, this); }

  std::shared_ptr<Observer> observer_;
  Trace::Span span_;
  bool add_;
  Clock::time_point begin_ = Clock::now();
  std::optional<ProfilerRange> range_;
  Event inner_;
  bool done_ = false;
};

class ObservedCommunicator final : public CommunicatorWrapper {
 public:
  ObservedCommunicator(Communicator& inner, const char* axis, std::shared_ptr<Observer> observer)
      : CommunicatorWrapper(inner), axis_(axis), observer_(std::move(observer)) {}

  void Progress() override {
    CommunicatorWrapper::Progress();
    // Those that complete leave the list.
    const std::vector<Transfer*> under_way = observer_->under_way;
    for (Transfer* transfer : under_way) transfer->Progress();
  }

 private:
  bool recording() const { return observer_->trace != nullptr && observer_->trace->recording(); }

  void Starting() override {
    if (recording()) given_ = Moment::Of(observer_->trace->device());
  }
  Event Started(const Operation& operation, Event event) override {
    Trace::Span span{.kind = Trace::Kind::kCommunication,
                     .name = operation.name,
                     .axis = axis_,
                     .slice = recording() ? observer_->trace->slice() : 0,
                     .bytes = operation.bytes,
                     .begin = Moment::OnHost()};
    bool add = recording();
    if (const auto completion = add ? event.Completion() : std::nullopt) {
      // A stream takes one operation after the other.
      span.begin = given_;
      span.after = std::exchange(last_, *completion);
      span.end = last_;
      observer_->trace->Add(span);
      add = false;
    }
    return Event(std::make_unique<Transfer>(observer_, std::move(span), add, std::move(event)));
  }

  const char* axis_;
  std::shared_ptr<Observer> observer_;
  Moment given_;  // the latest operation: on a GPU, when the compute stream has made its data
  Moment last_;   // the end of the latest one on a stream
};

}  // namespace

Mesh ObservedMesh(const Mesh& mesh, Trace* trace, std::chrono::microseconds latency) {
  const auto observer = std::make_shared<Observer>(Observer{trace, latency, {}});
  return Mesh(mesh, [&](const char* axis, Communicator& inner) {
    return std::make_unique<ObservedCommunicator>(inner, axis, observer);
  });
}

}  // namespace eyrie
