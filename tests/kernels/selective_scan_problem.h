// Inputs and outputs of the selective scan's kernels, for the tests of its bodies.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "kernels/selective_scan/selective_scan.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {

struct ScanSizes {
  int64_t batch, time, channels, states;
  int64_t before = 0;  // what precedes B and C in a row of bc
  Shape full() const { return {batch, time, channels}; }
  Shape state() const { return {batch, channels, states}; }
  Shape row() const { return {batch, time, before + 2 * states}; }
  std::string ToString() const { return StrCat(full().ToString(), " N ", states); }
};

struct ScanInputs {
  OwnedTensor x, dt, z, bc, a_log, skip, dt_bias, positions, h0, dout, dh_last;

  ScanInputs() = default;
  // Drawn in float64 from what float32 can hold.
  ScanInputs(const ScanSizes& sizes, TestRandom& random) {
    const auto draw = [&](Shape shape, double scale = 1) {
      return RandomTensor(DType::kF64, shape, random, scale);
    };
    x = draw(sizes.full());
    dt = draw(sizes.full());
    z = draw(sizes.full());
    bc = draw(sizes.row());
    a_log = draw({sizes.channels, sizes.states});
    skip = draw({sizes.channels});
    dt_bias = draw({sizes.channels});
    for (int64_t c = 0; c < sizes.channels; ++c) {
      Set(dt_bias.tensor, c, static_cast<double>(static_cast<float>(random.Uniform(-5, 0))));
    }
    positions = RandomPositions(sizes.batch, sizes.time, random, true);
    h0 = draw(sizes.state());
    dout = draw(sizes.full());
    dh_last = draw(sizes.state());
  }
  template <class Self>
  static auto Members(Self& self) {
    return std::vector{&self.x,     &self.dt,   &self.z,       &self.bc,
                       &self.a_log, &self.skip, &self.dt_bias, &self.positions,
                       &self.h0,    &self.dout, &self.dh_last};
  }
  // Every tensor through `change`.
  ScanInputs Map(const std::function<OwnedTensor(const OwnedTensor&)>& change) const {
    ScanInputs result;
    const auto own = Members(result);
    const auto others = Members(*this);
    for (size_t i = 0; i < own.size(); ++i) *own[i] = change(*others[i]);
    return result;
  }
};

// Outputs of all four kernels. `make` gives tensors that are to be overwritten, `zero` those added
// to.
struct ScanOutputs {
  using Make = std::function<OwnedTensor(DType, Shape)>;
  OwnedTensor out, h_last, dx, ddt, dz, dbc, dh0, da_log, dskip, ddt_bias;
  OwnedTensor decay, increment, grad_decay, grad_increment;

  using Member = OwnedTensor ScanOutputs::*;
  static const std::vector<std::pair<Member, const char*>>& Names() {
    using O = ScanOutputs;
    static const std::vector<std::pair<Member, const char*>> names = {
        {&O::out, "out"},
        {&O::h_last, "h_last"},
        {&O::dx, "dx"},
        {&O::ddt, "ddt"},
        {&O::dz, "dz"},
        {&O::dbc, "dbc"},
        {&O::dh0, "dh0"},
        {&O::da_log, "da_log"},
        {&O::dskip, "dskip"},
        {&O::ddt_bias, "ddt_bias"},
        {&O::decay, "decay"},
        {&O::increment, "increment"},
        {&O::grad_decay, "grad_decay"},
        {&O::grad_increment, "grad_increment"}};
    return names;
  }

  ScanOutputs() = default;
  ScanOutputs(DType dtype, const ScanSizes& sizes, const Make& make, const Make& zero) {
    const DType wide = FullPrecision(dtype);
    for (OwnedTensor* t : {&out, &dx, &ddt, &dz}) *t = make(dtype, sizes.full());
    dbc = zero(dtype, sizes.row());
    for (OwnedTensor* t : {&h_last, &dh0, &decay, &increment, &grad_decay, &grad_increment}) {
      *t = make(wide, sizes.state());
    }
    da_log = zero(wide, {sizes.channels, sizes.states});
    for (OwnedTensor* t : {&dskip, &ddt_bias}) *t = zero(wide, {sizes.channels});
  }
};

