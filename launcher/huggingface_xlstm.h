// xLSTM 7B (arXiv:2503.13427) and others of its architecture as transformers' xlstm stores them.
#pragma once

#include "launcher/huggingface_family.h"

namespace eyrie {

HuggingFaceFamily XlstmFamily();

}  // namespace eyrie
