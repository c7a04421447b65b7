// `eyrie bench kernels`: every kernel on its own, forward and backward, through its public
// arguments.
#include "launcher/commands/bench_kernels.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "core/device.h"
#include "core/threads.h"
#include "kernels/adamw/adamw.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/glu/glu.h"
#include "kernels/norm/rms_norm.h"
#include "launcher/commands/options.h"
#include "launcher/config.h"
#include "launcher/config_limits.h"
#include "launcher/device.h"
#include "launcher/job.h"

namespace eyrie {
namespace {

using Problem = KernelProblem;
using Case = KernelCase;

std::vector<Case> AdamWCases(const Problem& p) {
  const auto random = [&] { return p.device.Uniform(p.device.full(), p.full(), 1.0f); };
  const bool mixed = p.device.full() != p.device.dtype();
  const AdamWArgs args{.param = random(),
                       .grad = random(),
                       .m = p.Full(p.full()),
                       .v = p.Full(p.full()),
                       .copy = mixed ? p.Output() : Tensor{},
                       .rate = 1e-4,
                       .weight_decay = 0.1};
  const Tensor sum = p.device.Zeros(DType::kF64, {1});
  const Tensor workspace = p.Workspace(SumOfSquaresWorkspace(args.grad));
  return {{"step", p.full(), [args] { AdamW(args); },
           2 * BytesOf({args.param, args.m, args.v}) + BytesOf({args.grad, args.copy})},
          {"sum_of_squares", p.full(), [=] { SumOfSquares(args.grad, sum, workspace); },
           BytesOf({args.grad})}};
}

// A vocabulary of C on one rank.
std::vector<Case> CrossEntropyCases(const Problem& p) {
  constexpr double kCap = 30.0;
  const int64_t tokens = p.batch * p.time;
  const Tensor logits = p.device.Uniform(p.device.full(), {tokens, p.channels}, 10.0f);
  const Tensor labels =
      p.device.Integers({tokens}, [&](int64_t i) { return i * 7919 % p.channels; });
  const SoftmaxPartialsArgs partials{.logits = logits,
                                     .soft_cap = kCap,
                                     .labels = labels,
                                     .row_max = p.Full({tokens}),
                                     .partials = p.Full({2, tokens})};
  const bool mixed = p.device.full() != p.device.dtype();
  const CrossEntropyGradArgs grad{.logits = logits,
                                  .labels = labels,
                                  .row_max = partials.row_max,
                                  .partials = partials.partials,
                                  .dlogits = mixed ? p.Output(logits.shape) : logits,
                                  .soft_cap = kCap,
                                  .scale = 1.0 / static_cast<double>(tokens)};
  const double bytes = BytesOf({logits});
  return {{"forward", logits.shape, [partials] { SoftmaxPartials(partials); }, 2 * bytes},
          {"backward", logits.shape, [grad] { CrossEntropyGrad(grad); },
           bytes + BytesOf({grad.dlogits})}};
}

std::vector<Case> ElementwiseCases(const Problem& p) {
  const Tensor a = p.Activations(), b = p.Activations(), out = p.Output(), row = p.Row();
  const Tensor sums = p.Full({p.channels}), workspace = p.Workspace(SumRowsWorkspace(a));
  return {{"add", p.full(), [=] { Add(a, b, out); }, BytesOf({a, b, out})},
          {"broadcast_rows", p.full(), [=] { BroadcastRows(row, out); }, BytesOf({out})},
          {"sum_rows", p.full(), [=] { SumRows(a, sums, workspace); }, BytesOf({a})}};
}

// As many rows as tokens, each looked up once, in random order.
std::vector<Case> EmbeddingCases(const Problem& p) {
  const int64_t rows = p.batch * p.time;
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(std::random_device()()));
  const Tensor tokens = p.device.Integers({p.batch, p.time},
                                          [&](int64_t i) { return order[static_cast<size_t>(i)]; });
  const Tensor table = p.device.Uniform({rows, p.channels});
  const EmbeddingForwardArgs forward{.tokens = tokens, .table = table, .y = p.Output()};
  const Tensor dtable = p.Full(table.shape);
  const EmbeddingBackwardArgs backward{
      .tokens = tokens,
      .dy = p.Activations(),
      .dtable = dtable,
      .workspace = p.Workspace(EmbeddingBackwardWorkspace(tokens, dtable))};
  return {
      {"forward", p.full(), [forward] { EmbeddingForward(forward); }, BytesOf({table, forward.y})},
      {"backward", p.full(), [backward] { EmbeddingBackward(backward); },
       2 * BytesOf({dtable}) + BytesOf({backward.dy})}};
}

std::vector<Case> GluCases(const Problem& p) {
  const GluForwardArgs forward{
      .gate = p.Activations(3.0f), .value = p.Activations(), .out = p.Output()};
  const GluBackwardArgs backward{.gate = forward.gate,
                                 .value = forward.value,
                                 .dout = p.Activations(),
                                 .dgate = p.Output(),
                                 .dvalue = p.Output()};
  GluBackwardArgs sums = backward;
  sums.dgate_sum = p.Full({p.channels});
  sums.dvalue_sum = p.Full({p.channels});
  sums.workspace = p.Workspace(GluBackwardWorkspace(sums));
  const double bytes =
      BytesOf({backward.gate, backward.value, backward.dout, backward.dgate, backward.dvalue});
  return {{"forward", p.full(), [forward] { GluForward(forward); },
           BytesOf({forward.gate, forward.value, forward.out})},
          {"backward", p.full(), [backward] { GluBackward(backward); }, bytes},
          {"backward_sums", p.full(), [sums] { GluBackward(sums); }, bytes}};
}

std::vector<Case> GatedNormCases(const Problem& p) {
  const Tensor x = p.Activations(), gate = p.Activations(), dout = p.Activations();
  const RowProductsArgs squares{.a = x, .b = x, .sums = p.Full({p.batch, p.time})};
  const RowProductsArgs along{.a = dout, .b = gate, .c = x, .sums = p.Full({p.batch, p.time})};
  const GatedNormForwardArgs forward{
      .x = x, .gate = gate, .squares = squares.sums, .width = p.channels, .out = p.Output()};
  const GatedNormBackwardArgs backward{.x = x,
                                       .gate = gate,
                                       .squares = squares.sums,
                                       .width = p.channels,
                                       .along = along.sums,
                                       .dout = dout,
                                       .dx = p.Output(),
                                       .dgate = p.Output()};
  return {{"squares", p.full(), [squares] { RowProducts(squares); }, BytesOf({x})},
          {"forward", p.full(), [forward] { GatedNormForward(forward); },
           BytesOf({x, gate, forward.out})},
          {"along", p.full(), [along] { RowProducts(along); }, BytesOf({dout, gate, x})},
          {"backward", p.full(), [backward] { GatedNormBackward(backward); },
           BytesOf({x, gate, dout, backward.dx, backward.dgate})}};
}

std::vector<Case> RmsNormCases(const Problem& p) {
  const RmsNormForwardArgs forward{
      .x = p.Activations(), .weight = p.Row(), .y = p.Output(), .rstd = p.Full({p.batch, p.time})};
  const RmsNormBackwardArgs backward{.x = forward.x,
                                     .weight = forward.weight,
                                     .rstd = forward.rstd,
                                     .dy = p.Activations(),
                                     .dresidual = p.Activations(),
                                     .dx = p.Output(),
                                     .dweight = p.Full({p.channels}),
                                     .workspace = p.Workspace(RmsNormBackwardWorkspace(forward.x))};
  return {{"forward", p.full(), [forward] { RmsNormForward(forward); },
           BytesOf({forward.x, forward.y})},
          {"backward", p.full(), [backward] { RmsNormBackward(backward); },
           BytesOf({backward.x, backward.dy, backward.dresidual, backward.dx})}};
}

struct Kernel {
  const char* name;
  std::vector<Case> (*cases)(const Problem& problem);
};
constexpr Kernel kKernels[] = {
    {"adamw", AdamWCases},
    {"attention", AttentionCases},
    {"block_map", BlockMapCases},
    {"causal_conv1d", CausalConv1dCases},
    {"cross_entropy", CrossEntropyCases},
    {"elementwise", ElementwiseCases},
    {"embedding", EmbeddingCases},
    {"gated_layer_norm", GatedLayerNormCases},
    {"gated_norm", GatedNormCases},
    {"glu", GluCases},
    {"layer_norm", LayerNormCases},
    {"lightning_attention", LightningAttentionCases},
    {"lrpe", LrpeCases},
    {"mlstm", MlstmCases},
    {"mlstm_gates", MlstmGatesCases},
    {"mlstm_wide", MlstmWideCases},
    {"rg_lru", RgLruCases},
    {"rms_norm", RmsNormCases},
    {"rotary", RotaryCases},
    {"selective_scan", SelectiveScanCases},
    {"slstm", SlstmCases},
};

struct KernelsOptions {
  std::vector<std::string> filter;
  std::vector<int64_t> shape = {1, 2048, 4096};
  std::string device = "auto";
  std::string dtype;
  int threads = 0;
  int repeats = 11;
  bool json = false;
};

void CheckFilter(const std::vector<std::string>& filter) {
  for (const std::string& name : filter) {
    std::string known;
    for (const Kernel& kernel : kKernels) {
      if (name == kernel.name) known = name;
    }
    if (!known.empty()) continue;
    for (const Kernel& kernel : kKernels) known += StrCat(known.empty() ? "" : ", ", kernel.name);
    ThrowBadInput("--filter ", name, ": no such kernel; there are ", known);
  }
}

ExitCode BenchKernels(const KernelsOptions& options) {
  CheckFilter(options.filter);
  if (options.shape[2] % 4 != 0) {
    ThrowBadInput("--shape: C must be a multiple of 4, is ", options.shape[2]);
  }
  if (options.threads > 0) SetThreads(options.threads);
  config::Config config;
  config::RunConfig::Device wanted = config::RunConfig::auto_;
  EYRIE_CHECK(config::RunConfig::Device_Parse(options.device, &wanted));
  config.mutable_run()->set_device(wanted);
  ConfigErrors errors;
  ValidateDevice(config, errors);
  ThrowIfAny(errors);
  const bool gpu = DeviceOf(config) == Device::kCuda;
  if (!gpu && options.dtype == "bf16") {
    ThrowBadInput("--dtype bf16: the CPU backend computes in f32 alone");
  }
  if (gpu) cuda::SelectDevice(0);
  BenchDevice device(options.repeats, DeviceOf(config),
                     gpu && options.dtype != "f32" ? DType::kBF16 : DType::kF32);
  BenchReport report("kernels", {"kernel", "direction", "shape", "dtype", "ms", "MB", "GB/s",
                                 "GFLOP/s", "ceiling", "share"});
  if (gpu) {
    report.Set("device", cuda::DeviceName());
  } else {
    report.Set("threads", Threads());
  }
  report.Set("copy GB/s", device.CopyBandwidth() / 1e9);
  const Problem problem{device, options.shape[0], options.shape[1], options.shape[2]};
  for (const Kernel& kernel : kKernels) {
    const auto& filter = options.filter;
    if (!filter.empty() && std::find(filter.begin(), filter.end(), kernel.name) == filter.end()) {
      continue;
    }
    for (const Case& one : kernel.cases(problem)) {
      const double seconds = device.MedianSeconds(one.body);
      const double bytes_rate = one.bytes / seconds, flop_rate = one.flops / seconds;
      const bool products = one.flops > 0;
      if (products) report.Set("gemm GFLOP/s", device.GemmRate() / 1e9);
      report.AddRow(
          {kernel.name, one.direction, one.shape.ToString(), Name(device.dtype()), seconds * 1e3,
           one.bytes / 1e6, bytes_rate / 1e9,
           products ? nlohmann::ordered_json(flop_rate / 1e9) : nullptr, products ? "gemm" : "copy",
           products ? flop_rate / device.GemmRate() : bytes_rate / device.CopyBandwidth()});
    }
    device.Release(0);
  }
  report.Print(options.json);
  return ExitCode::kOk;
}

}  // namespace

