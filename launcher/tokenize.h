// Text files to token files: what `eyrie tokenize` does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/document_reader.h"

namespace eyrie {

struct TokenizeOptions {
  std::vector<std::string> inputs;
  std::string tokenizer;  // see MakeTokenizer
  std::string output;     // prefix of PREFIX.bin and PREFIX.idx
  DocumentMode documents = DocumentMode::kFile;
};

// Writes every document of the inputs, in order and each ended by the tokenizer's end of document,
// and prints a line with the numbers of documents, tokens and bytes of text to stdout. Uses all
// OpenMP threads; the output does not depend on their number. Throws kBadInput if there is no text
// or a file is at fault; PREFIX.bin and PREFIX.idx then stay what they were.
void RunTokenize(const TokenizeOptions& options);

}  // namespace eyrie
