#include "core/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

#include "core/error.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace eyrie {
namespace {

// As large as a main stack; only what is touched takes memory.
constexpr size_t kStackBytes = size_t{8} << 20;

// A stack, and what AddressSanitizer must be told of it. Without the sanitizer this is nothing.
struct StackRange {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

#ifdef __SANITIZE_ADDRESS__
void LeaveStack(void** saved, const StackRange& next) {
  __sanitizer_start_switch_fiber(saved, next.bottom, next.bytes);
}
void EnterStack(void* saved, StackRange* previous) {
  __sanitizer_finish_switch_fiber(saved, &previous->bottom, &previous->bytes);
}
#else
void LeaveStack(void**, const StackRange&) {}
void EnterStack(void*, StackRange*) {}
#endif

}  // namespace

struct Fiber::Context {
  explicit Context(std::function<void()> what) : body(std::move(what)) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped = kStackBytes + page;
    memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) ThrowFailure("out of memory: a stack of ", kStackBytes, " bytes");
    // Running off the end stops the program instead of writing elsewhere.
    mprotect(memory, page, PROT_NONE);
    stack = {static_cast<char*>(memory) + page, kStackBytes};
    getcontext(&own);
    own.uc_stack.ss_sp = static_cast<char*>(memory) + page;
    own.uc_stack.ss_size = kStackBytes;
    own.uc_link = nullptr;
    // makecontext passes ints.
    const auto address = reinterpret_cast<uintptr_t>(this);
    makecontext(&own, reinterpret_cast<void (*)()>(&Context::Enter), 2,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
  }
  ~Context() { munmap(memory, mapped); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  static void Enter(unsigned high, unsigned low) {
    auto* self = reinterpret_cast<Context*>(uintptr_t{high} << 32 | low);
    EnterStack(nullptr, &self->caller_stack);
    self->body();
    self->done = true;
    // For good: the sanitizer frees what it kept for this stack.
    LeaveStack(nullptr, self->caller_stack);
    setcontext(&self->caller);
  }

  std::function<void()> body;
  void* memory = nullptr;
  size_t mapped = 0;
  StackRange stack, caller_stack;
  ucontext_t own, caller;
  bool done = false;
};

Fiber::Fiber(std::function<void()> body) : context_(std::make_unique<Context>(std::move(body))) {}

Fiber::~Fiber() = default;

void Fiber::Resume() {
  EYRIE_CHECK(!context_->done);
  void* saved = nullptr;
  StackRange ignored;
  LeaveStack(&saved, context_->stack);
  swapcontext(&context_->caller, &context_->own);
  EnterStack(saved, &ignored);
}

void Fiber::Pause() {
  void* saved = nullptr;
  LeaveStack(&saved, context_->caller_stack);
  swapcontext(&context_->own, &context_->caller);
  EnterStack(saved, &context_->caller_stack);
}

bool Fiber::done() const { return context_->done; }

}  // namespace eyrie
