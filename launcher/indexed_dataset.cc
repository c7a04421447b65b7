#include "launcher/indexed_dataset.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>

#include "core/error.h"

namespace eyrie {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little endian");

constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
constexpr size_t kHeaderBytes = 9 + 8 + 1 + 8 + 8;

// The arrays of the index are not aligned.
template <class T>
T Load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <class T>
T LoadAt(const std::byte* from, int64_t i) {
  return Load<T>(from + static_cast<size_t>(i) * sizeof(T));
}

// Calls visit(T{}) with the token type as T; the constructor admitted no other type.
template <class Visit>
void WithType(TokenType type, Visit&& visit) {
  switch (type) {
    case TokenType::kUint8: return visit(uint8_t{});
    case TokenType::kInt8: return visit(int8_t{});
    case TokenType::kInt16: return visit(int16_t{});
    case TokenType::kInt32: return visit(int32_t{});
    case TokenType::kInt64: return visit(int64_t{});
    case TokenType::kUint16: return visit(uint16_t{});
    default: ThrowFailure("token type ", static_cast<int>(type), " holds no ids");
  }
}

}  // namespace

size_t TokenWidth(TokenType type) {
  constexpr std::array<size_t, 9> kWidths = {0, 1, 1, 2, 4, 8, 0, 0, 2};
  const auto code = static_cast<size_t>(type);
  return code < kWidths.size() ? kWidths[code] : 0;
}

IndexedDataset::IndexedDataset(const std::string& prefix)
    : prefix_(prefix), index_(prefix + ".idx"), data_(prefix + ".bin") {
  ParseHeader();
  CheckItems();
  CheckDocuments();
}

void IndexedDataset::ParseHeader() {
  const auto bytes = index_.bytes();
  const std::string& path = index_.path();
  if (bytes.size() < kHeaderBytes) {
    ThrowBadInput(path, ": ", bytes.size(), " bytes, but the header alone takes ", kHeaderBytes);
  }
  const std::byte* at = bytes.data();
  if (std::memcmp(at, kMagic.data(), kMagic.size()) != 0) {
    ThrowBadInput(path, ": not the index of a Megatron indexed dataset (wrong first 9 bytes)");
  }
  const auto version = Load<uint64_t>(at + 9);
  if (version != 1) ThrowBadInput(path, ": version ", version, ", but only 1 is known");
  const auto code = Load<uint8_t>(at + 17);
  type_ = static_cast<TokenType>(code);
  width_ = static_cast<int64_t>(TokenWidth(type_));
  if (type_ == TokenType::kFloat32 || type_ == TokenType::kFloat64) {
    ThrowBadInput(path, ": dtype code ", int{code}, " is a float, but token ids are integers");
  }
  if (width_ == 0) ThrowBadInput(path, ": unknown dtype code ", int{code});

  const auto items = Load<uint64_t>(at + 18);
  const auto entries = Load<uint64_t>(at + 26);
  // Divide rather than multiply: hostile counts overflow.
  const uint64_t room = bytes.size() - kHeaderBytes;
  if (items > room / 12 || entries > (room - items * 12) / 8) {
    ThrowBadInput(path, ": ", bytes.size(), " bytes are too few for ", items, " items and ",
                  entries, " document entries: truncated or damaged");
  }
  const uint64_t rest = room - items * 12 - entries * 8;
  if (rest != 0 && rest != items) {
    ThrowBadInput(path, ": ", rest, " bytes too many for ", items, " items and ", entries,
                  " document entries");
  }
  if (entries == 0) ThrowBadInput(path, ": the document index is empty, but begins with 0");
  items_ = static_cast<int64_t>(items);
  documents_ = static_cast<int64_t>(entries) - 1;
  item_tokens_ = at + kHeaderBytes;
  item_offsets_ = item_tokens_ + items * 4;
  document_index_ = item_offsets_ + items * 8;
}

void IndexedDataset::CheckItems() {
  const std::string& path = index_.path();
  const int64_t data_bytes = static_cast<int64_t>(data_.bytes().size());
  for (int64_t item = 0; item < items_; ++item) {
    const int64_t tokens = ItemTokens(item);
    const int64_t offset = ItemOffset(item);
    if (tokens < 0) ThrowBadInput(path, ": item ", item, " has a negative size, ", tokens);
    if (offset < 0) ThrowBadInput(path, ": item ", item, " has a negative offset, ", offset);
    if (offset > data_bytes || tokens > (data_bytes - offset) / width_) {
      ThrowBadInput(data_.path(), ": ", data_bytes, " bytes, too short for ", path, ": item ", item,
                    " has ", tokens, " tokens of ", width_, " bytes at byte ", offset);
    }
    if (item > 0 && offset != ItemOffset(item - 1) + ItemTokens(item - 1) * width_) {
      contiguous_ = false;
    }
    // Overlapping items can add up to more than the file has.
    if (__builtin_add_overflow(total_tokens_, tokens, &total_tokens_)) {
      ThrowBadInput(path, ": the items' sizes add up to more than 2^63 tokens");
    }
  }
  if (contiguous_) return;
  item_starts_.reserve(static_cast<size_t>(items_) + 1);
  item_starts_.push_back(0);
  for (int64_t item = 0; item < items_; ++item) {
    item_starts_.push_back(item_starts_.back() + ItemTokens(item));
  }
}

