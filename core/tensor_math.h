// The little arithmetic that communication and parameters need on any device; kernels/ holds the
// rest.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// Adds `rows` rows of each sequence: those of `from` [B, N, C] from from_row on to those of `to`
// [B, M, C] from to_row on. float32, float64 or bfloat16.
void AddRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows);
// after [B, W, C] := the last W rows of each sequence of [before [B, W, C]; now [B, T, C]].
// `before` is absent for zeros; `after` is other memory. Any type.
void KeepTail(const Tensor& before, const Tensor& now, const Tensor& after);
// state := factor * state + weight * addend, element by element; a factor and a weight may stand
// for so many successive elements as their tensor is smaller. `weight` is like `factor`, or absent
// for ones. float32 or float64.
void MultiplyAdd(const Tensor& factor, const Tensor& addend, const Tensor& state,
                 const Tensor& weight = {});
// For the sum of a state, whose true values are exp(m) times what is held, times exp(log_decay),
// and an increment held likewise beside increment_m: m := max(log_decay + m, increment_m), and the
// factors by which the two are to be multiplied, keep := exp(log_decay + old m - m) and add :=
// exp(increment_m - m). All of one size, float32 or float64.
void StabiliseSum(const Tensor& log_decay, const Tensor& increment_m, const Tensor& m,
                  const Tensor& keep, const Tensor& add);
// Every element := value. float32 or float64.
void Fill(const Tensor& tensor, double value);
// The numbers of `from` in the type of `to`: any of float32, float64 and bfloat16, rounded to
// nearest even.
void Convert(const Tensor& from, const Tensor& to);

namespace cuda {
void AddRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows);
// Of rows made of 16-byte vectors, with T <= W.
void KeepTail(const Tensor& before, const Tensor& now, const Tensor& after);
void MultiplyAdd(const Tensor& factor, const Tensor& addend, const Tensor& state,
                 const Tensor& weight);
void StabiliseSum(const Tensor& log_decay, const Tensor& increment_m, const Tensor& m,
                  const Tensor& keep, const Tensor& add);
void Fill(const Tensor& tensor, double value);
void Convert(const Tensor& from, const Tensor& to);
}  // namespace cuda

}  // namespace eyrie
