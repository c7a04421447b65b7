#include "layers/mixers/mlstm.h"

#include "core/blas.h"
#include "core/tensor_math.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/glu/glu.h"
#include "layers/columns.h"
#include "layers/xlstm_init.h"

namespace eyrie {
namespace {

constexpr int64_t kBlock = 4;  // of the block-diagonal maps

Linear Up(const char* name, const config::ModelConfig& model) {
  return Linear({.name = name,
                 .in = model.width(),
                 .out = model.mlstm().width(),
                 .cut = Linear::Cut::kColumns,
                 .bias = false,
                 .init_std = XlstmInStd(model)});
}

BlockLinear Map(const char* name, const config::ModelConfig& model) {
  return BlockLinear({.name = name,
                      .width = model.mlstm().width(),
                      .blocks = model.mlstm().width() / kBlock,
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
      up_(Up("mlstm.up", model)),
      z_(Up("mlstm.z", model)),
      conv_({.name = "mlstm.conv",
             .width = global_width_,
             .weight_init = InitUniform(0.5),
             .bias_init = InitUniform(0.5),
             .silu = true}),
      q_(Map("mlstm.q", model)),
      k_(Map("mlstm.k", model)),
      v_(Map("mlstm.v", model)),
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
  q_.Declare(declare);
  k_.Declare(declare);
  v_.Declare(declare);
  gates_w_ = declare.params.Add({.name = declare.prefix + "mlstm.gates.w",
                                 .shape = {3, 2, global_heads_, global_width_},
                                 .shard_axis = 3,
                                 .weight_decay = true,
                                 .init = InitConstant(0.0)});
  cell_.Declare(declare);
  skip_ = declare.params.Add({.name = declare.prefix + "mlstm.skip",
                              .shape = {global_width_},
                              .shard_axis = 0,
                              .init = InitConstant(1.0)});
  down_.Declare(declare);

  gates_out_ = declare.stash.AddKept(
      "gates", 2 * cell_.heads(), [](int64_t tokens, int64_t) { return tokens; },
      Holds::kFullPrecision);
  s_ = declare.stash.AddCheap("s", width_);
  q_out_ = declare.stash.AddCheap("q", width_);
  k_out_ = declare.stash.AddCheap("k", width_);
  v_out_ = declare.stash.AddCheap("v", width_);
  z_out_ = declare.stash.Add("z", width_);
  value_ = declare.stash.AddCheap("value", width_);
  product_ = declare.stash.AddCheap("product", width_);
}

void MlstmMixer::DeclareState(StateTable& table) const {
  conv_.DeclareState(table);
  cell_.DeclareState(table);
}

double MlstmMixer::ExtraFlops(int64_t, int64_t tokens) const { return cell_.ExtraFlops(tokens); }

void MlstmMixer::Gates(Run& run, GatePart part, const Tensor& channels, const Tensor& gates) const {
  Gemm({.trans_b = Trans::kYes,
        .m = channels.size() / width_,
        .n = 2 * global_heads_,
        .k = width_,
        .a = channels,
        .lda = width_,
        .b = run.params.value(gates_w_).Rows(part, part + 1),
        .ldb = width_,
        .c = gates,
        .ldc = 2 * global_heads_,
        .accumulate = part != kQ,
        .b_is_settled = true});
}

void MlstmMixer::GatesBackward(Run& run, GatePart part, const Tensor& channels,
                               const Tensor& dgates, const Tensor& dchannels) const {
  const int64_t gates = 2 * global_heads_, tokens = channels.size() / width_;
  Gemm({.m = tokens,
        .n = width_,
        .k = gates,
        .a = dgates,
        .lda = gates,
        .b = run.params.value(gates_w_).Rows(part, part + 1),
        .ldb = width_,
        .c = dchannels,
        .ldc = width_,
        .accumulate = true});
  Gemm({.trans_a = Trans::kYes,
        .m = gates,
        .n = width_,
        .k = tokens,
        .a = dgates,
        .lda = gates,
        .b = channels,
        .ldb = width_,
        .c = run.params.grad(gates_w_).Rows(part, part + 1),
        .ldc = width_,
        .accumulate = true});
}

MlstmCell::Inputs MlstmMixer::CellInputs(const Run& run, const Stash& stash) const {
  return {stash[q_out_], stash[k_out_], stash[v_out_],
          stash[gates_out_].View({2, run.batch(), run.tokens(), cell_.heads()})};
}

void MlstmMixer::MapInputs(Run& run, Stash& stash) const {
  q_.Forward(run, stash[s_], stash[q_out_]);
  k_.Forward(run, stash[s_], stash[k_out_]);
  v_.Forward(run, conv_.inputs(stash), stash[v_out_]);
}

Tensor MlstmMixer::Skipped(Run& run, const Stash& stash) const {
  const Tensor skipped = run.Scratch(width_);
  ScaleRows(run.params.value(skip_), stash[s_], skipped);
  return skipped;
}

void MlstmMixer::Combine(Run& run, const Tensor& skipped, Stash& stash) const {
  const Tensor value = stash[value_];
  cell_.Norm(run, stash, value);
  Add(value, skipped, value);
  GluForward({.activation = Activation::kSilu,
              .gate = stash[z_out_],
              .value = value,
              .out = stash[product_]});
}

void MlstmMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry& carry) const {
  ArenaScope scope(run.arena);
  conv_.Refill(run, stash[s_], stash, carry);
  MapInputs(run, stash);
  Combine(run, Skipped(run, stash), stash);
}

void MlstmMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                         const Carry& carry) {
  ArenaScope scope(run.arena);
  const bool recomputes = run.pass == Pass::kRecompute;
  const auto project = [&](const Tensor& rows, const Tensor& inputs) {
    up_.Forward(run, rows, inputs);
  };
  Event handed_on = conv_.Forward(run, x, project, stash[s_], stash, carry);
  MapInputs(run, stash);

  // The sum over tensor ranks travels under the other branch's projection.
  const MlstmCell::Inputs inputs = CellInputs(run, stash);
  const Tensor gates = run.FullScratch(2 * global_heads_);
  Event reduced;
  if (!recomputes) {
    Gates(run, kQ, inputs.q, gates);
    Gates(run, kK, inputs.k, gates);
    Gates(run, kV, inputs.v, gates);
    reduced = run.mesh.tensor().AllReduce(gates, ReduceOp::kSum);
  }
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
  const Tensor skipped = Skipped(run, stash);
  cell.Finish();
  Combine(run, skipped, stash);
  handed_on.Wait();
  if (recomputes) return;
  down_.Forward(run, stash[product_], out);
}

void MlstmMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                          Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  const Tensor dvalue = run.Scratch(width_), dz = run.Scratch(width_), ds = run.Scratch(width_);
  const Tensor s = stash[s_];
  down_.BackwardInput(run, dy, dvalue, /*accumulate=*/false);
  GluBackward({.activation = Activation::kSilu,
               .gate = stash[z_out_],
               .value = stash[value_],
               .dout = dvalue,
               .dgate = dz,
               .dvalue = dvalue});
  {
    ArenaScope skip(run.arena);
    GluForward({.activation = Activation::kNone, .gate = dvalue, .value = s, .out = ds});
    SumRows(ds, run.params.grad(skip_), run.Workspace(SumRowsWorkspace(ds)));
  }
  ScaleRows(run.params.value(skip_), dvalue, ds);

