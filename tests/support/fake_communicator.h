// Ranks as threads of one process, for tests of code that communicates.
#pragma once

#include <algorithm>
#include <barrier>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/threads.h"
#include "parallel/communicator.h"

namespace eyrie {

// What the ranks of one group share: a place to show each other what they hold, and a mailbox for
// each pair of ranks.
class FakeGroup {
 public:
  explicit FakeGroup(int size)
      : shown_(static_cast<size_t>(size)), barrier_(size), mail_(shown_.size() * shown_.size()) {}

  int size() const { return static_cast<int>(shown_.size()); }
  // Calls read(all) once every rank has come with its `mine`; nobody leaves before all have read.
  template <class Read>
  void Meet(int rank, const void* mine, const Read& read) {
    shown_[static_cast<size_t>(rank)] = mine;
    barrier_.arrive_and_wait();
    read(std::as_const(shown_));
    barrier_.arrive_and_wait();
  }
  // Messages between two ranks are received in the order in which that was asked for, whenever
  // they are waited for.
  struct Mailbox {
    std::vector<std::vector<char>> posted;
    size_t expected = 0;
  };
  void Post(int from, int to, std::vector<char> bytes) {
    const std::lock_guard lock(mutex_);
    Between(from, to).posted.push_back(std::move(bytes));
    posted_.notify_all();
  }
  // The number of the next message, for Take.
  size_t Expect(int from, int to) {
    const std::lock_guard lock(mutex_);
    return Between(from, to).expected++;
  }
  std::vector<char> Take(int from, int to, size_t number) {
    std::unique_lock lock(mutex_);
    posted_.wait(lock, [&] { return Between(from, to).posted.size() > number; });
    return std::move(Between(from, to).posted[number]);
  }

 private:
  Mailbox& Between(int from, int to) { return mail_[static_cast<size_t>(from * size() + to)]; }

  std::vector<const void*> shown_;
  std::barrier<> barrier_;
  std::mutex mutex_;
  std::condition_variable posted_;
  std::vector<Mailbox> mail_;
};

// One rank's end of a group. Operations are complete when they return; sums run in rank order, so
// that results are repeatable.
class FakeCommunicator final : public Communicator {
 public:
  FakeCommunicator(std::shared_ptr<FakeGroup> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  Event AllReduce(const Tensor& tensor, ReduceOp op) override {
    const OwnedTensor result(tensor.dtype, tensor.shape);
    group_->Meet(rank_, tensor.raw,
                 [&](const std::vector<const void*>& all) { Reduce(all, 0, op, result.tensor); });
    Copy(result.tensor, tensor);
    return Event();
  }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    EYRIE_CHECK(out.dtype == in.dtype && out.size() == in.size() * size());
    group_->Meet(rank_, in.raw, [&](const std::vector<const void*>& all) {
      const Tensor parts = out.View({size(), in.size()});
      for (int from = 0; from < size(); ++from) {
        const Tensor part = parts.Rows(from, from + 1);
        if (part.raw != all[static_cast<size_t>(from)]) Copy(At(all, from, in), part);
      }
    });
    return Event();
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    EYRIE_CHECK(out.dtype == in.dtype && in.size() == out.size() * size());
    group_->Meet(rank_, in.raw, [&](const std::vector<const void*>& all) {
      Reduce(all, rank_ * out.size(), ReduceOp::kSum, out);
    });
    return Event();
  }
  Event Broadcast(const Tensor& tensor, int root) override {
    group_->Meet(rank_, tensor.raw, [&](const std::vector<const void*>& all) {
      if (rank_ != root) Copy(At(all, root, tensor), tensor);
    });
    return Event();
  }
  // Messages arrive in Wait.
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    class Pending final : public Event::Pending {
     public:
      Pending(std::shared_ptr<FakeGroup> group, std::vector<Message> received, int to)
          : group_(std::move(group)), received_(std::move(received)), to_(to) {
        for (const auto& [tensor, from] : received_) numbers_.push_back(group_->Expect(from, to));
      }
      void Wait() override {
        for (size_t i = 0; i < received_.size(); ++i) {
          const auto& [tensor, from] = received_[i];
          const std::vector<char> bytes = group_->Take(from, to_, numbers_[i]);
          EYRIE_CHECK(bytes.size() == tensor.bytes());
          std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.raw));
        }
      }

