#include "launcher/config.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "launcher/bucket_options.h"
#include "launcher/config_limits.h"
#include "launcher/device.h"
#include "layers/registry.h"

namespace eyrie {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::TextFormat;

// Keeps the parser's first complaint, with its place.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber, const std::string& text) override {
    if (message.empty()) message = StrCat(line + 1, ": ", text);
  }
  std::string message;  // "LINE: text"
};

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

const char* Expected(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64: return "an integer";
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64: return "a non-negative integer";
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE: return "a number";
    case FieldDescriptor::CPPTYPE_BOOL: return "true or false";
    case FieldDescriptor::CPPTYPE_STRING: return "text";
    case FieldDescriptor::CPPTYPE_ENUM: return "one of";
    case FieldDescriptor::CPPTYPE_MESSAGE: return "a message, set its fields one by one";
  }
  return "?";
}

void SetValue(const std::string& setting, const std::string& value, const FieldDescriptor& field,
              Message& message) {
  const Reflection& reflection = *message.GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    if (field.is_repeated()) {
      reflection.AddString(&message, &field, value);
    } else {
      reflection.SetString(&message, &field, value);
    }
    return;
  }
  TextFormat::Parser parser;
  FirstError ignored;
  parser.RecordErrorsTo(&ignored);
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE && !value.empty() &&
      parser.ParseFieldValueFromString(value, &field, &message)) {
    return;
  }
  std::string expected = Expected(field);
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    for (int i = 0; i < field.enum_type()->value_count(); ++i) {
      expected += (i == 0 ? " " : ", ") + field.enum_type()->value(i)->name();
    }
  }
  ThrowBadInput("--set ", setting, ": expected ", expected);
}

// Sets every unset scalar to its default and makes every message of the schema present, except the
// component messages a model does not use.
void WriteDefaults(Message& message) {
  const Reflection& reflection = *message.GetReflection();
  const bool is_model = message.GetDescriptor() == config::ModelConfig::descriptor();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_repeated()) continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (is_model && !reflection.HasField(message, field)) continue;
      WriteDefaults(*reflection.MutableMessage(&message, field));
      continue;
    }
    if (reflection.HasField(message, field)) continue;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        reflection.SetInt32(&message, field, field->default_value_int32());
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection.SetInt64(&message, field, field->default_value_int64());
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection.SetUInt64(&message, field, field->default_value_uint64());
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection.SetDouble(&message, field, field->default_value_double());
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection.SetBool(&message, field, field->default_value_bool());
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection.SetEnum(&message, field, field->default_value_enum());
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        reflection.SetString(&message, field, field->default_value_string());
        break;
      default: ThrowFailure("schema: no default for ", field->full_name());
    }
  }
}

// The path of the first field in which two messages differ, or empty. A scalar that is not set has
// its default: older checkpoints lack the fields that came later.
std::string FirstDifference(const Message& a, const Message& b) {
  for (int i = 0; i < a.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = a.GetDescriptor()->field(i);
    const Reflection& reflection = *a.GetReflection();
    if (!field->is_repeated() && field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
        reflection.HasField(a, field) && reflection.HasField(b, field)) {
      const std::string inner =
          FirstDifference(reflection.GetMessage(a, field), reflection.GetMessage(b, field));
      if (!inner.empty()) return field->name() + "." + inner;
      continue;
    }
    const auto print = [&](const Message& message) {
      std::string text;
      if (field->is_repeated()) {
        for (int j = 0; j < reflection.FieldSize(message, field); ++j) {
          std::string item;
          TextFormat::PrintFieldValueToString(message, field, j, &item);
          text += (j == 0 ? "" : ",") + item;
        }
      } else if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE ||
                 reflection.HasField(message, field)) {
        TextFormat::PrintFieldValueToString(message, field, -1, &text);
      }
      return text.empty() ? std::string("unset") : text;
    };
    const std::string text_a = print(a), text_b = print(b);
    if (text_a != text_b) return StrCat(field->name(), " is ", text_a, ", not ", text_b);
  }
  return "";
}

}  // namespace

void ParseText(const std::string& text, const std::string& file, Message& message) {
  TextFormat::Parser parser;
  FirstError error;
  parser.RecordErrorsTo(&error);
  if (!parser.ParseFromString(text, &message)) ThrowBadInput(file, ":", error.message);
}

void ParseTextFile(const std::string& file, const char* what, Message& message) {
  std::error_code unknown;
  if (std::filesystem::is_directory(file, unknown)) {
    ThrowBadInput(file, ": is a folder, not a ", what);
  }
  std::ifstream in(file, std::ios::binary);
  if (!in) ThrowBadInput(file, ": cannot open the ", what);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  if (in.bad()) ThrowBadInput(file, ": cannot read the ", what);
  ParseText(text, file, message);
}

