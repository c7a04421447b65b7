#include "core/tensor.h"

#include <cstring>

namespace eyrie {

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
  if (from.device == Device::kMeta && to.device == Device::kMeta) return;
  EYRIE_CHECK(from.device == Device::kCpu && to.device == Device::kCpu);
  if (from.bytes() > 0) std::memcpy(to.raw, from.raw, from.bytes());
}

void FillZero(const Tensor& tensor) {
  if (tensor.device == Device::kMeta) return;
  EYRIE_CHECK(tensor.device == Device::kCpu);
  if (tensor.bytes() > 0) std::memset(tensor.raw, 0, tensor.bytes());
}

void CopyRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row,
              int64_t rows) {
  for (int64_t b = 0; b < from.dim(0); ++b) {
    const Tensor source = from.Rows(b, b + 1).View({from.dim(1), from.dim(2)});
    const Tensor target = to.Rows(b, b + 1).View({to.dim(1), to.dim(2)});
    Copy(source.Rows(from_row, from_row + rows), target.Rows(to_row, to_row + rows));
  }
}

}  // namespace eyrie
