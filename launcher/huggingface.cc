#include "launcher/huggingface.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <system_error>
#include <utility>
#include <vector>

#include "core/mapped_file.h"
#include "core/memory.h"
#include "core/output_file.h"
#include "launcher/config.h"
#include "launcher/huggingface_family.h"
#include "launcher/huggingface_tensors.h"
#include "launcher/manifest.h"
#include "launcher/shard_files.h"
#include "launcher/staged_directory.h"
#include "launcher/tokenizer.h"
#include "layers/model.h"
#include "layers/registry.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigName[] = "config.json";
constexpr char kIndexName[] = "model.safetensors.index.json";

// A buffer that grows to what is asked for.
float* Grown(Buffer& buffer, int64_t elements) {
  const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
  if (bytes > buffer.bytes()) buffer = Buffer(bytes);
  return static_cast<float*>(buffer.data());
}

// The matrices of a parameter that is stored transposed.
struct Matrices {
  explicit Matrices(const Shape& shape)
      : count(1), rows(shape[shape.rank() - 2]), columns(shape[shape.rank() - 1]) {
    for (int axis = 0; axis + 2 < shape.rank(); ++axis) count *= shape[axis];
  }
  int64_t count, rows, columns;
};

const HuggingFaceFamily& FamilyOf(const HuggingFaceConfig& config) {
  std::string known;
  for (const HuggingFaceFamily& family : HuggingFaceFamilies()) {
    if (family.model_type == config.Text("model_type", "")) return family;
    known += (known.empty() ? "" : ", ") + family.model_type;
  }
  config.Refuse("model_type", "supported: ", known);
}

const HuggingFaceFamily& FamilyFor(const config::ModelConfig& model, const std::string& source) {
  std::string obstacles;
  for (const HuggingFaceFamily& family : HuggingFaceFamilies()) {
    const std::string obstacle = family.obstacle(model);
    if (obstacle.empty()) return family;
    obstacles += StrCat(obstacles.empty() ? "" : "; ", family.model_type, ": ", obstacle);
  }
  ThrowBadInput(source, ": no Hugging Face family has such a model: ", obstacles);
}

// Throws unless the folder holds exactly the parameters of the model.
void CheckTensors(const HuggingFaceFamily& family, const ParamTable& table,
                  const HuggingFaceTensors& tensors) {
  std::vector<std::string> names;
  for (const ParamSpec& spec : table.specs()) {
    const HuggingFaceTensor tensor = family.tensor(spec);
    tensors.Check(tensor.name, tensor.shape);
    names.push_back(tensor.name);
  }
  for (const auto& [copy, original] : family.copies) {
    names.push_back(copy);
    if (tensors.Has(copy)) tensors.RequireEqual(copy, original);
  }
  tensors.RequireOnly(names);
}

void WriteFile(const fs::path& path, const std::string& text) {
  OutputFile file(path);
  file.Write(text.data(), text.size());
  file.Finish();
}

// The files of an export: parameters in order, each file at most `most` bytes, or one parameter.
std::vector<std::vector<ParamId>> DivideParameters(const ParamTable& table,
                                                   const ExportOptions& options) {
  std::vector<std::vector<ParamId>> files(1);
  int64_t used = 0;
  for (ParamId param = 0; param < static_cast<ParamId>(table.specs().size()); ++param) {
    const int64_t bytes =
        table.spec(param).shape.size() * static_cast<int64_t>(SizeOf(options.dtype));
    if (!files.back().empty() && bytes > options.shard_bytes - used) {
      files.emplace_back();
      used = 0;
    }
    files.back().push_back(param);
    used += bytes;
  }
  return files;
}

std::string FileName(size_t index, size_t count) {
  return count == 1 ? "model.safetensors"
                    : ShardName(static_cast<int64_t>(index) + 1, static_cast<int64_t>(count));
}

// The values of one parameter after another, as a Hugging Face folder stores them.
class ParameterReader {
 public:
  ParameterReader(ShardReader& reader, DType dtype) : reader_(reader), dtype_(dtype) {}

  const void* Read(const ParamSpec& spec, const HuggingFaceTensor& tensor) {
    const int64_t elements = spec.shape.size();
    float* values = Load(spec);
    if (tensor.added != 0) {
      for (int64_t i = 0; i < elements; ++i) values[i] += tensor.added;
    }
    if (tensor.transposed) {
      const Matrices m(spec.shape);
      float* swapped = Grown(swapped_, elements);
      TransposeMatrices(m.count, m.rows, m.columns, values, swapped);
      values = swapped;
    }
    if (dtype_ == DType::kF32) return values;
    EYRIE_CHECK(dtype_ == DType::kBF16);
    rounded_.resize(static_cast<size_t>(elements));
    std::transform(values, values + elements, rounded_.begin(),
                   [](float value) { return BFloat16(value); });
    return rounded_.data();
  }

 private:
  float* Load(const ParamSpec& spec) {
    Slice whole{spec.shape, spec.shape};
    for (int axis = 0; axis < spec.shape.rank(); ++axis) whole.offset.Set(axis, 0);
    float* values = Grown(values_, spec.shape.size());
    reader_.Read(reader_.Find(spec.name, DType::kF32, spec.shape), whole, values);
    return values;
  }

  ShardReader& reader_;
  DType dtype_;
  Buffer values_, swapped_;
  std::vector<BFloat16> rounded_;
};

