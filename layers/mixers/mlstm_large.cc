#include "layers/mixers/mlstm_large.h"

#include "layers/mixers/mlstm.h"
#include "layers/xlstm_init.h"

namespace eyrie {
namespace {

Linear In(const char* name, const config::ModelConfig& model, int64_t outputs, double init_std) {
  return Linear({.name = name,
                 .in = model.width(),
                 .out = outputs,
                 .cut = Linear::Cut::kColumns,
                 .bias = false,
                 .init_std = init_std});
}

}  // namespace

MlstmLargeMixer::MlstmLargeMixer(const config::ModelConfig& model)
    : q_(In("mlstm.q", model, model.mlstm().key_width(), XlstmInStd(model))),
      k_(In("mlstm.k", model, model.mlstm().key_width(), XlstmInStd(model))),
      v_(In("mlstm.v", model, model.mlstm().width(), XlstmInStd(model))),
      gate_i_(In("mlstm.gate_i", model, model.mlstm().heads(), 0.0)),
      gate_f_(In("mlstm.gate_f", model, model.mlstm().heads(), 0.0)),
      out_gate_(In("mlstm.out_gate", model, model.mlstm().width(), 0.0)),
      cell_({.name = "mlstm",
             .heads = model.mlstm().heads(),
             .key_width = model.mlstm().key_width() / model.mlstm().heads(),
             .value_width = model.mlstm().width() / model.mlstm().heads(),
             .input_gate = GateKind(model.mlstm().input_gate()),
             .forget_gate = GateKind(model.mlstm().forget_gate()),
             .gate_soft_cap = model.mlstm().gate_soft_cap(),
             .epsilon = model.mlstm().epsilon(),
             .input_bias = InitConstant(-10.0),
             .norm_epsilon = model.norm_epsilon(),
             .out_gate = Activation::kSigmoid,
             .first_state = 0}),
      out_({.name = "mlstm.out",
            .in = model.mlstm().width(),
            .out = model.width(),
            .cut = Linear::Cut::kRows,
            .bias = false,
            .init_std = XlstmOutStd(model)}) {}

void MlstmLargeMixer::Declare(Declaration& declare) {
  for (Linear* linear : {&q_, &k_, &v_, &gate_i_, &gate_f_, &out_gate_}) linear->Declare(declare);
  cell_.Declare(declare);
  out_.Declare(declare);

  q_out_ = declare.stash.Add("q", cell_.keys());
  k_out_ = declare.stash.Add("k", cell_.keys());
  v_out_ = declare.stash.Add("v", cell_.values());
  gates_out_ = declare.stash.Add("gates", 2 * cell_.heads(), Holds::kFullPrecision);
  gate_out_ = declare.stash.Add("out_gate", cell_.values());
  product_ = declare.stash.AddCheap("product", cell_.values());
}

void MlstmLargeMixer::DeclareState(StateTable& table) const { cell_.DeclareState(table); }

double MlstmLargeMixer::ExtraFlops(int64_t, int64_t tokens) const {
  return cell_.ExtraFlops(tokens);
}

MlstmCell::Inputs MlstmLargeMixer::CellInputs(const Run& run, const Stash& stash) const {
  return {stash[q_out_], stash[k_out_], stash[v_out_],
          stash[gates_out_].View({2, run.batch(), run.tokens(), cell_.heads()})};
}

void MlstmLargeMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry&) const {
  cell_.Out(run, stash, {.gate = stash[gate_out_]}, stash[product_]);
}

void MlstmLargeMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                              const Carry& carry) {
  ArenaScope scope(run.arena);
  const MlstmCell::Inputs inputs = CellInputs(run, stash);
  ForwardTogether(run, x,
                  {{&k_, inputs.k},
                   {&v_, inputs.v},
                   {&gate_i_, inputs.gates.Rows(0, 1)},
                   {&gate_f_, inputs.gates.Rows(1, 2)}});
  // What this chunk does to the state travels under the other projections.
  MlstmCell::Forward cell(cell_, run, inputs, stash, carry);
  ForwardTogether(run, x, {{&q_, inputs.q}, {&out_gate_, stash[gate_out_]}});
  cell.Finish();
  Refill(run, x, stash, carry);
  if (run.pass == Pass::kRecompute) return;
  out_.Forward(run, stash[product_], out);
}

void MlstmLargeMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                               Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  const Tensor dproduct = run.Scratch(cell_.values()), dgate = run.Scratch(cell_.values());
  out_.BackwardInput(run, dy, dproduct, /*accumulate=*/false);

  // What the chunk does to the state's gradient travels under the products that need no state.
  const MlstmCell::Inputs inputs = CellInputs(run, stash);
  const MlstmCell::Inputs gradients{run.Scratch(cell_.keys()), run.Scratch(cell_.keys()),
                                    run.Scratch(cell_.values()),
                                    run.arena.Allocate(x.dtype, inputs.gates.shape)};
  MlstmCell::Backward cell(cell_, run, inputs, {.gate = stash[gate_out_]}, dproduct,
                           {.gate = dgate}, stash, carry, carry_grad);
  out_.BackwardWeight(run, stash[product_], dy);
  out_gate_.BackwardInput(run, dgate, dx, /*accumulate=*/false);
  out_gate_.BackwardWeight(run, x, dgate);
  cell.Finish(gradients);

  const std::pair<const Linear*, Tensor> inward[] = {{&q_, gradients.q},
                                                     {&k_, gradients.k},
                                                     {&v_, gradients.v},
                                                     {&gate_i_, gradients.gates.Rows(0, 1)},
                                                     {&gate_f_, gradients.gates.Rows(1, 2)}};
  for (const auto& [linear, gradient] : inward) {
    linear->BackwardInput(run, gradient, dx, /*accumulate=*/true);
  }
  // The sum of dx over tensor ranks travels while the weights' gradients are computed.
  Event reduced = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  for (const auto& [linear, gradient] : inward) linear->BackwardWeight(run, x, gradient);
  reduced.Wait();
}

MixerEntry MlstmLargeMixerEntry() {
  return {"mlstm_large",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            ValidateMlstm(model, tensor, errors);
            errors.RequireDivisible("model.mlstm.key_width", model.mlstm().key_width(),
                                    "model.mlstm.heads", model.mlstm().heads());
          },
          [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
            return std::make_unique<MlstmLargeMixer>(model);
          },
          /*min_chunk=*/1,
          [](const config::ModelConfig& model, DType activations, ConfigErrors& errors) {
            const auto& own = model.mlstm();
            ValidateMlstmOnGpu(model, "model.mlstm.width", own.width(), activations, errors);
            ValidateMlstmOnGpu(model, "model.mlstm.key_width", own.key_width(), activations,
                               errors);
          }};
}

}  // namespace eyrie
