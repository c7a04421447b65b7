#include "launcher/tokenize.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <mutex>

#include "core/error.h"
#include "launcher/indexed_dataset.h"
#include "launcher/tokenizer.h"

namespace eyrie {
namespace {

// A batch is encoded in parallel while it stays in memory.
constexpr size_t kBatchBytes = size_t{8} << 20;
constexpr size_t kBatchDocuments = size_t{1} << 16;

struct Batch {
  std::vector<std::string> documents;
  std::vector<std::vector<int32_t>> tokens;
  size_t bytes = 0;
};

// Reads the next documents; false if there are none.
bool Fill(DocumentReader& reader, Batch& batch) {
  batch.documents.clear();
  batch.bytes = 0;
  std::string document;
  while (batch.bytes < kBatchBytes && batch.documents.size() < kBatchDocuments &&
         reader.Next(&document)) {
    batch.bytes += document.size();
    batch.documents.push_back(std::move(document));
  }
  return !batch.documents.empty();
}

void Encode(const Tokenizer& tokenizer, Batch& batch) {
  batch.tokens.resize(batch.documents.size());
  std::exception_ptr problem;  // must not leave the parallel region by itself
  std::mutex mutex;
#pragma omp parallel for schedule(dynamic, 16)
  for (size_t i = 0; i < batch.documents.size(); ++i) {
    try {
      batch.tokens[i] = tokenizer.Encode(batch.documents[i]);
      batch.tokens[i].push_back(tokenizer.end_of_document());
    } catch (...) {
      const std::lock_guard lock(mutex);
      problem = std::current_exception();
    }
  }
  if (problem) std::rethrow_exception(problem);
}

// One line on a terminal that is written over as work goes on.
class Progress {
 public:
  ~Progress() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void Show(int64_t bytes, int64_t tokens) {
    const auto now = std::chrono::steady_clock::now();
    if (!terminal_ || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    shown_ = true;
    std::fprintf(stderr, "\rtokenize: %.1f MB of text, %.2f M tokens",
                 static_cast<double>(bytes) * 1e-6, static_cast<double>(tokens) * 1e-6);
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace

void RunTokenize(const TokenizeOptions& options) {
  if (options.inputs.empty()) ThrowBadInput("--input: no file given");
  if (options.output.empty() || options.output.ends_with('/')) {
    ThrowBadInput("--output: \"", options.output, "\" is not the prefix of a file name");
  }
  const auto tokenizer = MakeTokenizer(options.tokenizer);
  DocumentReader reader(options.inputs, options.documents);
  IndexedDatasetWriter writer(options.output, tokenizer->vocab_size());
  int64_t bytes = 0;
  {
    Progress progress;
    Batch batch;
    while (Fill(reader, batch)) {
      Encode(*tokenizer, batch);
      for (const auto& tokens : batch.tokens) writer.AddDocument(tokens);
      bytes += static_cast<int64_t>(batch.bytes);
      progress.Show(bytes, writer.total_tokens());
    }
  }
  if (writer.documents() == 0) {
    ThrowBadInput(options.inputs.front(), options.inputs.size() > 1 ? " and all other inputs" : "",
                  ": no text in it");
  }
  writer.Finish();
  std::cout << options.output << ": " << writer.documents() << " documents, "
            << writer.total_tokens() << " tokens, " << bytes << " bytes of text" << std::endl;
}

}  // namespace eyrie
