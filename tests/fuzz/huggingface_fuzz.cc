// config.json of a Hugging Face folder.
#include "launcher/huggingface_family.h"
#include "tests/fuzz/fuzz.h"

namespace eyrie {

std::vector<std::string> FuzzSeeds() {
  const auto golden = std::filesystem::path(EYRIE_SOURCE_DIR) / "tests/golden";
  return {Content(golden / "recurrent_gemma/small/config.json"),
          Content(golden / "mamba/small/config.json"), Content(golden / "xlstm/small/config.json")};
}

}  // namespace eyrie

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace eyrie;
  static const FuzzFolder folder;
  const auto path = folder.Write("config.json", {reinterpret_cast<const char*>(data), size});
  for (const HuggingFaceFamily& family : HuggingFaceFamilies()) {
    AllowBadInput([&] {
      const config::ModelConfig model = family.read(HuggingFaceConfig(path));
      if (family.obstacle(model).empty()) family.write(model);
    });
  }
  return 0;
}
