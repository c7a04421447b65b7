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
//
// The gradient of a forget gate's logarithm is what it lets pass, decay_t (<C_{t-1}, dC_t> +
// <n_{t-1}, dn_t>), dC_t with respect to C_t: a sum over t and later tokens of q . dq - k . dk and
// what leaves after the last. Over a long sequence rounding errors would walk at random in it, so
// it starts again at every restart, a tile's boundary where both states are known: the pass of dq
// keeps C and n there, that of dk multiplies them with dC and dn. Between two of these the sum is
// right at both ends; what it misses the second one by is taken off in proportion to the squares of
// the summands met until there, as the errors' variances are. A document's start is an end where
// nothing passes.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/mlstm/mlstm_plan.h"

namespace eyrie {

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

// The vectors of a tile's tokens that a pass keeps in shared memory.
enum VectorOfTokens { kSees, kSeen, kFactor, kExtraSees, kExtraSeen, kVectors };

// What a pass over values does at restarts. Null: nothing.
struct MlstmRestarts {
  // [B, H, restarts + 1, blocks, MlstmBlock::kept()], elements as threads have them.
  float* states;
  // [B, H, restarts + 1, blocks, kMlstmPassWarps] parts of the products of the kept states with
  // those of the pass, which goes backward in time; null: keeps the states.
  float* products;
  // Whether there is a state before the first token, a gradient of the one after the last.
  bool first, last;
};

template <class T>
struct MlstmPass {
  const T *q, *k;  // [B, T, H, keys]; o null: only the state is wanted, and q is not there
  const T* v;      // [B, T, H, values]; null: ones, where tokens go one by one
  T* o;            // like v
  bool reverse;
  int keys, values;
  // On the tensor cores, where keys are more than kMaxMlstmBlockKeys: [slices of keys, B, T, H,
  // values] what each slice gives to o before it is multiplied.
  float* partial;
  // On the tensor cores: like v, multiplied with o before it is rounded, into products [B, H,
  // MlstmProductSlices(), padded]; or null.
  const T* multiplied;
  float* products;
  const float *sees, *seen, *factor;  // per token; factor multiplies o, or null
  // A further key: rows that q and k have besides those in memory, times sees and seen; or null.
  const float *extra_sees, *extra_seen;
  const __nv_bfloat16* scores;  // [B, H, tiles, kMlstmTile, kMlstmTile], of [seeing, seen forward]
  const float* log_decay;       // [B, H, tiles] of a tile
  const float *decay_whole, *decay_part;  // per token, their sum, where tokens go one by one
  // States [B, H, chunks, ...] that enter and leave the chunks: [keys, values], an element at key *
  // key_stride + value * value_stride; and the further key's, [values]. Null: zeros, not wanted.
  const float *entering, *entering_extra;
  float *leaving, *leaving_extra;
  int key_stride, value_stride;
  MlstmRestarts restarts;
};

// Which block of a head's state a thread's is, and whether no other thread has its elements of the
// further key's.
struct MlstmShare {
  int head, block, blocks;
  bool extra_counts;
};
// What the passes do at the boundary before a tile, or after the last one. A thread, one of
// kMlstmPassThreads, has rows of 4 elements of the state and some of the further key's.
template <class T, int kRows, int kExtra>
__device__ __forceinline__ void AtRestart(const MlstmLayout& sizes, const MlstmPass<T>& pass,
                                          int boundary, const MlstmShare& share,
                                          const float (&state)[kRows][4],
                                          const float (&extra)[kExtra]) {
  const int restart = pass.restarts.states == nullptr ? -1 : sizes.Restart(boundary);
  if (restart < 0 || (restart == 0 && !pass.restarts.first) ||
      (restart == sizes.restarts && !pass.restarts.last)) {
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t at =
      (static_cast<int64_t>(share.head) * (sizes.restarts + 1) + restart) * share.blocks +
      share.block;
  constexpr int64_t kKept = (4 * kRows + 4) * kMlstmPassThreads;
  static_assert(kExtra <= 4);
  float* kept = pass.restarts.states + at * kKept + 4 * thread;
  float* kept_extra = kept + 4 * kRows * kMlstmPassThreads;
  if (pass.restarts.products == nullptr) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      StoreVector<4>(kept + 4 * i * kMlstmPassThreads,
                     Vector<float, 4>{{state[i][0], state[i][1], state[i][2], state[i][3]}});
    }
#pragma unroll
    for (int i = 0; i < kExtra; ++i) kept_extra[i] = extra[i];
    return;
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const auto row = LoadVector<4>(kept + 4 * i * kMlstmPassThreads);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum = fmaf(row[j], state[i][j], sum);
  }
#pragma unroll
  for (int i = 0; i < kExtra; ++i) {
    if (share.extra_counts) sum = fmaf(kept_extra[i], extra[i], sum);
  }
  sum = WarpSum(sum);
  if (thread % 32 == 0) pass.restarts.products[at * kMlstmPassWarps + thread / 32] = sum;
}

