// What a warp does in the selective scan's backward pass: it takes one chunk of one sequence and a
// group of channels, by itself. A lane has eight states of one channel, and N / 8 lanes share the
// channel. First, for the links between the chunks, the warp finds the chunk's maps (GroupMaps).
// Then (GroupGradients) it runs forward through the chunk from the state before it and keeps the
// state before each run of eight tokens in shared memory; and from the last run to the first, it
// computes the run's states once more, in registers, and goes back through them. T tokens, E
// channels, N states.
#pragma once

#include "kernels/selective_scan/channel_sum.cuh"
#include "kernels/selective_scan/selective_scan.cuh"

namespace eyrie::selective_scan {

inline constexpr int kChunk = BackwardPlan::kChunk;  // tokens
inline constexpr int kRun = 8;                       // tokens whose states a lane has at once
inline constexpr int kRuns = kChunk / kRun;

template <class T>
struct BackwardTensors {
  Inputs<T> in;
  const float* skip;
  float* states;           // [B, chunks, E, N] before each chunk; becomes the chunk's share of dA
  const float* gradients;  // [B, chunks, E, N] of the states after each chunk
  T *dx, *ddt, *dz;
  float *dskip, *ddt_bias;  // [B, chunks, E] shares of the chunks
  float* slabs;             // [slabs, B, T, 2N]
};

// What a warp has of the tokens of a chunk, of its group of channels. Zeros where there is no token
// or channel. On the way back, the gradient of delta replaces delta, the output before the gate
// replaces its gradient dy, and dx replaces x.
template <class T, int kSplit>
struct alignas(16) TokensShared {
  static constexpr int kWidth = 32 / kSplit;  // channels
  float delta[kChunk][kWidth], dy[kChunk][kWidth];
  T x[kChunk][kWidth];
};
template <class T, int kSplit>
struct GradientsShared : TokensShared<T, kSplit> {
  using Sum = ChannelSum<kSplit, std::is_same_v<T, float>>;
  float4 kept[kRuns][2][32];  // each lane's states before each run
  // Gradients of B and C, summed over the groups: the four pairs of a run's tokens, of each lane.
  alignas(16) float dbc[kRuns][2][Sum::kCount][32][kRun / 2];
};

// The sum over the lanes that share a channel; each gets it.
template <int kSplit>
__device__ __forceinline__ float SumOfChannel(float x) {
#pragma unroll
  for (int lane = 16; lane >= 32 / kSplit; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

__device__ __forceinline__ void Eight(const float* row, float (&to)[kLaneStates]) {
  const float4 a = Four(row), b = Four(row + 4);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
  to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// B and C of a chunk, N padded.
template <int kSplit>
using BcShared = float[kChunk][2 * kSplit * kLaneStates];

// One group of channels of one chunk. Tokens of a [B, T, E] tensor are loaded and stored kVector
// channels at a time, 1 or as many as 16 bytes or the group's width hold.
template <class T, int kSplit, int kVector>
class Group {
 protected:
  static constexpr int kWidth = 32 / kSplit;
  static constexpr int kPadded = kSplit * kLaneStates;        // N
  static constexpr int kPieces = kWidth / kVector;            // vectors of a token
  static constexpr int kRows = 32 / kPieces;                  // tokens that the warp moves at once
  static constexpr int kBatch = std::min(4, kChunk / kRows);  // vectors of a tensor on their way

  __device__ Group(const Plan& plan, const Inputs<T>& in, const BcShared<kSplit>& bc,
                   TokensShared<T, kSplit>& tokens, int b, int chunk, int group)
      : plan_(plan),
        in_(in),
        bc_(bc),
        shared_(tokens),
        lane_(static_cast<int>(threadIdx.x) % 32),
        column_(lane_ % kWidth),
        first_(group * kWidth),
        state_(lane_ / kWidth * kLaneStates),
        begin_(chunk * kChunk),
        tokens_(min(plan.time - begin_, kChunk)),
        count_(has_channel() ? min(max(plan.states - state_, 0), kLaneStates) : 0),
        row_(int64_t{b} * plan.time + begin_),
        index_(int64_t{b} * plan.chunks + chunk) {
    LoadRates(in_.a_log + StateOffset(0), count_, rates_);
  }

  __device__ int channel() const { return first_ + column_; }
  __device__ bool has_channel() const { return channel() < plan_.channels; }

  __device__ int LastRun() const { return (tokens_ - 1) / kRun; }
  __device__ static unsigned StartsOf(uint64_t starts, int run) {
    return static_cast<unsigned>(starts >> run * kRun) & ((1u << kRun) - 1);
  }
  // Of the lane's first state in a [B, chunks, E, N] tensor.
  __device__ int64_t StateOffset(int64_t index) const {
    return index * plan_.state_size() + int64_t{channel()} * plan_.states + state_;
  }

  // The first column of the vectors that this lane moves, and the offset of one of them in a
  // [B, T, E] tensor; -1 where it does not exist.
  __device__ int FirstColumn() const { return lane_ % kPieces * kVector; }
  __device__ int64_t Offset(int token) const {
    const int channel = first_ + FirstColumn();
    const bool exists = token < tokens_ && channel < plan_.channels;
    return exists ? (row_ + token) * plan_.channels + channel : -1;
  }
  __device__ void LoadBias(float (&bias)[kVector]) const {
    const int channel = first_ + FirstColumn();
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      bias[k] = channel + k < plan_.channels ? in_.dt_bias[channel + k] : 0;
    }
  }

  __device__ void LoadTokens() {
    float bias[kVector];
    LoadBias(bias);
    const int column = FirstColumn();
    for (int first = lane_ / kPieces; first < kChunk; first += kBatch * kRows) {
      Vector<T, kVector> x[kBatch], dt[kBatch], z[kBatch], dout[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t at = max(Offset(first + i * kRows), int64_t{0});
        x[i] = LoadVector<kVector>(in_.x + at);
        dt[i] = LoadVector<kVector>(in_.dt + at);
        z[i] = LoadVector<kVector>(in_.z + at);
        dout[i] = LoadVector<kVector>(in_.dout + at);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int token = first + i * kRows;
        const bool exists = Offset(token) >= 0;
        float delta[kVector], dy[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const float softplus = Softplus(dt[i][k] + bias[k]);
          const float gradient = GateGradient(z[i][k], dout[i][k]);
          delta[k] = exists ? softplus : 0;
          dy[k] = exists ? gradient : 0;
        }
        if (!exists) x[i] = {};
        StoreVector(&shared_.x[token][column], x[i]);
        StoreFloats(&shared_.delta[token][column], delta);
        StoreFloats(&shared_.dy[token][column], dy);
      }
    }
  }

  const Plan& plan_;
  const Inputs<T>& in_;
  const BcShared<kSplit>& bc_;
  TokensShared<T, kSplit>& shared_;
  int lane_;
  int column_, first_;  // the lane's channel, in the group and that of the group's first
  int state_;           // the lane's first
  int begin_, tokens_;  // of the chunk
  int count_;           // states that exist
  int64_t row_;         // of the chunk's first token, in [B, T]
  int64_t index_;       // of the chunk, in [B, chunks]
  float rates_[kLaneStates];
};

// Finds the chunk's maps.
template <class T, int kSplit, int kVector>
class GroupMaps : Group<T, kSplit, kVector> {
  using Base = Group<T, kSplit, kVector>;
  using Base::bc_, Base::shared_, Base::column_, Base::state_, Base::lane_, Base::rates_;

 public:
  __device__ GroupMaps(const Plan& plan, const Inputs<T>& in, const BcShared<kSplit>& bc,
                       TokensShared<T, kSplit>& tokens, int b, int chunk, int group)
      : Base(plan, in, bc, tokens, b, chunk, group) {}

  // `starts` has a bit a token.
  __device__ void Run(uint64_t starts, const ChunkTensors<T>& tensors) {
    this->LoadTokens();
    __syncwarp();
    float h[kLaneStates] = {}, gradient[kLaneStates] = {}, decay[kLaneStates], sum = 0;
#pragma unroll
    for (float& d : decay) d = 1;
    bool started = false;
    for (int run = 0; run <= this->LastRun(); ++run) {
      const unsigned bits = this->StartsOf(starts, run);
      WithConstant(bits != 0 || started, [&](auto checked) {
#pragma unroll 4
        for (int j = 0; j < kRun; ++j) {
          const int token = run * kRun + j;
          if (checked() && (bits >> j & 1) != 0) {
            started = true;
#pragma unroll
            for (float& state : h) state = 0;
          }
          const float delta = shared_.delta[token][column_], dy = shared_.dy[token][column_];
          const float step = delta * ToFloat(shared_.x[token][column_]);
          float b[kLaneStates], c[kLaneStates];
          Eight(&bc_[token][state_], b);
          Eight(&bc_[token][Base::kPadded + state_], c);
          sum += delta;
#pragma unroll
          for (int i = 0; i < kLaneStates; ++i) {
            const float a = Exp2(delta * rates_[i]);
            h[i] = fmaf(a, h[i], step * b[i]);
            if (checked() && started) continue;  // no gradient passes a start
            decay[i] *= a;
            gradient[i] = fmaf(decay[i], c[i] * dy, gradient[i]);
          }
        }
      });
    }
    const int64_t at = this->StateOffset(this->index_);
    StoreStates(h, this->count_, tensors.increments + at);
    StoreStates(gradient, this->count_, tensors.gradients + at);
    if (lane_ < Base::kWidth && this->has_channel()) {
      tensors.sums[this->index_ * this->plan_.channels + this->channel()] =
          started ? INFINITY : sum;
    }
    __syncwarp();  // before the next group's tokens
  }
};

// Finds the gradients, from what enters the chunk at either end.
template <class T, int kSplit, int kVector>
class GroupGradients : Group<T, kSplit, kVector> {
  using Base = Group<T, kSplit, kVector>;
  using Base::count_, Base::index_, Base::rates_, Base::kWidth, Base::kPadded, Base::kPieces;
  using Base::kRows, Base::kBatch, Base::Offset, Base::FirstColumn, Base::StateOffset;
  using Base::LastRun, Base::StartsOf, Base::LoadBias;
  using Base::plan_, Base::in_, Base::bc_, Base::lane_, Base::column_, Base::first_, Base::state_;

 public:
  using Shared = GradientsShared<T, kSplit>;
  __device__ GroupGradients(const Plan& plan, const BackwardTensors<T>& tensors,
                            const BcShared<kSplit>& bc, Shared& shared, int b, int chunk, int group)
      : Base(plan, tensors.in, bc, shared, b, chunk, group), tensors_(tensors), shared_(shared) {}

  // `starts` has a bit a token.
  __device__ void Run(uint64_t starts) {
    float h[kLaneStates];
    LoadStates(tensors_.states + StateOffset(index_), count_, h);
    LoadStates(tensors_.gradients + StateOffset(index_), count_, carry_);
    this->LoadTokens();
    __syncwarp();
    KeepStates(starts, h);
    const float skip = this->has_channel() ? tensors_.skip[this->channel()] : 0;
    float dskip = 0;
    for (int run = LastRun(); run >= 0; --run) {
      const unsigned bits = StartsOf(starts, run);
      WithConstant(bits != 0,
                   [&](auto checked) { this->template GoBack<checked()>(run, bits, skip, dskip); });
    }
    StoreStates(drates_, count_, tensors_.states + StateOffset(index_));
    if (lane_ < kWidth && this->has_channel()) {
      tensors_.dskip[index_ * plan_.channels + this->channel()] = dskip;
    }
    __syncwarp();
    StoreTokens();
    __syncwarp();  // before the next group's tokens
  }

 private:
  // Gradients of the chunk's tokens, from what the way back has left.
  __device__ void StoreTokens() {
    float bias[kVector], sums[kVector] = {};
    LoadBias(bias);
    const int column = FirstColumn();
    for (int first = lane_ / kPieces; first < kChunk; first += kBatch * kRows) {
      Vector<T, kVector> dt[kBatch], z[kBatch], dout[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t at = max(Offset(first + i * kRows), int64_t{0});
        dt[i] = LoadVector<kVector>(in_.dt + at);
        z[i] = LoadVector<kVector>(in_.z + at);
        dout[i] = LoadVector<kVector>(in_.dout + at);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int token = first + i * kRows;
        const int64_t at = Offset(token);
        if (at < 0) continue;
        Vector<T, kVector> ddt, dz;
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const float slope = shared_.delta[token][column + k] * Sigmoid(dt[i][k] + bias[k]);
          const float y = shared_.dy[token][column + k], s = Sigmoid(z[i][k]);
          ddt.Set(k, slope);
          dz.Set(k, dout[i][k] * y * s * (1 + z[i][k] * (1 - s)));
          sums[k] += slope;
        }
        StoreVector(tensors_.dx + at, LoadVector<kVector>(&shared_.x[token][column]));
        StoreVector(tensors_.ddt + at, ddt);
        StoreVector(tensors_.dz + at, dz);
      }
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
#pragma unroll
      for (int lane = 16; lane >= kPieces; lane /= 2) {
        sums[k] += __shfl_xor_sync(~0u, sums[k], lane);
      }
      const int channel = first_ + lane_ * kVector + k;
      if (lane_ < kPieces && channel < plan_.channels) {
        tensors_.ddt_bias[index_ * plan_.channels + channel] = sums[k];
      }
    }
  }

  // From the states h before the chunk on.
  __device__ void KeepStates(uint64_t starts, float (&h)[kLaneStates]) {
    for (int run = 0;; ++run) {
      shared_.kept[run][0][lane_] = make_float4(h[0], h[1], h[2], h[3]);
      shared_.kept[run][1][lane_] = make_float4(h[4], h[5], h[6], h[7]);
      if (run == LastRun()) return;
      const unsigned bits = StartsOf(starts, run);
      WithConstant(bits != 0, [&](auto checked) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const int token = run * kRun + j;
          const float delta = shared_.delta[token][column_];
          const float step = delta * ToFloat(shared_.x[token][column_]);
          const bool start = checked() && (bits >> j & 1) != 0;
          float b[kLaneStates];
          Eight(&bc_[token][state_], b);
#pragma unroll
          for (int i = 0; i < kLaneStates; ++i) {
            h[i] = fmaf(Exp2(delta * rates_[i]), start ? 0 : h[i], step * b[i]);
          }
        }
      });
    }
  }

