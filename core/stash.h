// What a forward pass leaves for its backward pass, and what a chunk of a sequence hands to the
// next one. Layers declare both before any memory is taken.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/tensor.h"
#include "core/tensor_math.h"

namespace eyrie {

using SlotId = int;

// What a slot holds: activations, in the type of the run, or what keeps full precision beside them
// (FullPrecision in core/dtype.h), such as statistics and recurrent states.
enum class Holds : bool { kActivations, kFullPrecision };

constexpr DType TypeOf(Holds holds, DType activations) {
  return holds == Holds::kActivations ? activations : FullPrecision(activations);
}

// Which saved activations are dropped after the forward pass and computed once more in backward.
// The second is selective recomputation, Korthikanti et al., arXiv:2205.05198, section 5.
enum class Recompute : uint8_t {
  kNothing,
  kSelective,  // what a pass over memory gives: norms' and convolutions' outputs, products of gates
  kBlocks,     // also the outputs of matrix products, attention and recurrences
};

// Where a rank's tokens stand in the sequences: chunk `number` of `count` successive ones of
// `tokens` tokens, one a rank.
struct ChunkPlace {
  int64_t tokens = 0, number = 0, count = 1;
};

// Activations a layer saves: `width` numbers a token; or, for what has crossed a time boundary,
// rows of its own.
class StashTable {
 public:
  // The rows of a kept slot, for a chunk.
  using Rows = std::function<int64_t(const ChunkPlace&)>;
  // A row a token; a state that comes from the other ranks, if there are any.
  static int64_t EachToken(const ChunkPlace& chunk) { return chunk.tokens; }
  static int64_t EnteringState(const ChunkPlace& chunk) { return chunk.count > 1 ? 1 : 0; }

  SlotId Add(std::string name, int64_t width, Holds holds = Holds::kActivations) {
    return Add({std::move(name), width, holds, nullptr});
  }
  // A slot that elementwise work, a norm or a convolution fills from other slots.
  SlotId AddCheap(std::string name, int64_t width, Holds holds = Holds::kActivations) {
    return Add({std::move(name), width, holds, nullptr, /*cheap=*/true});
  }
  // A slot that outlives recomputation: what came from another rank is not sent twice.
  SlotId AddKept(std::string name, int64_t width, Rows rows, Holds holds = Holds::kActivations) {
    return Add({std::move(name), width, holds, std::move(rows)});
  }
  // What a kernel makes on its way forward and would make again backward: so many elements of
  // float32, which mean something to it alone, for B sequences of T tokens on a device. Present
  // where a pass has taken them (Stash::TakeReusable), and if there are any.
  using Elements = std::function<int64_t(DType activations, Device, int64_t batch, int64_t tokens)>;
  SlotId AddReusable(std::string name, Elements elements) {
    return Add({.name = std::move(name),
                .width = 0,
                .holds = Holds::kFullPrecision,
                .rows = nullptr,
                .elements = std::move(elements)});
  }
  struct Slot {
    std::string name;
    int64_t width;
    Holds holds;
    Rows rows;  // null: one a token, and not kept
    bool cheap = false;
    Elements elements = nullptr;  // of a reusable one
    bool kept() const { return rows != nullptr; }
    // Whether recomputation leaves it alone.
    bool Outlives(Recompute recompute) const {
      return kept() || recompute == Recompute::kNothing ||
             (recompute == Recompute::kSelective && !cheap);
    }
  };
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  SlotId Add(Slot slot) {
    slots_.push_back(std::move(slot));
    return static_cast<SlotId>(slots_.size()) - 1;
  }
  std::vector<Slot> slots_;
};

// The memory of a StashTable for a chunk of B sequences, taken in parts: slots that outlive
// recomputation once, the others again for it, and the reusable ones where they are wanted.
class Stash {
 public:
  Stash() = default;
  Stash(const StashTable& table, DType dtype, int64_t batch, const ChunkPlace& chunk)
      : table_(&table), dtype_(dtype), batch_(batch), chunk_(chunk) {
    tensors_.resize(table.slots().size());
  }

