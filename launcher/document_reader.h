// Cuts text files into documents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace eyrie {

enum class DocumentMode : uint8_t {
  kFile,       // a file is a document
  kBlankLine,  // a paragraph, that is lines between blank ones, is a document
  kLine,       // a line is a document
  kJsonl,      // a line is a JSON object, and its field "text" a document
};

// "file", "blank-line", "line" or "jsonl"; throws kBadInput naming --documents for anything else.
DocumentMode ParseDocumentMode(const std::string& name);

// Reads documents one after another, so that memory is bounded by the largest document (or, in
// jsonl mode, line). Empty documents are passed over. By line, "\r\n" ends a line as "\n" does, and
// a line of spaces and tabs alone is blank; the lines of a paragraph stay joined by "\n".
class DocumentReader {
 public:
  // Throws kBadInput naming the first file that cannot be opened.
  DocumentReader(std::vector<std::string> files, DocumentMode mode);

  // The next document, or false at the end of the last file. Throws kBadInput naming FILE, or
  // FILE:line for a line that is not a JSON object with a string "text".
  bool Next(std::string* document);

 private:
  bool OpenNext();  // false if there are no more files
  bool NextOfFile(std::string* document);
  bool NextLine(std::string* line);
  std::string TextOf(const std::string& line) const;

  std::vector<std::string> files_;
  DocumentMode mode_;
  size_t opened_ = 0;  // files opened so far
  std::ifstream stream_;
  int64_t line_ = 0;  // number of the last line read from the current file
  std::string buffer_;
};

}  // namespace eyrie
