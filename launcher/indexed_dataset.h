// Token files: the Megatron-LM indexed dataset, PREFIX.bin (token ids, nothing else) beside
// PREFIX.idx (where items and documents lie). All integers are little endian and unaligned:
//
//   9 bytes   "MMIDIDX\0\0"
//   uint64    version, 1
//   uint8     dtype code, see TokenType
//   uint64    items
//   uint64    entries of the document index: documents + 1
//   int32     tokens of each item
//   int64     byte offset of each item in PREFIX.bin
//   int64     document index: the first item of each document, then the number of items
//   int8      mode of each item; only in multimodal files, and not read
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/mapped_file.h"

namespace eyrie {

// The numeric codes of the format.
enum class TokenType : uint8_t {
  kUint8 = 1,
  kInt8 = 2,
  kInt16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kFloat64 = 6,
  kFloat32 = 7,
  kUint16 = 8,
};

// Bytes of one token; 0 for a type that cannot hold token ids (a float, an unknown code).
size_t TokenWidth(TokenType type);

// The type that a writer chooses: uint16 below 65500 ids, else int32. The threshold is Megatron's
// own, so that the same tokens give the same file.
TokenType TokenTypeFor(int64_t vocab_size);

// All items of a dataset, in the order of the index, seen as one stream of tokens. Thread-safe.
class IndexedDataset {
 public:
  // Maps both files and checks the whole index: whatever opens can be read without further care.
  // Throws kBadInput with one line naming the file and what is wrong with it.
  explicit IndexedDataset(const std::string& prefix);

  const std::string& prefix() const { return prefix_; }
  int64_t total_tokens() const { return total_tokens_; }
  int64_t items() const { return items_; }
  int64_t documents() const { return documents_; }

  // The stream position of the first token of document `i`; of document documents(), the end.
  // Empty documents start where the next one does.
  int64_t document_start(int64_t i) const;

  // The last document start that is <= `token`, for 0 <= token < total_tokens(): where the document
  // of this token begins.
  int64_t DocumentStartAtOrBefore(int64_t token) const;

  // Copies the tokens [first_token, first_token + count) of the stream, which must exist. Throws
  // kBadInput if an int64 token does not fit into `out`.
  void Read(int64_t first_token, int64_t count, int32_t* out) const;

  // Throws kBadInput if a token of [first, first + count) is negative or above `max_allowed`, which
  // is model.vocab_size - 1.
  void CheckTokens(int64_t max_allowed, int64_t first, int64_t count) const;
  // Likewise for a file of labels, each 0 or one more than an id (data.labels: GIVEN).
  void CheckLabels(int64_t vocab_size, int64_t first, int64_t count) const;

 private:
  struct Element {
    int64_t position, value;
  };
  // The first of [first, first + count) that is negative or above `largest`, if any is.
  std::optional<Element> FirstOutside(int64_t largest, int64_t first, int64_t count) const;
  int64_t ItemTokens(int64_t item) const;
  int64_t ItemOffset(int64_t item) const;  // in bytes
  int64_t DocumentIndex(int64_t entry) const;
  int64_t ItemStart(int64_t item) const;  // in tokens of the stream
  // Parses the header and places the three arrays, checking that the file holds them.
  void ParseHeader();
  void CheckItems();
  void CheckDocuments() const;
  // Calls visit(bytes, tokens, position) for each contiguous piece of a range of the stream.
  template <class Visit>
  void ForEachPiece(int64_t first, int64_t count, Visit&& visit) const;

  std::string prefix_;
  MappedFile index_;
  MappedFile data_;
  TokenType type_ = TokenType::kUint16;
  int64_t width_ = 0;  // bytes of a token
  int64_t items_ = 0;
  int64_t documents_ = 0;
  int64_t total_tokens_ = 0;
  const std::byte* item_tokens_ = nullptr;
  const std::byte* item_offsets_ = nullptr;
  const std::byte* document_index_ = nullptr;
  // Items follow each other in PREFIX.bin, as every usual writer leaves them: stream positions then
  // follow from byte offsets, and item_starts_ stays empty.
  bool contiguous_ = true;
  std::vector<int64_t> item_starts_;
};

// Writes a dataset, one item a document. Nothing is seen under the final names before Finish().
class IndexedDatasetWriter {
 public:
  // Creates PREFIX.bin.partial, and the folder if need be. Ids must be below `vocab_size`.
  IndexedDatasetWriter(const std::string& prefix, int64_t vocab_size);
  // Removes what is unfinished.
  ~IndexedDatasetWriter();
  IndexedDatasetWriter(const IndexedDatasetWriter&) = delete;
  IndexedDatasetWriter& operator=(const IndexedDatasetWriter&) = delete;

  void AddDocument(std::span<const int32_t> tokens);
  // Writes the index and renames both files into place; the writer is done.
  void Finish();

  int64_t documents() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t total_tokens() const { return total_tokens_; }

 private:
  void WriteIndex(const std::string& path) const;

  std::string prefix_;
  int64_t vocab_size_;
  TokenType type_;
  std::ofstream data_;
  std::vector<int32_t> sizes_;
  std::vector<uint16_t> narrow_;  // scratch of AddDocument
  int64_t total_tokens_ = 0;
  bool finished_ = false;
};

}  // namespace eyrie
