#include "parallel/text_messages.h"

#include <cstring>
#include <vector>

#include "core/memory.h"
#include "core/round.h"

namespace eyrie {
namespace {

// Room for so many bytes, in units that communicators know.
OwnedTensor Room(double bytes) {
  constexpr int64_t kWord = sizeof(int32_t);
  return {DType::kI32, {CeilDiv(static_cast<int64_t>(bytes), kWord)}};
}

OwnedTensor Packed(const std::string& text) {
  OwnedTensor packed = Room(static_cast<double>(text.size()));
  std::memcpy(packed.tensor.raw, text.data(), text.size());
  return packed;
}

std::string Unpacked(const Tensor& packed, double bytes) {
  return {static_cast<const char*>(packed.raw), static_cast<size_t>(bytes)};
}

}  // namespace

std::string BroadcastText(Communicator& group, const std::string& text) {
  const bool root = group.rank() == 0;
  const double bytes =
      AllReduceValue(group, root ? static_cast<double>(text.size()) : 0.0, ReduceOp::kMax);
  if (bytes == 0) return "";
  const OwnedTensor packed = root ? Packed(text) : Room(bytes);
  group.Broadcast(packed.tensor, 0).Wait();
  return Unpacked(packed.tensor, bytes);
}

void GatherText(Communicator& group, const std::string& text,
                const std::function<void(const std::string& text)>& take) {
  double length = static_cast<double>(text.size());
  std::vector<double> lengths(static_cast<size_t>(group.size()));
  group
      .AllGather(Tensor{&length, DType::kF64, Device::kCpu, {1}},
                 Tensor{lengths.data(), DType::kF64, Device::kCpu, {group.size()}})
      .Wait();
  for (int rank = 1; rank < group.size(); ++rank) {
    const double bytes = lengths[static_cast<size_t>(rank)];
    if (group.rank() == 0 && bytes == 0) take("");
    if (bytes == 0) continue;
    if (group.rank() == rank) {
      const OwnedTensor packed = Packed(text);
      group.Exchange({{packed.tensor, 0}}, {}).Wait();
    } else if (group.rank() == 0) {
      const OwnedTensor packed = Room(bytes);
      group.Exchange({}, {{packed.tensor, rank}}).Wait();
      take(Unpacked(packed.tensor, bytes));
    }
  }
  if (group.rank() == 0) take(text);
}

}  // namespace eyrie
