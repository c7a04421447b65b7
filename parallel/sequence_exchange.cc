#include "parallel/sequence_exchange.h"

#include <algorithm>

namespace eyrie {
namespace {

// How many rows of its chunk a rank sends to the one `distance` chunks later, and how many rows
// that one's halo holds after them.
struct Overlap {
  Overlap(int64_t tokens, int64_t wanted, int64_t distance)
      : after(tokens * (distance - 1)), rows(std::clamp<int64_t>(wanted - after, 0, tokens)) {}
  int64_t after, rows;
};

template <class T>
void AddRowsAs(const Tensor& from, const Tensor& to, int64_t to_row) {
  const int64_t rows = from.dim(1), width = from.dim(2);
  for (int64_t b = 0; b < from.dim(0); ++b) {
    const T* source = from.data<T>() + b * rows * width;
    T* target = to.data<T>() + (b * to.dim(1) + to_row) * width;
    for (int64_t i = 0; i < rows * width; ++i) target[i] += source[i];
  }
}

void AddRows(const Tensor& from, const Tensor& to, int64_t to_row) {
  if (to.device == Device::kMeta) return;
  if (to.dtype == DType::kF64) return AddRowsAs<double>(from, to, to_row);
  AddRowsAs<float>(from, to, to_row);
}

template <class T>
void ApplyAs(const Tensor& map, const Tensor& state) {
  const int64_t n = state.size();
  const T *decay = map.data<T>(), *increment = decay + n;
  T* out = state.data<T>();
  for (int64_t i = 0; i < n; ++i) out[i] = decay[i] * out[i] + increment[i];
}

// state := decay * state + increment
void Apply(const Tensor& map, const Tensor& state) {
  if (state.device == Device::kMeta) return;
  if (state.dtype == DType::kF64) return ApplyAs<double>(map, state);
  ApplyAs<float>(map, state);
}

}  // namespace

HaloExchange::HaloExchange(Communicator& sequence, Arena& arena, const Tensor& tail, int64_t tokens,
                           int64_t wanted, const Tensor& halo)
    : halo_(halo) {
  const int64_t batch = tail.dim(0), width = tail.dim(2);
  for (int distance = 1; distance < sequence.size(); ++distance) {
    const Overlap overlap(tokens, wanted, distance);
    if (overlap.rows == 0) break;
    if (sequence.rank() >= distance) {
      const Tensor buffer = arena.Allocate(tail.dtype, {batch, overlap.rows, width});
      received_.push_back({buffer, halo.dim(1) - overlap.after - overlap.rows,
                           sequence.Receive(buffer, sequence.rank() - distance)});
    }
    if (sequence.rank() + distance < sequence.size()) {
      const Tensor buffer = arena.Allocate(tail.dtype, {batch, overlap.rows, width});
      CopyRows(tail, tail.dim(1) - overlap.rows, buffer, 0, overlap.rows);
      sent_.push_back(sequence.Send(buffer, sequence.rank() + distance));
    }
  }
}

void HaloExchange::Wait() {
  for (Part& part : received_) {
    part.event.Wait();
    CopyRows(part.buffer, 0, halo_, part.first_row, part.buffer.dim(1));
  }
  for (Event& event : sent_) event.Wait();
}

HaloGradExchange::HaloGradExchange(Communicator& sequence, Arena& arena, const Tensor& halo_grad,
                                   int64_t tokens, int64_t wanted, const Tensor& tail_grad)
    : tail_grad_(tail_grad) {
  const int64_t batch = tail_grad.dim(0), width = tail_grad.dim(2);
  for (int distance = 1; distance < sequence.size(); ++distance) {
    const Overlap overlap(tokens, wanted, distance);
    if (overlap.rows == 0) break;
    if (sequence.rank() + distance < sequence.size()) {
      const Tensor buffer = arena.Allocate(tail_grad.dtype, {batch, overlap.rows, width});
      received_.push_back({buffer, tail_grad.dim(1) - overlap.rows,
                           sequence.Receive(buffer, sequence.rank() + distance)});
    }
    if (sequence.rank() >= distance) {
      const Tensor buffer = arena.Allocate(tail_grad.dtype, {batch, overlap.rows, width});
      CopyRows(halo_grad, halo_grad.dim(1) - overlap.after - overlap.rows, buffer, 0, overlap.rows);
      sent_.push_back(sequence.Send(buffer, sequence.rank() - distance));
    }
  }
}

void HaloGradExchange::Wait() {
  for (Part& part : received_) {
    part.event.Wait();
    AddRows(part.buffer, tail_grad_, part.first_row);
  }
  for (Event& event : sent_) event.Wait();
}

CarryScan::CarryScan(Communicator& sequence, Arena& arena, const Tensor& decay,
                     const Tensor& increment, const Tensor& result, Direction direction)
    : rank_(sequence.rank()), size_(sequence.size()), result_(result), direction_(direction) {
  const int64_t n = result.size();
  const Tensor mine = arena.Allocate(result.dtype, {2, n});
  gathered_ = arena.Allocate(result.dtype, {size_, 2, n});
  Copy(decay.View({1, n}), mine.Rows(0, 1));
  Copy(increment.View({1, n}), mine.Rows(1, 2));
  event_ = sequence.AllGather(mine, gathered_);
}

void CarryScan::Wait() {
  event_.Wait();
  FillZero(result_);
  const bool forward = direction_ == Direction::kForward;
  for (int rank = forward ? 0 : size_ - 1; rank != rank_; rank += forward ? 1 : -1) {
    Apply(gathered_.Rows(rank, rank + 1), result_);
  }
}

}  // namespace eyrie
