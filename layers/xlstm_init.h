// How the matrices of xLSTM's layers start (Beck et al., arXiv:2405.04517, and its released code):
// their standard deviations into a branch (Nguyen and Salazar, arXiv:1910.05895) and out of one
// (as GPT-J does).
#pragma once

#include <cmath>

#include "configs/schema/config.pb.h"

namespace eyrie {

inline double XlstmInStd(const config::ModelConfig& model) {
  return std::sqrt(2.0 / (5.0 * static_cast<double>(model.width())));
}
inline double XlstmOutStd(const config::ModelConfig& model) {
  return 2.0 / (static_cast<double>(model.depth()) * std::sqrt(static_cast<double>(model.width())));
}

}  // namespace eyrie
