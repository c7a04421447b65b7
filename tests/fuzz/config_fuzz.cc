// A configuration file, and after a line "--set" one setting a line; then everything that is
// checked before a rank takes memory.
#include "launcher/config.h"
#include "tests/fuzz/fuzz.h"

namespace eyrie {
namespace {

constexpr std::string_view kSettings = "\n--set\n";

}  // namespace

std::vector<std::string> FuzzSeeds() {
  const std::string config = R"(
model {
  vocab_size: 64 width: 48 depth: 3 pattern: ["recurrent+geglu", "local_attention+geglu"]
  recurrent { width: 48 gate_blocks: 4 }
  attention { heads: 4 head_width: 8 window: 12 }
  mlp { width: 64 }
}
parallel { tensor: 1 data: 0 }
train { steps: 20 sequence_length: 32 global_batch_size: 8 micro_batch_size: 2 }
data { train: "a" }
run { directory: "b" }
)";
  return {config, config +
                      "\n--set\nmodel.pattern=recurrent,attention\ntrain.steps=7\n"
                      "optimizer.schedule=LINEAR\noptimizer.learning_rate=1e-3\n"
                      "run.tensorboard=false\nrun.directory=x.y=z"};
}

}  // namespace eyrie

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace eyrie;
  static const FuzzFolder folder;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find(kSettings);
  const auto path = folder.Write("config.textproto", input.substr(0, cut));
  std::vector<std::string> settings;
  if (cut != std::string_view::npos) {
    std::string_view rest = input.substr(cut + kSettings.size());
    while (!rest.empty()) {
      const size_t end = std::min(rest.find('\n'), rest.size());
      settings.emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  return AllowBadInput([&] {
    config::Config config = LoadConfig(path.string());
    ApplySettings(settings, config);
    Resolve(config, 4);
    ValidateForTraining(config);
    // What is written into a run directory reads back as the same.
    config::Config again = LoadConfig(folder.Write("again.textproto", ToText(config)).string());
    if (ToText(again) != ToText(config)) std::abort();
  });
}
