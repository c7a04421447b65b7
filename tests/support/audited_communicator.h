// A communicator for tests that catches who touches what is under way.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "parallel/communicator_wrapper.h"
#include "parallel/mesh.h"

namespace eyrie {

// Around another one. An operation is over when its call returns, but its results stay hidden until
// its event is waited for: until then they are NaN where they will be, so that whoever reads them
// early spoils what it computes, and whoever writes there, or over what is being sent, is found out
// by the wait. Ranks that do not all start the same operation fail too.
class AuditedCommunicator final : public CommunicatorWrapper {
 public:
  using CommunicatorWrapper::CommunicatorWrapper;

  Event AllReduce(const Tensor& tensor, ReduceOp op) override {
    if (size() == 1) return CommunicatorWrapper::AllReduce(tensor, op);
    Agree(kAllReduce, tensor.size());
    auto pending = std::make_unique<Pending>("all-reduce");
    const Tensor result = pending->Receive(tensor, /*keep=*/true);
    CommunicatorWrapper::AllReduce(result, op).Wait();
    return pending->Hide(std::move(pending));
  }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    if (size() == 1) return CommunicatorWrapper::AllGather(in, out);
    Agree(kAllGather, out.size());
    auto pending = std::make_unique<Pending>("all-gather");
    const Tensor result = pending->Receive(out, /*keep=*/true);
    pending->Send(in);
    CommunicatorWrapper::AllGather(in, result).Wait();
    return pending->Hide(std::move(pending));
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    if (size() == 1) return CommunicatorWrapper::ReduceScatter(in, out);
    Agree(kReduceScatter, in.size());
    auto pending = std::make_unique<Pending>("reduce-scatter");
    const Tensor result = pending->Receive(out);
    pending->Send(in);
    CommunicatorWrapper::ReduceScatter(in, result).Wait();
    return pending->Hide(std::move(pending));
  }
  Event Broadcast(const Tensor& tensor, int root) override {
    if (size() == 1) return CommunicatorWrapper::Broadcast(tensor, root);
    Agree(kBroadcast, tensor.size() * size() + root);
    auto pending = std::make_unique<Pending>("broadcast");
    if (rank() == root) {
      pending->Send(tensor);
      CommunicatorWrapper::Broadcast(tensor, root).Wait();
    } else {
      CommunicatorWrapper::Broadcast(pending->Receive(tensor), root).Wait();
    }
    return pending->Hide(std::move(pending));
  }
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    if (size() == 1) return CommunicatorWrapper::Exchange(sent, received);
    Agree(kExchange, 0);
    auto pending = std::make_unique<Pending>("exchange");
    std::vector<Message> results;
    for (const auto& [tensor, peer] : received) {
      results.push_back({pending->Receive(tensor), peer});
    }
    for (const Message& message : sent) pending->Send(message.tensor);
    CommunicatorWrapper::Exchange(sent, results).Wait();
    return pending->Hide(std::move(pending));
  }

 private:
  Event Started(const Operation&, Event event) override { return event; }

  enum Kind : int32_t { kAllReduce, kAllGather, kReduceScatter, kBroadcast, kExchange };

  class Pending final : public Event::Pending {
   public:
    explicit Pending(const char* what) : what_(what) {}
    ~Pending() override { Pending::Wait(); }

    // Where the result for `to` is to be put; with `keep`, what `to` holds lies there already.
    Tensor Receive(const Tensor& to, bool keep = false) {
      results_.push_back({to, OwnedTensor(to.dtype, to.shape)});
      if (keep) Copy(to, results_.back().second.tensor);
      return results_.back().second.tensor;
    }
    void Send(const Tensor& from) { sent_.push_back(from); }
    // The results are there: to be called last.
    Event Hide(std::unique_ptr<Pending> self) {
      std::vector<OwnedTensor> originals;
      for (const Tensor& from : sent_) {
        originals.emplace_back(from.dtype, from.shape);
        Copy(from, originals.back().tensor);
      }
      for (const auto& [to, result] : results_) std::memset(to.raw, 0xff, to.bytes());
      // What is sent may be a part of what is received.
      for (size_t i = 0; i < sent_.size(); ++i) Copy(originals[i].tensor, sent_[i]);
      const auto remember = [&](const Tensor& tensor) {
        const char* bytes = static_cast<const char*>(tensor.raw);
        expected_.push_back({tensor, {bytes, bytes + tensor.bytes()}});
      };
      for (const Tensor& from : sent_) remember(from);
      for (const auto& [to, result] : results_) remember(to);
      return Event(std::move(self));
    }
    void Wait() override {
      for (const auto& [tensor, bytes] : expected_) {
        if (std::memcmp(tensor.raw, bytes.data(), bytes.size()) == 0) continue;
        ADD_FAILURE() << "somebody wrote into a tensor " << tensor.shape.ToString() << " of an "
                      << what_ << " under way";
      }
      for (const auto& [to, result] : results_) Copy(result.tensor, to);
      expected_.clear();
      results_.clear();
    }

   private:
    const char* what_;
    std::vector<Tensor> sent_;
    std::vector<std::pair<Tensor, OwnedTensor>> results_;
    std::vector<std::pair<Tensor, std::vector<char>>> expected_;
  };

  // All ranks are about to do the same.
  void Agree(Kind kind, int64_t detail) {
    int32_t mine[2] = {kind, static_cast<int32_t>(detail)};
    std::vector<int32_t> all(2 * static_cast<size_t>(size()));
    CommunicatorWrapper::AllGather({mine, DType::kI32, Device::kCpu, {2}},
                                   {all.data(), DType::kI32, Device::kCpu, {size(), 2}})
        .Wait();
    for (size_t i = 0; i < all.size(); ++i) {
      EYRIE_CHECK(all[i] == mine[i % 2], "ranks start different operations");
    }
  }
};

inline Mesh AuditedMesh(const Mesh& mesh) {
  return Mesh(mesh, [](const char*, Communicator& inner) {
    return std::make_unique<AuditedCommunicator>(inner);
  });
}

}  // namespace eyrie
