// The training loop.
#pragma once

#include <filesystem>
#include <memory>

#include "configs/schema/config.pb.h"
#include "core/error.h"
#include "launcher/batches.h"
#include "launcher/checkpoint.h"
#include "launcher/metrics.h"
#include "launcher/optimizer.h"
#include "layers/model.h"

namespace eyrie {

class Trainer {
 public:
  // `config` is resolved and valid for training. Opens the data, takes the memory, and starts from
  // a checkpoint or from fresh parameters. Collective over the mesh.
  Trainer(const config::Config& config, const Mesh& mesh);

  // Trains to the last step, to stop_after, or to a signal, then saves.
  ExitCode Run();

 private:
  // All that a checkpoint holds.
  std::vector<NamedFlat> Groups() const;
  // Picks what to start from and loads it.
  void Start();
  // One optimiser step.
  StepMetrics Step();
  // The mean loss on the validation data.
  double Validate();
  void Save();

  const config::Config& config_;
  const Mesh& mesh_;
  std::filesystem::path directory_;
  Model model_;
  ParamStore params_;
  Optimizer optimizer_;
  Arena arena_;
  eyrie::Run run_;
  std::unique_ptr<BatchReader> train_, validation_;
  Position position_;
  int64_t saved_step_ = -1;
};

}  // namespace eyrie
