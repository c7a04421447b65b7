#include "layers/model.h"

#include <cmath>
#include <utility>

#include "layers/registry.h"

namespace eyrie {
namespace {

double EmbeddingScale(const config::ModelConfig& config) {
  switch (config.embedding_scale()) {
    case config::ModelConfig::UNSCALED: return 1.0;
    // As RecurrentGemma's released weights expect: 50.5, not 50.596, for width 2560.
    case config::ModelConfig::SQRT_WIDTH:
      return static_cast<float>(BFloat16(std::sqrt(static_cast<float>(config.width()))));
    case config::ModelConfig::EXACT_SQRT_WIDTH:
      return std::sqrt(static_cast<double>(config.width()));
  }
  ThrowFailure("unknown embedding_scale");
}

// For the trace.
struct Computing : Trace::Scope {
  Computing(const Run& run, const std::string& layer, const char* pass)
      : Scope(run.trace, Trace::Kind::kCompute, layer, pass) {}
};

void GradsReady(Run& run, ParamId first) {
  if (run.completes_gradients) run.params.GradsReady(first);
}

Carry CarryOf(size_t branch, const ModelState* before, ModelState* after) {
  return {before == nullptr ? nullptr : &(*before)[branch],
          after == nullptr ? nullptr : &(*after)[branch]};
}

// Whether none enters or leaves a pass: not from before or after it, nor from other ranks.
bool NoStates(const Run& run, const ModelState* before, const ModelState* after) {
  return before == nullptr && after == nullptr && run.mesh.sequence().size() == 1;
}

}  // namespace

Model::Model(const config::ModelConfig& config, int tensor_size, Recompute recompute)
    : width_(config.width()),
      recompute_(recompute),
      embedding_({.vocab_size = config.vocab_size(),
                  .width = config.width(),
                  .variance = config.embedding_variance() / static_cast<double>(config.width()),
                  .tied = config.tied_embedding(),
                  .scale = EmbeddingScale(config),
                  .soft_cap = config.logit_soft_cap()}),
      norm_f_("norm_f", config) {
  StashTable none;
  Declaration declare{params_, none, tensor_size, ""};
  embedding_.Declare(declare);
  for (int64_t block = 0; block < config.depth(); ++block) {
    const std::string& pattern = config.pattern(static_cast<int>(block % config.pattern_size()));
    const char* norm = "norm_a";
    for (const std::string& name : SplitPatternEntry(pattern)) {
      const MixerEntry* entry = FindMixer(name);
      EYRIE_CHECK(entry != nullptr, "unknown mixer ", name);
      branches_.emplace_back(Norm(norm, config), entry->make(config, block));
      declare.prefix = StrCat("blocks.", block, ".");
      first_params_.push_back(static_cast<ParamId>(params_.specs().size()));
      branches_.back().Declare(declare);
      names_.push_back(StrCat("block ", block, " (", name, ")"));
      norm = "norm_b";
    }
  }
  declare.prefix = "";
  first_params_.push_back(static_cast<ParamId>(params_.specs().size()));
  norm_f_.Declare(declare);
  embedding_.DeclareHead(declare);
}

ModelState Model::MakeState(const ParamStore& params, int64_t batch, int64_t capacity,
                            Arena* arena) const {
  ModelState state;
  for (const Branch& branch : branches_) {
    StateTable table(capacity);
    branch.DeclareState(table);
    if (arena == nullptr) {
      state.emplace_back(table, params.dtype(), batch, params.device());
    } else {
      state.emplace_back(table, params.dtype(), batch, *arena);
    }
  }
  return state;
}

double Model::ExtraFlops(int64_t before, int64_t tokens) const {
  double flops = 0.0;
  for (const Branch& branch : branches_) flops += branch.ExtraFlops(before, tokens);
  return flops;
}

void Model::Forward(Run& run, const Batch& batch, const ModelState* before, ModelState* after,
                    Activations& saved) const {
  run.pass = Pass::kTrain;
  saved.inputs.clear();
  saved.stashes.clear();
  Tensor x = run.Scratch(width_);
  {
    const Computing computing(run, "embedding", " forward");
    embedding_.LookUp(run, batch.tokens, x);
  }
  run.Show(Seen::kOutput, "embedding", x);
  const bool alone = NoStates(run, before, after);
  for (size_t i = 0; i < branches_.size(); ++i) {
    const Tensor y = run.Scratch(width_);
    Stash stash = branches_[i].MakeStash(run);
    stash.TakeKept(run.arena, recompute_);
    if (alone && recompute_ == Recompute::kNothing) stash.TakeReusable(run.arena);
    const Arena::Mark mark = run.arena.mark();
    stash.TakeRest(run.arena, recompute_);
    {
      const Computing computing(run, names_[i], " forward");
      branches_[i].Forward(run, x, y, stash, CarryOf(i, before, after));
    }
    run.arena.Rewind(mark);
    saved.stashes.push_back(std::move(stash));
    saved.inputs.push_back(x);
    x = y;
    run.Show(Seen::kOutput, names_[i], x);
  }
  saved.inputs.push_back(x);
  saved.norm = run.FullScratch(norm_f_.statistics());
  saved.gradient = run.Scratch(width_);

  const Computing computing(run, "head", "");
  ArenaScope scope(run.arena);
  const Tensor normed = run.Scratch(width_), dnormed = run.Scratch(width_);
  norm_f_.Forward(run, x, normed, saved.norm);
  run.Show(Seen::kOutput, "norm_f", normed);
  embedding_.HeadLoss(run, normed, batch.labels, batch.scale, batch.loss, dnormed, {});
  run.Show(Seen::kOutput, "head", batch.loss.Rows(0, 1));
  run.Show(Seen::kGradient, "head", dnormed);
  norm_f_.Backward(run, x, saved.norm, dnormed, /*dresidual=*/{}, saved.gradient);
  run.Show(Seen::kGradient, "norm_f", saved.gradient);
}

void Model::Backward(Run& run, const Batch& batch, Activations& saved, const ModelState* before,
                     const ModelState* grad_after, ModelState* grad_before) const {
  // A last norm without a weight, before a tied head, completes nothing.
  if (first_params_.back() < static_cast<ParamId>(params_.specs().size())) {
    GradsReady(run, first_params_.back());
  }
  for (size_t i = branches_.size(); i-- > 0;) {
    ArenaScope scope(run.arena);
    const Carry carry = CarryOf(i, before, nullptr);
    const CarryGrad carry_grad{grad_after == nullptr ? nullptr : &(*grad_after)[i],
                               grad_before == nullptr ? nullptr : &(*grad_before)[i]};
    Stash& stash = saved.stashes[i];
    if (recompute_ != Recompute::kNothing) {
      const Computing computing(run, names_[i], " recompute");
      stash.TakeRest(run.arena, recompute_);
      run.pass = Pass::kRecompute;
      if (recompute_ == Recompute::kBlocks) {
        if (NoStates(run, before, grad_after)) stash.TakeReusable(run.arena);
        branches_[i].Forward(run, saved.inputs[i], {}, stash, carry);
      } else {
        branches_[i].Refill(run, saved.inputs[i], stash, carry);
      }
    }
    run.pass = Pass::kTrain;
    {
      const Computing computing(run, names_[i], " backward");
      branches_[i].Backward(run, saved.inputs[i], saved.gradient, stash, carry, carry_grad);
    }
    run.Show(Seen::kGradient, names_[i], saved.gradient);
    GradsReady(run, first_params_[i]);
  }
  {
    const Computing computing(run, "embedding", " backward");
    embedding_.LookUpBackward(run, batch.tokens, saved.gradient);
  }
  GradsReady(run, 0);
}

Tensor Model::Infer(Run& run, const Tensor& tokens, const ModelState* before,
                    ModelState* after) const {
  run.pass = Pass::kEval;
  Tensor x = run.Scratch(width_), y = run.Scratch(width_);
  embedding_.LookUp(run, tokens, x);
  for (size_t i = 0; i < branches_.size(); ++i) {
    ArenaScope scope(run.arena);
    Stash stash = branches_[i].MakeStash(run);
    stash.TakeKept(run.arena, Recompute::kNothing);
    const Computing computing(run, names_[i], " evaluation");
    branches_[i].Forward(run, x, y, stash, CarryOf(i, before, after));
    std::swap(x, y);
  }
  norm_f_.Forward(run, x, y, run.FullScratch(norm_f_.statistics()));
  return y;
}

void Model::Advance(Run& run, const Tensor& tokens, const ModelState& before,
                    ModelState& after) const {
  ArenaScope scope(run.arena);
  Infer(run, tokens, &before, &after);
}

void Model::Evaluate(Run& run, const Batch& batch, const ModelState* before, ModelState* after,
                     const Tensor& predicted) const {
  ArenaScope scope(run.arena);
  const Tensor x = Infer(run, batch.tokens, before, after);
  embedding_.HeadLoss(run, x, batch.labels, batch.scale, batch.loss, {}, predicted);
}

void Model::Logits(Run& run, const Tensor& tokens, const ModelState* before, ModelState* after,
                   const Tensor& logits) const {
  ArenaScope scope(run.arena);
  Tensor x = Infer(run, tokens, before, after);
  const int64_t wanted = logits.dim(1);
  EYRIE_CHECK(wanted == run.tokens() || wanted == 1);
  if (wanted != run.tokens()) {
    const Tensor last = run.arena.Allocate(x.dtype, {run.batch(), 1, width_});
    CopyRows(x, run.tokens() - 1, last, 0, 1);
    x = last;
  }
  embedding_.Logits(run, x, logits);
}

}  // namespace eyrie
