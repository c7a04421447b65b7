// A function with a stack of its own, which can stop in the middle and go on later: what lets
// pieces of straight-line code take turns on one thread.
#pragma once

#include <functional>
#include <memory>

namespace eyrie {

class Fiber {
 public:
  // `body` must not throw, nor pause inside a catch block: the language runtime keeps what is being
  // handled by thread, and knows of no other stack.
  explicit Fiber(std::function<void()> body);
  // The body has not started, or has ended.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Starts the body, or lets it go on, until it pauses or ends.
  void Resume();
  // Called by the body: returns to whoever called Resume.
  void Pause();
  bool done() const;

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace eyrie
