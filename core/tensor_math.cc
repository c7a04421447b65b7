#include "core/tensor_math.h"

#include <algorithm>
#include <cmath>

#include "core/device.h"
#include "core/kernel_times.h"
#include "core/round.h"
#include "core/threads.h"

namespace eyrie {
namespace {

constexpr const char* kTensorMath = "tensor_math";

// Calls body(T{}) with T the floating-point type of `tensor`.
template <class Body>
void ForType(const Tensor& tensor, const Body& body) {
  switch (tensor.dtype) {
    case DType::kF32: return body(float{});
    case DType::kF64: return body(double{});
    case DType::kBF16: return body(BFloat16{});
    case DType::kI32: break;
  }
  ThrowFailure("no arithmetic on ", Name(tensor.dtype));
}
// The same of a type of full precision.
template <class Body>
void ForFullType(const char* what, const Tensor& tensor, const Body& body) {
  ForType(tensor, [&]<class T>(T zero) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      ThrowFailure(what, ": ", Name(tensor.dtype), " is not full precision");
    } else {
      body(zero);
    }
  });
}

template <class T>
T Sum(T a, T b) {
  return a + b;
}
BFloat16 Sum(BFloat16 a, BFloat16 b) {
  return BFloat16(static_cast<float>(a) + static_cast<float>(b));
}

template <class To, class From>
To As(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<From, BFloat16> || std::is_same_v<To, BFloat16>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace

void AddRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows) {
  if (rows == 0) return;
  EYRIE_CHECK(from.dtype == to.dtype && from.device == to.device && from.dim(0) == to.dim(0) &&
              from.dim(2) == to.dim(2));
  EYRIE_CHECK(0 <= from_row && from_row + rows <= from.dim(1) && 0 <= to_row &&
              to_row + rows <= to.dim(1));
  const int64_t moved = 3 * from.dim(0) * rows * from.dim(2);
  const KernelScope timed(
      kTensorMath, {.bytes = static_cast<double>(moved) * static_cast<double>(SizeOf(to.dtype))});
  if (IsMeta(to.device)) return;
  if constexpr (kCudaBuild) {
    if (to.device == Device::kCuda) return cuda::AddRows(from, from_row, to, to_row, rows);
  }
  const int64_t width = from.dim(2);
  ForType(to, [&]<class T>(T) {
    for (int64_t b = 0; b < from.dim(0); ++b) {
      const T* source = from.data<T>() + (b * from.dim(1) + from_row) * width;
      T* target = to.data<T>() + (b * to.dim(1) + to_row) * width;
      for (int64_t i = 0; i < rows * width; ++i) target[i] = Sum(target[i], source[i]);
    }
  });
}

void KeepTail(const Tensor& before, const Tensor& now, const Tensor& after) {
  const int64_t rows = after.dim(1), kept = std::min(now.dim(1), rows), old = rows - kept;
  EYRIE_CHECK(now.dtype == after.dtype && now.device == after.device &&
              now.dim(0) == after.dim(0) && now.dim(2) == after.dim(2));
  EYRIE_CHECK(!before.defined() || (before.dtype == after.dtype && before.device == after.device &&
                                    before.shape == after.shape && before.raw != after.raw));
  if constexpr (kCudaBuild) {
    const bool vectors =
        static_cast<size_t>(now.dim(2)) * SizeOf(now.dtype) % 16 == 0 &&
        (reinterpret_cast<uintptr_t>(before.raw) | reinterpret_cast<uintptr_t>(now.raw) |
         reinterpret_cast<uintptr_t>(after.raw)) %
                16 ==
            0;
    if (after.device == Device::kCuda && vectors && kept == now.dim(1)) {
      const KernelScope timed(kTensorMath, Moves({after, after}));
      return cuda::KeepTail(before, now, after);
    }
  }
  if (before.defined()) {
    CopyRows(before, kept, after, 0, old);
  } else {
    FillZero(after);
  }
  CopyRows(now, now.dim(1) - kept, after, old, kept);
}

void MultiplyAdd(const Tensor& factor, const Tensor& addend, const Tensor& state,
                 const Tensor& weight) {
  EYRIE_CHECK(factor.size() > 0 && state.size() % factor.size() == 0 &&
              addend.size() == state.size() &&
              (!weight.defined() || weight.size() == factor.size()));
  const KernelScope timed(kTensorMath, Moves({addend, state, state}));
  if (IsMeta(state.device)) return;
  if constexpr (kCudaBuild) {
    if (state.device == Device::kCuda) return cuda::MultiplyAdd(factor, addend, state, weight);
  }
  ForFullType("MultiplyAdd", state, [&]<class T>(T) {
    const T *scale = factor.data<T>(), *term = addend.data<T>(), *share = weight.data<T>();
    T* out = state.data<T>();
    const int64_t each = state.size() / factor.size();
    for (int64_t i = 0; i < state.size(); ++i) {
      out[i] = scale[i / each] * out[i] + (share == nullptr ? term[i] : share[i / each] * term[i]);
    }
  });
}

void StabiliseSum(const Tensor& log_decay, const Tensor& increment_m, const Tensor& m,
                  const Tensor& keep, const Tensor& add) {
  for (const Tensor& other : {log_decay, increment_m, keep, add}) {
    EYRIE_CHECK(other.size() == m.size());
  }
  const KernelScope timed(kTensorMath, Moves({log_decay, increment_m, m, keep, add}));
  if (IsMeta(m.device)) return;
  if constexpr (kCudaBuild) {
    if (m.device == Device::kCuda) return cuda::StabiliseSum(log_decay, increment_m, m, keep, add);
  }
  ForFullType("StabiliseSum", m, [&]<class T>(T) {
    const T *decay = log_decay.data<T>(), *increment = increment_m.data<T>();
    for (int64_t i = 0; i < m.size(); ++i) {
      const T kept = decay[i] + m.data<T>()[i], most = std::max(kept, increment[i]);
      keep.data<T>()[i] = std::exp(kept - most);
      add.data<T>()[i] = std::exp(increment[i] - most);
      m.data<T>()[i] = most;
    }
  });
}

void Fill(const Tensor& tensor, double value) {
  const KernelScope timed(kTensorMath, Moves({tensor}));
  if (IsMeta(tensor.device)) return;
  if constexpr (kCudaBuild) {
    if (tensor.device == Device::kCuda) return cuda::Fill(tensor, value);
  }
  ForFullType("Fill", tensor, [&]<class T>(T) {
    std::fill_n(tensor.data<T>(), tensor.size(), static_cast<T>(value));
  });
}

void Convert(const Tensor& from, const Tensor& to) {
  EYRIE_CHECK(from.size() == to.size() && from.device == to.device);
  if (from.dtype == to.dtype) return Copy(from, to);
  const KernelScope timed(kTensorMath, Moves({from, to}));
  if (IsMeta(to.device)) return;
  if constexpr (kCudaBuild) {
    if (to.device == Device::kCuda) return cuda::Convert(from, to);
  }
  ForType(from, [&]<class From>(From) {
    ForType(to, [&]<class To>(To) {
      const From* source = from.data<From>();
      To* target = to.data<To>();
      constexpr int64_t kPiece = 1 << 16;
      ParallelFor(CeilDiv(to.size(), kPiece), [&](int64_t piece) {
        const int64_t end = std::min(to.size(), (piece + 1) * kPiece);
        for (int64_t i = piece * kPiece; i < end; ++i) target[i] = As<To>(source[i]);
      });
    });
  });
}

}  // namespace eyrie