// The calls. Without `states`, the optional ones are absent. `workspace` gives scratch.
using ScanWorkspace = std::function<Tensor(int64_t)>;
inline Tensor NoWorkspace(int64_t) { return {}; }

inline void ScanForward(const ScanInputs& in, const ScanOutputs& out, bool states,
                        const ScanWorkspace& workspace = NoWorkspace) {
  const auto optional = [&](const OwnedTensor& t) { return states ? t.tensor : Tensor{}; };
  SelectiveScanForward(
      {.x = in.x.tensor,
       .dt = in.dt.tensor,
       .z = in.z.tensor,
       .bc = in.bc.tensor,
       .a_log = in.a_log.tensor,
       .skip = in.skip.tensor,
       .dt_bias = in.dt_bias.tensor,
       .positions = in.positions.tensor,
       .h0 = optional(in.h0),
       .out = out.out.tensor,
       .h_last = optional(out.h_last),
       .workspace = workspace(SelectiveScanForwardWorkspace(in.x.tensor, in.a_log.tensor.dim(1)))});
}
// A `dz` that is absent takes the place of dout.
inline void ScanBackward(const ScanInputs& in, const ScanOutputs& out, bool states,
                         const ScanWorkspace& workspace = NoWorkspace) {
  const auto optional = [&](const OwnedTensor& t) { return states ? t.tensor : Tensor{}; };
  SelectiveScanBackward({.x = in.x.tensor,
                         .dt = in.dt.tensor,
                         .z = in.z.tensor,
                         .bc = in.bc.tensor,
                         .a_log = in.a_log.tensor,
                         .skip = in.skip.tensor,
                         .dt_bias = in.dt_bias.tensor,
                         .positions = in.positions.tensor,
                         .h0 = optional(in.h0),
                         .dout = in.dout.tensor,
                         .dh_last = optional(in.dh_last),
                         .dx = out.dx.tensor,
                         .ddt = out.ddt.tensor,
                         .dz = out.dz.tensor.defined() ? out.dz.tensor : in.dout.tensor,
                         .dbc = out.dbc.tensor,
                         .dh0 = optional(out.dh0),
                         .da_log = out.da_log.tensor,
                         .dskip = out.dskip.tensor,
                         .ddt_bias = out.ddt_bias.tensor,
                         .workspace = workspace(
                             SelectiveScanBackwardWorkspace(in.x.tensor, in.a_log.tensor.dim(1)))});
}
inline void ScanSummaries(const ScanInputs& in, const ScanOutputs& out,
                          const ScanWorkspace& workspace = NoWorkspace) {
  const int64_t elements = SelectiveScanSummaryWorkspace(in.x.tensor, in.a_log.tensor.dim(1));
  SelectiveScanSummary({.x = in.x.tensor,
                        .dt = in.dt.tensor,
                        .bc = in.bc.tensor,
                        .a_log = in.a_log.tensor,
                        .dt_bias = in.dt_bias.tensor,
                        .positions = in.positions.tensor,
                        .decay = out.decay.tensor,
                        .increment = out.increment.tensor,
                        .workspace = workspace(elements)});
  SelectiveScanGradSummary({.dt = in.dt.tensor,
                            .z = in.z.tensor,
                            .bc = in.bc.tensor,
                            .a_log = in.a_log.tensor,
                            .dt_bias = in.dt_bias.tensor,
                            .positions = in.positions.tensor,
                            .dout = in.dout.tensor,
                            .decay = out.grad_decay.tensor,
                            .increment = out.grad_increment.tensor,
                            .workspace = workspace(elements)});
}

}  // namespace eyrie
