// CUDA bodies of lightning attention against the CPU's in float64.
#include "kernels/lightning_attention/lightning_attention.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

struct Sizes {
  int64_t batch, time, heads, keys, values;
};

struct Inputs {
  Inputs(const Sizes& s, TestRandom& random)
      : q(RandomTensor(DType::kF32, {s.batch, s.time, s.heads, s.keys}, random)),
        k(RandomTensor(DType::kF32, {s.batch, s.time, s.heads, s.keys}, random)),
        v(RandomTensor(DType::kF32, {s.batch, s.time, s.heads, s.values}, random)),
        dout(RandomTensor(DType::kF32, {s.batch, s.time, s.heads, s.values}, random)),
        s0(RandomTensor(DType::kF32, {s.batch, s.heads, s.keys, s.values}, random)),
        ds_last(RandomTensor(DType::kF32, {s.batch, s.heads, s.keys, s.values}, random)),
        rate(DType::kF32, {s.heads}),
        positions(RandomPositions(s.batch, s.time, random, true)) {
    for (int64_t h = 0; h < s.heads; ++h) Set(rate.tensor, h, std::exp(random.Uniform(-11, 0)));
    // Documents of a few tokens, longer than a tile, or without an end.
    const int64_t length = random.Int(0, 2) == 0 ? 1 << 30 : 90;
    if (random.Int(0, 2) == 0) return;
    for (int64_t i = 0; i < s.batch * s.time; ++i) {
      Set(positions.tensor, i, static_cast<double>((i % s.time + 5) % length));
    }
  }
  OwnedTensor q, k, v, dout, s0, ds_last, rate, positions;
};

struct Outputs {
  OwnedTensor o, s_last, dq, dk, dv, ds0, decay, increment, grad_decay, grad_increment;
};

// Runs everything on what `move` makes of the inputs, which takes those of full precision apart.
template <class Move, class Output>
Outputs RunAll(const Inputs& in, bool with_state, const Move& move, const Output& output) {
  const OwnedTensor q = move(in.q, false), k = move(in.k, false), v = move(in.v, false);
  const OwnedTensor dout = move(in.dout, false), rate = move(in.rate, true);
  const OwnedTensor s0 = move(in.s0, true), ds_last = move(in.ds_last, true);
  const OwnedTensor positions = move(in.positions, true);
  const Shape state = in.s0.tensor.shape, heads{state[0], state[1]};
  Outputs out{output(in.v.tensor.shape, false),
              output(state, true),
              output(in.q.tensor.shape, false),
              output(in.q.tensor.shape, false),
              output(in.v.tensor.shape, false),
              output(state, true),
              output(heads, true),
              output(state, true),
              output(heads, true),
              output(state, true)};
  const int64_t elements = LightningAttentionWorkspace(k.tensor, v.tensor);
  OwnedTensor workspace;
  if (elements > 0) workspace = OwnedTensor(DType::kF32, {elements}, q.tensor.device);
  const auto optional = [&](const OwnedTensor& tensor) {
    return with_state ? tensor.tensor : Tensor{};
  };
  LightningAttentionForward({.q = q.tensor,
                             .k = k.tensor,
                             .v = v.tensor,
                             .rate = rate.tensor,
                             .positions = positions.tensor,
                             .s0 = optional(s0),
                             .o = out.o.tensor,
                             .s_last = optional(out.s_last),
                             .workspace = workspace.tensor});
  LightningAttentionBackward({.q = q.tensor,
                              .k = k.tensor,
                              .v = v.tensor,
                              .rate = rate.tensor,
                              .positions = positions.tensor,
                              .s0 = optional(s0),
                              .dout = dout.tensor,
                              .ds_last = optional(ds_last),
                              .dq = out.dq.tensor,
                              .dk = out.dk.tensor,
                              .dv = out.dv.tensor,
                              .ds0 = optional(out.ds0),
                              .workspace = workspace.tensor});
  LightningAttentionSummary({.k = k.tensor,
                             .v = v.tensor,
                             .rate = rate.tensor,
                             .positions = positions.tensor,
                             .decay = out.decay.tensor,
                             .increment = out.increment.tensor,
                             .workspace = workspace.tensor});
  LightningAttentionGradSummary({.q = q.tensor,
                                 .rate = rate.tensor,
                                 .positions = positions.tensor,
                                 .dout = dout.tensor,
                                 .decay = out.grad_decay.tensor,
                                 .increment = out.grad_increment.tensor,
                                 .workspace = workspace.tensor});
  return out;
}

