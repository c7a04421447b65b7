// What eval, generate, logits and bench decode share: a model on this job's ranks, loaded from a
// checkpoint unless it is only to be timed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.pb.h"
#include "core/device.h"
#include "launcher/job.h"
#include "layers/model.h"

namespace eyrie {

struct InferenceOptions {
  std::string checkpoint;  // a checkpoint, or a run's directory for its newest one
  std::vector<std::string> settings;
};

class Inference {
 public:
  // How the ranks are used unless --set says otherwise.
  enum class Layout {
    kTensor,  // all on the tensor axis: one sequence at a time
    kData,    // all on the data axis: many sequences
  };

  // Collective over the job. Throws naming the checkpoint's file at fault.
  Inference(const InferenceOptions& options, Layout layout, Job& job);
  // Fresh parameters of a configuration, with all ranks on the tensor axis. Collective.
  Inference(const config::Config& config, Job& job);

  const config::Config& config() const { return config_; }
  // For MakeTokenizer: the checkpoint's own; empty if it names none.
  const std::string& tokenizer() const { return tokenizer_; }
  const Mesh& mesh() const { return *mesh_; }
  const Model& model() const { return *model_; }
  Run& run() { return *run_; }
  // Runs a step that is always the same; it may hold operations among the tensor ranks.
  void Repeat(Replay& replay, const std::function<void()>& step);

 private:
  // The mesh, the model and memory for its parameters, from config_.
  void Build(Job& job);

  config::Config config_;
  std::string tokenizer_;
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<ParamStore> params_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Run> run_;
};

// Feeds tokens of one sequence through the model's state.
class Decoder {
 public:
  // `capacity`: the most tokens that will be fed.
  Decoder(Inference& inference, int64_t capacity);

  // Feeds tokens, at least one, in chunks; returns the logits [vocab] after the last one, on the
  // host and valid until the next call. `each`, if given, is called with the logits [n, vocab] of
  // every chunk.
  Tensor Feed(const std::vector<int32_t>& tokens,
              const std::function<void(const Tensor&)>& each = nullptr);

 private:
  Inference& inference_;
  int64_t position_ = 0;
  ModelState state_, next_;
  // One token's step, from either of the two states into the other.
  Replay steps_[2];
  int turn_ = 0;
  OwnedTensor tokens_, positions_, logits_, host_logits_;
};

}  // namespace eyrie