     private:
      std::shared_ptr<FakeGroup> group_;
      std::vector<Message> received_;
      std::vector<size_t> numbers_;
      int to_;
    };
    for (const auto& [tensor, to] : sent) {
      const char* bytes = static_cast<const char*>(tensor.raw);
      group_->Post(rank_, to, {bytes, bytes + tensor.bytes()});
    }
    return Event(std::make_unique<Pending>(group_, received, rank_));
  }
  void Barrier() override {
    group_->Meet(rank_, nullptr, [](const std::vector<const void*>&) {});
  }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    struct Wish {
      int color, key, rank;
      bool operator<(const Wish& other) const {
        return std::pair(key, rank) < std::pair(other.key, other.rank);
      }
    };
    const Wish wish{color, key, rank_};
    std::vector<Wish> members;
    group_->Meet(rank_, &wish, [&](const std::vector<const void*>& all) {
      for (const void* other : all) {
        members.push_back(*static_cast<const Wish*>(other));
        if (members.back().color != color) members.pop_back();
      }
    });
    std::sort(members.begin(), members.end());
    // The first member of each group makes it, and the others take it from there.
    std::shared_ptr<FakeGroup> group;
    if (members[0].rank == rank_) {
      group = std::make_shared<FakeGroup>(static_cast<int>(members.size()));
    }
    const std::shared_ptr<FakeGroup> made = group;
    group_->Meet(rank_, &made, [&](const std::vector<const void*>& all) {
      group = *static_cast<const std::shared_ptr<FakeGroup>*>(
          all[static_cast<size_t>(members[0].rank)]);
    });
    const auto me = std::find_if(members.begin(), members.end(),
                                 [&](const Wish& member) { return member.rank == rank_; });
    return std::make_unique<FakeCommunicator>(group, static_cast<int>(me - members.begin()));
  }
  std::unique_ptr<Communicator> SplitNode() override { return Split(0, rank_); }

 private:
  // What rank `from` showed, which is like `mine`.
  static Tensor At(const std::vector<const void*>& all, int from, const Tensor& mine) {
    return {const_cast<void*>(all[static_cast<size_t>(from)]), mine.dtype, mine.device, mine.shape};
  }
  static void Reduce(const std::vector<const void*>& all, int64_t offset, ReduceOp op,
                     const Tensor& out) {
    switch (out.dtype) {
      case DType::kF32: return ReduceAs<float>(all, offset, op, out);
      case DType::kF64: return ReduceAs<double>(all, offset, op, out);
      case DType::kI32: return ReduceAs<int32_t>(all, offset, op, out);
      case DType::kBF16: break;
    }
    ThrowFailure("no reduction of ", Name(out.dtype));
  }
  template <class T>
  static void ReduceAs(const std::vector<const void*>& all, int64_t offset, ReduceOp op,
                       const Tensor& out) {
    for (int64_t i = 0; i < out.size(); ++i) {
      T result = static_cast<const T*>(all[0])[offset + i];
      for (size_t rank = 1; rank < all.size(); ++rank) {
        const T other = static_cast<const T*>(all[rank])[offset + i];
        result = op == ReduceOp::kSum ? result + other : std::max(result, other);
      }
      out.data<T>()[i] = result;
    }
  }

  std::shared_ptr<FakeGroup> group_;
  int rank_;
};

// Runs body(world) on `ranks` threads at once and waits for them. As in a job, each has its share
// of the cores. An exception that leaves a body ends the test program.
inline void RunRanks(int ranks,
                     const std::function<void(std::unique_ptr<Communicator> world)>& body) {
  const auto group = std::make_shared<FakeGroup>(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([=] {
      SetThreads(std::max(1, Threads() / ranks));
      body(std::make_unique<FakeCommunicator>(group, rank));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace eyrie