std::vector<Tensor> Given(const Outputs& out, bool with_state) {
  std::vector<Tensor> given = {
      out.o.tensor,     out.dq.tensor,        out.dk.tensor,         out.dv.tensor,
      out.decay.tensor, out.increment.tensor, out.grad_decay.tensor, out.grad_increment.tensor};
  if (with_state) given.insert(given.end(), {out.s_last.tensor, out.ds0.tensor});
  return given;
}

void ExpectMatchesTheCpu(const Sizes& sizes, DType dtype, TestRandom& random) {
  const Inputs in(sizes, random);
  for (bool with_state : {false, true}) {
    SCOPED_TRACE(StrCat(Name(dtype), " B ", sizes.batch, " T ", sizes.time, " H ", sizes.heads,
                        " dk ", sizes.keys, " dv ", sizes.values, " state ", with_state));
    const auto type = [&](bool full) { return full ? DType::kF32 : dtype; };
    const Outputs expected = RunAll(
        in, with_state,
        [&](const OwnedTensor& tensor, bool full) {
          const bool whole_numbers = tensor.tensor.dtype == DType::kI32;
          return whole_numbers ? Clone(tensor.tensor) : Rounded(tensor.tensor, type(full));
        },
        [](const Shape& shape, bool) { return PoisonedTensor(DType::kF64, shape); });
    const auto run = [&] {
      return RunAll(
          in, with_state,
          [&](const OwnedTensor& tensor, bool full) { return ToCuda(tensor.tensor, type(full)); },
          [&](const Shape& shape, bool full) { return PoisonedCuda(type(full), shape); });
    };
    const Outputs one = run(), two = run();
    const auto wanted = Given(expected, with_state), first = Given(one, with_state),
               second = Given(two, with_state);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const OwnedTensor there = ToHost(first[i]);
      // Decays of whole chunks may be smaller than float32 can say.
      EXPECT_LT(RelativeError(there.tensor, wanted[i], 1e-6), Tolerance(dtype)) << "output " << i;
      EXPECT_TRUE(BitwiseEqual(there.tensor, ToHost(second[i]).tensor)) << "output " << i;
    }
  }
}

using TypeAndTime = std::tuple<DType, int64_t>;
class CudaLightningAttentionOfTime : public testing::TestWithParam<TypeAndTime> {};

TEST_P(CudaLightningAttentionOfTime, MatchesTheCpu) {
  TestRandom random;
  const auto [dtype, time] = GetParam();
  ExpectMatchesTheCpu({2, time, 3, 64, 64}, dtype, random);
  ExpectMatchesTheCpu({1, time, 2, 128, 128}, dtype, random);
}
INSTANTIATE_TEST_SUITE_P(Times, CudaLightningAttentionOfTime,
                         InBothTypes(testing::Values(1, 5, 64, 65, 150)), kNameOfParameter);

using KeysAndValues = std::pair<int64_t, int64_t>;
// Keys of a rotating block are twice as wide as values; the backward pass exchanges the two.
class CudaLightningAttentionOfWidths
    : public testing::TestWithParam<std::tuple<DType, KeysAndValues>> {};

TEST_P(CudaLightningAttentionOfWidths, MatchesTheCpu) {
  TestRandom random;
  const auto& [dtype, widths] = GetParam();
  ExpectMatchesTheCpu({2, 100, 2, widths.first, widths.second}, dtype, random);
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaLightningAttentionOfWidths,
                         InBothTypes(testing::Values(KeysAndValues{256, 128},
                                                     KeysAndValues{128, 64}, KeysAndValues{72, 200},
                                                     KeysAndValues{8, 16}, KeysAndValues{256, 256},
                                                     KeysAndValues{5, 7}, KeysAndValues{33, 40},
                                                     KeysAndValues{130, 1})),
                         kNameOfParameter);