  // What the chunk does to the state's gradient travels under the products that need no state.
  const MlstmCell::Inputs inputs = CellInputs(run, stash);
  const MlstmCell::Inputs gradients{run.Scratch(width_), run.Scratch(width_), run.Scratch(width_),
                                    run.arena.Allocate(x.dtype, inputs.gates.shape)};
  MlstmCell::Backward cell(cell_, run, inputs, dvalue, stash, carry, carry_grad);
  down_.BackwardWeight(run, stash[product_], dy);
  z_.BackwardInput(run, dz, dx, /*accumulate=*/false);
  z_.BackwardWeight(run, x, dz);
  cell.Finish(gradients);

  // The gates' gradients of all heads reach every rank's channels.
  const Tensor dgates = run.Scratch(2 * global_heads_);
  const Tensor heads = run.Scratch(global_heads_);
  for (const int64_t gate : {0, 1}) {
    GatherColumns(run, gradients.gates.Rows(gate, gate + 1), heads);
    CopyColumns(heads, 0, dgates, gate * global_heads_, global_heads_);
  }
  GatesBackward(run, kQ, inputs.q, dgates, gradients.q);
  GatesBackward(run, kK, inputs.k, dgates, gradients.k);
  GatesBackward(run, kV, inputs.v, dgates, gradients.v);
  q_.BackwardInput(run, gradients.q, ds, /*accumulate=*/true);
  k_.BackwardInput(run, gradients.k, ds, /*accumulate=*/true);

  const Tensor da = dvalue;  // which has served
  CausalConvolution::Returning returning = conv_.Backward(run, ds, da, stash, carry, carry_grad);
  v_.BackwardInput(run, gradients.v, da, /*accumulate=*/true);
  q_.BackwardWeight(run, s, gradients.q);
  k_.BackwardWeight(run, s, gradients.k);
  v_.BackwardWeight(run, conv_.inputs(stash), gradients.v);
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
            if (own.heads() > 0 && own.width() % (own.heads() * kBlock) != 0) {
              errors.Add("model.mlstm.width = ", own.width(), " does not give each of ",
                         own.heads(), " heads a multiple of ", kBlock, " channels");
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
