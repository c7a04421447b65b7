#include "launcher/manifest.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "core/checksum.h"
#include "core/mapped_file.h"
#include "core/output_file.h"
#include "launcher/config.h"

namespace eyrie {
namespace {

constexpr std::string_view kFirstField = "format_version: ";
constexpr std::string_view kChecksumLine = "# xxh3 ";

std::string ChecksumLine(std::string_view text) {
  std::array<char, 32> digits;
  std::snprintf(digits.data(), digits.size(), "%016llx",
                static_cast<unsigned long long>(Checksum(text.data(), text.size())));
  return std::string(kChecksumLine) + digits.data() + "\n";
}

std::optional<DType> ParseDType(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kI32}) {
    if (name == Name(dtype)) return dtype;
  }
  return std::nullopt;
}

template <class Extents>
Shape ToShape(const Extents& extents) {
  Shape shape;
  for (const int64_t extent : extents) shape.Append(extent);
  return shape;
}

// What is wrong with a manifest, or empty. Nothing else needs to check its numbers again.
class Checker {
 public:
  explicit Checker(const config::Manifest& manifest) : manifest_(manifest) {}

  std::string Problem() {
    if (manifest_.step() < 0 || manifest_.samples() < 0 || manifest_.tokens() < 0) {
      return "a negative position";
    }
    std::set<std::string> names;
    for (const auto& file : manifest_.file()) {
      const std::string& name = file.name();
      if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
          name.find('\0') != std::string::npos || name == kManifestName) {
        return StrCat("\"", name, "\" cannot be the name of a file of a checkpoint");
      }
      if (!names.insert(name).second) return StrCat("lists ", name, " twice");
      if (file.size() < 0) return StrCat(name, " has a negative size");
    }
    names.clear();
    for (const auto& tensor : manifest_.tensor()) {
      if (!names.insert(tensor.name()).second) return StrCat("lists ", tensor.name(), " twice");
      const std::string problem = TensorProblem(tensor);
      if (!problem.empty()) return StrCat("tensor ", tensor.name(), ": ", problem);
    }
    return "";
  }

 private:
  // The number of elements in a box; nothing if it is not one.
  template <class Extents>
  static std::optional<int64_t> Volume(const Extents& extents) {
    if (extents.size() > Shape::kMaxRank) return std::nullopt;
    int64_t volume = 8;  // bytes of the largest element
    for (const int64_t extent : extents) {
      if (extent < 0 || __builtin_mul_overflow(volume, extent, &volume)) return std::nullopt;
    }
    return volume / 8;
  }

  // Whether two of them have an element in common. Pieces are many with ZeRO, but few of them
  // start in the rows of any one.
  static bool Overlap(std::vector<Slice> pieces) {
    const auto before = [](const Slice& a, const Slice& b) { return a.offset[0] < b.offset[0]; };
    if (pieces.empty() || pieces[0].extent.rank() == 0) return pieces.size() > 1;
    std::sort(pieces.begin(), pieces.end(), before);
    for (auto one = pieces.begin(); one != pieces.end(); ++one) {
      const int64_t end = one->offset[0] + one->extent[0];
      for (auto other = one + 1; other != pieces.end() && other->offset[0] < end; ++other) {
        if (Intersect(*one, *other)) return true;
      }
    }
    return false;
  }

  std::string TensorProblem(const config::StoredTensor& tensor) {
    if (!ParseDType(tensor.dtype())) return StrCat("unknown dtype \"", tensor.dtype(), "\"");
    const std::optional<int64_t> whole = Volume(tensor.shape());
    if (!whole) return "a bad shape";
    std::vector<Slice> pieces;
    int64_t covered = 0;
    for (const auto& piece : tensor.piece()) {
      if (piece.file() < 0 || piece.file() >= manifest_.file_size() ||
          !IsShard(manifest_.file(piece.file()))) {
        return "a piece in no file";
      }
      if (!keys_.emplace(piece.file(), KeyOf(tensor, piece)).second) {
        return StrCat("two pieces in one file are called ", KeyOf(tensor, piece));
      }
      const std::optional<int64_t> volume = Volume(piece.shape());
      bool inside = volume && piece.shape_size() == tensor.shape_size() &&
                    piece.offset_size() == tensor.shape_size();
      for (int axis = 0; inside && axis < tensor.shape_size(); ++axis) {
        inside = piece.offset(axis) >= 0 && piece.shape(axis) <= tensor.shape(axis) &&
                 piece.offset(axis) <= tensor.shape(axis) - piece.shape(axis);
      }
      if (!inside) return "a piece that lies outside";
      if (*volume > *whole - covered) return "pieces that overlap";
      covered += *volume;
      pieces.push_back(SliceOf(piece));
    }
    if (covered != *whole) return "a piece is missing";
    // As many elements as the tensor has, and none of them twice: the pieces tile it.
    return Overlap(std::move(pieces)) ? "pieces that overlap" : "";
  }

  const config::Manifest& manifest_;
  std::set<std::pair<int, std::string>> keys_;  // of all pieces: file, key
};

}  // namespace

