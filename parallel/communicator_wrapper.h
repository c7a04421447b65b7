// A communicator around another one, which passes every operation on and may add to what comes
// back.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace eyrie {

class CommunicatorWrapper : public Communicator {
 public:
  // `inner` must outlive this.
  explicit CommunicatorWrapper(Communicator& inner) : inner_(inner) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  Event AllReduce(const Tensor& tensor, ReduceOp op) override {
    return Pass({"all-reduce", tensor.bytes()}, [&] { return inner_.AllReduce(tensor, op); });
  }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    return Pass({"all-gather", out.bytes()}, [&] { return inner_.AllGather(in, out); });
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    return Pass({"reduce-scatter", in.bytes()}, [&] { return inner_.ReduceScatter(in, out); });
  }
  Event Broadcast(const Tensor& tensor, int root) override {
    return Pass({"broadcast", tensor.bytes()}, [&] { return inner_.Broadcast(tensor, root); });
  }
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    size_t bytes = 0;
    for (const auto* messages : {&sent, &received}) {
      for (const Message& message : *messages) bytes += message.tensor.bytes();
    }
    return Pass({"exchange", bytes}, [&] { return inner_.Exchange(sent, received); });
  }
  void Progress() override { inner_.Progress(); }
  void Replayed() override { inner_.Replayed(); }
  void Barrier() override { inner_.Barrier(); }
  // The parts are not wrapped.
  std::unique_ptr<Communicator> Split(int color, int key) override {
    return inner_.Split(color, key);
  }
  std::unique_ptr<Communicator> SplitNode() override { return inner_.SplitNode(); }

 protected:
  struct Operation {
    const char* name;
    size_t bytes;  // of the tensors on this rank
  };
  // Of an operation in a group of several: comes before it is started, and after, with its event,
  // to say what to hand out instead.
  virtual void Starting() {}
  virtual Event Started(const Operation& operation, Event event) = 0;

 private:
  template <class Start>
  Event Pass(const Operation& operation, const Start& start) {
    if (size() == 1) return start();
    Starting();
    return Started(operation, start());
  }

  Communicator& inner_;
};

}  // namespace eyrie