void IndexedDataset::CheckDocuments() const {
  const std::string& path = index_.path();
  if (DocumentIndex(0) != 0) {
    ThrowBadInput(path, ": the document index begins with ", DocumentIndex(0), " instead of 0");
  }
  for (int64_t entry = 1; entry <= documents_; ++entry) {
    if (DocumentIndex(entry) < DocumentIndex(entry - 1)) {
      ThrowBadInput(path, ": the document index falls from ", DocumentIndex(entry - 1), " to ",
                    DocumentIndex(entry), " at entry ", entry);
    }
  }
  if (DocumentIndex(documents_) != items_) {
    ThrowBadInput(path, ": the document index ends at item ", DocumentIndex(documents_),
                  ", but there are ", items_, " items");
  }
}

int64_t IndexedDataset::ItemTokens(int64_t item) const {
  return LoadAt<int32_t>(item_tokens_, item);
}

int64_t IndexedDataset::ItemOffset(int64_t item) const {
  return LoadAt<int64_t>(item_offsets_, item);
}

int64_t IndexedDataset::DocumentIndex(int64_t entry) const {
  return LoadAt<int64_t>(document_index_, entry);
}

int64_t IndexedDataset::ItemStart(int64_t item) const {
  if (item == items_) return total_tokens_;
  if (contiguous_) return (ItemOffset(item) - ItemOffset(0)) / width_;
  return item_starts_[static_cast<size_t>(item)];
}

int64_t IndexedDataset::document_start(int64_t i) const {
  EYRIE_CHECK(i >= 0 && i <= documents_, "document ", i, " of ", documents_);
  return ItemStart(DocumentIndex(i));
}

int64_t IndexedDataset::DocumentStartAtOrBefore(int64_t token) const {
  EYRIE_CHECK(token >= 0 && token < total_tokens_, "token ", token, " of ", total_tokens_);
  int64_t low = 0;  // starts at or before the token; `high` starts after it, or is the end
  int64_t high = documents_;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (document_start(middle) <= token ? low : high) = middle;
  }
  return document_start(low);
}

template <class Visit>
void IndexedDataset::ForEachPiece(int64_t first, int64_t count, Visit&& visit) const {
  EYRIE_CHECK(first >= 0 && count >= 0 && first <= total_tokens_ - count, "tokens ", first, " + ",
              count, " of ", total_tokens_);
  if (count == 0) return;
  const std::byte* data = data_.bytes().data();
  if (contiguous_) return visit(data + ItemOffset(0) + first * width_, count, first);
  // The last item that starts at or before `first`.
  int64_t item = std::upper_bound(item_starts_.begin(), item_starts_.end() - 1, first) -
                 item_starts_.begin() - 1;
  for (const int64_t end = first + count; first < end; ++item) {
    const int64_t skip = first - ItemStart(item);
    const int64_t here = std::min(end - first, ItemTokens(item) - skip);
    visit(data + ItemOffset(item) + skip * width_, here, first);
    first += here;
  }
}

void IndexedDataset::Read(int64_t first_token, int64_t count, int32_t* out) const {
  ForEachPiece(first_token, count, [&](const std::byte* bytes, int64_t tokens, int64_t position) {
    int32_t* to = out + (position - first_token);
    WithType(type_, [&]<class T>(T) {
      for (int64_t i = 0; i < tokens; ++i) {
        const T id = LoadAt<T>(bytes, i);
        if constexpr (std::is_same_v<T, int64_t>) {
          if (id != static_cast<int32_t>(id)) {
            ThrowBadInput(data_.path(), ": token ", position + i, " has id ", id,
                          ", which no vocabulary holds");
          }
        }
        to[i] = static_cast<int32_t>(id);
      }
    });
  });
}

std::optional<IndexedDataset::Element> IndexedDataset::FirstOutside(int64_t largest, int64_t first,
                                                                    int64_t count) const {
  std::optional<Element> found;
  ForEachPiece(first, count, [&](const std::byte* bytes, int64_t tokens, int64_t position) {
    WithType(type_, [&]<class T>(T) {
      T least = std::numeric_limits<T>::max();
      T most = std::numeric_limits<T>::min();
      for (int64_t i = 0; i < tokens; ++i) {
        least = std::min(least, LoadAt<T>(bytes, i));
        most = std::max(most, LoadAt<T>(bytes, i));
      }
      if (int64_t{least} >= 0 && int64_t{most} <= largest) return;
      for (int64_t i = 0; i < tokens && !found; ++i) {
        const int64_t value = LoadAt<T>(bytes, i);
        if (value < 0 || value > largest) found = {position + i, value};
      }
    });
  });
  return found;
}

void IndexedDataset::CheckTokens(int64_t max_allowed, int64_t first, int64_t count) const {
  if (const auto token = FirstOutside(max_allowed, first, count)) {
    ThrowBadInput(data_.path(), ": token ", token->position, " has id ", token->value,
                  ", but model.vocab_size is ", max_allowed + 1);
  }
}

void IndexedDataset::CheckLabels(int64_t vocab_size, int64_t first, int64_t count) const {
  if (const auto label = FirstOutside(vocab_size, first, count)) {
    ThrowBadInput(data_.path(), ": label ", label->position, " is ", label->value,
                  ", not from 0 to model.vocab_size = ", vocab_size);
  }
}

}  // namespace eyrie
