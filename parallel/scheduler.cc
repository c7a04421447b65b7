#include "parallel/scheduler.h"

#include <utility>

#include "parallel/communicator_wrapper.h"
#include "parallel/trace.h"

namespace eyrie {
namespace {

class YieldingCommunicator final : public CommunicatorWrapper {
 public:
  YieldingCommunicator(Communicator& inner, Scheduler& scheduler, Trace* trace)
      : CommunicatorWrapper(inner), scheduler_(scheduler), trace_(trace) {}

 private:
  class Pending final : public Event::Pending {
   public:
    Pending(Event inner, Scheduler& scheduler, Trace* trace)
        : inner_(std::move(inner)), scheduler_(scheduler), trace_(trace) {}
    void Wait() override {
      {
        const Trace::Scope paused(trace_, Trace::Kind::kIdle);
        scheduler_.Yield();
      }
      inner_.Wait();
    }
    bool Progress() override { return inner_.Progress(); }

   private:
    Event inner_;
    Scheduler& scheduler_;
    Trace* trace_;
  };

  Event Started(const Operation&, Event event) override {
    return Event(std::make_unique<Pending>(std::move(event), scheduler_, trace_));
  }

  Scheduler& scheduler_;
  Trace* trace_;
};

}  // namespace

void Scheduler::Run(const std::vector<std::function<void()>>& tasks) {
  EYRIE_CHECK(current_ == nullptr);
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (const std::function<void()>& task : tasks) {
    fibers.push_back(std::make_unique<Fiber>([this, &task] {
      if (error_) return;
      try {
        task();
      } catch (const Stopped&) {
      } catch (...) {
        error_ = std::current_exception();
      }
    }));
  }
  for (bool any = true; any;) {
    any = false;
    for (const std::unique_ptr<Fiber>& fiber : fibers) {
      if (fiber->done()) continue;
      current_ = fiber.get();
      fiber->Resume();
      any = true;
    }
  }
  current_ = nullptr;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Scheduler::Yield() {
  // What waits while an exception unwinds it has no time to lose.
  if (current_ == nullptr || std::uncaught_exceptions() > 0) return;
  current_->Pause();
  if (error_) throw Stopped{};
}

Mesh YieldingMesh(const Mesh& mesh, Scheduler& scheduler, Trace* trace) {
  return Mesh(mesh, [&](const char*, Communicator& inner) {
    return std::make_unique<YieldingCommunicator>(inner, scheduler, trace);
  });
}

}  // namespace eyrie
