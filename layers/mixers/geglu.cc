#include "layers/mixers/geglu.h"

#include <cmath>

#include "kernels/glu/glu.h"

namespace eyrie {
namespace {

Linear In(const char* name, const config::ModelConfig& model) {
  return Linear({.name = name,
                 .in = model.width(),
                 .out = model.mlp().width(),
                 .cut = Linear::Cut::kColumns,
                 .init_std = std::sqrt(1.0 / static_cast<double>(model.width()))});
}

}  // namespace

GegluMixer::GegluMixer(const config::ModelConfig& model)
    : gate_(In("mlp.gate", model)),
      up_(In("mlp.up", model)),
      down_({.name = "mlp.down",
             .in = model.mlp().width(),
             .out = model.width(),
             .cut = Linear::Cut::kRows,
             .init_std = std::sqrt(2.0 / static_cast<double>(model.depth()) /
                                   static_cast<double>(model.mlp().width()))}) {}

void GegluMixer::Declare(Declaration& declare) {
  gate_.Declare(declare);
  up_.Declare(declare);
  down_.Declare(declare);
  gate_out_ = declare.stash.Add("gate", gate_.local_out());
  up_out_ = declare.stash.Add("up", up_.local_out());
  product_ = declare.stash.Add("product", down_.local_in());
}

void GegluMixer::Forward(Run& run, const Tensor& x, const Tensor& y, Stash& stash, const Carry&) {
  gate_.Forward(run, x, stash[gate_out_]);
  up_.Forward(run, x, stash[up_out_]);
  GluForward({.gate = stash[gate_out_], .value = stash[up_out_], .out = stash[product_]});
  if (run.pass == Pass::kRecompute) return;
  down_.Forward(run, stash[product_], y);
  down_.Reduce(run, y);
}

void GegluMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                          Stash& stash, const Carry&, const CarryGrad&) {
  ArenaScope scope(run.arena);
  const Tensor dgate = run.Scratch(gate_.local_out()), dup = run.Scratch(up_.local_out());
  down_.BackwardInput(run, dy, dup, /*accumulate=*/false);
  down_.BackwardWeight(run, stash[product_], dy);
  GluBackward({.gate = stash[gate_out_],
               .value = stash[up_out_],
               .dout = dup,
               .dgate = dgate,
               .dvalue = dup});
  gate_.BackwardInput(run, dgate, dx, /*accumulate=*/false);
  up_.BackwardInput(run, dup, dx, /*accumulate=*/true);
  Event reduced = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  gate_.BackwardWeight(run, x, dgate);
  up_.BackwardWeight(run, x, dup);
  reduced.Wait();
}

MixerEntry GegluMixerEntry() {
  return {"geglu",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            errors.RequireDivisible("model.mlp.width", model.mlp().width(), "parallel.tensor",
                                    tensor);
          },
          [](const config::ModelConfig& model) -> std::unique_ptr<Mixer> {
            return std::make_unique<GegluMixer>(model);
          }};
}

}  // namespace eyrie
