// What the kernel tests share: fresh random inputs, error measures, numeric gradients.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace eyrie {

// Random numbers from a fresh seed in each run. A failure prints the seed; set EYRIE_TEST_SEED to
// repeat it. One lives at the top of a test's body and outlives the assertions that follow it.
class TestRandom {
 public:
  TestRandom()
      : seed_(PickSeed()),
        engine_(seed_),
        trace_(__FILE__, __LINE__, "repeat with EYRIE_TEST_SEED=" + std::to_string(seed_)) {}

  uint64_t seed() const { return seed_; }
  double Normal() { return std::normal_distribution<double>()(engine_); }
  double Uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  // An integer in [low, high], both ends included.
  int64_t Int(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }

 private:
  static uint64_t PickSeed() {
    const char* fixed = std::getenv("EYRIE_TEST_SEED");
    return fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device()();
  }

  uint64_t seed_;
  std::mt19937_64 engine_;
  testing::ScopedTrace trace_;
};

// Element access as double, for any element type.
inline double Get(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::kF32: return static_cast<double>(tensor.data<float>()[i]);
    case DType::kF64: return tensor.data<double>()[i];
    case DType::kBF16: return static_cast<double>(static_cast<float>(tensor.data<BFloat16>()[i]));
    case DType::kI32: return tensor.data<int32_t>()[i];
  }
  return 0;
}
inline std::vector<double> Elements(const Tensor& tensor) {
  std::vector<double> all;
  for (int64_t i = 0; i < tensor.size(); ++i) all.push_back(Get(tensor, i));
  return all;
}
inline void Set(const Tensor& tensor, int64_t i, double value) {
  switch (tensor.dtype) {
    case DType::kF32: tensor.data<float>()[i] = static_cast<float>(value); break;
    case DType::kF64: tensor.data<double>()[i] = value; break;
    case DType::kBF16: tensor.data<BFloat16>()[i] = BFloat16(static_cast<float>(value)); break;
    case DType::kI32: tensor.data<int32_t>()[i] = static_cast<int32_t>(value); break;
  }
}

// Fills with NaN, so that an output element nobody wrote is noticed.
inline void Poison(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.size(); ++i) {
    Set(tensor, i, std::numeric_limits<double>::quiet_NaN());
  }
}
inline OwnedTensor PoisonedTensor(DType dtype, Shape shape) {
  OwnedTensor result(dtype, shape);
  Poison(result.tensor);
  return result;
}

// Normal values with standard deviation `scale`. Drawn as float32 whatever the type, so that a
// float32 and a float64 tensor made by Cast hold the same numbers.
inline OwnedTensor RandomTensor(DType dtype, Shape shape, TestRandom& random, double scale = 1) {
  OwnedTensor result(dtype, shape);
  for (int64_t i = 0; i < shape.size(); ++i) {
    Set(result.tensor, i, static_cast<double>(static_cast<float>(scale * random.Normal())));
  }
  return result;
}

// [B, T] int32 positions inside documents: runs that rise by one and restart from 0 at random.
// With `start_mid_document` a row may begin inside a document that an earlier chunk started;
// otherwise each begins at 0.
inline OwnedTensor RandomPositions(int64_t batch, int64_t time, TestRandom& random,
                                   bool start_mid_document) {
  OwnedTensor result(DType::kI32, {batch, time});
  int32_t* out = result.tensor.data<int32_t>();
  for (int64_t b = 0; b < batch; ++b) {
    int32_t position = start_mid_document ? static_cast<int32_t>(random.Int(0, 20)) : 0;
    for (int64_t t = 0; t < time; ++t) {
      if (t > 0) position = random.Int(0, 6) == 0 ? 0 : position + 1;
      out[b * time + t] = position;
    }
  }
  return result;
}

inline OwnedTensor Cast(const Tensor& from, DType dtype) {
  OwnedTensor result(dtype, from.shape);
  for (int64_t i = 0; i < from.size(); ++i) Set(result.tensor, i, Get(from, i));
  return result;
}
inline OwnedTensor Clone(const Tensor& from) { return Cast(from, from.dtype); }

