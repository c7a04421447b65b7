// Mamba (arXiv:2312.00752) as transformers' mamba stores it.
#pragma once

#include "launcher/huggingface_family.h"

namespace eyrie {

HuggingFaceFamily MambaFamily();

}  // namespace eyrie
