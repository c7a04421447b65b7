// How the RG-LRU's CUDA bodies cut their work, and the scratch that takes (rg_lru_scan.cuh says
// what for): host code of every build, so that a run on GPUs can be planned without one.
#pragma once

#include <limits>

#include "core/round.h"
#include "core/tensor.h"
#include "kernels/cuda_partition.h"

namespace eyrie::rg_lru {

inline constexpr int kRows = 64;     // tokens of a tile
inline constexpr int kColumns = 64;  // channels of a tile, two a lane

// The cut of a [B, T, R] tensor. `order` counts the tiles of one column in the order of the scan:
// along time, or against it on the way back.
struct Plan {
  explicit Plan(const Shape& u)
      : batch(static_cast<int>(u[0])),
        time(static_cast<int>(u[1])),
        channels(static_cast<int>(u[2])),
        blocks(static_cast<int>(CeilDiv(u[2], kColumns))),
        orders(static_cast<int>(CeilDiv(u[1], kRows))) {}

  int batch, time, channels;
  int blocks;  // of 64 channels
  int orders;  // tiles along time

  // Channels of a sequence, and of all, each sequence rounded up to whole tiles.
  EYRIE_HOST_DEVICE int width() const { return blocks * kColumns; }
  EYRIE_HOST_DEVICE int columns() const { return batch * width(); }
  EYRIE_HOST_DEVICE int tiles() const { return batch * blocks * orders; }
};

// What the backward pass sums over a tile's tokens: the gradients of lambda, up to a factor of each
// channel, of zi and of zr.
inline constexpr int kSums = 3;

// Float32 elements of the board on which tiles tell one another their maps: what lies before the
// maps, and all.
inline constexpr int kBoardHead = 32;
inline int64_t BoardSize(const Plan& plan) {
  // Device code counts entries, and the sums of each, in 32 bits: one entry for 64 elements, where
  // sequences are not shorter than that.
  const int64_t entries = int64_t{plan.orders} * plan.batch * plan.width();
  EYRIE_CHECK(kSums * entries <= std::numeric_limits<int>::max(), "rg_lru: ", entries,
              " tiles times channels are too many");
  return kBoardHead + 2 * entries;
}

// Of the summaries: each sequence's tokens, in scan order, are cut into pieces of equally many
// tiles.
struct SummaryPieces {
  // Enough blocks to fill a large GPU eight times over, so that its last round weighs little.
  static constexpr int64_t kEnoughBlocks = 4096;

  explicit SummaryPieces(const Plan& plan) {
    const int64_t columns = std::max<int64_t>(1, int64_t{plan.batch} * plan.blocks);
    const int64_t wanted = CeilDiv(kEnoughBlocks, columns);
    const int64_t tiles = CeilDiv(plan.orders, wanted);
    tokens = static_cast<int>(tiles * kRows);
    count = static_cast<int>(CeilDiv(plan.orders, std::max<int64_t>(1, tiles)));
  }
  int tokens, count;
};

// Float32 elements of the workspaces, for u [B, T, R]. Backward: the board, and the sums of each
// tile and channel; summaries: a map a piece and channel.
inline int64_t ForwardWorkspace(const Shape& u) { return BoardSize(Plan(u)); }
inline int64_t BackwardWorkspace(const Shape& u) {
  const Plan plan(u);
  return BoardSize(plan) + int64_t{kSums} * plan.orders * plan.columns();
}
inline int64_t SummaryWorkspace(const Shape& u) {
  const Plan plan(u);
  return int64_t{2} * SummaryPieces(plan).count * plan.columns();
}

}  // namespace eyrie::rg_lru
