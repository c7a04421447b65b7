// The selective scan's CUDA bodies against its CPU body.
#include "kernels/selective_scan/selective_scan.h"

#include <algorithm>
#include <iterator>

#include "tests/cuda/cuda_test_util.h"
#include "tests/kernels/selective_scan_problem.h"

namespace eyrie {
namespace {

OwnedTensor Zeros(DType dtype, Shape shape) { return OwnedTensor(dtype, shape); }

// What a GPU holds beside activations of type `dtype`: parameters and states in full precision.
DType TypeOf(const ScanInputs& in, const OwnedTensor& t, DType dtype) {
  const OwnedTensor* const full[] = {&in.a_log, &in.skip, &in.dt_bias, &in.h0, &in.dh_last};
  const bool is_full = std::find(std::begin(full), std::end(full), &t) != std::end(full);
  return is_full ? FullPrecision(dtype) : dtype;
}
ScanInputs RoundedInputs(const ScanInputs& in, DType dtype) {
  return in.Map([&](const OwnedTensor& t) {
    return t.tensor.dtype == DType::kI32 ? Clone(t.tensor)
                                         : Rounded(t.tensor, TypeOf(in, t, dtype));
  });
}

// Documents of about `length` tokens.
void SetDocuments(const ScanInputs& in, int64_t length, TestRandom& random) {
  int32_t position = 3;
  for (int64_t i = 0; i < in.positions.tensor.size(); ++i) {
    position = random.Int(1, length) == 1 ? 0 : position + 1;
    in.positions.tensor.data<int32_t>()[i] = position;
  }
}

// All outputs, on the host in float64.
ScanOutputs OnCuda(const ScanInputs& host, const ScanSizes& sizes, DType dtype, bool states,
                   bool dz_replaces_dout = false) {
  ScanInputs in =
      host.Map([&](const OwnedTensor& t) { return ToCuda(t.tensor, TypeOf(host, t, dtype)); });
  ScanOutputs out(dtype, sizes, PoisonedCuda, ZeroCuda);
  std::vector<OwnedTensor> scratch;
  const auto workspace = [&](int64_t elements) {
    if (elements == 0) return Tensor{};
    scratch.push_back(PoisonedCuda(DType::kF32, {elements}));
    return scratch.back().tensor;
  };
  ScanForward(in, out, states, workspace);
  ScanSummaries(in, out, workspace);
  if (dz_replaces_dout) out.dz = OwnedTensor();
  ScanBackward(in, out, states, workspace);
  if (dz_replaces_dout) out.dz = std::move(in.dout);
  ScanOutputs result;
  for (const auto& [member, name] : ScanOutputs::Names())
    result.*member = ToHost((out.*member).tensor);
  return result;
}

void Compare(DType dtype, const ScanSizes& sizes, int64_t length, bool states) {
  TestRandom random;
  SCOPED_TRACE(
      StrCat(Name(dtype), " ", sizes.ToString(), states ? " with" : " without", " states"));
  ScanInputs drawn(sizes, random);
  SetDocuments(drawn, length, random);
  const ScanInputs in = RoundedInputs(drawn, dtype);
  const ScanOutputs cuda = OnCuda(in, sizes, dtype, states);
  const ScanOutputs cpu(DType::kF64, sizes, PoisonedTensor, Zeros);
  ScanForward(in, cpu, states);
  ScanBackward(in, cpu, states);
  ScanSummaries(in, cpu);
  for (const auto& [member, name] : ScanOutputs::Names()) {
    const bool optional = member == &ScanOutputs::h_last || member == &ScanOutputs::dh0;
    if (optional && !states) continue;
    EXPECT_LT(RelativeError((cuda.*member).tensor, (cpu.*member).tensor, /*floor=*/0.1),
              Tolerance(dtype))
        << name;
  }
}

// Each number of warps of the forward pass and of lanes a channel of the backward pass, whole and
// not, around the edges of tiles, runs and chunks; with and without vectors.
TEST(CudaSelectiveScan, MatchesTheCpuBody) {
  for (DType dtype : kCudaTypes) {
    for (const ScanSizes& sizes :
         {ScanSizes{1, 1, 1, 1}, ScanSizes{2, 1, 33, 16, 5}, ScanSizes{3, 7, 5, 3, 1},
          ScanSizes{2, 16, 32, 8}, ScanSizes{1, 17, 40, 16, 3}, ScanSizes{2, 63, 64, 16, 8},
          ScanSizes{1, 64, 31, 20, 2}, ScanSizes{2, 65, 72, 32}, ScanSizes{1, 130, 34, 64, 7},
          ScanSizes{1, 100, 17, 45}, ScanSizes{1, 129, 40, 64}, ScanSizes{1, 71, 136, 16}}) {
      for (const bool states : {true, false}) Compare(dtype, sizes, 40, states);
    }
  }
}

// Short documents: many of them in each run of tokens, and single tokens.
TEST(CudaSelectiveScan, DocumentsOfAFewTokens) {
  for (DType dtype : kCudaTypes) {
    for (const int64_t states : {3, 16, 32, 64}) {
      Compare(dtype, {2, 150, 24, states, 1}, /*length=*/2, true);
    }
  }
}

// States that are carried over many chunks, by the forward pass too; many groups of channels.
TEST(CudaSelectiveScan, CarriesStatesOverManyChunks) {
  for (DType dtype : kCudaTypes) {
    for (const ScanSizes& sizes :
         {ScanSizes{2, 700, 40, 16, 4}, ScanSizes{1, 1025, 72, 8}, ScanSizes{1, 200, 1100, 16}}) {
      Compare(dtype, sizes, 5000, true);
    }
  }
}

// So many sequences and channels that the forward pass does not cut time.
TEST(CudaSelectiveScan, OneChunkWhereThereAreManyBlocks) {
  Compare(DType::kBF16, {16, 90, 1050, 4, 0}, 60, true);
  Compare(DType::kF32, {260, 33, 64, 3, 1}, 60, true);
}

TEST(CudaSelectiveScan, SameBitsInEachRunAndInPlace) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    SCOPED_TRACE(Name(dtype));
    const ScanSizes sizes{3, 300, 600, 16, 6};
    const ScanInputs in = RoundedInputs(ScanInputs(sizes, random), dtype);
    const ScanOutputs first = OnCuda(in, sizes, dtype, true);
    const ScanOutputs second = OnCuda(in, sizes, dtype, true, /*dz_replaces_dout=*/true);
    for (const auto& [member, name] : ScanOutputs::Names()) {
      EXPECT_TRUE(BitwiseEqual((first.*member).tensor, (second.*member).tensor)) << name;
    }
  }
}

