// The logarithms of the mLSTM's gates from their pre-activations. With y = c tanh(x / c), or y = x
// where the cap c is 0 (soft-capped gates: Beck et al., "xLSTM 7B", arXiv:2503.13427, equation 5):
//
//   exponential gate  log = y          sigmoid gate  log = -log(1 + exp(-y)), without underflow
//
// N tokens, H heads, both gates side by side. Pre-activations have the activations' type or full
// precision, the others full precision.
#pragma once

#include "core/tensor.h"

namespace eyrie {

enum class MlstmGate { kExponential, kSigmoid };

struct MlstmGatesForwardArgs {
  Tensor i, f;            // [..., H] pre-activations
  Tensor bias_i, bias_f;  // [H] full precision, added to them first
  MlstmGate input = MlstmGate::kExponential, forget = MlstmGate::kSigmoid;
  double soft_cap = 0;  // c
  Tensor log_i, log_f;  // like i and f, in full precision, out
};
void MlstmGatesForward(const MlstmGatesForwardArgs& args);

struct MlstmGatesBackwardArgs {
  Tensor i, f, bias_i, bias_f;  // as in the forward pass
  MlstmGate input = MlstmGate::kExponential, forget = MlstmGate::kSigmoid;
  double soft_cap = 0;
  Tensor dlog_i, dlog_f;    // like log_i and log_f
  Tensor di, df;            // like i and f, out, overwritten
  Tensor dbias_i, dbias_f;  // [H] out, added to, in a fixed order
};
void MlstmGatesBackward(const MlstmGatesBackwardArgs& args);

}  // namespace eyrie
