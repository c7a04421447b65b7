// RecurrentGemma (arXiv:2404.07839): Griffin as transformers' recurrent_gemma stores it.
#pragma once

#include "launcher/huggingface_family.h"

namespace eyrie {

HuggingFaceFamily RecurrentGemmaFamily();

}  // namespace eyrie
