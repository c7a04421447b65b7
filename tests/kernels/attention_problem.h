// A problem for the attention kernel, and its solution by the definition, one query and one head
// at a time in float64.
#pragma once

#include "kernels/attention/attention.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace attention_test {

// B sequences, T tokens, H query heads, dh head width, P past rows.
struct Problem {
  int64_t batch, time, heads, width, past, window;
  OwnedTensor q, k, v, past_k, past_v, positions, dout;
};

struct Results {
  OwnedTensor o, lse, dq, dk, dv, dpast_k, dpast_v;
};

// Documents of about `length` tokens; the first may have begun in the past.
inline OwnedTensor Documents(int64_t batch, int64_t time, int64_t past, int64_t length,
                             TestRandom& random) {
  OwnedTensor positions(DType::kI32, {batch, time});
  for (int64_t b = 0; b < batch; ++b) {
    int64_t position = random.Int(0, past);
    for (int64_t t = 0; t < time; ++t) {
      Set(positions.tensor, b * time + t, static_cast<double>(position));
      position = random.Int(1, length) == 1 ? 0 : position + 1;
    }
  }
  return positions;
}

inline Problem MakeProblem(int64_t batch, int64_t time, int64_t heads, int64_t width, int64_t past,
                           int64_t window, int64_t length, TestRandom& random) {
  const auto draw = [&](Shape shape) { return RandomTensor(DType::kF64, shape, random); };
  return Problem{.batch = batch,
                 .time = time,
                 .heads = heads,
                 .width = width,
                 .past = past,
                 .window = window,
                 .q = draw({batch, time, heads, width}),
                 .k = draw({batch, time, width}),
                 .v = draw({batch, time, width}),
                 .past_k = draw({batch, past, width}),
                 .past_v = draw({batch, past, width}),
                 .positions = Documents(batch, time, past, length, random),
                 .dout = draw({batch, time, heads, width})};
}

inline Results Outputs(const Problem& p, DType dtype) {
  return Results{.o = PoisonedTensor(dtype, p.q.tensor.shape),
                 .lse = PoisonedTensor(dtype, {p.batch, p.time, p.heads}),
                 .dq = PoisonedTensor(dtype, p.q.tensor.shape),
                 .dk = PoisonedTensor(dtype, p.k.tensor.shape),
                 .dv = PoisonedTensor(dtype, p.k.tensor.shape),
                 .dpast_k = PoisonedTensor(dtype, p.past_k.tensor.shape),
                 .dpast_v = PoisonedTensor(dtype, p.past_k.tensor.shape)};
}

// Workspace of this many elements, full of NaN, where `like` lies; absent for none.
inline OwnedTensor PoisonedWorkspace(int64_t elements, const Tensor& like) {
  if (elements == 0) return OwnedTensor();
  OwnedTensor workspace(DType::kF32, {elements}, like.device);
  Copy(PoisonedTensor(DType::kF32, {elements}).tensor, workspace.tensor);
  return workspace;
}

inline void Forward(const Problem& p, const Results& r) {
  AttentionForwardArgs args{.q = p.q.tensor,
                            .k = p.k.tensor,
                            .v = p.v.tensor,
                            .past_k = p.past > 0 ? p.past_k.tensor : Tensor{},
                            .past_v = p.past > 0 ? p.past_v.tensor : Tensor{},
                            .positions = p.positions.tensor,
                            .window = p.window,
                            .o = r.o.tensor,
                            .lse = r.lse.tensor};
  const OwnedTensor workspace = PoisonedWorkspace(AttentionForwardWorkspace(args), args.q);
  args.workspace = workspace.tensor;
  AttentionForward(args);
}

inline void Backward(const Problem& p, const Results& r) {
  AttentionBackwardArgs args{.q = p.q.tensor,
                             .k = p.k.tensor,
                             .v = p.v.tensor,
                             .past_k = p.past > 0 ? p.past_k.tensor : Tensor{},
                             .past_v = p.past > 0 ? p.past_v.tensor : Tensor{},
                             .positions = p.positions.tensor,
                             .window = p.window,
                             .o = r.o.tensor,
                             .lse = r.lse.tensor,
                             .dout = p.dout.tensor,
                             .dq = r.dq.tensor,
                             .dk = r.dk.tensor,
                             .dv = r.dv.tensor,
                             .dpast_k = r.dpast_k.tensor,
                             .dpast_v = r.dpast_v.tensor};
  const OwnedTensor workspace = PoisonedWorkspace(AttentionBackwardWorkspace(args), args.q);
  args.workspace = workspace.tensor;
  AttentionBackward(args);
}

inline Results Solve(const Problem& p) {
  Results r = Outputs(p, p.q.tensor.dtype);
  Forward(p, r);
  Backward(p, r);
  return r;
}

