#include "parallel/sequence_exchange.h"

#include <algorithm>

#include "core/tensor_math.h"

namespace eyrie {
namespace {

// How many rows of its chunk a rank sends to the one `distance` chunks later, and how many rows
// that one's halo holds after them.
struct Overlap {
  Overlap(int64_t tokens, int64_t wanted, int64_t distance)
      : after(tokens * (distance - 1)), rows(std::clamp<int64_t>(wanted - after, 0, tokens)) {}
  int64_t after, rows;
};

}  // namespace

HaloExchange::HaloExchange(Communicator& sequence, Arena& arena, const Tensor& tail, int64_t tokens,
                           int64_t wanted, const Tensor& halo)
    : halo_(halo) {
  const int64_t batch = tail.dim(0), width = tail.dim(2);
  std::vector<Communicator::Message> sent, received;
  for (int distance = 1; distance < sequence.size(); ++distance) {
    const Overlap overlap(tokens, wanted, distance);
    if (overlap.rows == 0) break;
    if (sequence.rank() >= distance) {
      const Tensor buffer = arena.Allocate(tail.dtype, {batch, overlap.rows, width});
      parts_.push_back({buffer, halo.dim(1) - overlap.after - overlap.rows});
      received.push_back({buffer, sequence.rank() - distance});
    }
    if (sequence.rank() + distance < sequence.size()) {
      const Tensor buffer = arena.Allocate(tail.dtype, {batch, overlap.rows, width});
      CopyRows(tail, tail.dim(1) - overlap.rows, buffer, 0, overlap.rows);
      sent.push_back({buffer, sequence.rank() + distance});
    }
  }
  event_ = sequence.Exchange(sent, received);
}

void HaloExchange::Wait() {
  event_.Wait();
  for (const Part& part : parts_) {
    CopyRows(part.buffer, 0, halo_, part.first_row, part.buffer.dim(1));
  }
}

HaloGradExchange::HaloGradExchange(Communicator& sequence, Arena& arena, const Tensor& halo_grad,
                                   int64_t tokens, int64_t wanted, const Tensor& tail_grad)
    : tail_grad_(tail_grad) {
  const int64_t batch = tail_grad.dim(0), width = tail_grad.dim(2);
  std::vector<Communicator::Message> sent, received;
  for (int distance = 1; distance < sequence.size(); ++distance) {
    const Overlap overlap(tokens, wanted, distance);
    if (overlap.rows == 0) break;
    if (sequence.rank() + distance < sequence.size()) {
      const Tensor buffer = arena.Allocate(tail_grad.dtype, {batch, overlap.rows, width});
      parts_.push_back({buffer, tail_grad.dim(1) - overlap.rows});
      received.push_back({buffer, sequence.rank() + distance});
    }
    if (sequence.rank() >= distance) {
      const Tensor buffer = arena.Allocate(tail_grad.dtype, {batch, overlap.rows, width});
      CopyRows(halo_grad, halo_grad.dim(1) - overlap.after - overlap.rows, buffer, 0, overlap.rows);
      sent.push_back({buffer, sequence.rank() - distance});
    }
  }
  event_ = sequence.Exchange(sent, received);
}

void HaloGradExchange::Wait() {
  event_.Wait();
  for (const Part& part : parts_) {
    AddRows(part.buffer, 0, tail_grad_, part.first_row, part.buffer.dim(1));
  }
}

TailExchange::TailExchange(Communicator& sequence, Arena& arena, const Tensor& before,
                           const Tensor& now, const Tensor& after)
    : before_(before), after_(after) {
  const int64_t batch = now.dim(0), tokens = now.dim(1), width = now.dim(2), wanted = after.dim(1);
  if (sequence.size() == 1) {
    KeepTail(before, now, after);
    return;
  }
  // What a further rank would fetch as its halo, told to all.
  for (int distance = 1; distance <= sequence.size(); ++distance) {
    const Overlap overlap(tokens, wanted, distance);
    if (overlap.rows == 0) break;
    const int owner = sequence.size() - distance;
    const Tensor buffer = arena.Allocate(now.dtype, {batch, overlap.rows, width});
    if (sequence.rank() == owner) CopyRows(now, tokens - overlap.rows, buffer, 0, overlap.rows);
    parts_.push_back(
        {buffer, wanted - overlap.after - overlap.rows, sequence.Broadcast(buffer, owner)});
  }
}

void TailExchange::Wait() {
  if (parts_.empty()) return;
  const int64_t rows = after_.dim(1), old = parts_.back().first_row;
  if (before_.defined()) {
    CopyRows(before_, rows - old, after_, 0, old);
  } else {
    FillZero(after_);
  }
  for (Part& part : parts_) {
    part.event.Wait();
    CopyRows(part.buffer, 0, after_, part.first_row, part.buffer.dim(1));
  }
}

void TailGrad(const Communicator& sequence, const Tensor& dafter, const Tensor& dnow,
              const Tensor& dbefore) {
  const int64_t tokens = dnow.dim(1), wanted = dafter.dim(1);
  const Overlap own(tokens, wanted, sequence.size() - sequence.rank());
  AddRows(dafter, wanted - own.after - own.rows, dnow, tokens - own.rows, own.rows);
  if (sequence.rank() != 0 || !dbefore.defined()) return;
  const int64_t old = std::max<int64_t>(0, wanted - tokens * sequence.size());
  AddRows(dafter, 0, dbefore, wanted - old, old);
}

CarryScan::CarryScan(Communicator& sequence, Arena& arena, const Args& args, Direction direction)
    : rank_(sequence.rank()), size_(sequence.size()), args_(args), direction_(direction) {
  const int64_t decays = args.decay.size(), map = decays + args.increment.size();
  const Tensor mine = arena.Allocate(args.entering.dtype, {map});
  gathered_ = arena.Allocate(args.entering.dtype, {size_, map});
  Copy(args.decay.View({decays}), mine.Rows(0, decays));
  Copy(args.increment.View({map - decays}), mine.Rows(decays, map));
  event_ = sequence.AllGather(mine, gathered_);
}

void CarryScan::Wait() {
  event_.Wait();
  // Chunks in the order in which they compose.
  const auto apply = [&](int begin, int end, const Tensor& state) {
    for (int place = begin; place < end; ++place) {
      const int rank = direction_ == Direction::kForward ? place : size_ - 1 - place;
      const Tensor row = gathered_.Rows(rank, rank + 1), map = row.View({row.size()});
      const int64_t decays = map.size() - state.size();
      MultiplyAdd(map.Rows(0, decays), map.Rows(decays, map.size()), state);
    }
  };
  const int place = direction_ == Direction::kForward ? rank_ : size_ - 1 - rank_;
  if (args_.first.defined()) {
    Copy(args_.first, args_.entering);
  } else {
    FillZero(args_.entering);
  }
  apply(0, place, args_.entering);
  if (!args_.leaving.defined()) return;
  Copy(args_.entering, args_.leaving);
  apply(place, size_, args_.leaving);
}

StabilisedCarryScan::StabilisedCarryScan(Communicator& sequence, Arena& arena, const Args& args)
    : rank_(sequence.rank()), size_(sequence.size()), args_(args) {
  const Tensor parts[] = {args.log_decay, args.increment.m, args.increment.c, args.increment.n};
  int64_t map = 0;
  for (const Tensor& part : parts) map += part.size();
  const DType dtype = args.entering.m.dtype;
  const Tensor mine = arena.Allocate(dtype, {map});
  gathered_ = arena.Allocate(dtype, {size_, map});
  keep_ = arena.Allocate(dtype, {args.log_decay.size()});
  add_ = arena.Allocate(dtype, {args.log_decay.size()});
  int64_t at = 0;
  for (const Tensor& part : parts) {
    Copy(part, mine.Rows(at, at + part.size()));
    at += part.size();
  }
  event_ = sequence.AllGather(mine, gathered_);
}

void StabilisedCarryScan::Wait() {
  event_.Wait();
  const auto apply = [&](int begin, int end, const State& state) {
    for (int rank = begin; rank < end; ++rank) {
      const Tensor row = gathered_.Rows(rank, rank + 1), map = row.View({row.size()});
      const int64_t groups = state.m.size(), c = 2 * groups, n = c + state.c.size();
      StabiliseSum(map.Rows(0, groups), map.Rows(groups, c), state.m, keep_, add_);
      MultiplyAdd(keep_, map.Rows(c, n), state.c, add_);
      MultiplyAdd(keep_, map.Rows(n, map.size()), state.n, add_);
    }
  };
  const auto copy = [](const State& from, const State& to) {
    Copy(from.c, to.c);
    Copy(from.n, to.n);
    Copy(from.m, to.m);
  };
  if (args_.first.defined()) {
    copy(args_.first, args_.entering);
  } else {
    FillZero(args_.entering.c);
    FillZero(args_.entering.n);
    Fill(args_.entering.m, args_.first_m);
  }
  apply(0, rank_, args_.entering);
  if (!args_.leaving.defined()) return;
  copy(args_.entering, args_.leaving);
  apply(rank_, size_, args_.leaving);
}

void Relay(Communicator& sequence, CarryScan::Direction direction,
           const std::vector<Tensor>& entering, const std::vector<Tensor>& leaving,
           const std::function<void()>& step) {
  const bool forward = direction == CarryScan::Direction::kForward;
  const int size = sequence.size(), rank = sequence.rank();
  const int place = forward ? rank : size - 1 - rank, later = forward ? 1 : -1;
  const auto messages = [](bool any, const std::vector<Tensor>& tensors, int peer) {
    std::vector<Communicator::Message> result;
    for (const Tensor& tensor : tensors) {
      if (any) result.push_back({tensor, peer});
    }
    return result;
  };
  // Every rank takes part in every exchange, most of them without a message.
  for (int turn = 0; turn < size; ++turn) {
    if (turn == place) step();
    if (turn == size - 1) break;
    sequence
        .Exchange(messages(turn == place, leaving, rank + later),
                  messages(turn + 1 == place, entering, rank - later))
        .Wait();
  }
}

}  // namespace eyrie