// Whether a pass needs the state after all tiles of a chunk, which lies at this boundary.
template <class T>
__device__ __forceinline__ bool StateLeaves(const MlstmLayout& sizes, const MlstmPass<T>& pass,
                                            int boundary) {
  if (pass.leaving != nullptr || pass.leaving_extra != nullptr) return true;
  if (pass.restarts.states == nullptr) return false;
  return pass.reverse ? boundary == 0 && pass.restarts.first
                      : boundary == sizes.tiles && pass.restarts.last;
}

// On the tensor cores: keys and values divide by 16, rows are aligned to 16 bytes.
void MlstmPassMma(const MlstmLayout& sizes, const MlstmPass<__nv_bfloat16>& pass);
// Whether the GPU has warpgroup products, and this build code for them.
bool MlstmRunsWgmma();
// The same on such GPUs, in shapes that they are for; `partial` stays as it is.
bool MlstmFitsWgmma(const MlstmPass<__nv_bfloat16>& pass);
void MlstmPassWgmma(const MlstmLayout& sizes, const MlstmPass<__nv_bfloat16>& pass);
void MlstmPassPlain(const MlstmLayout& sizes, const MlstmPass<float>& pass);

// In how many parts the products of a token's outputs come: a part for 16 values, or one where the
// outputs of slices of keys are added up afterwards.
int MlstmProductSlices(const MlstmPass<__nv_bfloat16>& pass);

// The second step of such a pass: o, and the products, from what the slices gave.
void SumSlices(const MlstmLayout& sizes, const MlstmPass<__nv_bfloat16>& pass, int slices);

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
  const float* h_dh;                  // [B, T, H] h . dh, or null
  bool normalised, gradient;
  float epsilon;
};
template <class T>
void ComputeDenominators(const MlstmLayout& sizes, const MlstmDenominators<T>& in, float* inverse_b,
                         float* dnormaliser);

// normaliser [B, T, H] += before q . n, where states [B, H, per_head, dk] are n before every
// `tiles` tiles; it decays in those between. And += further [B, H, padded], unless null. Then also
// inverse_b, as above without gradients.
struct MlstmNormaliserStates {
  const float* states;
  int per_head, tiles;
  const float* log_decay;
  const float* further;
};
void AddStatesToNormalisers(const MlstmLayout& sizes, const __nv_bfloat16* q,
                            const MlstmNormaliserStates& states, const float* before,
                            const MlstmDenominators<__nv_bfloat16>& in, float* normaliser,
                            float* inverse_b);

// Makes of the increments of pieces of `tiles` tiles what enters each of them.
struct MlstmScan {
  float* states;  // [B, H, pieces, size]
  int tiles, size;
  const float* entering;  // [B, H, size] before the first piece; null: zeros
  float* leaving;         // after the last one; or null. May be `entering`.
  bool reverse;
};
void ScanStates(const MlstmLayout& sizes, const MlstmScan& scan, const float* log_decay);

// q . dq and k . dk, [B, H, padded].
struct MlstmRowProducts {
  const float *q, *k, *dq, *dk;
  float *query_products, *key_products;
};
void MultiplyRows(const MlstmLayout& sizes, const MlstmRowProducts& in);

// Given the gradient dc [B, H, dk, dv] of the state after the last token: what rounding keeps from
// the last tile's products k . dk, and from the product of that state with dc.
struct MlstmEnd {
  const __nv_bfloat16 *k, *v;
  const float *dc, *after;
  float* products;  // [B, H, MlstmEndParts(), 2, kMlstmTile]: of either, in parts
};
void MultiplyEnd(const MlstmLayout& sizes, const MlstmEnd& in);

// dlog_i and dlog_f, given the parts of each token's products and of those at restarts.
struct MlstmGateGradients {
  const float *query_products, *key_products;  // [B, H, slices, padded]
  int slices;
  const float* restart_products;  // [B, H, restarts + 1, restart_parts]
  int restart_parts;
  bool first, last;           // as in MlstmRestarts; where not, that product is 0
  const float* end_products;  // what MultiplyEnd() found, or null
  float *dlog_i, *dlog_f;
};
void ComputeGateGradients(const MlstmLayout& sizes, const MlstmGateGradients& in);

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
