// Collectives over a group of ranks, on whole tensors: counts and types come from the tensor. Every
// operation is non-blocking and returns an Event; its tensors must stay alive until Wait returns.
// All ranks of the group call the same operations in the same order, and wait for each of them.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/moment.h"
#include "core/tensor.h"

namespace eyrie {

// The completion of an operation. A pending operation waits at the latest when destroyed.
class Event {
 public:
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual void Wait() = 0;
    // Moves the operation on, if that takes the caller's help, without waiting. True when it is
    // known to be complete.
    virtual bool Progress() { return false; }
    // When it completes, if a stream tells that, on which it was the last; to be asked for before
    // another operation is started.
    virtual std::optional<Moment> Completion() { return std::nullopt; }
  };

  Event() = default;  // already complete
  explicit Event(std::unique_ptr<Pending> pending) : pending_(std::move(pending)) {}
  Event(Event&&) = default;
  Event& operator=(Event&& other) {
    Wait();
    pending_ = std::move(other.pending_);
    return *this;
  }
  void Wait() {
    if (pending_ != nullptr) pending_->Wait();
    pending_.reset();
  }
  bool Progress() { return pending_ == nullptr || pending_->Progress(); }
  std::optional<Moment> Completion() {
    return pending_ == nullptr ? std::nullopt : pending_->Completion();
  }

 private:
  std::unique_ptr<Pending> pending_;
};

enum class ReduceOp { kSum, kMax };

class Communicator {
 public:
  // What goes to one other rank, or comes from it.
  struct Message {
    Tensor tensor;
    int peer;
  };

  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Reduces in place over the group; every rank gets the same bits.
  virtual Event AllReduce(const Tensor& tensor, ReduceOp op) = 0;
  // out [size * n] receives each rank's in [n], in rank order. `in` may lie at its place in `out`.
  virtual Event AllGather(const Tensor& in, const Tensor& out) = 0;
  // out [n] receives this rank's part of the sum of all in [size * n].
  virtual Event ReduceScatter(const Tensor& in, const Tensor& out) = 0;
  virtual Event Broadcast(const Tensor& tensor, int root) = 0;
  // Point to point: every rank sends some messages and receives what the others send it, none at
  // all perhaps. Two ranks list the messages between them in the same order.
  virtual Event Exchange(const std::vector<Message>& sent,
                         const std::vector<Message>& received) = 0;
  // Moves all operations under way on, where that takes the caller's help, without waiting.
  virtual void Progress() {}
  // Operations that a graph holds (core/device.h, Replay) pass nothing here when it is launched
  // again: says that this has just been done, so that a peer that hangs is noticed.
  virtual void Replayed() {}
  virtual void Barrier() = 0;

  // The ranks of equal `color` form a group, ordered by `key`.
  virtual std::unique_ptr<Communicator> Split(int color, int key) = 0;
  // The ranks of this group that run on this rank's node, in this group's order.
  virtual std::unique_ptr<Communicator> SplitNode() = 0;
};

// A group of one: every operation is complete at once.
std::unique_ptr<Communicator> MakeLocalCommunicator();

// Reduces one number over the group and waits.
double AllReduceValue(Communicator& group, double value, ReduceOp op);

}  // namespace eyrie
