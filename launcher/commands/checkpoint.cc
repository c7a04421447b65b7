#include "launcher/checkpoint.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/config.h"
#include "launcher/huggingface.h"
#include "launcher/job.h"
#include "launcher/manifest.h"
#include "launcher/measure.h"
#include "launcher/reshard.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// Columns as wide as they need to be, all but the last, flush left.
class Table {
 public:
  using Row = std::array<std::string, 4>;
  void Add(Row row) { rows_.push_back(std::move(row)); }
  void Print(std::ostream& out) const {
    std::array<size_t, 4> widths{};
    for (const Row& row : rows_) {
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    for (const Row& row : rows_) {
      std::string line = " ";
      for (size_t i = 0; i < row.size(); ++i) {
        line += " " + row[i] + std::string(widths[i] - row[i].size() + 1, ' ');
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out << line << '\n';
    }
  }

 private:
  std::vector<Row> rows_;
};

// "3 pieces along axis 1", "1 piece"; "7 pieces" if they are cut along several axes.
std::string PiecesText(const config::StoredTensor& tensor) {
  if (tensor.piece_size() == 1) return "1 piece";
  std::vector<int> cut;
  for (int axis = 0; axis < tensor.shape_size(); ++axis) {
    const auto whole = [&](const auto& piece) { return piece.shape(axis) == tensor.shape(axis); };
    if (!std::all_of(tensor.piece().begin(), tensor.piece().end(), whole)) cut.push_back(axis);
  }
  std::string text = StrCat(tensor.piece_size(), " pieces");
  if (cut.size() == 1) text += StrCat(" along axis ", cut[0]);
  return text;
}

void PrintModel(const config::ModelConfig& model, std::ostream& out) {
  out << "  model       depth " << model.depth() << ", width " << model.width() << ", vocabulary "
      << model.vocab_size() << ", pattern";
  for (const std::string& entry : model.pattern()) out << ' ' << entry;
  out << '\n';
}

void Verify(const std::string& directory) {
  RequireAlone("eyrie checkpoint verify");
  const fs::path checkpoint = FindCheckpoint(directory);
  const CheckpointSize size = VerifyCheckpoint(checkpoint);
  std::cout << checkpoint.string() << ": " << size.files << " files, " << size.tensors
            << " tensors, " << size.bytes << " bytes: good" << std::endl;
}

void Reshard(const std::string& directory, const std::string& output,
             const std::vector<std::string>& settings) {
  RequireAlone("eyrie checkpoint reshard");
  for (const std::string& setting : settings) {
    if (!setting.starts_with("parallel.")) {
      ThrowBadInput("--set ", setting, ": only fields of parallel can change here");
    }
  }
  const fs::path checkpoint = FindCheckpoint(directory);
  config::Config config = ReadManifest(checkpoint).config();
  ApplySettings(settings, config);
  ReshardCheckpoint(checkpoint, output, config.parallel());
  std::cout << output << ": " << checkpoint.string() << " for tensor " << config.parallel().tensor()
            << " x data " << std::max(config.parallel().data(), 1) << " x sequence "
            << config.parallel().sequence() << std::endl;
}

void Import(const std::string& folder, const std::string& output) {
  RequireAlone("eyrie checkpoint import");
  const HuggingFaceSummary summary = ImportHuggingFace(folder, output);
  std::cout << output << ": " << summary.model_type << ", " << summary.parameters
            << " parameters, from " << folder << std::endl;
}

void Export(const std::string& directory, const std::string& output, const std::string& dtype,
            int64_t shard_bytes) {
  RequireAlone("eyrie checkpoint export");
  const fs::path checkpoint = FindCheckpoint(directory);
  const HuggingFaceSummary summary = ExportHuggingFace(
      checkpoint, output, {dtype == "bf16" ? DType::kBF16 : DType::kF32, shard_bytes});
  std::cout << output << ": " << summary.model_type << ", " << summary.parameters
            << " parameters, from " << checkpoint.string() << std::endl;
}

// The manifest for human eyes, and files that are missing or of a wrong size. Reads only the
// manifest.
void PrintCheckpoint(const fs::path& checkpoint, std::ostream& out) {
  const config::Manifest manifest = ReadManifest(checkpoint);
  const config::ParallelConfig& parallel = manifest.config().parallel();
  int64_t parameters = 0, bytes = 0;
  Table tensors, files;
  for (const auto& tensor : manifest.tensor()) {
    if (GroupOf(tensor).empty()) parameters += WholeOf(tensor).extent.size();
    tensors.Add(
        {tensor.name(), WholeOf(tensor).extent.ToString(), tensor.dtype(), PiecesText(tensor)});
  }
  for (const auto& file : manifest.file()) {
    bytes += file.size();
    std::error_code error;
    const auto size = fs::file_size(checkpoint / file.name(), error);
    std::string remark;
    if (error) {
      remark = "MISSING";
    } else if (size != static_cast<uintmax_t>(file.size())) {
      remark = StrCat("DAMAGED: has ", size, " bytes");
    }
    files.Add({file.name(), FormatBytes(file.size()), remark, ""});
  }
  out << checkpoint.string() << '\n'
      << "  format      " << manifest.format_version() << '\n'
      << "  step        " << manifest.step() << '\n'
      << "  samples     " << manifest.samples() << '\n'
      << "  tokens      " << manifest.tokens() << '\n'
      << "  layout      data " << parallel.data() << " x sequence " << parallel.sequence()
      << " x tensor " << parallel.tensor() << '\n';
  PrintModel(manifest.config().model(), out);
  out << "  tokenizer   " << TokenizerOf(checkpoint, manifest) << '\n'
      << "  parameters  " << parameters << '\n'
      << "\ntensors: " << manifest.tensor_size() << '\n';
  tensors.Print(out);
  out << "\nfiles: " << manifest.file_size() << " beside " << kManifestName << ", "
      << FormatBytes(bytes) << '\n';
  files.Print(out);
}

}  // namespace

void AddCheckpointCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("checkpoint", "Look at a checkpoint, check it, convert it");
  command->require_subcommand(1);
  command->footer(
      "A checkpoint is a directory such as RUN/checkpoints/step-00000100. Where DIR is a run's\n"
      "directory, or its checkpoints folder, the newest checkpoint in it is meant.");

