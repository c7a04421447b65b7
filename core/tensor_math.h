// The little arithmetic that communication and parameters need on any device; kernels/ holds the
// rest.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// Adds `rows` rows of each sequence: those of `from` [B, N, C] from from_row on to those of `to`
// [B, M, C] from to_row on. float32, float64 or bfloat16.
void AddRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows);
// state := factor * state + addend, element by element; a factor may stand for so many successive
// elements as its tensor is smaller. float32 or float64.
void MultiplyAdd(const Tensor& factor, const Tensor& addend, const Tensor& state);
// The numbers of `from` in the type of `to`: any of float32, float64 and bfloat16, rounded to
// nearest even.
void Convert(const Tensor& from, const Tensor& to);

namespace cuda {
void AddRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows);
void MultiplyAdd(const Tensor& factor, const Tensor& addend, const Tensor& state);
void Convert(const Tensor& from, const Tensor& to);
}  // namespace cuda

}  // namespace eyrie