void AddBenchKernels(CLI::App& bench, ExitCode& code) {
  auto options = std::make_shared<KernelsOptions>();
  CLI::App* command = bench.add_subcommand(
      "kernels",
      "Time every kernel, forward and backward, in one process.\n\n"
      "GB/s counts the bytes that any implementation must read and write, each tensor once, with\n"
      "the caches holding other data before each call. The share is of the ceiling named beside\n"
      "it: a copy between two buffers larger than the caches, read and written bytes counted\n"
      "alike; or for kernels made of matrix products the rate of a product of two square\n"
      "matrices, 2048 x 2048 on the CPU and 8192 x 8192 on a GPU.");
  command->add_option("--filter", options->filter, "only this kernel; may be repeated")
      ->type_name("NAME")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "auto, cpu or cuda (default: auto)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--dtype", options->dtype, "of activations: bf16 (default on a GPU) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  command->add_option("--threads", options->threads, "OpenMP threads (default: all cores)")
      ->check(Within(1, kMostThreads, "POSITIVE"));
  command
      ->add_option("--shape", options->shape, "sequences, tokens, channels (default: 1,2048,4096)")
      ->delimiter(',')
      ->expected(3)
      ->type_name("B,T,C")
      ->check(PositiveCount());
  command->add_option("--repeats", options->repeats, "timed calls of each (default: 11)")
      ->check(PositiveCount());
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &code] {
    RequireAlone("eyrie bench kernels");
    code = BenchKernels(*options);
  });
}

}  // namespace eyrie
