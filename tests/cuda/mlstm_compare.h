// What the tests of the mLSTM's CUDA bodies share: problems on the GPU, compared with the CPU's
// body in float64.
#pragma once

#include "tests/cuda/cuda_test_util.h"
#include "tests/kernels/mlstm_problem.h"

namespace eyrie {

// Exponential input gates, sigmoid ones, and those without a normaliser. The errors of the smallest
// denominators would outweigh all others: hence the epsilon.
inline const MlstmOptions kKinds[] = {{.epsilon = 0.1},
                                      {.stabilised = false, .epsilon = 0.1},
                                      {.stabilised = false, .normalised = false}};

// What forward saves for backward.
inline constexpr OwnedTensor MlstmProblem::*kSaved[] = {&MlstmProblem::maximum,
                                                        &MlstmProblem::normaliser};

inline OwnedMlstmState MapState(const OwnedMlstmState& from,
                                const std::function<OwnedTensor(Tensor)>& map) {
  OwnedMlstmState state;
  state.c = map(from.c.tensor);
  state.n = map(from.n.tensor);
  state.m = map(from.m.tensor);
  return state;
}

// The problem with its inputs and what its forward pass saved taken through `map`, which is told
// what has the activations' type, and poisoned outputs.
template <class Map>
MlstmProblem Mapped(const MlstmProblem& from, const Map& map) {
  MlstmProblem to(from, DType::kF64);
  for (OwnedTensor MlstmProblem::*const tensor :
       {&MlstmProblem::q, &MlstmProblem::k, &MlstmProblem::v, &MlstmProblem::dh, &MlstmProblem::h,
        &MlstmProblem::dq, &MlstmProblem::dk, &MlstmProblem::dv}) {
    to.*tensor = map((from.*tensor).tensor, true);
  }
  for (OwnedTensor MlstmProblem::*const tensor :
       {&MlstmProblem::log_i, &MlstmProblem::log_f, &MlstmProblem::positions,
        &MlstmProblem::maximum, &MlstmProblem::normaliser, &MlstmProblem::dlog_i,
        &MlstmProblem::dlog_f}) {
    to.*tensor = map((from.*tensor).tensor, false);
  }
  for (OwnedMlstmState MlstmProblem::*const state :
       {&MlstmProblem::before, &MlstmProblem::dafter, &MlstmProblem::after,
        &MlstmProblem::dbefore}) {
    to.*state = MapState(from.*state, [&](Tensor tensor) { return map(tensor, false); });
  }
  return to;
}
inline MlstmProblem RoundedProblem(const MlstmProblem& from, DType dtype) {
  return Mapped(from, [&](const Tensor& tensor, bool activation) {
    if (tensor.dtype == DType::kI32) return Clone(tensor);
    return Rounded(tensor, activation ? dtype : DType::kF32);
  });
}
inline MlstmProblem CudaProblem(const MlstmProblem& from, DType dtype) {
  MlstmProblem to = Mapped(from, [&](const Tensor& tensor, bool activation) {
    return ToCuda(tensor, activation ? dtype : DType::kF32);
  });
  const int64_t elements = MlstmWorkspace(to.q.tensor, to.v.tensor, to.options);
  EXPECT_GT(elements, 0);
  to.workspace = PoisonedCuda(DType::kF32, {elements});
  return to;
}

// The outputs of forward that backward reads, as the GPU's types hold them.
inline void RoundWhatIsSaved(MlstmProblem& problem, DType dtype) {
  problem.h = Rounded(problem.h.tensor, dtype);
  for (OwnedTensor MlstmProblem::*const saved : kSaved) {
    problem.*saved = Rounded((problem.*saved).tensor, DType::kF32);
  }
}

// What all gates are closed to may vanish: hence a floor of the norm.
inline void ExpectClose(const char* name, const Tensor& on_gpu, const Tensor& expected,
                        DType dtype) {
  EXPECT_LT(RelativeError(ToHost(on_gpu).tensor, expected, /*floor=*/1e-4), Tolerance(dtype))
      << name;
}

// Compares the forward pass, then the backward pass given what a forward pass saved, which may have
// the products of its outputs with their gradients.
inline void ExpectMatchesTheCpu(const MlstmProblem& problem, DType dtype,
                                bool give_products = false) {
  const MlstmSizes& s = problem.sizes;
  SCOPED_TRACE(StrCat(Name(dtype), " B ", s.batch, " T ", s.time, " H ", s.heads, " dk ", s.keys,
                      " dv ", s.values, " state ", problem.with_state, " stabilised ",
                      problem.options.stabilised, " normalised ", problem.options.normalised,
                      " chunk ", problem.options.chunk));
  MlstmProblem expected = RoundedProblem(problem, dtype);
  MlstmProblem one = CudaProblem(problem, dtype), two = CudaProblem(problem, dtype);
  expected.Forward();
  one.Forward();
  two.Forward();
  const auto compare = [&](const auto& wanted) {
    const auto first = one.outputs(), second = two.outputs(), right = expected.outputs();
    for (size_t i = 0; i < right.size(); ++i) {
      if (!wanted(std::string(first[i].first))) continue;
      ExpectClose(first[i].first, first[i].second, right[i].second, dtype);
      EXPECT_TRUE(BitwiseEqual(ToHost(first[i].second).tensor, ToHost(second[i].second).tensor))
          << first[i].first;
    }
  };
  const auto of_backward = [](const std::string& name) { return name[0] == 'd'; };
  compare([&](const std::string& name) { return !of_backward(name); });

  // All go on from the same.
  RoundWhatIsSaved(expected, dtype);
  if (give_products) expected.GiveProducts();
  for (MlstmProblem* gpu : {&one, &two}) {
    if (give_products) gpu->h_dh = ToCuda(expected.h_dh.tensor, DType::kF32);
    Copy(ToCuda(expected.h.tensor, dtype).tensor, gpu->h.tensor);
    for (OwnedTensor MlstmProblem::*const saved : kSaved) {
      Copy(ToCuda((expected.*saved).tensor, DType::kF32).tensor, (gpu->*saved).tensor);
    }
  }
  expected.Backward();
  one.Backward();
  two.Backward();
  compare(of_backward);
}

inline void ExpectMatchesTheCpu(const MlstmSizes& sizes, const MlstmOptions& options, DType dtype,
                                TestRandom& random) {
  MlstmProblem problem(DType::kF64, sizes, options, random, 2);
  problem.with_state = random.Int(0, 2) > 0;
  if (random.Int(0, 1) == 0) problem.UseOneDocument();
  ExpectMatchesTheCpu(problem, dtype);
}

using KeysAndValues = std::pair<int64_t, int64_t>;
using TypeAndWidths = std::tuple<DType, KeysAndValues>;
using TimeKeysAndValues = std::tuple<int64_t, int64_t, int64_t>;

}  // namespace eyrie
