// Tensor: a contiguous, row-major view of memory that somebody else owns (a Buffer, an Arena).
// Copying a Tensor copies the view. An undefined Tensor (no data) stands for "absent" in kernel
// arguments that are optional.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/dtype.h"
#include "core/error.h"

namespace eyrie {

// The meta devices are none: tensors there have a shape and no memory, and whatever is done with
// them is checked and then does nothing. A whole training step runs there in no time, which is how
// a run is measured before it takes any memory (launcher/measure.h). kMeta stands for the CPU and
// kMetaCuda for a GPU: layers and kernels take as much scratch there as on what they stand for. The
// idea and the name are PyTorch's.
enum class Device : uint8_t { kCpu, kCuda, kMeta, kMetaCuda };

constexpr bool IsMeta(Device device) {
  return device == Device::kMeta || device == Device::kMetaCuda;
}
// A GPU, or what stands for one.
constexpr bool IsGpu(Device device) {
  return device == Device::kCuda || device == Device::kMetaCuda;
}
constexpr Device MetaOf(Device device) { return IsGpu(device) ? Device::kMetaCuda : Device::kMeta; }

// Up to five extents, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents) {
    EYRIE_CHECK(extents.size() <= kMaxRank);
    for (int64_t extent : extents) Append(extent);
  }
  void Append(int64_t extent) {
    EYRIE_CHECK(rank_ < kMaxRank && extent >= 0);
    extents_[static_cast<size_t>(rank_++)] = extent;
  }
  int rank() const { return rank_; }
  // A negative index counts from the innermost axis.
  int64_t operator[](int axis) const {
    return extents_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)];
  }
  void Set(int axis, int64_t extent) { extents_[static_cast<size_t>(axis)] = extent; }
  int64_t size() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank_; ++axis) product *= (*this)[axis];
    return product;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int axis = 0; axis < rank_; ++axis) {
      if ((*this)[axis] != other[axis]) return false;
    }
    return true;
  }
  std::string ToString() const;  // "[2, 3]"

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

struct Tensor {
  void* raw = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  Shape shape;

  bool defined() const { return raw != nullptr; }
  int64_t size() const { return shape.size(); }
  int64_t dim(int axis) const { return shape[axis]; }
  size_t bytes() const { return static_cast<size_t>(size()) * SizeOf(dtype); }

  // Typed access; the element type must be the tensor's own. Null when undefined.
  template <class T>
  T* data() const {
    if (raw == nullptr) return nullptr;
    EYRIE_CHECK(!IsMeta(device), "a meta tensor has no elements");
    EYRIE_CHECK(dtype == DTypeOf<T>::value, "tensor holds ", Name(dtype));
    return static_cast<T*>(raw);
  }
  // The same memory under another shape of equal size.
  Tensor View(Shape other) const {
    EYRIE_CHECK(other.size() == size(), shape.ToString(), " viewed as ", other.ToString());
    return Tensor{raw, dtype, device, other};
  }
  // Rows [begin, end) along the outermost axis.
  Tensor Rows(int64_t begin, int64_t end) const;
};

// Memory operations on tensors of equal dtype and size, on any device; Copy also between devices
// (CopyBytes in core/device.h says when its result can be used).
void Copy(const Tensor& from, const Tensor& to);
void FillZero(const Tensor& tensor);
// Copies `rows` rows of each sequence: from [B, N, C], starting at from_row, to [B, M, C], starting
// at to_row.
void CopyRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows);

}  // namespace eyrie