  struct Arguments {
    std::string directory, output;
    std::vector<std::string> settings;
    std::string dtype = "f32";
    int64_t shard_bytes = ExportOptions().shard_bytes;
  };
  auto arguments = std::make_shared<Arguments>();
  const auto add = [&](const char* name, const char* summary, const char* argument = "DIR",
                       const char* meaning = "a checkpoint, or a run's directory") {
    CLI::App* added = command->add_subcommand(name, summary);
    added->add_option(argument, arguments->directory, meaning)->required()->option_text(" ");
    return added;
  };

  CLI::App* inspect = add("inspect", "Print its position, layout, model, tensors and files");
  inspect->footer("Reads the manifest alone; use verify to check the files.");
  inspect->callback([arguments] {
    RequireAlone("eyrie checkpoint inspect");
    PrintCheckpoint(FindCheckpoint(arguments->directory), std::cout);
  });

  CLI::App* verify = add("verify", "Read every byte of every file and compare the checksums");
  verify->footer("Ends with exit code 2 and the name of the first damaged file, if there is one.");
  verify->callback([arguments] { Verify(arguments->directory); });

  CLI::App* reshard = add("reshard", "Write it again, cut for another number of ranks");
  reshard->footer(
      "Training, eval and generate load a checkpoint of any layout as it is; resharding spares\n"
      "each rank from reading pieces larger than its own. One process does it, in little memory.\n"
      "The output is a checkpoint: give it as checkpoint.resume or --checkpoint.\n\n"
      "Example:\n"
      "  eyrie checkpoint reshard runs/a --output a-tensor4 --set parallel.tensor=4");
  reshard->add_option("--output", arguments->output, "the new checkpoint; must not exist")
      ->required()
      ->type_name("DIR");
  reshard
      ->add_option("--set", arguments->settings,
                   "the new layout; fields of parallel that are not set stay as they were")
      ->allow_extra_args(false)
      ->type_name("parallel.FIELD=N");
  reshard->callback(
      [arguments] { Reshard(arguments->directory, arguments->output, arguments->settings); });

  CLI::App* from_folder =
      add("import", "Make one of a Hugging Face folder: recurrent_gemma, mamba or xlstm", "HF_DIR",
          "a folder with config.json and model.safetensors, in one file or several");
  from_folder->footer(
      "The new checkpoint is at step 0 and holds parameters in float32, and tokenizer.model where\n"
      "the folder has one. Give it as --checkpoint, or train from it with checkpoint.resume.");
  from_folder->add_option("--output", arguments->output, "the new checkpoint; must not exist")
      ->required()
      ->type_name("DIR");
  from_folder->callback([arguments] { Import(arguments->directory, arguments->output); });

  CLI::App* to_folder = add("export", "Write its model as a Hugging Face folder");
  to_folder->footer(
      "The model must be one that transformers knows: a Griffin with the settings of\n"
      "RecurrentGemma, a Mamba, or an xLSTM with the settings of xLSTM 7B.");
  to_folder->add_option("--output", arguments->output, "the new folder; must not exist")
      ->required()
      ->type_name("HF_DIR");
  to_folder->add_option("--dtype", arguments->dtype, "f32 (default) or bf16, rounded to nearest")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->option_text("f32|bf16");
  to_folder
      ->add_option("--shard-size", arguments->shard_bytes,
                   "the most bytes of tensors in a file (default 5GB); more make several files")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->option_text("BYTES");
  to_folder->callback([arguments] {
    Export(arguments->directory, arguments->output, arguments->dtype, arguments->shard_bytes);
  });
}

}  // namespace eyrie
