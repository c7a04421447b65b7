#include "kernels/attention/attention_cpu.h"

#include "core/round.h"
#include "kernels/attention/attention_inputs.h"
#include "kernels/partition.h"
#include "kernels/row_math.h"

namespace eyrie {
namespace {

// Legend: attention_inputs.h. Blocks are spread over threads and then call BLAS single-threaded;
// when there is but one block, BLAS itself and the loops over its rows use the threads.

int64_t MostScores(const std::vector<QueryBlock>& blocks) {
  int64_t most = 0;
  for (const QueryBlock& block : blocks) most = std::max(most, block.scores());
  return most;
}

// probabilities [R, N] is scratch.
template <class T>
void ForwardBlock(const AttentionInputs<T>& in, const QueryBlock& block, T* probabilities, T* o,
                  T* lse) {
  const int64_t width = in.extents.width;
  const int64_t first_row = in.FirstRow(block);
  TimesKeysTransposed(block, in.scale, in.q + first_row * width, in.Keys(block.sequence),
                      probabilities);
  ForPieces(block.rows(), block.scores(), [&](int64_t r) {
    T* row = probabilities + r * block.keys();
    const auto [begin, end] = in.Visible(block, r);
    std::fill(row, row + begin, T(0));
    std::fill(row + end, row + block.keys(), T(0));
    T* seen = row + begin;
    const T largest = MaxOf(seen, end - begin);
    const double sum = SumByPieces(end - begin, [&](int64_t from, int64_t count) {
      return ExpInPlace(seen + from, count, largest);
    });
    ScaleRow(static_cast<T>(1.0 / sum), seen, seen, end - begin);
    lse[first_row + r] = largest + static_cast<T>(std::log(sum));
  });
  TimesKeys(block, probabilities, in.Values(block.sequence), o + first_row * width);
}

template <class T>
struct Gradients {
  const T *o, *lse, *dout;
  T* dq;
};

// p: scores -> probabilities; ds: dP -> gradient of q k^T.
template <class T>
void BackwardRow(T lse, T delta, T scale, int64_t n, T* p, T* ds) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    p[j] = Exp(p[j] - lse);
    ds[j] = scale * p[j] * (ds[j] - delta);
  }
}

// Writes dq of the block and adds to the sums of its group: dk, dv [keys of the group, dh].
// scratch [2, R, N].
template <class T>
void BackwardBlock(const AttentionInputs<T>& in, const Gradients<T>& grads, const QueryBlock& block,
                   T* scratch, T* dk, T* dv) {
  const int64_t width = in.extents.width;
  const int64_t keys = block.keys();
  const int64_t first_row = in.FirstRow(block);
  const T* q = in.q + first_row * width;
  const T* o = grads.o + first_row * width;
  const T* dout = grads.dout + first_row * width;
  T* p = scratch;                    // scores, then probabilities
  T* ds = scratch + block.scores();  // dP = dout V^T, then the gradient of the scaled scores
  TimesKeysTransposed(block, in.scale, q, in.Keys(block.sequence), p);
  TimesKeysTransposed(block, T(1), dout, in.Values(block.sequence), ds);
  ForPieces(block.rows(), block.scores(), [&](int64_t r) {
    T* p_row = p + r * keys;
    T* ds_row = ds + r * keys;
    const auto [begin, end] = in.Visible(block, r);
    for (T* row : {p_row, ds_row}) {
      std::fill(row, row + begin, T(0));
      std::fill(row + end, row + keys, T(0));
    }
    const T delta = DotOf(dout + r * width, o + r * width, width);  // sum of p dP over keys
    BackwardRow(grads.lse[first_row + r], delta, in.scale, end - begin, p_row + begin,
                ds_row + begin);
  });
  Gemm(Trans::kYes, Trans::kNo, keys, width, block.rows(), T(1), p, keys, dout, width, T(1), dv,
       width);
  Gemm(Trans::kYes, Trans::kNo, keys, width, block.rows(), T(1), ds, keys, q, width, T(1), dk,
       width);
  TimesKeys(block, ds, in.Keys(block.sequence), grads.dq + first_row * width);
}

