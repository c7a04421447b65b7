#include "layers/model.h"

#include <cmath>
#include <utility>

#include "layers/registry.h"

namespace eyrie {
namespace {

double EmbeddingScale(const config::ModelConfig& config) {
  if (config.embedding_scale() == config::ModelConfig::UNSCALED) return 1.0;
  // Rounded as RecurrentGemma's released weights expect: 50.5, not 50.596, for width 2560.
  return static_cast<float>(BFloat16(std::sqrt(static_cast<float>(config.width()))));
}

Carry CarryOf(size_t branch, const ModelState* before, ModelState* after) {
  return {before == nullptr ? nullptr : &(*before)[branch],
          after == nullptr ? nullptr : &(*after)[branch]};
}

}  // namespace

Model::Model(const config::ModelConfig& config, int tensor_size, bool recompute)
    : width_(config.width()),
      recompute_(recompute),
      embedding_({.vocab_size = config.vocab_size(),
                  .width = config.width(),
                  .scale = EmbeddingScale(config),
                  .soft_cap = config.logit_soft_cap()}),
      norm_f_("norm_f", config.width(), config.norm_epsilon()) {
  StashTable none;
  Declaration declare{params_, none, tensor_size, ""};
  embedding_.Declare(declare);
  for (int64_t block = 0; block < config.depth(); ++block) {
    const std::string& pattern = config.pattern(static_cast<int>(block % config.pattern_size()));
    const char* norm = "norm_a";
    for (const std::string& name : SplitPatternEntry(pattern)) {
      const MixerEntry* entry = FindMixer(name);
      EYRIE_CHECK(entry != nullptr, "unknown mixer ", name);
      branches_.emplace_back(Norm(norm, config.width(), config.norm_epsilon()),
                             entry->make(config));
      declare.prefix = StrCat("blocks.", block, ".");
      first_params_.push_back(static_cast<ParamId>(params_.specs().size()));
      branches_.back().Declare(declare);
      norm = "norm_b";
    }
  }
  declare.prefix = "";
  first_params_.push_back(static_cast<ParamId>(params_.specs().size()));
  norm_f_.Declare(declare);
}

ModelState Model::MakeState(DType dtype, int64_t batch, int64_t capacity) const {
  ModelState state;
  for (const Branch& branch : branches_) {
    StateTable table(capacity);
    branch.DeclareState(table);
    state.emplace_back(table, dtype, batch);
  }
  return state;
}

Loss Model::Forward(Run& run, const Batch& batch, const ModelState* before, ModelState* after,
                    Activations& saved) const {
  run.pass = Pass::kTrain;
  saved.inputs.clear();
  saved.stashes.clear();
  Tensor x = run.Scratch(width_);
  embedding_.LookUp(run, batch.tokens, x);
  for (size_t i = 0; i < branches_.size(); ++i) {
    const Tensor y = run.Scratch(width_);
    const Arena::Mark mark = run.arena.mark();
    Stash stash(branches_[i].stash_table(), run.params.dtype(), run.batch(), run.tokens(),
                run.arena);
    branches_[i].Forward(run, x, y, stash, CarryOf(i, before, after));
    if (recompute_) {
      run.arena.Rewind(mark);
    } else {
      saved.stashes.push_back(std::move(stash));
    }
    saved.inputs.push_back(x);
    x = y;
  }
  saved.inputs.push_back(x);
  saved.rstd = run.Scratch(1);
  saved.gradient = run.Scratch(width_);

  ArenaScope scope(run.arena);
  const Tensor normed = run.Scratch(width_), dnormed = run.Scratch(width_);
  norm_f_.Forward(run, x, normed, saved.rstd);
  const Loss loss = embedding_.HeadLoss(run, normed, batch.labels, batch.scale, dnormed);
  norm_f_.Backward(run, x, saved.rstd, dnormed, /*dresidual=*/{}, saved.gradient);
  return loss;
}

void Model::Backward(Run& run, const Batch& batch, Activations& saved, const ModelState* before,
                     const ModelState* grad_after, ModelState* grad_before) const {
  run.params.GradsReady(first_params_.back());
  for (size_t i = branches_.size(); i-- > 0;) {
    ArenaScope scope(run.arena);
    const Carry carry = CarryOf(i, before, nullptr);
    const CarryGrad carry_grad{grad_after == nullptr ? nullptr : &(*grad_after)[i],
                               grad_before == nullptr ? nullptr : &(*grad_before)[i]};
    Stash refilled;
    if (recompute_) {
      refilled = Stash(branches_[i].stash_table(), run.params.dtype(), run.batch(), run.tokens(),
                       run.arena);
      run.pass = Pass::kRecompute;
      branches_[i].Forward(run, saved.inputs[i], {}, refilled, carry);
    }
    run.pass = Pass::kTrain;
    branches_[i].Backward(run, saved.inputs[i], saved.gradient,
                          recompute_ ? refilled : saved.stashes[i], carry, carry_grad);
    run.params.GradsReady(first_params_[i]);
  }
  embedding_.LookUpBackward(run, batch.tokens, saved.gradient);
  run.params.GradsReady(0);
}

Tensor Model::Infer(Run& run, const Tensor& tokens, const ModelState* before,
                    ModelState* after) const {
  run.pass = Pass::kEval;
  Tensor x = run.Scratch(width_), y = run.Scratch(width_);
  embedding_.LookUp(run, tokens, x);
  for (size_t i = 0; i < branches_.size(); ++i) {
    ArenaScope scope(run.arena);
    Stash stash(branches_[i].stash_table(), run.params.dtype(), run.batch(), run.tokens(),
                run.arena);
    branches_[i].Forward(run, x, y, stash, CarryOf(i, before, after));
    std::swap(x, y);
  }
  norm_f_.Forward(run, x, y, run.Scratch(1));
  return y;
}

Loss Model::Evaluate(Run& run, const Batch& batch) const {
  ArenaScope scope(run.arena);
  const Tensor x = Infer(run, batch.tokens, nullptr, nullptr);
  return embedding_.HeadLoss(run, x, batch.labels, batch.scale, {});
}

void Model::Logits(Run& run, const Tensor& tokens, const ModelState* before, ModelState* after,
                   const Tensor& logits) const {
  ArenaScope scope(run.arena);
  Tensor x = Infer(run, tokens, before, after);
  const int64_t wanted = logits.dim(1);
  EYRIE_CHECK(wanted == run.tokens() || wanted == 1);
  if (wanted != run.tokens()) {
    const Tensor last = run.arena.Allocate(x.dtype, {run.batch(), 1, width_});
    for (int64_t b = 0; b < run.batch(); ++b) {
      const Tensor sequence = x.Rows(b, b + 1).View({run.tokens(), width_});
      Copy(sequence.Rows(run.tokens() - 1, run.tokens()), last.Rows(b, b + 1));
    }
    x = last;
  }
  embedding_.Logits(run, x, logits);
}

}  // namespace eyrie
