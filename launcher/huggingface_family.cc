#include "launcher/huggingface_family.h"

#include <algorithm>

#include "core/error.h"
#include "launcher/huggingface_mamba.h"
#include "launcher/huggingface_recurrent_gemma.h"
#include "launcher/huggingface_xlstm.h"

namespace eyrie {

HuggingFaceTensor NamedTensor(const ParamSpec& spec, std::string_view layers,
                              std::span<const HuggingFaceName> names) {
  constexpr std::string_view kBlocks = "blocks.";
  std::string_view rest = spec.name;
  std::string layer;
  if (rest.starts_with(kBlocks)) {
    rest.remove_prefix(kBlocks.size());
    const size_t end = rest.find('.') + 1;
    layer = StrCat(layers, rest.substr(0, end));
    rest.remove_prefix(end);
  }
  const auto pair = std::find_if(names.begin(), names.end(),
                                 [&](const HuggingFaceName& name) { return name.ours == rest; });
  EYRIE_CHECK(pair != names.end(), spec.name);
  return {StrCat(layer, pair->theirs), spec.shape};
}

const std::vector<HuggingFaceFamily>& HuggingFaceFamilies() {
  static const std::vector<HuggingFaceFamily> families = {
      RecurrentGemmaFamily(),
      MambaFamily(),
      XlstmFamily(),
  };
  return families;
}

}  // namespace eyrie
