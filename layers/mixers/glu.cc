#include "layers/mixers/glu.h"

#include <cmath>

#include "layers/xlstm_init.h"

namespace eyrie {
namespace {

Linear In(const char* name, const config::ModelConfig& model, const GluMixer::Options& options) {
  return Linear({.name = name,
                 .in = model.width(),
                 .out = model.mlp().width(),
                 .cut = Linear::Cut::kColumns,
                 .bias = options.bias,
                 .init_std = options.in_std});
}

}  // namespace

GluMixer::GluMixer(const config::ModelConfig& model, const Options& options)
    : activation_(options.activation),
      gate_(In("mlp.gate", model, options)),
      up_(In("mlp.up", model, options)),
      down_({.name = "mlp.down",
             .in = model.mlp().width(),
             .out = model.width(),
             .cut = Linear::Cut::kRows,
             .bias = options.bias,
             .init_std = options.out_std}) {}

void GluMixer::Declare(Declaration& declare) {
  gate_.Declare(declare);
  up_.Declare(declare);
  down_.Declare(declare);
  gate_out_ = declare.stash.Add("gate", gate_.local_out());
  up_out_ = declare.stash.Add("up", up_.local_out());
  product_ = declare.stash.AddCheap("product", down_.local_in());
}

void GluMixer::Refill(Run&, const Tensor&, Stash& stash, const Carry&) const {
  GluForward({.activation = activation_,
              .gate = stash[gate_out_],
              .value = stash[up_out_],
              .out = stash[product_]});
}

void GluMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                       const Carry& carry) {
  ForwardTogether(run, x, {{&gate_, stash[gate_out_]}, {&up_, stash[up_out_]}});
  Refill(run, x, stash, carry);
  if (run.pass == Pass::kRecompute) return;
  down_.Forward(run, stash[product_], out);
}

void GluMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                        const Carry&, const CarryGrad&) {
  ArenaScope scope(run.arena);
  const Tensor dgate = run.Scratch(gate_.local_out()), dup = run.Scratch(up_.local_out());
  down_.BackwardInput(run, dy, dup, /*accumulate=*/false);
  down_.BackwardWeight(run, stash[product_], dy);
  GluBackwardArgs product{.activation = activation_,
                          .gate = stash[gate_out_],
                          .value = stash[up_out_],
                          .dout = dup,
                          .dgate = dgate,
                          .dvalue = dup,
                          .dgate_sum = gate_.BiasGradient(run),
                          .dvalue_sum = up_.BiasGradient(run)};
  product.workspace = run.Workspace(GluBackwardWorkspace(product));
  GluBackward(product);
  gate_.BackwardInput(run, dgate, dx, /*accumulate=*/false);
  up_.BackwardInput(run, dup, dx, /*accumulate=*/true);
  Event reduced = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  gate_.BackwardWeightAlone(run, x, dgate);
  up_.BackwardWeightAlone(run, x, dup);
  reduced.Wait();
}

namespace {

void Validate(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
  errors.RequireDivisible("model.mlp.width", model.mlp().width(), "parallel.tensor", tensor);
}

std::unique_ptr<Mixer> XlstmGlu(const config::ModelConfig& model, Activation activation) {
  return std::make_unique<GluMixer>(model, GluMixer::Options{.activation = activation,
                                                             .bias = false,
                                                             .in_std = XlstmInStd(model),
                                                             .out_std = XlstmOutStd(model)});
}

MixerEntry Entry(const char* name,
                 std::unique_ptr<Mixer> (*make)(const config::ModelConfig& model, int64_t block)) {
  return {.name = name, .validate = Validate, .make = make, .channel_mixer = true};
}

}  // namespace

MixerEntry GegluMixerEntry() {
  return Entry("geglu", [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
    const double depth = static_cast<double>(model.depth());
    const double hidden = static_cast<double>(model.mlp().width());
    return std::make_unique<GluMixer>(
        model, GluMixer::Options{.activation = Activation::kGeluTanh,
                                 .bias = true,
                                 .in_std = std::sqrt(1.0 / static_cast<double>(model.width())),
                                 .out_std = std::sqrt(2.0 / depth / hidden)});
  });
}

MixerEntry GegluErfMixerEntry() {
  return Entry("geglu_erf", [](const config::ModelConfig& model, int64_t) {
    return XlstmGlu(model, Activation::kGeluErf);
  });
}

MixerEntry SwigluMixerEntry() {
  return Entry("swiglu", [](const config::ModelConfig& model, int64_t) {
    return XlstmGlu(model, Activation::kSilu);
  });
}

MixerEntry SgluMixerEntry() {
  return Entry("sglu", [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
    return std::make_unique<GluMixer>(
        model,
        GluMixer::Options{
            .activation = Activation::kNone, .bias = false, .in_std = 0.02, .out_std = 0.02});
  });
}

}  // namespace eyrie