config::Config LoadConfig(const std::string& file) {
  config::Config config;
  ParseTextFile(file, "configuration file", config);
  return config;
}

void ApplySettings(const std::vector<std::string>& settings, config::Config& config) {
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos) ThrowBadInput("--set ", setting, ": expected path=value");
    const std::string path = setting.substr(0, equals), value = setting.substr(equals + 1);
    const std::vector<std::string> names = Split(path, '.');
    Message* message = &config;
    const FieldDescriptor* field = nullptr;
    for (size_t i = 0; i < names.size(); ++i) {
      field = message->GetDescriptor()->FindFieldByName(names[i]);
      if (field == nullptr) {
        ThrowBadInput("--set ", setting, ": unknown field \"", names[i], "\" in ",
                      message->GetDescriptor()->name());
      }
      if (i + 1 == names.size()) break;
      if (field->is_repeated() || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
        ThrowBadInput("--set ", setting, ": \"", names[i], "\" has no fields");
      }
      message = message->GetReflection()->MutableMessage(message, field);
    }
    if (field == nullptr) ThrowBadInput("--set ", setting, ": expected path=value");
    if (field->is_repeated()) {
      message->GetReflection()->ClearField(message, field);
      for (const std::string& item : Split(value, ',')) SetValue(setting, item, *field, *message);
    } else {
      SetValue(setting, value, *field, *message);
    }
  }
}

namespace {

// What both ways to resolve share, after defaults are written out.
void Complete(config::Config& config, int ranks, ConfigErrors& errors) {
  ValidateLimits(config, "", errors);
  ThrowIfAny(errors);
  auto& parallel = *config.mutable_parallel();
  errors.RequirePositive("parallel.tensor", parallel.tensor());
  errors.RequirePositive("parallel.sequence", parallel.sequence());
  ValidateBuckets(parallel, errors);
  if (parallel.data() < 0) errors.Add("parallel.data must not be negative");
  if (errors.messages().empty()) {
    const int64_t others = int64_t{parallel.tensor()} * parallel.sequence();
    if (parallel.data() == 0 && ranks % others == 0) {
      parallel.set_data(static_cast<int32_t>(ranks / others));
    }
    if (parallel.data() == 0) {
      errors.Add("parallel: sequence ", parallel.sequence(), " x tensor ", parallel.tensor(),
                 " does not divide the job's ", ranks, ranks == 1 ? " rank" : " ranks");
    } else if (others * parallel.data() != ranks) {
      errors.Add("parallel: data ", parallel.data(), " x sequence ", parallel.sequence(),
                 " x tensor ", parallel.tensor(), " does not match the job's ", ranks,
                 ranks == 1 ? " rank" : " ranks");
    }
  }
  if (config.run().threads() < 0) errors.Add("run.threads must not be negative");
  ValidateModel(config.model(), parallel.tensor(), errors);
  errors.RequirePositive("run.timeout_seconds", config.run().timeout_seconds());
  ThrowIfAny(errors);
  ValidateSize(config, errors);
  ThrowIfAny(errors);
}

}  // namespace

void Resolve(config::Config& config, int ranks) {
  WriteDefaults(config);
  ConfigErrors errors;
  ValidateDevice(config, errors);
  Complete(config, ranks, errors);
}

void Resolve(config::Config& config, int ranks, Device device) {
  WriteDefaults(config);
  ConfigErrors errors;
  ValidateOn(config, device, errors);
  Complete(config, ranks, errors);
}

void ValidateStep(const config::Config& config, ConfigErrors& errors) {
  const auto& train = config.train();
  ValidateSequence(config, "train.sequence_length", train.sequence_length(), errors);
  errors.RequirePositive("train.batch_slices", train.batch_slices());
  errors.RequireDivisible("train.micro_batch_size", train.micro_batch_size(), "train.batch_slices",
                          train.batch_slices());
  const int64_t sequences = config.parallel().data() * train.micro_batch_size();
  errors.RequireDivisible("train.global_batch_size", train.global_batch_size(),
                          "parallel.data x train.micro_batch_size", sequences);
}

void ValidateSequence(const config::Config& config, const std::string& field, int64_t length,
                      ConfigErrors& errors) {
  const int ranks = config.parallel().sequence();
  const int64_t chunk = config.train().chunk_length();
  ValidateSequence(config.model(), field, length, ranks, errors);
  if (chunk < 0) errors.Add("train.chunk_length must not be negative");
  if (chunk > 0 && ranks > 1) {
    // The ranks run a chunk each at once.
    const char* together = "train.chunk_length x parallel.sequence";
    errors.RequireDivisible(field, length, together, chunk * ranks);
    ValidateSequence(config.model(), together, chunk * ranks, ranks, errors);
  }
}

