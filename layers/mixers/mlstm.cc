#include "layers/mixers/mlstm.h"

#include "core/tensor_math.h"
#include "kernels/block_map/block_map.h"
#include "layers/columns.h"
#include "layers/xlstm_init.h"

namespace eyrie {
namespace {

Linear Up(const char* name, const config::ModelConfig& model) {
  return Linear({.name = name,
                 .in = model.width(),
                 .out = model.mlstm().width(),
                 .cut = Linear::Cut::kColumns,
                 .bias = false,
                 .init_std = XlstmInStd(model)});
}

}  // namespace

MlstmGate GateKind(config::MlstmConfig::Gate gate) {
  return gate == config::MlstmConfig::SIGMOID ? MlstmGate::kSigmoid : MlstmGate::kExponential;
}

void ValidateMlstm(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
  const auto& own = model.mlstm();
  errors.RequireDivisible("model.mlstm.heads", own.heads(), "parallel.tensor", tensor);
  errors.RequireDivisible("model.mlstm.width", own.width(), "model.mlstm.heads", own.heads());
  if (own.gate_soft_cap() < 0) errors.Add("model.mlstm.gate_soft_cap must not be negative");
  if (!(own.epsilon() > 0)) errors.Add("model.mlstm.epsilon must be positive");
}

void ValidateMlstmOnGpu(const config::ModelConfig& model, const char* field, int64_t width,
                        DType activations, ConfigErrors& errors) {
  const int64_t heads = model.mlstm().heads();
  if (heads <= 0 || width <= 0 || width % heads != 0) return;
  const int64_t of_head = width / heads;
  if (of_head > kMaxMlstmCudaWidth) {
    errors.Add(field, " = ", width, " gives each of ", heads, " heads ", of_head,
               " channels; GPUs take at most ", kMaxMlstmCudaWidth);
  }
  if (activations == DType::kBF16 && of_head % kMlstmBf16Multiple != 0) {
    errors.Add(field, " = ", width, " gives each of ", heads, " heads ", of_head,
               " channels; in MIXED precision GPUs take multiples of ", kMlstmBf16Multiple);
  }
}

MlstmMixer::MlstmMixer(const config::ModelConfig& model)
    : global_width_(model.mlstm().width()),
      global_heads_(model.mlstm().heads()),
      map_std_(XlstmInStd(model)),
      up_(Up("mlstm.up", model)),
      z_(Up("mlstm.z", model)),
      conv_({.name = "mlstm.conv",
             .width = global_width_,
             .weight_init = InitUniform(0.5),
             .bias_init = InitUniform(0.5),
             .silu = true}),
      cell_({.name = "mlstm",
             .heads = global_heads_,
             .key_width = global_width_ / global_heads_,
             .value_width = global_width_ / global_heads_,
             .input_gate = GateKind(model.mlstm().input_gate()),
             .forget_gate = GateKind(model.mlstm().forget_gate()),
             .gate_soft_cap = model.mlstm().gate_soft_cap(),
             .epsilon = model.mlstm().epsilon(),
             .input_bias = InitNormal(0.1),
             .norm_epsilon = model.norm_epsilon(),
             .out_gate = Activation::kSilu,
             .skip = true,
             .first_state = 1}),
      down_({.name = "mlstm.down",
             .in = global_width_,
             .out = model.width(),
             .cut = Linear::Cut::kRows,
             .bias = false,
             .init_std = XlstmOutStd(model)}) {}

void MlstmMixer::Declare(Declaration& declare) {
  width_ = global_width_ / declare.tensor_size;
  up_.Declare(declare);
  z_.Declare(declare);
  conv_.Declare(declare);
  const auto map = [&](const char* name) {
    return declare.params.Add(
        {.name = declare.prefix + name,
         .shape = {global_width_ / kBlockMapWidth, kBlockMapWidth, kBlockMapWidth},
         .shard_axis = 0,
         .weight_decay = true,
         .init = InitNormal(map_std_)});
  };
  q_ = map("mlstm.q.w");
  k_ = map("mlstm.k.w");
  v_ = map("mlstm.v.w");
  gates_w_ = declare.params.Add({.name = declare.prefix + "mlstm.gates.w",
                                 .shape = {3, 2, global_heads_, global_width_},
                                 .shard_axis = 3,
                                 .weight_decay = true,
                                 .init = InitConstant(0.0)});
  cell_.Declare(declare);
  down_.Declare(declare);

  gates_out_ = declare.stash.AddKept("gates", 2 * cell_.heads(), StashTable::EachToken,
                                     Holds::kFullPrecision);
  s_ = declare.stash.AddCheap("s", width_);
  q_out_ = declare.stash.AddCheap("q", width_);
  k_out_ = declare.stash.AddCheap("k", width_);
  v_out_ = declare.stash.AddCheap("v", width_);
  z_out_ = declare.stash.Add("z", width_);
  product_ = declare.stash.AddCheap("product", width_);
}

void MlstmMixer::DeclareState(StateTable& table) const {
  conv_.DeclareState(table);
  cell_.DeclareState(table);
}

double MlstmMixer::ExtraFlops(int64_t, int64_t tokens) const { return cell_.ExtraFlops(tokens); }

Tensor MlstmMixer::PartOf(const Tensor& gates_w, GatePart part) const {
  return gates_w.Rows(part, part + 1).View({2 * global_heads_, width_});
}

MlstmCell::Inputs MlstmMixer::CellInputs(const Run& run, const Stash& stash) const {
  return {stash[q_out_], stash[k_out_], stash[v_out_],
          stash[gates_out_].View({2, run.batch(), run.tokens(), cell_.heads()})};
}

void MlstmMixer::MapInputs(Run& run, Stash& stash, const Tensor& gates) const {
  ArenaScope scope(run.arena);
  const auto map = [&](ParamId w, GatePart part, SlotId y) {
    BlockMapForwardArgs::Map made{.w = run.params.value(w), .y = stash[y]};
    if (gates.defined()) made.gates_w = PartOf(run.params.value(gates_w_), part);
    return made;
  };
  BlockMapForwardArgs keys{
      .x = stash[s_], .maps = {map(q_, kQ, q_out_), map(k_, kK, k_out_)}, .gates = gates};
  if (gates.defined()) {
    keys.workspace = run.Workspace(BlockMapForwardWorkspace(keys.x, gates.dim(-1)));
  }
  BlockMapForward(keys);
  BlockMapForward({.x = conv_.inputs(stash),
                   .maps = {map(v_, kV, v_out_)},
                   .gates = gates,
                   .accumulate_gates = true,
                   .workspace = keys.workspace});
}

void MlstmMixer::MapsBackward(Run& run, const Tensor& x, const Tensor& dgates,
                              std::initializer_list<MapGradient> maps, const Tensor& dx) const {
  ArenaScope scope(run.arena);
  BlockMapBackwardArgs args{.x = x, .dgates = dgates, .dx = dx, .accumulate = true};
  for (const auto& [map, part, dy] : maps) {
    args.maps.push_back({.w = run.params.value(map),
                         .dy = dy,
                         .dw = run.params.grad(map),
                         .gates_w = PartOf(run.params.value(gates_w_), part),
                         .dgates_w = PartOf(run.params.grad(gates_w_), part)});
  }
  args.workspace = run.Workspace(
      BlockMapBackwardWorkspace(x, static_cast<int64_t>(maps.size()), dgates.dim(-1)));
  BlockMapBackward(args);
}

MlstmCell::Outward MlstmMixer::Outward(const Stash& stash) const {
  return {.gate = stash[z_out_], .s = stash[s_]};
}

void MlstmMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry& carry) const {
  conv_.Refill(run, stash[s_], stash, carry);
  MapInputs(run, stash, /*gates=*/{});
  cell_.Out(run, stash, Outward(stash), stash[product_]);
}

void MlstmMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                         const Carry& carry) {
  ArenaScope scope(run.arena);
  const bool recomputes = run.pass == Pass::kRecompute;
  const auto project = [&](const Tensor& rows, const Tensor& inputs) {
    up_.Forward(run, rows, inputs);
  };
  Event handed_on = conv_.Forward(run, x, project, stash[s_], stash, carry);
  const Tensor gates = recomputes ? Tensor{} : run.FullScratch(2 * global_heads_);
  MapInputs(run, stash, gates);

  // The sum over tensor ranks travels under the other branch's projection.
  const MlstmCell::Inputs inputs = CellInputs(run, stash);
  Event reduced;
  if (!recomputes) reduced = run.mesh.tensor().AllReduce(gates, ReduceOp::kSum);
  z_.Forward(run, x, stash[z_out_]);
  reduced.Wait();
  if (!recomputes) {
    const int64_t first = run.mesh.tensor().rank() * cell_.heads();
    for (const int64_t gate : {0, 1}) {
      CopyColumns(gates, gate * global_heads_ + first, inputs.gates.Rows(gate, gate + 1), 0,
                  cell_.heads());
    }
  }
  MlstmCell::Forward cell(cell_, run, inputs, stash, carry);
  cell.Finish();
  cell_.Out(run, stash, Outward(stash), stash[product_]);
  handed_on.Wait();
  if (recomputes) return;
  down_.Forward(run, stash[product_], out);
}

void MlstmMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                          Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  const Tensor dproduct = run.Scratch(width_), dz = run.Scratch(width_), ds = run.Scratch(width_);
  down_.BackwardInput(run, dy, dproduct, /*accumulate=*/false);

  // What the chunk does to the state's gradient travels under the products that need no state.
  const MlstmCell::Inputs inputs = CellInputs(run, stash);
  const MlstmCell::Inputs gradients{run.Scratch(width_), run.Scratch(width_), run.Scratch(width_),
                                    run.arena.Allocate(x.dtype, inputs.gates.shape)};
  MlstmCell::Backward cell(cell_, run, inputs, Outward(stash), dproduct, {.gate = dz, .s = ds},
                           stash, carry, carry_grad);
  down_.BackwardWeight(run, stash[product_], dy);
  z_.BackwardInput(run, dz, dx, /*accumulate=*/false);
  z_.BackwardWeight(run, x, dz);
  cell.Finish(gradients);

  // The gates' gradients of all heads reach every rank's channels.
  const Tensor dgates = run.Scratch(2 * global_heads_);
  for (const int64_t gate : {0, 1}) {
    ArenaScope gathered(run.arena);
    const Tensor heads = AllColumns(run, gradients.gates.Rows(gate, gate + 1));
    CopyColumns(heads, 0, dgates, gate * global_heads_, global_heads_);
  }
  MapsBackward(run, stash[s_], dgates, {{q_, kQ, gradients.q}, {k_, kK, gradients.k}}, ds);

  const Tensor da = dproduct;  // which has served
  CausalConvolution::Returning returning = conv_.Backward(run, ds, da, stash, carry, carry_grad);
  MapsBackward(run, conv_.inputs(stash), dgates, {{v_, kV, gradients.v}}, da);
  returning.Wait();

  // The sum of dx over tensor ranks travels while the weights' gradients are computed.
  up_.BackwardInput(run, da, dx, /*accumulate=*/true);
  Event summed = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  up_.BackwardWeight(run, x, da);
  summed.Wait();
}

MixerEntry MlstmMixerEntry() {
  return {"mlstm",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            ValidateMlstm(model, tensor, errors);
            const auto& own = model.mlstm();
            if (own.heads() > 0 && own.width() % (own.heads() * kBlockMapWidth) != 0) {
              errors.Add("model.mlstm.width = ", own.width(), " does not give each of ",
                         own.heads(), " heads a multiple of ", kBlockMapWidth, " channels");
            }
          },
          [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
            return std::make_unique<MlstmMixer>(model);
          },
          /*min_chunk=*/CausalConvolution::kHalo,
          [](const config::ModelConfig& model, DType activations, ConfigErrors& errors) {
            ValidateMlstmOnGpu(model, "model.mlstm.width", model.mlstm().width(), activations,
                               errors);
          }};
}

}  // namespace eyrie
