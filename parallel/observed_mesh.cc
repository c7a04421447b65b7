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

using Clock = Trace::Clock;

class Transfer;

// What the communicators of a mesh share.
struct Observer {
  Trace* trace;
  std::chrono::microseconds latency;
  std::vector<Transfer*> under_way;
};

// An operation that has been started.
class Transfer final : public Event::Pending {
 public:
  Transfer(std::shared_ptr<Observer> observer, Trace::Span span, Event inner)
      : observer_(std::move(observer)),
        span_(std::move(span)),
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
  Clock::time_point Arrival() const { return span_.begin + observer_->latency; }
  void Complete() {
    span_.end = Clock::now();
    range_.reset();
    if (observer_->trace != nullptr) observer_->trace->Add(span_);
    Leave();
    done_ = true;
  }
  void Leave() { std::erase(observer_->under_way, this); }

  std::shared_ptr<Observer> observer_;
  Trace::Span span_;
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
  Event Started(const Operation& operation, Event event) override {
    Trace::Span span{.kind = Trace::Kind::kCommunication,
                     .name = operation.name,
                     .axis = axis_,
                     .slice = observer_->trace == nullptr ? 0 : observer_->trace->slice(),
                     .bytes = operation.bytes,
                     .begin = Clock::now()};
    return Event(std::make_unique<Transfer>(observer_, std::move(span), std::move(event)));
  }

  const char* axis_;
  std::shared_ptr<Observer> observer_;
};

}  // namespace

Mesh ObservedMesh(const Mesh& mesh, Trace* trace, std::chrono::microseconds latency) {
  const auto observer = std::make_shared<Observer>(Observer{trace, latency, {}});
  return Mesh(mesh, [&](const char* axis, Communicator& inner) {
    return std::make_unique<ObservedCommunicator>(inner, axis, observer);
  });
}

}  // namespace eyrie