  void TakeKept(Arena& arena, Recompute recompute) { Take(arena, recompute, /*kept=*/true); }
  void TakeRest(Arena& arena, Recompute recompute) { Take(arena, recompute, /*kept=*/false); }
  // For a forward pass that a backward pass follows, and that no state enters or leaves.
  void TakeReusable(Arena& arena) {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const StashTable::Slot& slot = table_->slots()[i];
      if (!slot.elements) continue;
      const int64_t elements = slot.elements(dtype_, arena.device(), batch_, chunk_.tokens);
      if (elements > 0) tensors_[i] = arena.Allocate(DType::kF32, {elements});
    }
  }

  // [B, T, width]; [B, rows, width] of a kept slot; [elements] of a reusable one, or absent.
  const Tensor& operator[](SlotId id) const { return tensors_[static_cast<size_t>(id)]; }

 private:
  void Take(Arena& arena, Recompute recompute, bool kept) {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const StashTable::Slot& slot = table_->slots()[i];
      if (slot.elements || slot.Outlives(recompute) != kept) continue;
      const int64_t rows = slot.kept() ? slot.rows(chunk_) : chunk_.tokens;
      tensors_[i] = arena.Allocate(TypeOf(slot.holds, dtype_), {batch_, rows, slot.width});
    }
  }

  const StashTable* table_ = nullptr;
  DType dtype_ = DType::kF32;
  int64_t batch_ = 0;
  ChunkPlace chunk_;
  std::vector<Tensor> tensors_;
};

// The state a mixer carries across a time boundary: `rows` x `width` numbers a sequence.
class StateTable {
 public:
  // `capacity`: the longest sequence that will be carried, in tokens; bounds what global attention
  // keeps.
  explicit StateTable(int64_t capacity = 0) : capacity_(capacity) {}
  int64_t capacity() const { return capacity_; }
  SlotId Add(std::string name, int64_t rows, int64_t width, Holds holds = Holds::kActivations) {
    return Add({std::move(name), rows, width, holds});
  }
  // Logarithms of what the slots `scaled` are to be multiplied by, each for equally many of their
  // elements. They are free to choose and have no gradient: those of the scaled slots are for
  // constant logarithms. They start as `initial`.
  SlotId AddLogScale(std::string name, int64_t rows, int64_t width, std::vector<SlotId> scaled,
                     double initial = 0.0) {
    return Add({std::move(name), rows, width, Holds::kFullPrecision, std::move(scaled), initial});
  }
  struct Slot {
    std::string name;
    int64_t rows, width;
    Holds holds;
    std::vector<SlotId> scaled = {};  // of a log scale
    double initial = 0.0;
  };
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  SlotId Add(Slot slot) {
    slots_.push_back(std::move(slot));
    return static_cast<SlotId>(slots_.size()) - 1;
  }
  int64_t capacity_;
  std::vector<Slot> slots_;
};

// The memory of a StateTable for B sequences, beside activations of type `dtype`. It starts as the
// state before the first token: zero, but for what a slot starts as instead.
class State {
 public:
  State() = default;
  // With memory of its own.
  State(const StateTable& table, DType dtype, int64_t batch, Device device) {
    for (const auto& slot : table.slots()) {
      owned_.emplace_back(TypeOf(slot.holds, dtype), Shape{batch, slot.rows, slot.width}, device);
      tensors_.push_back(owned_.back().tensor);
      if (slot.initial != 0.0) Fill(tensors_.back(), slot.initial);
    }
  }
  // For as long as the arena is not rewound.
  State(const StateTable& table, DType dtype, int64_t batch, Arena& arena) {
    for (const auto& slot : table.slots()) {
      tensors_.push_back(arena.Allocate(TypeOf(slot.holds, dtype), {batch, slot.rows, slot.width}));
      if (slot.initial != 0.0) {
        Fill(tensors_.back(), slot.initial);
      } else {
        FillZero(tensors_.back());
      }
    }
  }
  // [B, rows, width]
  const Tensor& operator[](SlotId id) const { return tensors_[static_cast<size_t>(id)]; }
  size_t size() const { return tensors_.size(); }

 private:
  std::vector<OwnedTensor> owned_;
  std::vector<Tensor> tensors_;
};

}  // namespace eyrie
