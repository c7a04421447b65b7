#include "launcher/huggingface_family.h"

#include "launcher/huggingface_recurrent_gemma.h"

namespace eyrie {

const std::vector<HuggingFaceFamily>& HuggingFaceFamilies() {
  static const std::vector<HuggingFaceFamily> families = {
      RecurrentGemmaFamily(),
  };
  return families;
}

}  // namespace eyrie
