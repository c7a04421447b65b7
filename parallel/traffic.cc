#include "parallel/traffic.h"

#include <bit>
#include <utility>
#include <vector>

namespace eyrie {
namespace {

class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(std::unique_ptr<Communicator> inner, Traffic& traffic)
      : inner_(std::move(inner)), traffic_(traffic) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }

  Event AllReduce(const Tensor& tensor, ReduceOp op) override {
    CountCollective(2, tensor);
    return inner_->AllReduce(tensor, op);
  }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    CountCollective(1, out);
    return inner_->AllGather(in, out);
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    CountCollective(1, in);
    return inner_->ReduceScatter(in, out);
  }
  Event Broadcast(const Tensor& tensor, int root) override {
    // A scatter and an all-gather.
    CountCollective(2, tensor);
    return inner_->Broadcast(tensor, root);
  }
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    for (const Message& message : sent) Count(message.tensor);
    return inner_->Exchange(sent, received);
  }
  void Progress() override { inner_->Progress(); }
  void Barrier() override { inner_->Barrier(); }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    return MakeCountingCommunicator(inner_->Split(color, key), traffic_);
  }
  std::unique_ptr<Communicator> SplitNode() override { return inner_->SplitNode(); }

 private:
  void Count(const Tensor& tensor) {
    traffic_ += {.bytes = static_cast<double>(tensor.bytes()), .messages = 1};
  }
  // In `phases` phases every rank hands on all of the tensor but its own part.
  void CountCollective(int phases, const Tensor& whole) {
    const double share = static_cast<double>(size() - 1) / size();
    traffic_ += {.bytes = phases * share * static_cast<double>(whole.bytes()),
                 .messages = phases * int64_t{std::bit_width(static_cast<unsigned>(size() - 1))}};
  }

  std::unique_ptr<Communicator> inner_;
  Traffic& traffic_;
};

class AbsentCommunicator final : public Communicator {
 public:
  AbsentCommunicator(int rank, int size) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Event AllReduce(const Tensor&, ReduceOp) override { return Event(); }
  Event AllGather(const Tensor&, const Tensor&) override { return Event(); }
  Event ReduceScatter(const Tensor&, const Tensor&) override { return Event(); }
  Event Broadcast(const Tensor&, int) override { return Event(); }
  Event Exchange(const std::vector<Message>&, const std::vector<Message>&) override {
    return Event();
  }
  void Barrier() override {}
  std::unique_ptr<Communicator> Split(int, int) override {
    ThrowFailure("who would be in a group of absent ranks is not known");
  }
  std::unique_ptr<Communicator> SplitNode() override {
    ThrowFailure("absent ranks are on no node");
  }

 private:
  int rank_, size_;
};

}  // namespace

MeshTraffic& MeshTraffic::operator+=(const MeshTraffic& other) {
  tensor += other.tensor;
  sequence += other.sequence;
  data += other.data;
  replicas += other.replicas;
  world += other.world;
  return *this;
}

MeshTraffic operator*(int64_t factor, const MeshTraffic& traffic) {
  return {.tensor = factor * traffic.tensor,
          .sequence = factor * traffic.sequence,
          .data = factor * traffic.data,
          .replicas = factor * traffic.replicas,
          .world = factor * traffic.world};
}

std::unique_ptr<Communicator> MakeCountingCommunicator(std::unique_ptr<Communicator> inner,
                                                       Traffic& traffic) {
  return std::make_unique<CountingCommunicator>(std::move(inner), traffic);
}

MeshGroups CountingGroups(MeshGroups inner, MeshTraffic& traffic) {
  return {.world = MakeCountingCommunicator(std::move(inner.world), traffic.world),
          .tensor = MakeCountingCommunicator(std::move(inner.tensor), traffic.tensor),
          .sequence = MakeCountingCommunicator(std::move(inner.sequence), traffic.sequence),
          .data = MakeCountingCommunicator(std::move(inner.data), traffic.data),
          .replicas = MakeCountingCommunicator(std::move(inner.replicas), traffic.replicas)};
}

MeshGroups AbsentGroups(MeshShape shape, int rank) {
  const MeshPlace place(shape, rank);
  const auto absent = [](int own, int size) {
    return std::make_unique<AbsentCommunicator>(own, size);
  };
  return {.world = absent(rank, shape.ranks()),
          .tensor = absent(place.tensor, shape.tensor),
          .sequence = absent(place.sequence, shape.sequence),
          .data = absent(place.data, shape.data),
          .replicas =
              absent(place.data * shape.sequence + place.sequence, shape.data * shape.sequence)};
}

}  // namespace eyrie