inline Problem CastProblem(const Problem& p, DType dtype) {
  return Problem{.batch = p.batch,
                 .time = p.time,
                 .heads = p.heads,
                 .width = p.width,
                 .past = p.past,
                 .window = p.window,
                 .q = Cast(p.q.tensor, dtype),
                 .k = Cast(p.k.tensor, dtype),
                 .v = Cast(p.v.tensor, dtype),
                 .past_k = Cast(p.past_k.tensor, dtype),
                 .past_v = Cast(p.past_v.tensor, dtype),
                 .positions = Clone(p.positions.tensor),
                 .dout = Cast(p.dout.tensor, dtype)};
}

inline Results Reference(const Problem& p) {
  Results r = Outputs(p, DType::kF64);
  for (const OwnedTensor* sum : {&r.dk, &r.dv, &r.dpast_k, &r.dpast_v}) FillZero(sum->tensor);
  // Row of key number j (negative: past) of sequence b.
  const auto row = [&](const OwnedTensor& current, const OwnedTensor& past, int64_t b, int64_t j) {
    return j >= 0 ? current.tensor.data<double>() + (b * p.time + j) * p.width
                  : past.tensor.data<double>() + (b * p.past + p.past + j) * p.width;
  };
  for (int64_t i = 0; i < p.batch * p.time * p.heads; ++i) {
    const int64_t b = i / (p.time * p.heads);
    const int64_t t = i / p.heads % p.time;
    const double* q = p.q.tensor.data<double>() + i * p.width;
    const double* dout = p.dout.tensor.data<double>() + i * p.width;
    double* o = r.o.tensor.data<double>() + i * p.width;
    double* dq = r.dq.tensor.data<double>() + i * p.width;
    const double position = Get(p.positions.tensor, b * p.time + t);
    std::vector<double> weight, dweight;
    double denominator = 0, mean = 0;
    for (int64_t s = 0; static_cast<double>(s) <= position && t - s >= -p.past; ++s) {
      if (p.window > 0 && s > p.window) break;
      const double* k = row(p.k, p.past_k, b, t - s);
      const double* v = row(p.v, p.past_v, b, t - s);
      double score = 0, dp = 0;
      for (int64_t d = 0; d < p.width; ++d) {
        score += q[d] * k[d] / std::sqrt(static_cast<double>(p.width));
        dp += dout[d] * v[d];
      }
      weight.push_back(std::exp(score));
      dweight.push_back(dp);
      denominator += weight.back();
      mean += weight.back() * dp;
    }
    Set(r.lse.tensor, i, std::log(denominator));
    mean /= denominator;
    std::fill(o, o + p.width, 0.0);
    std::fill(dq, dq + p.width, 0.0);
    for (size_t s = 0; s < weight.size(); ++s) {
      const int64_t j = t - static_cast<int64_t>(s);
      const double probability = weight[s] / denominator;
      const double dscore =
          probability * (dweight[s] - mean) / std::sqrt(static_cast<double>(p.width));
      for (int64_t d = 0; d < p.width; ++d) {
        o[d] += probability * row(p.v, p.past_v, b, j)[d];
        dq[d] += dscore * row(p.k, p.past_k, b, j)[d];
        row(r.dk, r.dpast_k, b, j)[d] += dscore * q[d];
        row(r.dv, r.dpast_v, b, j)[d] += probability * dout[d];
      }
    }
  }
  return r;
}

// Against 1 where the norm is smaller: a single key's probability is 1 whatever its score, and its
// gradient nothing but rounding.
inline double ErrorOf(const OwnedTensor& a, const OwnedTensor& b) {
  return RelativeError(a.tensor, b.tensor, 1);
}

inline void ExpectNear(const Results& a, const Results& b, double tolerance) {
  EXPECT_LT(ErrorOf(a.o, b.o), tolerance);
  EXPECT_LT(ErrorOf(a.lse, b.lse), tolerance);
  EXPECT_LT(ErrorOf(a.dq, b.dq), tolerance);
  EXPECT_LT(ErrorOf(a.dk, b.dk), tolerance);
  EXPECT_LT(ErrorOf(a.dv, b.dv), tolerance);
  EXPECT_LT(ErrorOf(a.dpast_k, b.dpast_k), tolerance);
  EXPECT_LT(ErrorOf(a.dpast_v, b.dpast_v), tolerance);
}

inline void ExpectSameBits(const Results& one, const Results& two) {
  EXPECT_TRUE(BitwiseEqual(one.o.tensor, two.o.tensor));
  EXPECT_TRUE(BitwiseEqual(one.lse.tensor, two.lse.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dq.tensor, two.dq.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dk.tensor, two.dk.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dv.tensor, two.dv.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dpast_k.tensor, two.dpast_k.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dpast_v.tensor, two.dpast_v.tensor));
}

}  // namespace attention_test
}  // namespace eyrie
