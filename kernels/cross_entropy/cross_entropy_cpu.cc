#include "kernels/cross_entropy/cross_entropy_cpu.h"

#include <cmath>

#include "core/threads.h"
#include "kernels/partition.h"
#include "kernels/row_math.h"

namespace eyrie {

namespace {

// d z / d u of z = cap tanh(u / cap), from z; 1 when there is no cap (inverse_cap = 0).
template <class T>
T SoftCapSlope(T z, T inverse_cap) {
  const T t = z * inverse_cap;
  return T(1) - t * t;
}

template <class T>
void SoftCapRow(T cap, T* z, int64_t n) {
  const T inverse = T(1) / cap;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] = cap * Tanh(z[j] * inverse);
}

// du = factor exp(z - shift) dz/du, the softmax's part; du may be z.
template <class T>
void GradRow(T factor, T shift, T inverse_cap, const T* z, T* du, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    du[j] = factor * SoftCapSlope(z[j], inverse_cap) * Exp(z[j] - shift);
  }
}

}  // namespace

// N tokens, V columns of the vocabulary here. Every step is one pass over the rows of [N, V], a row
// at a time, which a cache holds.

template <class T>
void SoftCapCpu(const Tensor& logits, double soft_cap) {
  const int64_t columns = logits.dim(1);
  ForPieces(logits.dim(0), logits.size(), [&](int64_t n) {
    SoftCapRow(static_cast<T>(soft_cap), logits.data<T>() + n * columns, columns);
  });
}

template <class T>
void SoftmaxPartialsCpu(const SoftmaxPartialsArgs& args) {
  const int32_t* labels = args.labels.data<int32_t>();
  T* row_max = args.row_max.data<T>();
  const int64_t tokens = args.logits.dim(0), columns = args.logits.dim(1);
  T *sums = args.partials.data<T>(), *at_label = sums + tokens;
  ForPieces(tokens, args.logits.size(), [&](int64_t n) {
    T* z = args.logits.data<T>() + n * columns;
    if (args.soft_cap > 0.0) SoftCapRow(static_cast<T>(args.soft_cap), z, columns);
    const T largest = MaxOf(z, columns);
    row_max[n] = largest;
    sums[n] = static_cast<T>(SumByPieces(columns, [&](int64_t begin, int64_t count) {
      return SumOfExp(z + begin, count, largest);
    }));
    const int64_t column = labels[n] - args.first;
    const bool here = labels[n] >= 0 && column >= 0 && column < columns;
    at_label[n] = here ? z[column] : T(0);
  });
}

template <class T>
void RescalePartialsCpu(const Tensor& own_max, const Tensor& row_max, const Tensor& partials) {
  const T *own = own_max.data<T>(), *all = row_max.data<T>();
  T* sums = partials.data<T>();
  for (int64_t n = 0; n < own_max.size(); ++n) sums[n] *= Exp(own[n] - all[n]);
}

template <class T>
void RowArgmaxCpu(const RowArgmaxArgs& args) {
  const T* logits = args.logits.data<T>();
  const T* row_max = args.row_max.data<T>();
  int32_t* predicted = args.predicted.data<int32_t>();
  const int64_t columns = args.logits.dim(1);
  ForPieces(args.logits.dim(0), args.logits.size(), [&](int64_t n) {
    const T* z = logits + n * columns;
    int64_t column = columns - 1;
    while (column >= 0 && z[column] != row_max[n]) --column;
    predicted[n] = static_cast<int32_t>(column < 0 ? -1 : args.first + column);
  });
}

template <class T>
void CrossEntropyLossCpu(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                         const Tensor& loss) {
  const int32_t* label = labels.data<int32_t>();
  const T* largest = row_max.data<T>();
  const int64_t tokens = row_max.dim(0);
  const T* sums = partials.data<T>();
  const T* at_label = sums + tokens;
  double sum = 0.0, valid = 0.0;
  for (int64_t n = 0; n < tokens; ++n) {
    if (label[n] < 0) continue;
    ++valid;
    // The two large terms first: their difference is exact when the label is the likely one.
    sum += std::log(static_cast<double>(sums[n])) +
           (static_cast<double>(largest[n]) - static_cast<double>(at_label[n]));
  }
  loss.data<double>()[0] += sum;
  loss.data<double>()[1] += valid;
}

template <class T>
void CrossEntropyGradCpu(const CrossEntropyGradArgs& args) {
  const T* logits = args.logits.data<T>();
  T* dlogits = args.dlogits.data<T>();
  const int32_t* labels = args.labels.data<int32_t>();
  const T* row_max = args.row_max.data<T>();
  const T* sums = args.partials.data<T>();
  const int64_t columns = args.logits.dim(1);
  ForPieces(args.logits.dim(0), args.logits.size(), [&](int64_t n) {
    const T* z = logits + n * columns;
    T* du = dlogits + n * columns;
    if (labels[n] < 0) {
      std::fill(du, du + columns, T(0));
      return;
    }
    const T largest = row_max[n];
    const T inverse = static_cast<T>(args.soft_cap > 0.0 ? 1.0 / args.soft_cap : 0.0);
    const T factor = static_cast<T>(args.scale / static_cast<double>(sums[n]));
    const int64_t column = labels[n] - args.first;
    const bool here = column >= 0 && column < columns;
    // What the one-hot term takes off; z at the label may be gone once the loop has run.
    const T label_slope = here ? SoftCapSlope(z[column], inverse) : T(0);
    GradRow(factor, largest, inverse, z, du, columns);
    if (here) du[column] -= static_cast<T>(args.scale) * label_slope;
  });
}

template void SoftCapCpu<float>(const Tensor&, double);
template void SoftCapCpu<double>(const Tensor&, double);
template void SoftmaxPartialsCpu<float>(const SoftmaxPartialsArgs&);
template void SoftmaxPartialsCpu<double>(const SoftmaxPartialsArgs&);
template void RescalePartialsCpu<float>(const Tensor&, const Tensor&, const Tensor&);
template void RescalePartialsCpu<double>(const Tensor&, const Tensor&, const Tensor&);
template void RowArgmaxCpu<float>(const RowArgmaxArgs&);
template void RowArgmaxCpu<double>(const RowArgmaxArgs&);
template void CrossEntropyLossCpu<float>(const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&);
template void CrossEntropyLossCpu<double>(const Tensor&, const Tensor&, const Tensor&,
                                          const Tensor&);
template void CrossEntropyGradCpu<float>(const CrossEntropyGradArgs&);
template void CrossEntropyGradCpu<double>(const CrossEntropyGradArgs&);

}  // namespace eyrie
