#include "core/memory.h"
#include "core/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace eyrie {

std::vector<std::string> FuzzSeeds() {
  const FuzzFolder folder;
  const auto file = [&](const std::string& name, const std::vector<SafetensorsSpec>& tensors,
                        const SafetensorsMetadata& metadata) {
    SafetensorsWriter writer(folder / name, tensors, metadata);
    for (const SafetensorsSpec& tensor : tensors) writer.Write(Buffer(tensor.bytes()).data());
    writer.Finish();
    return Content(folder / name);
  };
  return {file("empty", {}, {}), file("small", {{"a", DType::kF32, {2, 3}}}, {{"format", "pt"}}),
          file("types",
               {{"d", DType::kF64, {1}}, {"i", DType::kI32, {}}, {"b", DType::kBF16, {0, 4}}}, {})};
}

}  // namespace eyrie

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace eyrie;
  static const FuzzFolder folder;
  const auto path = folder.Write("file", {reinterpret_cast<const char*>(data), size});
  return AllowBadInput([&] {
    const SafetensorsFile file(path);
    for (const SafetensorsFile::Entry& entry : file.entries()) {
      // Every byte is there to be read.
      unsigned sum = 0;
      for (const std::byte byte : file.Bytes(entry)) sum += static_cast<unsigned>(byte);
      if (sum > 255 * entry.bytes || file.Find(entry.name) != &entry) std::abort();
    }
    const OwnedTensor to(DType::kF32, {2, 3});
    file.Read("a", to.tensor);
  });
}
