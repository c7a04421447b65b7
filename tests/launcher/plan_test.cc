// Plans against formulas written out from the shapes.
#include "launcher/plan.h"

#include <gtest/gtest.h>

#include "core/blas.h"
#include "kernels/selective_scan/selective_scan.h"
#include "launcher/config.h"
#include "launcher/hardware.h"
#include "tests/launcher/temp_folder.h"
#include "tests/layers/layer_test_util.h"

namespace eyrie {
namespace {

config::Hardware HardwareFile(const std::string& name) {
  return LoadHardware(EYRIE_SOURCE_DIR "/configs/hardware/" + name + ".textproto");
}

config::Config Load(const std::string& name, int ranks, const std::vector<std::string>& settings,
                    Device device = Device::kCpu) {
  config::Config config = LoadConfig(EYRIE_SOURCE_DIR "/configs/" + name + ".textproto");
  ApplySettings(settings, config);
  Resolve(config, ranks, device);
  return config;
}

Plan PlanOf(const std::string& name, int ranks, const std::vector<std::string>& settings,
            const std::string& hardware) {
  const config::Hardware file = HardwareFile(hardware);
  return MakePlan(Load(name, ranks, settings, DeviceOf(file)), file);
}

// At least as many bytes, and at most 1 % more, for what is aligned.
void ExpectAbout(int64_t bytes, int64_t expected) {
  EXPECT_GE(bytes, expected);
  EXPECT_LE(static_cast<double>(bytes), 1.01 * static_cast<double>(expected));
}

TEST(Plan, MemoryFollowsFromParametersAndPrecision) {
  constexpr int64_t kParameters = 283840;
  const Plan cpu = PlanOf("griffin/tiny", 1, {}, "laptop");
  EXPECT_EQ(cpu.parameters, kParameters);
  EXPECT_EQ(cpu.local_parameters, kParameters);
  ExpectAbout(cpu.memory.parameters, 4 * kParameters);
  EXPECT_EQ(cpu.memory.gradients, cpu.memory.parameters);
  EXPECT_EQ(cpu.memory.masters, 0);
  EXPECT_EQ(cpu.memory.moments, 2 * cpu.memory.parameters);

  const Plan gpu = PlanOf("griffin/tiny", 1, {}, "h100");
  // Two of three blocks are recurrent, and their lambdas stay in float32.
  const int64_t full = 2 * Load("griffin/tiny", 1, {}).model().recurrent().width();
  EXPECT_EQ(2 * gpu.memory.parameters, cpu.memory.parameters + 4 * full);
  EXPECT_EQ(gpu.memory.gradients, cpu.memory.gradients);
  EXPECT_EQ(gpu.memory.masters, cpu.memory.parameters);
  EXPECT_EQ(gpu.memory.moments, cpu.memory.moments);
  EXPECT_LT(gpu.memory.activations, cpu.memory.activations);
}

// What kernels ask for as their workspace on a GPU is known without one, and counted.
TEST(Plan, GpusTakeWorkspaces) {
  const config::Config config =
      Load("mamba/tiny", 1, {"train.validation_interval=0", "model.vocab_size=8"});
  const auto& train = config.train();
  const auto measure = [&](Device device) {
    return MeasureStep(config, Precision::Mixed(), device, 0).memory;
  };
  const MemoryUse cpu = measure(Device::kCpu), gpu = measure(Device::kCuda);
  EXPECT_EQ(gpu.parameters, cpu.parameters);
  EXPECT_EQ(gpu.gradients, cpu.gradients);
  EXPECT_EQ(gpu.moments, cpu.moments);
  // Where memory is highest, in the backward pass of a block, its scan's workspace is taken.
  const Tensor x = OwnedTensor(DType::kBF16,
                               {train.micro_batch_size(), train.sequence_length(),
                                config.model().mamba().width()},
                               Device::kMetaCuda)
                       .tensor;
  const int64_t scan = SelectiveScanBackwardWorkspace(x, config.model().mamba().states());
  EXPECT_GT(scan, 0);
  EXPECT_GE(gpu.activations, cpu.activations + 4 * scan);
  EXPECT_GE(gpu.buffers, cpu.buffers + static_cast<int64_t>(kGemmWorkspaceCuda));
  // Every mixer's kernels check that they are given what they ask for.
  for (const MixerEntry& entry : MixerRegistry()) {
    SCOPED_TRACE(entry.name);
    config::Config small = config;
    *small.mutable_model() = SmallModel({entry.name}, 2);
    EXPECT_GT(MeasureStep(small, Precision::Mixed(), Device::kCuda, 0).memory.activations,
              MeasureStep(small, Precision::Mixed(), Device::kCpu, 0).memory.activations);
  }
}

TEST(Plan, PrecisionFollowsTheConfiguration) {
  const Plan usual = PlanOf("griffin/tiny", 1, {}, "h100");
  const Plan rounded = PlanOf("griffin/tiny", 1, {"optimizer.moments=BFLOAT16"}, "h100");
  EXPECT_EQ(2 * rounded.memory.moments, usual.memory.moments);
  const Plan full = PlanOf("griffin/tiny", 1, {"train.precision=FLOAT32"}, "h100");
  EXPECT_EQ(full.memory.masters, 0);
  EXPECT_GT(full.memory.activations, usual.memory.activations);
}

TEST(Plan, ZeroSharesOutMastersAndMoments) {
  const std::string zero = "parallel.zero=OPTIMIZER_STATE";
  const Plan whole = PlanOf("griffin/tiny", 1, {zero}, "h100");
  for (const int replicas : {2, 4, 8}) {
    for (const int sequence : {1, 2}) {
      const Plan plan = PlanOf(
          "griffin/tiny", replicas,
          {zero, "parallel.sequence=" + std::to_string(sequence), "train.global_batch_size=16"},
          "h100");
      ExpectAbout(plan.memory.masters * replicas, whole.memory.masters);
      ExpectAbout(plan.memory.moments * replicas, whole.memory.moments);
      ExpectAbout(plan.memory.gradients,
                  whole.memory.gradients + whole.memory.gradients / replicas);
      EXPECT_EQ(PlanOf("griffin/tiny", replicas, {}, "h100").memory.moments, whole.memory.moments);
    }
  }
}

TEST(Plan, RecomputationAndChunksSaveActivations) {
  const Plan kept = PlanOf("griffin/tiny", 1, {}, "laptop");
  EXPECT_EQ(kept.memory.activations, kept.activations_nothing);
  const Plan again = PlanOf("griffin/tiny", 1, {"train.recompute=BLOCKS"}, "laptop");
  EXPECT_EQ(again.memory.activations, again.activations_blocks);
  EXPECT_EQ(again.activations_nothing, kept.activations_nothing);
  EXPECT_LT(again.activations_blocks, kept.activations_nothing);
  EXPECT_GT(again.flops, kept.flops);
  EXPECT_EQ(again.model_flops, kept.model_flops);
  const Plan selective = PlanOf("griffin/tiny", 1, {"train.recompute=SELECTIVE"}, "laptop");
  EXPECT_EQ(selective.memory.activations, kept.activations_selective);
  EXPECT_LT(again.activations_blocks, kept.activations_selective);
  EXPECT_LT(kept.activations_selective, kept.activations_nothing);
  EXPECT_EQ(selective.flops, kept.flops);
  EXPECT_GT(selective.memory_traffic, kept.memory_traffic);
  EXPECT_LT(selective.memory_traffic, again.memory_traffic);
  const Plan chunked = PlanOf("griffin/tiny", 1, {"train.chunk_length=16"}, "laptop");
  EXPECT_LT(chunked.memory.activations, kept.memory.activations);
  EXPECT_GT(chunked.flops, kept.flops);
}

// A table more, in which is only looked up.
TEST(Plan, AnUntiedHeadTakesMemoryButNoProducts) {
  for (const std::string recompute : {"train.recompute=NOTHING", "train.recompute=BLOCKS"}) {
    const Plan tied = PlanOf("griffin/tiny", 1, {recompute}, "laptop");
    const Plan untied =
        PlanOf("griffin/tiny", 1, {recompute, "model.tied_embedding=false"}, "laptop");
    EXPECT_EQ(untied.parameters, tied.parameters + 2048 * 64);
    EXPECT_EQ(untied.flops, tied.flops);
    EXPECT_EQ(untied.model_flops, tied.model_flops);
  }
}

// xLSTM 7B's block, on one rank: products with matrices, and each token's with the memory.
TEST(Plan, MlstmsComputeWithTheirMemories) {
  constexpr double kTokens = 8 * 64, kD = 64, kF = 192, kV = 2048, kH = 4, kDepth = 3;
  constexpr double kDk = 32 / kH, kDv = kD / kH;
  const Plan plan = PlanOf("xlstm/large-tiny", 1, {}, "laptop");
  const double matrices = kDepth * (4 * kD * kD + 2 * kH * kD + 3 * kD * kF) + kV * kD;
  const double cell = kDepth * kH * 4 * kDk * kDv;
  EXPECT_DOUBLE_EQ(plan.model_flops, 3 * kTokens * (2 * matrices + cell));
}

// Multi-query attention, whose keys and values every tensor rank computes, and a gated MLP.
TEST(Plan, TensorRanksSendSumsOfTheResidualStream) {
  constexpr double kTokens = 2 * 64, kWidth = 64, kHead = 16, kDepth = 3;
  const Plan plan = PlanOf("transformer/tiny", 2, {"parallel.tensor=2"}, "laptop");
  const config::Config config = Load("transformer/tiny", 2, {"parallel.tensor=2"});
  ASSERT_EQ(config.model().width(), kWidth);
  ASSERT_EQ(config.model().attention().head_width(), kHead);
  ASSERT_EQ(config.model().depth(), kDepth);
  ASSERT_EQ(plan.microbatches, 4);
  // A microbatch: looked-up rows, two sums forward and two backward for each of two branches a
  // block, the head's gradient; for each token the largest logit and two sums. Once in a step: the
  // gradients of keys' and values' matrices, and the norm, a double. Of n bytes half is sent,
  // twice.
  const double streams = (2 + 4 * kDepth) * kTokens * kWidth, loss = 3 * kTokens;
  const double keys = 2 * kDepth * kWidth * kHead;
  EXPECT_EQ(plan.traffic.tensor.bytes, 4 * (4 * (streams + loss) + keys) + 8);
  EXPECT_EQ(plan.traffic.sequence.bytes, 0);
  EXPECT_EQ(plan.traffic.replicas.bytes, 0);
}

TEST(Plan, ReplicasSendGradients) {
  const Plan plan = PlanOf("hawk/tiny", 2, {}, "h100");
  // The sum of gradients, and of the loss.
  EXPECT_EQ(plan.traffic.replicas.bytes, static_cast<double>(plan.memory.gradients) + 8);
  const Plan zero = PlanOf("hawk/tiny", 2, {"parallel.zero=OPTIMIZER_STATE"}, "h100");
  // Half of the gradients out, as large as the half of the masters; half of the values back.
  EXPECT_EQ(zero.traffic.replicas.bytes,
            static_cast<double>(zero.memory.masters + zero.memory.parameters / 2) + 8);
}

TEST(Plan, CountsFlops) {
  // Six for each matrix element and token, and twelve for each visible pair of a token and a key
  // and element of a head.
  const config::Config config = Load("transformer/tiny", 1, {});
  const auto& model = config.model();
  const double width = static_cast<double>(model.width()),
               heads =
                   static_cast<double>(model.attention().heads() * model.attention().head_width()),
               head = static_cast<double>(model.attention().head_width()),
               mlp = static_cast<double>(model.mlp().width()),
               depth = static_cast<double>(model.depth()),
               length = static_cast<double>(config.train().sequence_length());
  const double matrices = static_cast<double>(model.vocab_size()) * width +
                          depth * width * (2 * heads + 2 * head + 3 * mlp);
  const double pairs = length * (length + 1) / 2;
  const double sequences = static_cast<double>(config.train().global_batch_size());
  const Plan plan = MakePlan(config, HardwareFile("laptop"));
  EXPECT_DOUBLE_EQ(plan.model_flops,
                   sequences * (6 * matrices * length + 12 * depth * heads * pairs));
  // Backward computes the scores once more.
  EXPECT_DOUBLE_EQ(plan.flops, plan.model_flops + sequences * 2 * depth * heads * pairs);

  // Local attention of a window that a sequence exceeds: 33 keys, fewer for the first 32 tokens.
  const Plan local =
      PlanOf("griffin/tiny", 1, {"model.pattern=local_attention", "model.depth=1"}, "laptop");
  const Plan global =
      PlanOf("griffin/tiny", 1, {"model.pattern=attention", "model.depth=1"}, "laptop");
  EXPECT_DOUBLE_EQ(global.model_flops - local.model_flops,
                   8 * 12 * 64.0 * (64 * 65 / 2 - (32 * 33 / 2 + 32 * 33)));

  // Tensor ranks share the products out; keys and values are computed by each.
  const Plan two = PlanOf("hawk/tiny", 2, {"parallel.tensor=2"}, "laptop");
  const Plan one = PlanOf("hawk/tiny", 1, {}, "laptop");
  EXPECT_DOUBLE_EQ(2 * two.model_flops, one.model_flops);
}

// AdamW's 30 bytes a parameter on a GPU and four more for the norm, whatever the batch; the
// residual stream's norms in proportion to it. The first microbatch does not read the gradients it
// writes.
TEST(Plan, CountsWhatKernelsMove) {
  const auto plan = [](int microbatches) {
    return PlanOf(
        "griffin/tiny", 1,
        {"train.micro_batch_size=2", "train.global_batch_size=" + std::to_string(2 * microbatches)},
        "h100");
  };
  const Plan one = plan(1), three = plan(3), five = plan(5);
  const auto elements = static_cast<double>(one.memory.masters) / 4;
  EXPECT_NEAR(one.kernels.at("adamw").bytes, 34 * elements, 0.01 * 34 * elements);
  EXPECT_EQ(five.kernels.at("adamw").bytes, one.kernels.at("adamw").bytes);
  // Each block has two norms and the head one: x and y forward, dy, x, the residual and dx
  // backward.
  const double stream = 2.0 * 2 * 64 * 64;  // bytes, of 2 sequences of 64 tokens, 64 wide
  EXPECT_DOUBLE_EQ(one.kernels.at("norm").bytes, stream * (6 * 6 + 5));
  EXPECT_DOUBLE_EQ(five.kernels.at("norm").bytes, 5 * one.kernels.at("norm").bytes);
  EXPECT_EQ(five.kernels.at("norm").calls, 5 * one.kernels.at("norm").calls);
  EXPECT_DOUBLE_EQ(five.kernels.at("gemm").products, 5 * one.kernels.at("gemm").products);
  EXPECT_GT(three.kernels.at("gemm").bytes, 3 * one.kernels.at("gemm").bytes);
  EXPECT_DOUBLE_EQ(five.kernels.at("gemm").bytes - three.kernels.at("gemm").bytes,
                   three.kernels.at("gemm").bytes - one.kernels.at("gemm").bytes);
}

TEST(Plan, TimeAddsUp) {
  const Plan plan = PlanOf("griffin/14b", 4096, {"parallel.tensor=8"}, "h100");
  EXPECT_EQ(plan.parameters, 13927781376);
  const config::Hardware hardware = HardwareFile("h100");
  double kernels = 0.0;
  for (const auto& [kind, work] : plan.kernels) {
    const double flops = kind == "gemm" ? hardware.achieved_flops() : hardware.fused_flops();
    const double seconds = static_cast<double>(work.calls) * hardware.kernel_latency() +
                           work.bytes / hardware.memory_bandwidth() + work.products / flops;
    EXPECT_DOUBLE_EQ(plan.time.by_kernel.at(kind), seconds) << kind;
    kernels += seconds;
  }
  EXPECT_DOUBLE_EQ(plan.time.kernels, kernels);
  EXPECT_DOUBLE_EQ(plan.time.total(), kernels + plan.time.exposed);
  EXPECT_DOUBLE_EQ(plan.tokens_per_second, 2048 * 2048 / plan.time.total());
  EXPECT_LT(plan.utilisation, hardware.achieved_flops() / hardware.peak_flops());
  EXPECT_GT(plan.utilisation, 0.01);
  // A tensor group inside a node uses NVLink, one of two nodes the network.
  const auto bandwidth = [](const Plan& of) { return of.traffic.tensor.bytes / of.time.tensor; };
  EXPECT_LT(bandwidth(plan), 300e9);
  EXPECT_GT(bandwidth(plan), 50e9);
  config::Hardware small_nodes = HardwareFile("h100");
  small_nodes.set_ranks_per_node(4);
  const Plan across = MakePlan(Load("griffin/14b", 4096, {"parallel.tensor=8"}), small_nodes);
  EXPECT_EQ(across.traffic.tensor, plan.traffic.tensor);
  EXPECT_LT(bandwidth(across), 4 * 50e9);
  EXPECT_GT(across.time.exposed, plan.time.exposed);
}

// Gradients of eight replicas a node leave it through eight connections, those of one through one.
TEST(Plan, RanksOfANodeShareItsConnections) {
  const auto bandwidth = [](const Plan& of) {
    return of.traffic.replicas.bytes / of.time.replicas;
  };
  const std::string whole = "train.global_batch_size=256";
  const Plan dense = PlanOf("hawk/1.3b", 256, {whole}, "h100");
  const Plan sparse = PlanOf("hawk/1.3b", 256, {whole, "parallel.tensor=8"}, "h100");
  EXPECT_GT(bandwidth(dense), 250e9);
  EXPECT_LT(bandwidth(sparse), 50e9);
  EXPECT_GT(bandwidth(sparse), 45e9);
}

TEST(Plan, TurnsAreNotSharedAndFloat32IsSlow) {
  const std::string tiny = "xlstm/0.1-tiny";
  const auto turns = [&](int ranks) {
    const Plan plan = PlanOf(tiny, ranks, {"parallel.sequence=" + std::to_string(ranks)}, "h100");
    return std::pair(plan.kernels.at("slstm").turns, plan.time.by_kernel.at("slstm"));
  };
  const auto [one, alone] = turns(1);
  const auto [each, together] = turns(4);
  EXPECT_DOUBLE_EQ(4 * each, one);
  EXPECT_GT(together, one * HardwareFile("h100").turn_latency());
  EXPECT_GT(alone, one * HardwareFile("h100").turn_latency());
  const Plan mixed = PlanOf("griffin/1.3b", 1, {}, "h100");
  const Plan full = PlanOf("griffin/1.3b", 1, {"train.precision=FLOAT32"}, "h100");
  EXPECT_GT(full.time.by_kernel.at("gemm"), full.kernels.at("gemm").products / 50e12);
  EXPECT_GT(full.time.total(), 8 * mixed.time.total());
}

TEST(HardwareFiles, H100IsTheDefault) {
  config::Hardware written = HardwareFile("h100");
  const config::Hardware defaults = LoadHardware("");
  EXPECT_EQ(written.name(), defaults.name());
  EXPECT_EQ(written.device(), defaults.device());
  EXPECT_EQ(written.peak_flops(), defaults.peak_flops());
  EXPECT_EQ(written.achieved_flops(), defaults.achieved_flops());
  EXPECT_EQ(written.memory_bandwidth(), defaults.memory_bandwidth());
  EXPECT_EQ(written.memory_bytes(), defaults.memory_bytes());
  EXPECT_EQ(written.reserved_bytes(), defaults.reserved_bytes());
  EXPECT_EQ(written.kernel_latency(), defaults.kernel_latency());
  EXPECT_EQ(written.fused_flops(), defaults.fused_flops());
  EXPECT_EQ(written.float32_flops(), defaults.float32_flops());
  EXPECT_EQ(written.scan_rate(), defaults.scan_rate());
  EXPECT_EQ(written.turn_latency(), defaults.turn_latency());
  EXPECT_EQ(written.message_share(), defaults.message_share());
  EXPECT_EQ(written.ranks_per_node(), defaults.ranks_per_node());
  EXPECT_EQ(written.node_bandwidth(), defaults.node_bandwidth());
  EXPECT_EQ(written.node_latency(), defaults.node_latency());
  EXPECT_EQ(written.network_bandwidth(), defaults.network_bandwidth());
  EXPECT_EQ(written.network_latency(), defaults.network_latency());
}

class HardwareTest : public TempFolderTest {};

TEST_F(HardwareTest, NamesTheFieldThatIsWrong) {
  const auto message = [&](const std::string& text) -> std::string {
    try {
      LoadHardware(Write("hardware.textproto", text));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("name: \"mine\" memory_bytes: 1e9"), "");
  EXPECT_NE(message("memory_bytes: 0").find("memory_bytes must be positive"), std::string::npos);
  EXPECT_NE(message("achieved_flops: 1e15").find("achieved_flops"), std::string::npos);
  EXPECT_NE(message("fused_flops: 0").find("fused_flops must be positive"), std::string::npos);
  EXPECT_NE(message("message_share: 2").find("message_share must lie in [0, 1]"),
            std::string::npos);
  EXPECT_NE(message("ranks_per_node: 0").find("ranks_per_node"), std::string::npos);
  EXPECT_NE(message("reserved_bytes: inf").find("reserved_bytes must be a finite number"),
            std::string::npos);
  EXPECT_NE(message("kernel_latency: 1e400").find("kernel_latency must be a finite number"),
            std::string::npos);
  EXPECT_NE(message("wheels: 4").find("wheels"), std::string::npos);
}

}  // namespace
}  // namespace eyrie