// Not even a NaN crosses a document's start at a token, forward or back.
void ExpectNothingCrosses(int64_t start) {
  SCOPED_TRACE(start);
  TestRandom random;
  const ScanSizes sizes{1, 300, 40, 16};
  const ScanInputs in(sizes, random);
  for (int64_t t = 0; t < sizes.time; ++t) {
    in.positions.tensor.data<int32_t>()[t] = static_cast<int32_t>(t < start ? t + 1 : t - start);
  }
  const ScanOutputs clean = OnCuda(in, sizes, DType::kF32, true);
  const auto copy = [](const OwnedTensor& t) { return Clone(t.tensor); };
  const ScanInputs before = in.Map(copy), after = in.Map(copy);
  Poison(before.h0.tensor);
  Poison(after.dh_last.tensor);
  for (int64_t i = 0; i < 20 * sizes.channels; ++i) {
    Set(before.x.tensor, i, std::numeric_limits<double>::quiet_NaN());
    Set(after.dout.tensor, sizes.full().size() - 1 - i, std::numeric_limits<double>::quiet_NaN());
  }
  const auto same = [&](const OwnedTensor& a, const OwnedTensor& b, int64_t begin, int64_t end) {
    EXPECT_TRUE(BitwiseEqual(TimeSlice(a.tensor, begin, end).tensor,
                             TimeSlice(b.tensor, begin, end).tensor));
  };
  const ScanOutputs late = OnCuda(before, sizes, DType::kF32, true);
  EXPECT_TRUE(std::isnan(Get(late.out.tensor, (start - 1) * sizes.channels)));
  same(clean.out, late.out, start, sizes.time);
  same(clean.dx, late.dx, start, sizes.time);
  same(clean.ddt, late.ddt, start, sizes.time);
  same(clean.dbc, late.dbc, start, sizes.time);
  EXPECT_TRUE(BitwiseEqual(clean.increment.tensor, late.increment.tensor));
  EXPECT_TRUE(BitwiseEqual(clean.h_last.tensor, late.h_last.tensor));
  const ScanOutputs early = OnCuda(after, sizes, DType::kF32, true);
  EXPECT_TRUE(std::isnan(Get(early.dx.tensor, start * sizes.channels)));
  same(clean.dx, early.dx, 0, start);
  same(clean.ddt, early.ddt, 0, start);
  same(clean.dbc, early.dbc, 0, start);
  EXPECT_TRUE(BitwiseEqual(clean.dh0.tensor, early.dh0.tensor));
  EXPECT_TRUE(BitwiseEqual(clean.grad_increment.tensor, early.grad_increment.tensor));
}
// At the first token of a chunk, of a pair, and between.
TEST(CudaSelectiveScan, DocumentStartForgetsEverything) {
  for (const int64_t start : {128, 150, 151}) ExpectNothingCrosses(start);
}

TEST(CudaSelectiveScan, RejectsWrongTypesAndMissingWorkspace) {
  TestRandom random;
  const ScanSizes sizes{1, 200, 8, 4};
  const ScanInputs host(sizes, random);
  const ScanOutputs out(DType::kBF16, sizes, PoisonedCuda, ZeroCuda);
  const auto inputs = [&] {
    return host.Map(
        [&](const OwnedTensor& t) { return ToCuda(t.tensor, TypeOf(host, t, DType::kBF16)); });
  };
  std::vector<OwnedTensor> scratch;
  const auto workspace = [&](int64_t elements) {
    scratch.push_back(PoisonedCuda(DType::kF32, {elements}));
    return scratch.back().tensor;
  };
  EXPECT_NO_THROW(ScanForward(inputs(), out, true, workspace));
  EXPECT_THROW(ScanForward(inputs(), out, true), Error);
  EXPECT_THROW(ScanBackward(inputs(), out, true), Error);
  const auto rejects = [&](OwnedTensor ScanInputs::*member, DType dtype) {
    ScanInputs bad = inputs();
    bad.*member = ToCuda((host.*member).tensor, dtype);
    EXPECT_THROW(ScanForward(bad, out, true, workspace), Error);
  };
  rejects(&ScanInputs::z, DType::kF32);
  rejects(&ScanInputs::bc, DType::kF32);
  for (const auto member :
       {&ScanInputs::a_log, &ScanInputs::skip, &ScanInputs::dt_bias, &ScanInputs::h0}) {
    rejects(member, DType::kBF16);
  }
}

}  // namespace
}  // namespace eyrie
