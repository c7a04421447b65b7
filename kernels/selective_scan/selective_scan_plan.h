// How the selective scan's CUDA bodies cut their work, and the scratch that takes
// (selective_scan.cuh says what for): host code of every build, so that a run on GPUs can be
// planned without one.
#pragma once

#include <algorithm>
#include <bit>

#include "core/round.h"
#include "core/tensor.h"
#include "kernels/cuda_partition.h"

namespace eyrie::selective_scan {

inline constexpr int kColumns = 32;  // channels of a block
inline constexpr int kTile = 16;     // tokens between barriers

// The cut of a problem. N states are padded to 4 a warp.
struct Plan {
  Plan(const Shape& x, int64_t state_count, int64_t chunk_tokens)
      : batch(static_cast<int>(x[0])),
        time(static_cast<int>(x[1])),
        channels(static_cast<int>(x[2])),
        states(static_cast<int>(state_count)),
        chunk(static_cast<int>(chunk_tokens)),
        blocks(static_cast<int>(CeilDiv(x[2], kColumns))),
        chunks(static_cast<int>(CeilDiv(x[1], chunk_tokens))) {}
  // Elements of a state, and of all chunks' states.
  EYRIE_HOST_DEVICE int64_t state_size() const { return int64_t{channels} * states; }
  int64_t all_states() const { return int64_t{batch} * chunks * state_size(); }
  int64_t all_sums() const { return int64_t{batch} * chunks * channels; }

  int batch, time, channels, states;
  int chunk;   // tokens, a multiple of kTile
  int blocks;  // of channels
  int chunks;
};

// Of the forward pass and the summaries. With at least so many blocks of channels, one chunk is
// enough: each of an H100's processors then has several. Otherwise chunks make them twice as many,
// if they are long enough to be worth it.
inline Plan ForwardPlan(const Shape& x, int64_t states) {
  constexpr int64_t kEnoughBlocks = 512, kLeastChunk = 64;
  const int64_t blocks = std::max<int64_t>(1, x[0] * CeilDiv(x[2], kColumns));
  const int64_t chunks = blocks >= kEnoughBlocks ? 1 : CeilDiv(2 * kEnoughBlocks, blocks);
  return {x, states, std::max(kLeastChunk, RoundUp(CeilDiv(x[1], chunks), kTile))};
}

inline constexpr int kLaneStates = 8;  // of a lane of the backward pass

// A warp of the backward pass takes groups of 32 / split channels, with `split` lanes a channel.
struct BackwardPlan : Plan {
  static constexpr int kChunk = 64;  // tokens
  static constexpr int kWarps = 4;   // of a block; fewer take the same slabs in more rounds
  // Parts of dB and dC in memory: each of some of the channels.
  static constexpr int64_t kMostSlabs = 16;

  BackwardPlan(const Shape& x, int64_t state_count)
      : Plan(x, state_count, kChunk),
        split(static_cast<int>(
            std::bit_ceil(static_cast<uint64_t>(CeilDiv(state_count, kLaneStates))))),
        groups(static_cast<int>(CeilDiv(x[2], 32 / split))) {
    // Each slab's block takes as many groups as the others, or one round less.
    const int64_t sets = std::max<int64_t>(1, CeilDiv(groups, kWarps));
    slabs = static_cast<int>(CeilDiv(sets, CeilDiv(sets, kMostSlabs)));
  }
  // Elements of a slab.
  EYRIE_HOST_DEVICE int64_t slab_size() const { return int64_t{batch} * time * 2 * states; }
  int split;
  int groups;
  int slabs;
};

// Float32 elements of the workspaces, for x [B, T, E]: states and sums of all chunks, and in the
// backward pass also their gradients and the slabs.
inline int64_t ForwardWorkspace(const Shape& x, int64_t states) {
  const Plan plan = ForwardPlan(x, states);
  return plan.chunks > 1 ? plan.all_states() + plan.all_sums() : 0;
}
inline int64_t SummaryWorkspace(const Shape& x, int64_t states) {
  const Plan plan = ForwardPlan(x, states);
  return plan.all_states() + plan.all_sums();
}
inline int64_t BackwardWorkspace(const Shape& x, int64_t states) {
  const BackwardPlan plan(x, states);
  return 2 * plan.all_states() + 3 * plan.all_sums() + plan.slabs * plan.slab_size();
}

}  // namespace eyrie::selective_scan