config::Manifest ReadManifest(const std::filesystem::path& checkpoint) {
  const MappedFile file((checkpoint / kManifestName).string());
  const std::string_view all(reinterpret_cast<const char*>(file.bytes().data()),
                             file.bytes().size());
  const size_t line_bytes = ChecksumLine("").size();
  const size_t text_bytes = all.size() < line_bytes ? 0 : all.size() - line_bytes;
  const std::string text(all.substr(0, text_bytes));
  if (all.substr(text_bytes) != ChecksumLine(text)) {
    ThrowBadInput(file.path(), ": damaged: it does not match the checksum in its last line");
  }
  // Looked at before the rest, which a later format may have changed.
  const std::string expected = StrCat(kFirstField, kCheckpointFormat, "\n");
  if (text.compare(0, expected.size(), expected) != 0) {
    if (text.compare(0, kFirstField.size(), kFirstField) != 0) {
      ThrowBadInput(file.path(), ": not a manifest: it does not start with its format_version");
    }
    const size_t end = text.find('\n');
    ThrowBadInput(file.path(), ": ", text.substr(0, std::min(end, size_t{40})),
                  ", but this program reads ", kCheckpointFormat);
  }
  config::Manifest manifest;
  ParseText(text, file.path(), manifest);
  const std::string problem = Checker(manifest).Problem();
  if (!problem.empty()) ThrowBadInput(file.path(), ": ", problem);
  return manifest;
}

void WriteManifest(const std::filesystem::path& checkpoint, const config::Manifest& manifest) {
  std::string text = ToText(manifest);
  text += ChecksumLine(text);
  OutputFile file(checkpoint / kManifestName);
  file.Write(text.data(), text.size());
  file.Finish();
}

std::string TokenizerOf(const std::filesystem::path& checkpoint, const config::Manifest& manifest) {
  for (const auto& file : manifest.file()) {
    if (file.name() == kTokenizerName) {
      return "sentencepiece:" + (checkpoint / kTokenizerName).string();
    }
  }
  return manifest.config().data().tokenizer();
}

std::string GroupOf(const config::StoredTensor& tensor) {
  return tensor.name().substr(0, tensor.name().rfind('/') + 1);
}

DType DTypeOfStored(const config::StoredTensor& tensor) {
  const std::optional<DType> dtype = ParseDType(tensor.dtype());
  EYRIE_CHECK(dtype.has_value(), tensor.name(), " ", tensor.dtype());
  return *dtype;
}

Slice WholeOf(const config::StoredTensor& tensor) {
  Slice whole{ToShape(tensor.shape()), ToShape(tensor.shape())};
  for (int axis = 0; axis < whole.offset.rank(); ++axis) whole.offset.Set(axis, 0);
  return whole;
}

Slice SliceOf(const config::Piece& piece) {
  return {ToShape(piece.offset()), ToShape(piece.shape())};
}

const std::string& KeyOf(const config::StoredTensor& tensor, const config::Piece& piece) {
  return piece.has_key() ? piece.key() : tensor.name();
}

std::string ShardName(int64_t index, int64_t count) {
  std::array<char, 80> name;
  std::snprintf(name.data(), name.size(), "model-%05lld-of-%05lld.safetensors",
                static_cast<long long>(index), static_cast<long long>(count));
  return name.data();
}

bool IsShard(const config::StoredFile& file) { return file.name().ends_with(".safetensors"); }

}  // namespace eyrie
