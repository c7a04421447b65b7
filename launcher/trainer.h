// The training loop.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "configs/schema/config.pb.h"
#include "core/error.h"
#include "launcher/batches.h"
#include "launcher/checkpoint.h"
#include "launcher/checkpoint_writer.h"
#include "launcher/measure.h"
#include "launcher/metrics.h"
#include "launcher/optimizer.h"
#include "launcher/trace_file.h"
#include "layers/slices.h"

namespace eyrie {

class Trainer {
 public:
  // `config` is resolved and valid for training. Opens the data, takes the memory, and starts from
  // a checkpoint or from fresh parameters. `trace`, if given, is written by Run; `sink` writes this
  // rank's part of a checkpoint. Collective over the mesh.
  Trainer(const config::Config& config, const Mesh& mesh, TraceFile* trace = nullptr,
          CheckpointWriter::ShardSink sink = WriteShard);

  // Trains to the last step, to stop_after, or to a signal, then saves.
  ExitCode Run();
  // Bytes that this rank has taken so far, by kind.
  MemoryUse memory() const;
  // What Run would do: model, layout, steps, data and where it starts from, in one line.
  std::string Summary() const;

 private:
  // What Run does, which in the end completes a save under way even where ranks leave with an
  // error.
  ExitCode RunSteps();
  // All that a checkpoint holds.
  std::vector<NamedFlat> Groups() const;
  // Picks what to start from and loads it.
  void Start();
  // Of settings that say which sequences come when, if others than those of the run so far.
  void WarnOfOtherData(const config::Config& before) const;
  // One optimiser step.
  StepMetrics Step();
  // Where this run ends: the last step, or stop_after.
  int64_t LastStep() const;
  // config.textproto, on the root rank.
  void WriteConfig() const;
  // The first sample of one of the microbatches that this rank runs in a step.
  int64_t FirstSample(int64_t round) const;
  // The labels that count in the next step, over all ranks. Throws kBadInput if there are none.
  double CountLabels();
  // Forward and backward of one microbatch, with the loss scaled by `scale`: adds to the gradients
  // and to the step's loss.
  void RunMicrobatch(int64_t first_sample, double scale, bool completes_step);
  // The step's loss or gradient is not finite: finds out where that began and stops the run. Every
  // rank holds the same numbers.
  [[noreturn]] void StopDiverged(const StepMetrics& metrics, double scale);
  // Measures on the validation data.
  void Validate(StepMetrics& metrics);
  // Starts to save, unless this step is saved; with checkpoint.asynchronous it returns then. A save
  // still under way is completed first.
  void Save();
  // Completes a save under way, waiting for the disk.
  void FinishSave();
  // Tells all ranks what each has met since the last step: completes a save if they have written
  // it, and returns the signal that any of them received, or 0.
  int Agree();

  const config::Config& config_;
  const Mesh& mesh_;
  std::filesystem::path directory_;
  Model model_;
  ParamStore params_;
  Optimizer optimizer_;
  Arena arena_;
  OwnedTensor loss_;  // of the step, see Model::Batch
  eyrie::Run run_;
  TraceFile* trace_;
  Slices slices_;
  std::unique_ptr<BatchReader> train_, validation_;
  CheckpointWriter writer_;
  Position position_;
  std::string source_ = "fresh parameters";  // or the checkpoint it starts from
  int64_t saved_step_ = -1;
};

}  // namespace eyrie
