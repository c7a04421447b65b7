// How the CPU body cuts attention into blocks: a run of query rows against the run of keys that
// at least one of them sees. The cut depends on the data alone, never on the number of threads.
//
// A query row is a (token, head) pair, row = token * H + head: all heads share the keys, so the
// queries of a block form one matrix. Keys are numbered by token; past keys are negative.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention/attention_tiles.h"

namespace eyrie {

// B sequences, T tokens, H heads, dh head width, P past rows.
struct AttentionExtents {
  int64_t sequences, tokens, heads, width, past, window;
  const int32_t* positions;  // [B, T]

  // The earliest key that token `t` of sequence `b` sees; the last one is t itself.
  int64_t FirstKey(int64_t b, int64_t t) const {
    return FirstVisibleKey<int64_t>(t, positions[b * tokens + t], window, past);
  }
};

struct QueryBlock {
  int64_t sequence;
  int64_t row_begin, row_end;  // query rows within the sequence
  int64_t key_begin, key_end;
  int64_t rows() const { return row_end - row_begin; }
  int64_t keys() const { return key_end - key_begin; }
  int64_t scores() const { return rows() * keys(); }
};

// A run of blocks of one sequence that one thread walks in the backward pass, adding to its own
// sums over [key_begin, key_end); `sums` is where these start, in rows of dh elements.
struct BlockGroup {
  int64_t sequence;
  size_t block_begin, block_end;
  int64_t key_begin, key_end;
  int64_t sums;
};

// All blocks, sequence by sequence, token by token. No block has more than about a million
// scores, nor more than 64 tokens: a block's keys are at most 64 more than a window's.
std::vector<QueryBlock> CutIntoBlocks(const AttentionExtents& extents);

// Groups of about equal work, in the order of `blocks`, about eight in all but at least one a
// sequence. `total_sums` receives the rows that the sums of all groups take.
std::vector<BlockGroup> GroupBlocks(const std::vector<QueryBlock>& blocks, int64_t sequences,
                                    int64_t* total_sums);

}  // namespace eyrie
