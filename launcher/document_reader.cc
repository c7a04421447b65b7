#include "launcher/document_reader.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace eyrie {
namespace {

bool IsBlank(const std::string& line) { return line.find_first_not_of(" \t") == line.npos; }

std::ifstream Open(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) ThrowBadInput(path, ": is a folder");
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) ThrowBadInput(path, ": cannot open: ", std::strerror(errno));
  return stream;
}

}  // namespace

DocumentMode ParseDocumentMode(const std::string& name) {
  if (name == "file") return DocumentMode::kFile;
  if (name == "blank-line") return DocumentMode::kBlankLine;
  if (name == "line") return DocumentMode::kLine;
  if (name == "jsonl") return DocumentMode::kJsonl;
  ThrowBadInput("--documents: \"", name, "\" is none of file, blank-line, line, jsonl");
}

DocumentReader::DocumentReader(std::vector<std::string> files, DocumentMode mode)
    : files_(std::move(files)), mode_(mode) {
  // A missing last file should not come to light after an hour. Opening a pipe would consume it.
  for (const auto& file : files_) {
    std::error_code ignored;
    const auto status = std::filesystem::status(file, ignored);
    if (!std::filesystem::exists(status) || std::filesystem::is_regular_file(status) ||
        std::filesystem::is_directory(status)) {
      Open(file);
    }
  }
}

bool DocumentReader::OpenNext() {
  if (opened_ == files_.size()) return false;
  stream_ = Open(files_[opened_++]);
  line_ = 0;
  return true;
}

bool DocumentReader::Next(std::string* document) {
  do {
    if (opened_ > 0 && NextOfFile(document)) return true;
  } while (OpenNext());
  return false;
}

bool DocumentReader::NextLine(std::string* line) {
  if (!std::getline(stream_, *line)) {
    if (stream_.bad()) ThrowFailure(files_[opened_ - 1], ": cannot read");
    return false;
  }
  ++line_;
  if (!line->empty() && line->back() == '\r') line->pop_back();
  return true;
}

bool DocumentReader::NextOfFile(std::string* document) {
  document->clear();
  if (mode_ == DocumentMode::kFile) {
    document->assign(std::istreambuf_iterator<char>(stream_), {});
    if (stream_.bad()) ThrowFailure(files_[opened_ - 1], ": cannot read");
    return !document->empty();
  }
  while (NextLine(&buffer_)) {
    if (IsBlank(buffer_)) {
      if (!document->empty()) return true;
    } else if (mode_ == DocumentMode::kBlankLine) {
      if (!document->empty()) *document += '\n';
      *document += buffer_;
    } else {
      *document = mode_ == DocumentMode::kJsonl ? TextOf(buffer_) : buffer_;
      if (!document->empty()) return true;
    }
  }
  return !document->empty();
}

std::string DocumentReader::TextOf(const std::string& line) const {
  const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  const auto refuse = [&](const char* problem) {
    ThrowBadInput(files_[opened_ - 1], ":", line_, ": ", problem);
  };
  if (object.is_discarded()) refuse("not valid JSON");
  if (!object.is_object()) refuse("not a JSON object");
  const auto text = object.find("text");
  if (text == object.end()) refuse("no field \"text\"");
  if (!text->is_string()) refuse("field \"text\" is not a string");
  return text->get<std::string>();
}

}  // namespace eyrie