// out[i] = the sum over the groups of `sequence`, in their order, of what they have for key
// first_key + i; zero for a key that no query saw. out [count, dh].
template <class T>
void SumGroups(const std::vector<BlockGroup>& groups, const T* sums, int64_t sequence,
               int64_t width, int64_t first_key, int64_t count, T* out) {
  constexpr int64_t kRows = 32;
  ForPieces(CeilDiv(count, kRows), count * width, [&](int64_t piece) {
    const int64_t begin = piece * kRows;
    const int64_t end = std::min(count, begin + kRows);
    std::fill(out + begin * width, out + end * width, T(0));
    for (const BlockGroup& group : groups) {
      if (group.sequence != sequence) continue;
      const int64_t from = std::max(begin + first_key, group.key_begin);
      const int64_t to = std::min(end + first_key, group.key_end);
      if (from >= to) continue;
      T* row = out + (from - first_key) * width;
      const T* sum = sums + (group.sums + from - group.key_begin) * width;
      AddScaledRow(T(1), sum, row, (to - from) * width);
    }
  });
}

}  // namespace

template <class T>
void AttentionForwardCpu(const AttentionForwardArgs& args) {
  const AttentionInputs<T> in(args);
  T* o = args.o.data<T>();
  T* lse = args.lse.data<T>();
  const std::vector<QueryBlock> blocks = CutIntoBlocks(in.extents);
  ForEachWithScratch<T>(std::ssize(blocks), MostScores(blocks), [&](size_t i, T* scratch) {
    ForwardBlock(in, blocks[i], scratch, o, lse);
  });
}

template <class T>
void AttentionBackwardCpu(const AttentionBackwardArgs& args) {
  const AttentionInputs<T> in(args);
  const AttentionExtents& extents = in.extents;
  const int64_t width = extents.width;
  const Gradients<T> grads{.o = args.o.data<T>(),
                           .lse = args.lse.data<T>(),
                           .dout = args.dout.data<T>(),
                           .dq = args.dq.data<T>()};
  const std::vector<QueryBlock> blocks = CutIntoBlocks(extents);
  int64_t key_rows = 0;
  const std::vector<BlockGroup> groups = GroupBlocks(blocks, extents.sequences, &key_rows);
  const std::unique_ptr<T[]> dk_sums = Scratch<T>(key_rows * width);
  const std::unique_ptr<T[]> dv_sums = Scratch<T>(key_rows * width);
  ForEachWithScratch<T>(std::ssize(groups), 2 * MostScores(blocks), [&](size_t i, T* scratch) {
    const BlockGroup& group = groups[i];
    T* dk = dk_sums.get() + group.sums * width;
    T* dv = dv_sums.get() + group.sums * width;
    const int64_t elements = (group.key_end - group.key_begin) * width;
    std::fill(dk, dk + elements, T(0));
    std::fill(dv, dv + elements, T(0));
    for (size_t b = group.block_begin; b < group.block_end; ++b) {
      const int64_t skip = (blocks[b].key_begin - group.key_begin) * width;
      BackwardBlock(in, grads, blocks[b], scratch, dk + skip, dv + skip);
    }
  });

  const auto write = [&](const Tensor& out, const T* sums, int64_t first_key, int64_t count) {
    if (!out.defined()) return;
    T* rows = out.data<T>();
    for (int64_t b = 0; b < extents.sequences; ++b) {
      SumGroups(groups, sums, b, width, first_key, count, rows + b * count * width);
    }
  };
  write(args.dk, dk_sums.get(), 0, extents.tokens);
  write(args.dv, dv_sums.get(), 0, extents.tokens);
  write(args.dpast_k, dk_sums.get(), -extents.past, extents.past);
  write(args.dpast_v, dv_sums.get(), -extents.past, extents.past);
}

template void AttentionForwardCpu<float>(const AttentionForwardArgs&);
template void AttentionForwardCpu<double>(const AttentionForwardArgs&);
template void AttentionBackwardCpu<float>(const AttentionBackwardArgs&);
template void AttentionBackwardCpu<double>(const AttentionBackwardArgs&);

}  // namespace eyrie