void WriteTensors(const fs::path& directory, const HuggingFaceFamily& family,
                  const ParamTable& table, const ExportOptions& options, ParameterReader& reader) {
  const auto files = DivideParameters(table, options);
  nlohmann::ordered_json weights = nlohmann::ordered_json::object();
  for (size_t file = 0; file < files.size(); ++file) {
    const std::string name = FileName(file, files.size());
    std::vector<SafetensorsSpec> specs;
    for (const ParamId param : files[file]) {
      HuggingFaceTensor tensor = family.tensor(table.spec(param));
      weights[tensor.name] = name;
      specs.push_back({std::move(tensor.name), options.dtype, tensor.shape});
    }
    SafetensorsWriter writer(directory / name, std::move(specs), {{"format", "pt"}});
    for (const ParamId param : files[file]) {
      const ParamSpec& spec = table.spec(param);
      writer.Write(reader.Read(spec, family.tensor(spec)));
    }
    writer.Finish();
  }
  if (files.size() == 1) return;
  const int64_t bytes = table.TotalElements() * static_cast<int64_t>(SizeOf(options.dtype));
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", bytes}}},
                                        {"weight_map", std::move(weights)}};
  WriteFile(directory / kIndexName, index.dump(2) + "\n");
}

}  // namespace

HuggingFaceSummary ImportHuggingFace(const fs::path& folder, const fs::path& output) {
  const fs::path target = NewDirectory(output);
  std::error_code error;
  if (!fs::is_directory(folder, error)) ThrowBadInput(folder.string(), ": no such directory");
  const HuggingFaceConfig description(folder / kConfigName);
  const HuggingFaceFamily& family = FamilyOf(description);
  config::Config config;
  *config.mutable_model() = family.read(description);
  CompleteModel(*config.mutable_model());
  const fs::path tokenizer = folder / kTokenizerName;
  const bool has_tokenizer = fs::exists(tokenizer, error);
  if (has_tokenizer) {
    MakeTokenizer("sentencepiece:" + tokenizer.string(), config.model().vocab_size());
    config.mutable_data()->set_tokenizer("sentencepiece:" + (target / kTokenizerName).string());
  }
  Resolve(config, 1);

  const Model model(config.model(), /*tensor_size=*/1);
  const ParamTable& table = model.params();
  HuggingFaceTensors tensors(folder);
  CheckTensors(family, table, tensors);

  CheckpointPlan plan = PlanCheckpoint(table, {{"", DType::kF32}}, MeshShape{},
                                       BucketPlan(table, MeshShape{}, BucketOptions{}));
  *plan.manifest.mutable_config() = config;
  plan.manifest.set_step(0);
  plan.manifest.set_samples(0);
  plan.manifest.set_tokens(0);
  StagedDirectory staged(TemporaryName(target, getpid()));
  Buffer changed;
  const auto source = [&](const PlannedPiece& piece) -> const void* {
    const ParamSpec& spec = table.spec(piece.param);
    const HuggingFaceTensor tensor = family.tensor(spec);
    const float* values = tensors.Read(tensor.name);
    if (!tensor.transposed && tensor.added == 0) return values;
    const int64_t elements = spec.shape.size();
    float* result = Grown(changed, elements);
    if (tensor.transposed) {
      const Matrices m(spec.shape);
      TransposeMatrices(m.count, m.columns, m.rows, values, result);
    } else {
      std::copy_n(values, elements, result);
    }
    for (int64_t i = 0; i < elements; ++i) result[i] -= tensor.added;
    return result;
  };
  for (size_t file = 0; file < plan.files.size(); ++file) {
    WriteShard(staged.path(), file, source, plan);
  }
  if (has_tokenizer) {
    AddFile(staged.path(), kTokenizerName, MappedFile(tokenizer).bytes(), plan.manifest);
  }
  WriteManifest(staged.path(), plan.manifest);
  staged.Create(target);
  return {family.model_type, table.TotalElements()};
}

HuggingFaceSummary ExportHuggingFace(const fs::path& checkpoint, const fs::path& output,
                                     const ExportOptions& options) {
  if (options.shard_bytes < 1) ThrowBadInput("--shard-size must be positive");
  const fs::path target = NewDirectory(output);
  const config::Manifest manifest = ReadManifest(checkpoint);
  const std::string source = (checkpoint / kManifestName).string();
  config::Config config = manifest.config();
  config.clear_parallel();
  config.clear_run();
  Resolve(config, 1);
  CompleteModel(*config.mutable_model());
  const HuggingFaceFamily& family = FamilyFor(config.model(), source);
  const Model model(config.model(), /*tensor_size=*/1);

  nlohmann::ordered_json description = family.write(config.model());
  description["torch_dtype"] = options.dtype == DType::kF32 ? "float32" : "bfloat16";
  ShardReader reader(checkpoint, manifest);
  StagedDirectory staged(TemporaryName(target, getpid()));
  // Ids that generation may ask for; null where there is none.
  nlohmann::ordered_json end_of_document;
  for (int file = 0; file < manifest.file_size(); ++file) {
    if (manifest.file(file).name() != kTokenizerName) continue;
    reader.VerifyFile(file);
    const fs::path tokenizer = checkpoint / kTokenizerName;
    config::Manifest ignored;
    AddFile(staged.path(), kTokenizerName, MappedFile(tokenizer).bytes(), ignored);
    end_of_document = MakeTokenizer("sentencepiece:" + tokenizer.string())->end_of_document();
  }
  description["bos_token_id"] = nullptr;
  description["eos_token_id"] = end_of_document;
  description["pad_token_id"] = nullptr;
  WriteFile(staged.path() / kConfigName, description.dump(2) + "\n");
  ParameterReader parameters(reader, options.dtype);
  WriteTensors(staged.path(), family, model.params(), options, parameters);
  staged.Create(target);
  return {family.model_type, model.params().TotalElements()};
}

}  // namespace eyrie
