// What a forward pass leaves for its backward pass, and what a chunk of a sequence hands to the
// next one. Layers declare both before any memory is taken.
#pragma once

#include <string>
#include <vector>

#include "core/memory.h"
#include "core/tensor.h"

namespace eyrie {

using SlotId = int;

// Activations a layer saves: `width` numbers a token.
class StashTable {
 public:
  SlotId Add(std::string name, int64_t width) {
    slots_.push_back({std::move(name), width});
    return static_cast<SlotId>(slots_.size()) - 1;
  }
  struct Slot {
    std::string name;
    int64_t width;
  };
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  std::vector<Slot> slots_;
};

// The memory of a StashTable for B sequences of T tokens.
class Stash {
 public:
  Stash() = default;
  Stash(const StashTable& table, DType dtype, int64_t batch, int64_t tokens, Arena& arena) {
    for (const auto& slot : table.slots()) {
      tensors_.push_back(arena.Allocate(dtype, {batch, tokens, slot.width}));
    }
  }
  // [B, T, width]
  const Tensor& operator[](SlotId id) const { return tensors_[static_cast<size_t>(id)]; }

 private:
  std::vector<Tensor> tensors_;
};

// The state a mixer carries across a time boundary: `rows` x `width` numbers a sequence.
class StateTable {
 public:
  // `capacity`: the longest sequence that will be carried, in tokens; bounds what global attention
  // keeps.
  explicit StateTable(int64_t capacity = 0) : capacity_(capacity) {}
  int64_t capacity() const { return capacity_; }
  SlotId Add(std::string name, int64_t rows, int64_t width) {
    slots_.push_back({std::move(name), rows, width});
    return static_cast<SlotId>(slots_.size()) - 1;
  }
  struct Slot {
    std::string name;
    int64_t rows, width;
  };
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  int64_t capacity_;
  std::vector<Slot> slots_;
};

// The memory of a StateTable for B sequences. Zero is the state before the first token.
class State {
 public:
  State() = default;
  State(const StateTable& table, DType dtype, int64_t batch) {
    for (const auto& slot : table.slots()) {
      tensors_.emplace_back(dtype, Shape{batch, slot.rows, slot.width});
    }
  }
  // [B, rows, width]
  const Tensor& operator[](SlotId id) const { return tensors_[static_cast<size_t>(id)].tensor; }
  size_t size() const { return tensors_.size(); }

 private:
  std::vector<OwnedTensor> tensors_;
};

}  // namespace eyrie
