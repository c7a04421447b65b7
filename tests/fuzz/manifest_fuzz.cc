// The text of a manifest, under a checksum that fits it, since chance would never find one.
#include <cinttypes>

#include "core/checksum.h"
#include "launcher/manifest.h"
#include "tests/fuzz/fuzz.h"

namespace eyrie {
namespace {

std::string Signed(std::string text) {
  char line[40];
  std::snprintf(line, sizeof line, "# xxh3 %016" PRIx64 "\n", Checksum(text.data(), text.size()));
  return text + line;
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  const std::string head = "format_version: 1\nstep: 3\nsamples: 24\ntokens: 768\n";
  const std::string file =
      "file { name: \"model-00000-of-00001.safetensors\" size: 200 header_checksum: 5 }\n";
  return {head, head + file + R"(
config { model { vocab_size: 64 width: 8 depth: 1 pattern: "recurrent" } parallel { tensor: 2 } }
tensor {
  name: "a.w" dtype: "F32" shape: 4 shape: 6
  piece { file: 0 offset: 0 offset: 0 shape: 4 shape: 3 checksum: 1 }
  piece { file: 0 offset: 0 offset: 3 shape: 4 shape: 3 checksum: 2 key: "a.w.1" }
}
tensor { name: "s" dtype: "BF16" piece { file: 0 checksum: 7 } }
)"};
}

}  // namespace eyrie

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace eyrie;
  static const FuzzFolder folder;
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const std::string& content : {text, Signed(text)}) {
    folder.Write(kManifestName, content);
    AllowBadInput([&] {
      const config::Manifest manifest = ReadManifest(folder / "");
      for (const auto& tensor : manifest.tensor()) {
        DTypeOfStored(tensor);
        const Slice whole = WholeOf(tensor);
        for (const auto& piece : tensor.piece()) {
          if (!Intersect(whole, SliceOf(piece)) && SliceOf(piece).extent.size() > 0) std::abort();
          KeyOf(tensor, piece);
        }
      }
    });
  }
  return 0;
}