// Rows [begin, end) of the second axis of [B, T, ...], as a tensor of its own.
inline OwnedTensor TimeSlice(const Tensor& from, int64_t begin, int64_t end) {
  Shape shape = from.shape;
  shape.Set(1, end - begin);
  OwnedTensor result(from.dtype, shape);
  const int64_t row = from.size() / (from.dim(0) * from.dim(1));
  for (int64_t b = 0; b < from.dim(0); ++b) {
    for (int64_t i = 0; i < (end - begin) * row; ++i) {
      Set(result.tensor, b * (end - begin) * row + i,
          Get(from, (b * from.dim(1) + begin) * row + i));
    }
  }
  return result;
}
// The reverse: writes `part` over rows [begin, begin + part.dim(1)) of `whole`.
inline void PasteTime(const Tensor& part, const Tensor& whole, int64_t begin) {
  const int64_t row = whole.size() / (whole.dim(0) * whole.dim(1));
  const int64_t count = part.dim(1) * row;
  for (int64_t b = 0; b < whole.dim(0); ++b) {
    for (int64_t i = 0; i < count; ++i) {
      Set(whole, (b * whole.dim(1) + begin) * row + i, Get(part, b * count + i));
    }
  }
}

inline double Dot(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (int64_t i = 0; i < a.size(); ++i) sum += Get(a, i) * Get(b, i);
  return sum;
}

// start [C] plus the sums over the rows of `rows` [..., C], in float64.
inline OwnedTensor PlusRows(const Tensor& start, const Tensor& rows) {
  OwnedTensor result = Cast(start, DType::kF64);
  for (int64_t i = 0; i < rows.size(); ++i) {
    result.tensor.data<double>()[i % start.size()] += Get(rows, i);
  }
  return result;
}

// |a - b| / max(|b|, floor) in the Euclidean norm; |a| where b is zero. The floor is for results
// that may vanish and then have no digits to agree on. NaN when either holds one, which fails any
// EXPECT_LT.
inline double RelativeError(const std::vector<double>& a, const std::vector<double>& b,
                            double floor = 0) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  norm = std::max(norm, floor * floor);
  return std::sqrt(norm > 0 ? difference / norm : difference);
}
inline double RelativeError(const Tensor& a, const Tensor& b, double floor = 0) {
  EXPECT_TRUE(a.shape == b.shape) << a.shape.ToString() << " against " << b.shape.ToString();
  return RelativeError(Elements(a), Elements(b), floor);
}

inline bool BitwiseEqual(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.raw, b.raw, a.bytes()) == 0;
}

// Compares d loss / d input with `analytic` (shaped like `input`), element by element, and returns
// the relative error in the Euclidean norm. `loss` reads `input`, which is float64 and is changed
// in place, then restored. At most `max_elements` are checked, drawn at random. Fourth-order
// central differences: truncation and rounding are both near 1e-11 for well-scaled functions. Where
// they disagree with `analytic`, the loss may have a kink within the step, as maxima do: shorter
// steps, down to a thousandth with rounding near 1e-8, then tell. The floor, as RelativeError's, is
// for gradients that may all but vanish beside the loss.
inline double NumericGradientCheck(const std::function<double()>& loss, const Tensor& input,
                                   const Tensor& analytic, TestRandom& random, double step = 3e-4,
                                   int64_t max_elements = 64, double floor = 0) {
  EXPECT_TRUE(input.shape == analytic.shape);
  double* x = input.data<double>();
  std::vector<int64_t> order(static_cast<size_t>(input.size()));
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int64_t>(i);
    std::swap(order[i], order[static_cast<size_t>(random.Int(0, static_cast<int64_t>(i)))]);
  }
  order.resize(std::min(order.size(), static_cast<size_t>(max_elements)));

  double difference = 0;
  double norm = 0;
  for (int64_t i : order) {
    const double center = x[i];
    const auto at = [&](double offset) {
      x[i] = center + offset;
      return loss();
    };
    const auto estimate = [&](double h) {
      return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    };
    const double expected = Get(analytic, i);
    double numeric = estimate(step);
    for (const double h : {step / 30, step / 1000}) {
      if (std::abs(expected - numeric) <= 1e-7 * std::abs(expected)) break;
      const double finer = estimate(h);
      if (std::abs(expected - finer) < std::abs(expected - numeric)) numeric = finer;
    }
    x[i] = center;
    const double delta = expected - numeric;
    difference += delta * delta;
    norm += numeric * numeric;
  }
  norm = std::max(norm, floor * floor);
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

// Runs `body` with this many threads, then goes back to the number before.
inline void WithThreads(int threads, const std::function<void()>& body) {
  const int before = Threads();
  SetThreads(threads);
  body();
  SetThreads(before);
}

}  // namespace eyrie