int64_t Rounds(const config::Config& config) {
  const auto& train = config.train();
  return train.global_batch_size() / (train.micro_batch_size() * config.parallel().data());
}

void ValidateForTraining(const config::Config& config) {
  ConfigErrors errors;
  const auto& train = config.train();
  errors.RequirePositive("train.steps", train.steps());
  ValidateStep(config, errors);
  if (train.stop_after() < 0) errors.Add("train.stop_after must not be negative");
  if (train.validation_interval() < 0) errors.Add("train.validation_interval must not be negative");
  if (train.validation_interval() > 0) {
    errors.RequirePositive("train.validation_sequences", train.validation_sequences());
    if (config.data().validation().empty()) {
      errors.Add("data.validation is empty, but train.validation_interval is set");
    }
  }
  const auto& optimizer = config.optimizer();
  if (!(optimizer.learning_rate() > 0)) errors.Add("optimizer.learning_rate must be positive");
  if (optimizer.warmup_steps() < 0) errors.Add("optimizer.warmup_steps must not be negative");
  if (optimizer.decay_steps() < 0) errors.Add("optimizer.decay_steps must not be negative");
  if (optimizer.schedule() == config::OptimizerConfig::WARMUP_STABLE_DECAY &&
      optimizer.decay_steps() > train.steps() - optimizer.warmup_steps()) {
    errors.Add("optimizer.decay_steps and optimizer.warmup_steps exceed train.steps");
  }
  const auto fraction = [&](const char* field, double value) {
    if (!(value >= 0 && value < 1)) errors.Add("optimizer.", field, " must lie in [0, 1)");
  };
  fraction("beta1", optimizer.beta1());
  fraction("beta2", optimizer.beta2());
  if (!(optimizer.final_rate_fraction() >= 0 && optimizer.final_rate_fraction() <= 1)) {
    errors.Add("optimizer.final_rate_fraction must lie in [0, 1]");
  }
  if (!(optimizer.epsilon() > 0)) errors.Add("optimizer.epsilon must be positive");
  if (!(optimizer.weight_decay() >= 0)) errors.Add("optimizer.weight_decay must not be negative");
  if (!(optimizer.gradient_clip() >= 0)) errors.Add("optimizer.gradient_clip must not be negative");
  if (config.data().train().empty()) errors.Add("data.train is empty");
  if (config.run().directory().empty()) errors.Add("run.directory is empty");
  errors.RequirePositive("run.log_interval", config.run().log_interval());
  errors.RequirePositive("run.trace_steps", config.run().trace_steps());
  if (config.run().network_delay_us() < 0) {
    errors.Add("run.network_delay_us must not be negative");
  }
  if (config.checkpoint().resume().empty()) {
    errors.Add("checkpoint.resume is empty, not newest, never or a path");
  }
  if (config.checkpoint().interval() < 0) errors.Add("checkpoint.interval must not be negative");
  if (config.checkpoint().keep() < 0) errors.Add("checkpoint.keep must not be negative");
  ThrowIfAny(errors);
}

void ThrowIfAny(const ConfigErrors& errors) {
  if (errors.messages().empty()) return;
  std::string line;
  for (const std::string& message : errors.messages()) {
    line += (line.empty() ? "" : "; ") + message;
  }
  throw Error(ExitCode::kBadInput, line);
}

Recompute RecomputeOf(const config::TrainConfig& train) {
  switch (train.recompute()) {
    case config::TrainConfig::NOTHING: return Recompute::kNothing;
    case config::TrainConfig::SELECTIVE: return Recompute::kSelective;
    case config::TrainConfig::BLOCKS: return Recompute::kBlocks;
  }
  ThrowFailure("unknown train.recompute");
}

MeshShape MeshShapeOf(const config::ParallelConfig& parallel) {
  return {parallel.data(), parallel.sequence(), parallel.tensor()};
}

void RequireSameModel(const config::ModelConfig& saved, const config::ModelConfig& wanted,
                      const std::string& checkpoint) {
  // Numbers are compared, whether they were written out or left to a mixer.
  config::ModelConfig own = saved, other = wanted;
  CompleteModel(own);
  CompleteModel(other);
  const std::string difference = FirstDifference(own, other);
  if (!difference.empty()) {
    ThrowBadInput(checkpoint, ": another architecture: its model.", difference);
  }
}

std::string ToText(const Message& message) {
  std::string text;
  TextFormat::PrintToString(message, &text);
  return text;
}

}  // namespace eyrie
