#include "core/tensor.h"

#include <cstring>

#include "core/device.h"
#include "core/kernel_times.h"

namespace eyrie {
namespace {

constexpr const char* kCopies = "copies";

}  // namespace

std::string Shape::ToString() const {
  std::string text = "[";
  for (int axis = 0; axis < rank_; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string((*this)[axis]);
  }
  return text + "]";
}

Tensor Tensor::Rows(int64_t begin, int64_t end) const {
  EYRIE_CHECK(shape.rank() > 0 && 0 <= begin && begin <= end && end <= shape[0]);
  const int64_t row = shape[0] == 0 ? 0 : size() / shape[0];
  Tensor rows = *this;
  rows.shape.Set(0, end - begin);
  rows.raw = static_cast<char*>(raw) + static_cast<size_t>(begin * row) * SizeOf(dtype);
  return rows;
}

void Copy(const Tensor& from, const Tensor& to) {
  EYRIE_CHECK(from.dtype == to.dtype && from.size() == to.size());
  const KernelScope timed(kCopies, Moves({from, to}));
  CopyBytes(to.raw, to.device, from.raw, from.device, from.bytes());
}

void FillZero(const Tensor& tensor) {
  const KernelScope timed(kCopies, Moves({tensor}));
  ZeroBytes(tensor.device, tensor.raw, tensor.bytes());
}

void CopyRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row,
              int64_t rows) {
  EYRIE_CHECK(from.dtype == to.dtype && from.device == to.device && from.dim(0) == to.dim(0) &&
              from.dim(2) == to.dim(2));
  EYRIE_CHECK(0 <= from_row && from_row + rows <= from.dim(1) && 0 <= to_row &&
              to_row + rows <= to.dim(1));
  const size_t row = static_cast<size_t>(from.dim(2)) * SizeOf(from.dtype);
  const auto bytes = [&](int64_t count) { return static_cast<size_t>(count) * row; };
  char* target = static_cast<char*>(to.raw) + bytes(to_row);
  const char* source = static_cast<const char*>(from.raw) + bytes(from_row);
  if (from.size() == 0 || rows == 0) return;
  const KernelScope timed(kCopies, {.bytes = 2.0 * static_cast<double>(bytes(from.dim(0) * rows))});
  if (IsMeta(from.device)) return;
  if (from.device == Device::kCuda) {
    return cuda::CopyPitched(target, bytes(to.dim(1)), source, bytes(from.dim(1)), bytes(rows),
                             static_cast<size_t>(from.dim(0)));
  }
  for (int64_t b = 0; b < from.dim(0); ++b) {
    std::memcpy(target + bytes(b * to.dim(1)), source + bytes(b * from.dim(1)), bytes(rows));
  }
}

}  // namespace eyrie
