// Lets pieces of straight-line code (the forward and backward passes of the slices of a batch) take
// turns on one thread: when one would wait for a message, the next one computes. Turns go round in
// a fixed order, whether the message has arrived or not, so that every rank starts the same
// operations in the same order and results are repeatable.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "core/fiber.h"
#include "parallel/mesh.h"

namespace eyrie {

class Trace;

class Scheduler {
 public:
  // Runs all tasks to their ends. When one throws, the others are unwound from where they stand,
  // and the exception goes on from here.
  void Run(const std::vector<std::function<void()>>& tasks);
  // Called by a task: lets each of the others have its turn. Outside of a task it does nothing.
  void Yield();

 private:
  struct Stopped {};  // unwinds a task after another one has failed

  Fiber* current_ = nullptr;
  std::exception_ptr error_;
};

// `mesh` for the tasks of a scheduler: to wait for one of its operations is to yield first, then to
// wait. A group of one rank never makes a task wait. `trace`, if given, is told of the pauses.
Mesh YieldingMesh(const Mesh& mesh, Scheduler& scheduler, Trace* trace);

}  // namespace eyrie
