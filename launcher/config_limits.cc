#include "launcher/config_limits.h"

#include <cmath>
#include <limits>

#include "layers/model.h"

namespace eyrie {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr double kMostParameters = 1e13;
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

int64_t LargestMeant(const std::string& field) {
  if (field == "run.threads") return kMostThreads;
  // In any unit of theirs, clocks count nanoseconds.
  if (field == "run.timeout_seconds" || field == "run.network_delay_us") return 1'000'000'000;
  if (field == "model.depth") return 4096;
  if (field == "model.vocab_size") return std::numeric_limits<int32_t>::max();
  if (field == "model.attention.window") return kUnlimited;
  if (field.starts_with("model.")) return int64_t{1} << 24;
  for (const char* count : {"train.sequence_length", "train.chunk_length",
                            "train.global_batch_size", "train.micro_batch_size"}) {
    if (field == count) return int64_t{1} << 30;
  }
  return kUnlimited;
}

}  // namespace

void ValidateLimits(const Message& message, const std::string& path, ConfigErrors& errors) {
  const Reflection& reflection = *message.GetReflection();
  const auto bounded = [&](const std::string& name, int64_t value) {
    const int64_t most = LargestMeant(name);
    if (value > most) errors.Add(name, " = ", value, " is more than ", most);
  };
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    const std::string name = path + field->name();
    if (field->is_repeated() || !reflection.HasField(message, field)) continue;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        ValidateLimits(reflection.GetMessage(message, field), name + ".", errors);
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        if (!std::isfinite(reflection.GetDouble(message, field))) {
          errors.Add(name, " must be a finite number");
        }
        break;
      case FieldDescriptor::CPPTYPE_INT32:
        bounded(name, reflection.GetInt32(message, field));
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        bounded(name, reflection.GetInt64(message, field));
        break;
      default: break;
    }
  }
}

void ValidateSize(const config::Config& config, ConfigErrors& errors) {
  const Model model(config.model(), config.parallel().tensor());
  double parameters = 0.0;  // more of them may be than an integer can say
  for (const ParamSpec& spec : model.params().specs()) {
    double elements = 1.0;
    for (int axis = 0; axis < spec.shape.rank(); ++axis) {
      elements *= static_cast<double>(spec.shape[axis]);
    }
    parameters += elements;
  }
  if (parameters > kMostParameters) errors.Add("model has ", parameters, " parameters");
  const int64_t tokens = config.train().micro_batch_size() * config.train().sequence_length();
  const int64_t most = std::numeric_limits<int32_t>::max();
  if (tokens > most) {
    errors.Add("train.micro_batch_size x train.sequence_length = ", tokens, " is more than ", most);
  }
}

}  // namespace eyrie
