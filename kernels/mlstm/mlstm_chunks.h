// The mLSTM with wide heads by products over chunks on Hopper, whose warpgroup products need wide
// operands: heads of more than kMaxMlstmBlockKeys keys or values, whose state would fill the
// registers of more blocks than can give each other their parts of outputs in time. A chunk is up
// to kMaxMlstmChunkTiles tiles; the states between chunks go through memory, rounded to bfloat16 as
// the products take them (two levels of tiling as in Beck et al., "Tiled Flash Linear Attention",
// arXiv:2503.14376, with registers for the first level, and states all made in one pass over time).
// With what mlstm_kernels.cuh calls g, w and decay:
//
//   states    C <- decay C + sum_s w_s k_s v_s^T                  [dk, dv], and n alike
//   scores    W_ts = (q_t . k_s) times g_t, w_s and the decay of the tiles between them
//   outputs   h_t = (g_t decay C^T q_t + sum_s W_ts v_s) / b_t
//
// and in the gradients with dC, which goes backward in time, and P: dq of C and P, dk of dC and
// P^T, dv of dC and W^T. Those of the forget gates start again at boundaries of chunks.
#pragma once

#include <initializer_list>

#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {

// The boundaries before the first chunks of the way have, where a state enters, also what is left
// of theirs when they are rounded: the sums of the forget gates' gradient would keep that of a
// state much larger than what the chunks add.
inline constexpr int kMlstmRests = 2;

// States [B, H, state_places, dk, dv] at chunks' boundaries: all but those where they leave the
// last one, and where nothing enters the first one.
struct MlstmChunkStates {
  const __nv_bfloat16 *rows, *columns;  // k and v; or q and dh: [B, T, H, dk] and [B, T, H, dv]
  bool reverse;                         // goes backward in time, from the last boundary on
  const float *seen, *extra_seen;       // per token: of the state, of the normaliser's state
  const float* log_decay;               // [B, H, tiles]
  // Outside, [B, H, dk, dv] and [B, H, dk], or null: zeros, not wanted.
  const float *entering, *entering_n;
  float *leaving, *leaving_n;
  // What is kept, or null: [B, H, state_places, dk, dv] and [B, H, chunks + 1, dk].
  __nv_bfloat16* states;
  float* normalisers;
  // Products of states with their gradients [B, H, restarts + 1, MlstmStateParts()], in parts of a
  // sum, or null. Where the state leaves, with `others` [B, H, dk, dv] and `others_n` [B, H, dk],
  // which nothing rounds, unless null. In reverse also of what is put at the restarts between, with
  // what lay there before.
  const float *others, *others_n;
  float* products;

  // The last chunk of the way matters only to what leaves it.
  EYRIE_HOST_DEVICE int ChunksOnTheWay(int chunks) const {
    const bool leaves = leaving != nullptr || leaving_n != nullptr || others != nullptr;
    return leaves ? chunks : chunks - 1;
  }
};
void ComputeChunkStates(const MlstmLayout& sizes, const MlstmChunkStates& args);

// Scores [B, H, chunks, L, L] of the tokens of chunks, L = chunk_tiles * kMlstmTile: what is not
// seen in a tile is 0, and tiles of which nothing is seen are left as they are. W with row sums; or
// with dh, W / b and P.
struct MlstmChunkScores {
  const __nv_bfloat16 *q, *k, *v, *dh;
  __nv_bfloat16 *w, *p;  // p with dh
  // Without dh: [B, T, H] of the chunk's half that a token is in, [B, H, padded] of the one before.
  float *row_sums, *earlier_sums;
};
void ComputeChunkScores(const MlstmLayout& sizes, const MlstmVectors& vectors,
                        const MlstmChunkScores& args);

// Outputs o [B, T, H, width] of rows [B, T, H, inner] with the states and of `others` with scores;
// of one pass, or of two that go the same way and read the same states, then from memory once.
struct MlstmChunkOutputs {
  const __nv_bfloat16 *rows, *others;
  __nv_bfloat16* o;
  bool reverse;     // of the states after chunks, and of tokens that are seen
  bool transposed;  // rows S^T: inner is dv and width dk; else rows S
  bool entered;     // else no state enters the first chunk, or the last one in reverse
  const __nv_bfloat16 *states, *scores;
  const float *sees, *factor;  // per token; factor multiplies o, or null
  const float* log_decay;      // [B, H, tiles]
  // Adds extra_sees_t decay n, n out of normalisers [B, H, chunks + 1, width]; or null.
  const float *extra_sees, *normalisers;
  // Like o, multiplied with it before it is rounded, into products [B, H, MlstmColumnBlocks(width),
  // padded]; or null.
  const __nv_bfloat16* multiplied;
  float* products;
};
void ComputeChunkOutputs(const MlstmLayout& sizes, std::initializer_list<MlstmChunkOutputs> passes);

// All of a call but for what comes of the gates alone, given MlstmWeights() and, backward, the
// denominators; and for the gates' gradients.
void MlstmForwardByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                          const MlstmForwardArgs& args);
void MlstmBackwardByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                           const MlstmBackwardArgs& args);
void MlstmSummaryByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                          const MlstmSummaryArgs& args);
void MlstmGradSummaryByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                              const MlstmGradSummaryArgs& args);

}  // namespace eyrie