  // Through a run's tokens forward and back. kStarts: whether one of them starts a document, as
  // `starts` says.
  template <bool kStarts>
  __device__ __forceinline__ void GoBack(int run, unsigned starts, float skip, float& dskip) {
    float decay[kRun][kLaneStates];    // a
    float decayed[kRun][kLaneStates];  // a h of the token before
    float delta[kRun], x[kRun], dy[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const int token = run * kRun + j;
      delta[j] = shared_.delta[token][column_];
      x[j] = ToFloat(shared_.x[token][column_]);
      dy[j] = shared_.dy[token][column_];
    }
    __syncwarp();  // all have them: their places are free
    float h[kLaneStates];
    {
      const float4 low = shared_.kept[run][0][lane_], high = shared_.kept[run][1][lane_];
      h[0] = low.x, h[1] = low.y, h[2] = low.z, h[3] = low.w;
      h[4] = high.x, h[5] = high.y, h[6] = high.z, h[7] = high.w;
    }
    typename Shared::Sum sum;
    PairSums dc, db;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const int token = run * kRun + j;
      const bool start = kStarts && (starts >> j & 1) != 0;
      const float step = delta[j] * x[j];
      float b[kLaneStates], c[kLaneStates], values[kLaneStates], y = 0;
      Eight(&bc_[token][state_], b);
      Eight(&bc_[token][kPadded + state_], c);
#pragma unroll
      for (int i = 0; i < kLaneStates; ++i) {
        decay[j][i] = start ? 0 : Exp2(delta[j] * rates_[i]);
        decayed[j][i] = start ? 0 : decay[j][i] * h[i];
        h[i] = fmaf(step, b[i], decayed[j][i]);
        y = fmaf(c[i], h[i], y);
        values[i] = dy[j] * h[i];
      }
      AddToSums<kStarts>(sum, j, /*last=*/j % 2 == 1, values, dc);
      y = SumOfChannel<kSplit>(y);
      if (lane_ < kWidth) shared_.dy[token][column_] = fmaf(skip, x[j], y);
    }
    Accumulate(dc, shared_.dbc[run][1]);

#pragma unroll
    for (int j = kRun - 1; j >= 0; --j) {
      const int token = run * kRun + j;
      const bool start = kStarts && (starts >> j & 1) != 0;
      const float step = delta[j] * x[j];
      float b[kLaneStates], c[kLaneStates], values[kLaneStates], through = 0, rates = 0;
      Eight(&bc_[token][state_], b);
      Eight(&bc_[token][kPadded + state_], c);
#pragma unroll
      for (int i = 0; i < kLaneStates; ++i) {
        const float g = fmaf(c[i], dy[j], carry_[i]), slope = g * decayed[j][i];
        values[i] = g * step;
        through = fmaf(g, b[i], through);
        rates = fmaf(slope, rates_[i], rates);
        drates_[i] = fmaf(slope, delta[j], drates_[i]);
        carry_[i] = start ? 0 : decay[j][i] * g;
      }
      AddToSums<kStarts>(sum, j, /*last=*/j % 2 == 0, values, db);
      through = SumOfChannel<kSplit>(through);
      rates = SumOfChannel<kSplit>(rates);
      if (lane_ < kWidth) {
        shared_.delta[token][column_] = fmaf(kLn2, rates, x[j] * through);
        shared_.x[token][column_] = FromFloat<T>(fmaf(skip, dy[j], delta[j] * through));
      }
      dskip = fmaf(dy[j], x[j], dskip);
    }
    Accumulate(db, shared_.dbc[run][0]);
  }

  // A lane's sums over channels, of the pairs of a run's tokens.
  struct PairSums {
    float values[Shared::Sum::kCount][kRun / 2];
  };
  // Adds what token j gives dB or dC; `last` of its pair. Where one of them may start a document,
  // they do not share a product: one's NaN would reach the other.
  template <bool kStarts>
  __device__ __forceinline__ static void AddToSums(typename Shared::Sum& sum, int j, bool last,
                                                   const float (&values)[kLaneStates],
                                                   PairSums& pairs) {
    const bool odd = j % 2 == 1;
    sum.Add(odd, values);
    if (!kStarts && !last) return;
    float result[Shared::Sum::kCount];
    sum.Finish(result);
#pragma unroll
    for (int k = 0; k < Shared::Sum::kCount; ++k) {
      if (!kStarts || odd == Shared::Sum::GetsOdd()) pairs.values[k][j / 2] = result[k];
    }
  }
  __device__ __forceinline__ void Accumulate(const PairSums& pairs,
                                             float (&to)[Shared::Sum::kCount][32][kRun / 2]) const {
#pragma unroll
    for (int k = 0; k < Shared::Sum::kCount; ++k) {
      const auto before = LoadVector<kRun / 2>(to[k][lane_]);
      float sums[kRun / 2];
#pragma unroll
      for (int pair = 0; pair < kRun / 2; ++pair) sums[pair] = before[pair] + pairs.values[k][pair];
      StoreFloats(to[k][lane_], sums);
    }
  }

  const BackwardTensors<T>& tensors_;
  Shared& shared_;
  float carry_[kLaneStates];        // the gradient that the token after hands over, decayed
  float drates_[kLaneStates] = {};  // of A
};

}  // namespace eyrie::selective_scan
