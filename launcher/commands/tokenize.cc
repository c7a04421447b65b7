#include "launcher/tokenize.h"

#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "launcher/commands/commands.h"
#include "launcher/job.h"

namespace eyrie {

void AddTokenizeCommand(CLI::App& app) {
  struct Arguments {
    TokenizeOptions options;
    std::string documents = "file";
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("tokenize", "Turn text files into token files, PREFIX.bin and PREFIX.idx");
  command->footer(
      "The output is a Megatron-LM indexed dataset, one item a document, each ended by the\n"
      "tokenizer's end-of-document token. Give PREFIX as data.train or data.validation.\n\n"
      "Examples:\n"
      "  eyrie tokenize --input book.txt --tokenizer byte --output data/book\n"
      "  eyrie tokenize --input part-*.jsonl --documents jsonl \\\n"
      "      --tokenizer sentencepiece:spm.model --output data/train");
  command->add_option("--input", arguments->options.inputs, "text files, read in this order")
      ->required()
      ->type_name("FILE");
  command
      ->add_option(
          "--tokenizer", arguments->options.tokenizer,
          "byte: every byte is a token, and 256 ends a document: 257 ids; sentencepiece: a\n"
          "SentencePiece model file")
      ->required()
      ->type_name("byte|sentencepiece:MODEL");
  command
      ->add_option("--output", arguments->options.output,
                   "where PREFIX.bin and PREFIX.idx go; both are replaced when all is done")
      ->required()
      ->type_name("PREFIX");
  command
      ->add_option("--documents", arguments->documents,
                   "what a document is: file, a whole file (the default); blank-line, a paragraph\n"
                   "between blank lines; line, a line; jsonl, the field \"text\" of a line of JSON")
      ->type_name("MODE");
  command->callback([arguments] {
    RequireAlone("eyrie tokenize");
    arguments->options.documents = ParseDocumentMode(arguments->documents);
    RunTokenize(arguments->options);
  });
}

}  // namespace eyrie
