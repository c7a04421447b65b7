// How the mLSTM's CUDA bodies divide the work. Tokens are cut into tiles of 64; between two tiles
// only the memory counts, so each product of the forward and the backward pass is one of these
// passes over the tiles, forward or backward in time, that carry a state S [keys, values]:
//
//   o_t = sees_t (S^T q_t) + sum_s scores_ts v_s      S <- decay S + sum_s seen_s k_s v_s^T
//
// with s in the tile of t and S what enters that tile. With g_t = dk^-1/2 exp(sum of f up to t + m
// before the tile - m_t), w_t = exp(sum of f after t + i_t - m after the tile), the unscaled scores
// W and their gradients P of a tile, these are, besides the rows that the normaliser adds:
//
//   pass  direction  q   k   v   o   sees  seen  scores
//   h     forward    q   k   v   h   g     w     W       times 1 / b_t
//   dq    forward    dh  v   k   dq  g/b   w     P
//   dk    backward   v   dh  q   dk  w     g/b   P^T
//   dv    backward   k   q   dh  dv  w     g/b   W^T/b
//
// On the tensor cores a kernel of its own computes the scores of all tiles. In float32 arithmetic
// the tokens go one by one: then the tile is a token, which sees the state that holds it already.
// Either way, several tiles make a chunk, which a block takes through time: as in lightning
// attention, first all chunks' increments of the state, then a scan, then the outputs; where heads
// alone fill the GPU there is one chunk and one step. So states go through memory at chunks'
// boundaries only (two levels of tiling as in Beck et al., arXiv:2503.14376).
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/mlstm/mlstm_plan.h"

namespace eyrie {

inline constexpr int kMaxMlstmWidth = 512;

// Where the gates come from, and where m goes.
struct MlstmGateInputs {
  const float *log_i, *log_f;       // log_i null: `after` and `column` are not wanted
  const float *before_m, *after_m;  // of the states outside; or null
  const float* given_m;             // [B, T, H] m of a forward pass; null: computed
  float *maximum, *final_m;         // out, [B, T, H] and [B, H]; or null
  float* total_log_f;               // out, [B, H] of all tokens; or null
  float* total_decay;               // out, [B, H] exp(total_log_f + before_m - after_m); or null
  bool stabilised;
  bool tokenwise;  // tokens go one by one
  bool backward;   // 1 / b and the normaliser's gradient are there
};
void MlstmWeights(const MlstmLayout& sizes, const MlstmGateInputs& gates, const MlstmVectors& out);

template <class T>
struct MlstmPass {
  const T *q, *k;  // [B, T, H, keys]; o null: only the state is wanted, and q is not there
  const T* v;      // [B, T, H, values]; null: ones, where tokens go one by one
  T* o;            // like v
  bool reverse;
  int keys, values;
  const float *sees, *seen, *factor;  // per token; factor multiplies o, or null
  // A further key: rows that q and k have besides those in memory, times sees and seen; or null.
  const float *extra_sees, *extra_seen;
  const __nv_bfloat16* scores;  // [B, H, tiles, kMlstmTile, kMlstmTile], of [seeing, seen forward]
  const float* log_decay;       // [B, H, tiles] of a tile
  const float* loss;            // per token, one less than the decay, where tokens go one by one
  // States [B, H, chunks, ...] that enter and leave the chunks: [keys, values], an element at key *
  // key_stride + value * value_stride; and the further key's, [values]. Null: zeros, not wanted.
  const float *entering, *entering_extra;
  float *leaving, *leaving_extra;
  int key_stride, value_stride;
};

// On the tensor cores: keys and values divide by 16, rows are aligned to 16 bytes.
void MlstmPassMma(const MlstmLayout& sizes, const MlstmPass<__nv_bfloat16>& pass);
// The same on GPUs and in shapes that warpgroup products are for.
bool MlstmFitsWgmma(const MlstmPass<__nv_bfloat16>& pass);
void MlstmPassWgmma(const MlstmLayout& sizes, const MlstmPass<__nv_bfloat16>& pass);
void MlstmPassPlain(const MlstmLayout& sizes, const MlstmPass<float>& pass);

// All tiles' scores: W, with row sums and each tile's sum of w_s k_s for the normaliser; or, with
// dh, W / b and P.
struct MlstmScores {
  const __nv_bfloat16 *q, *k, *v, *dh;
  __nv_bfloat16 *w, *p;  // p with dh
  float* row_sums;       // [B, T, H] without dh
  float* increments;     // [B, H, tiles, dk] without dh
};
void MlstmTileScores(const MlstmLayout& sizes, const MlstmVectors& vectors,
                     const MlstmScores& scores);

// b_t and the gradient of n_t . q_t, from what forward saved; without dh b_t alone.
template <class T>
struct MlstmDenominators {
  const float *normaliser, *maximum;  // [B, T, H]
  const T *h, *dh;                    // [B, T, H, dv]
  bool normalised, gradient;
  float epsilon;
};
template <class T>
void ComputeDenominators(const MlstmLayout& sizes, const MlstmDenominators<T>& in, float* inverse_b,
                         float* dnormaliser);

// normaliser [B, T, H] += before q . n, where states [B, H, tiles, dk] are n before each tile.
void AddStatesToNormalisers(const MlstmLayout& sizes, const __nv_bfloat16* q, const float* states,
                            const float* before, float* normaliser);

// Makes of the increments of pieces of `tiles` tiles what enters each of them.
struct MlstmScan {
  float* states;  // [B, H, pieces, size]
  int tiles, size;
  const float* entering;  // [B, H, size] before the first piece; null: zeros
  float* leaving;         // after the last one; or null. May be `entering`.
  bool reverse;
};
void ScanStates(const MlstmLayout& sizes, const MlstmScan& scan, const float* log_decay);

// product [B, H] = <c, dc> + <n, dn>
void MultiplyStates(const MlstmLayout& sizes, const float* c, const float* dc, const float* n,
                    const float* dn, float* product);

// dlog_i and dlog_f, given the product of what leaves after the last token with its gradient, or
// null for 0. `excess` is scratch, per token.
template <class T>
struct MlstmGateGradients {
  const T *q, *k, *dq, *dk;
  float *dlog_i, *dlog_f;
};
template <class T>
void ComputeGateGradients(const MlstmLayout& sizes, const MlstmGateGradients<T>& in,
                          const float* boundary, float* excess);

// One token: a step of the recurrence.
template <class T>
struct MlstmStep {
  const T *q, *k, *v;
  T* h;
  const float *log_i, *log_f;
  const float *c, *n, *m;              // before, or null
  float *c_after, *n_after, *m_after;  // or null; may be those before
  float *maximum, *normaliser;
  float* factors;  // scratch, [B, H, 4]
  bool stabilised, normalised;
  float epsilon;
};
template <class T>
void MlstmStepCuda(const MlstmLayout& sizes, const MlstmStep<T>& step);

}  // namespace eyrie