// Few heads and many tokens: several chunks, a ragged last one.
class CudaLightningAttentionOfChunks : public testing::TestWithParam<TypeAndTime> {};

TEST_P(CudaLightningAttentionOfChunks, MatchesTheCpu) {
  TestRandom random;
  const auto [dtype, time] = GetParam();
  ExpectMatchesTheCpu({1, time, 2, 64, 128}, dtype, random);
}
INSTANTIATE_TEST_SUITE_P(Times, CudaLightningAttentionOfChunks,
                         InBothTypes(testing::Values(512, 1000, 2049)), kNameOfParameter);

TEST(CudaLightningAttention, NarrowHeadsAreCutIntoChunksToo) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) ExpectMatchesTheCpu({2, 700, 1, 20, 12}, dtype, random);
  EXPECT_GT(LightningAttentionWorkspace(ZeroCuda(DType::kBF16, {1, 1000, 2, 64}).tensor,
                                        ZeroCuda(DType::kBF16, {1, 1000, 2, 128}).tensor),
            0);
}

// Rows that do not start at multiples of 16 bytes.
TEST(CudaLightningAttention, UnalignedTensors) {
  TestRandom random;
  const Inputs in({1, 70, 2, 16, 16}, random);
  const auto shifted = [&](const OwnedTensor& tensor) {
    const int64_t size = tensor.tensor.size();
    OwnedTensor whole(DType::kF32, {size + 1});
    for (int64_t i = 0; i < size; ++i) Set(whole.tensor, i + 1, Get(tensor.tensor, i));
    return ToCuda(whole.tensor, DType::kBF16);
  };
  const OwnedTensor q = shifted(in.q), k = shifted(in.k), v = shifted(in.v);
  const auto part = [&](const OwnedTensor& whole) {
    return whole.tensor.Rows(1, whole.tensor.size()).View({1, 70, 2, 16});
  };
  const OwnedTensor rate = ToCuda(in.rate.tensor), positions = ToCuda(in.positions.tensor);
  const OwnedTensor o = PoisonedCuda(DType::kBF16, in.v.tensor.shape);
  LightningAttentionForward({.q = part(q),
                             .k = part(k),
                             .v = part(v),
                             .rate = rate.tensor,
                             .positions = positions.tensor,
                             .o = o.tensor});
  const OwnedTensor expected(DType::kF64, in.v.tensor.shape);
  const auto rounded = [](const OwnedTensor& x) { return Rounded(x.tensor, DType::kBF16); };
  LightningAttentionForward({.q = rounded(in.q).tensor,
                             .k = rounded(in.k).tensor,
                             .v = rounded(in.v).tensor,
                             .rate = Cast(in.rate.tensor, DType::kF64).tensor,
                             .positions = in.positions.tensor,
                             .o = expected.tensor});
  EXPECT_LT(RelativeError(ToHost(o.tensor).tensor, expected.tensor), Tolerance(DType::kBF16));
}

TEST(CudaLightningAttention, RefusesWrongTypesAndWidths) {
  const OwnedTensor x = ZeroCuda(DType::kBF16, {1, 5, 2, 8}),
                    wide = ZeroCuda(DType::kBF16, {1, 5, 2, 264});
  const OwnedTensor rate = ZeroCuda(DType::kF32, {2}), short_rate = ZeroCuda(DType::kBF16, {2});
  const OwnedTensor positions = ZeroCuda(DType::kI32, {1, 5});
  const auto forward = [&](const OwnedTensor& keys, const OwnedTensor& rates) {
    LightningAttentionForward({.q = keys.tensor,
                               .k = keys.tensor,
                               .v = x.tensor,
                               .rate = rates.tensor,
                               .positions = positions.tensor,
                               .o = x.tensor});
  };
  EXPECT_THROW(forward(x, short_rate), Error);
  EXPECT_THROW(forward(wide, rate), Error);
}

}  // namespace
}  // namespace eyrie
