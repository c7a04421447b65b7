#include "parallel/communicator.h"

namespace eyrie {
namespace {

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Event AllReduce(const Tensor&, ReduceOp) override { return Event(); }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    if (in.raw != out.raw) Copy(in, out);
    return Event();
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    Copy(in, out);
    return Event();
  }
  Event Broadcast(const Tensor&, int) override { return Event(); }
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    EYRIE_CHECK(sent.empty() && received.empty(), "a group of one has nobody to write to");
    return Event();
  }
  void Barrier() override {}
  std::unique_ptr<Communicator> Split(int, int) override { return MakeLocalCommunicator(); }
  std::unique_ptr<Communicator> SplitNode() override { return MakeLocalCommunicator(); }
};

}  // namespace

std::unique_ptr<Communicator> MakeLocalCommunicator() {
  return std::make_unique<LocalCommunicator>();
}

double AllReduceValue(Communicator& group, double value, ReduceOp op) {
  group.AllReduce(Tensor{&value, DType::kF64, Device::kCpu, {1}}, op).Wait();
  return value;
}

}  // namespace eyrie
