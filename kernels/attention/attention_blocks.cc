#include "kernels/attention/attention_blocks.h"

#include "core/error.h"
#include "core/round.h"

namespace eyrie {
namespace {
constexpr int64_t kMaxScores = int64_t{1} << 20;
constexpr int64_t kMaxTokens = 64;
constexpr int64_t kGroups = 8;
}  // namespace

std::vector<QueryBlock> CutIntoBlocks(const AttentionExtents& extents) {
  const int64_t heads = extents.heads;
  std::vector<QueryBlock> blocks;
  for (int64_t b = 0; b < extents.sequences; ++b) {
    for (int64_t begin = 0, end; begin < extents.tokens; begin = end) {
      int64_t first = extents.FirstKey(b, begin);
      for (end = begin + 1; end < std::min(extents.tokens, begin + kMaxTokens); ++end) {
        const int64_t wider = std::min(first, extents.FirstKey(b, end));
        if ((end + 1 - begin) * heads * (end + 1 - wider) > kMaxScores) break;
        first = wider;
      }
      // The heads of a single token may already be too many for a very long row of keys.
      const int64_t step = std::max<int64_t>(1, kMaxScores / (end - first));
      const int64_t rows = std::min(step, (end - begin) * heads);
      for (int64_t row = begin * heads; row < end * heads; row += rows) {
        blocks.push_back({.sequence = b,
                          .row_begin = row,
                          .row_end = std::min(row + rows, end * heads),
                          .key_begin = first,
                          .key_end = end});
      }
    }
  }
  return blocks;
}

std::vector<BlockGroup> GroupBlocks(const std::vector<QueryBlock>& blocks, int64_t sequences,
                                    int64_t* total_sums) {
  const int64_t groups_each = std::max<int64_t>(1, kGroups / std::max<int64_t>(1, sequences));
  std::vector<BlockGroup> groups;
  *total_sums = 0;
  for (size_t begin = 0, end; begin < blocks.size(); begin = end) {
    int64_t work = 0;
    for (end = begin; end < blocks.size() && blocks[end].sequence == blocks[begin].sequence;
         ++end) {
      work += blocks[end].scores();
    }
    const int64_t share = CeilDiv(work, groups_each);
    for (size_t from = begin, to; from < end; from = to) {
      BlockGroup group{.sequence = blocks[from].sequence,
                       .block_begin = from,
                       .block_end = from,
                       .key_begin = blocks[from].key_begin,
                       .key_end = blocks[from].key_end,
                       .sums = *total_sums};
      int64_t taken = 0;
      for (to = from; to < end && (to == from || taken + blocks[to].scores() <= share); ++to) {
        taken += blocks[to].scores();
        group.key_begin = std::min(group.key_begin, blocks[to].key_begin);
        group.key_end = std::max(group.key_end, blocks[to].key_end);
      }
      group.block_end = to;
      *total_sums += group.key_end - group.key_begin;
      groups.push_back(group);
    }
  }
  return groups;
}

}  // namespace eyrie
