// Models, layouts and ways to run them drawn at random, against one rank that computes everything
// at once, in float64. Nobody may touch what is under way between ranks (AuditedCommunicator);
// built with AddressSanitizer, nor scratch that was given back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "layers/slices.h"
#include "tests/layers/layer_test_util.h"
#include "tests/support/audited_communicator.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

struct Layout {
  MeshShape mesh;
  bool zero = false;
  int64_t bucket = 48;
  int slices = 1;
  int64_t slice_batch = 1;  // sequences of a slice
  int64_t rounds = 1;       // microbatches of a step
  int64_t tokens = 1;       // of a rank's sequences
  int64_t chunk = 0;
  Recompute recompute = Recompute::kNothing;

  int64_t batch() const { return slices * slice_batch; }
  int64_t length() const { return tokens * mesh.sequence; }
  int64_t sequences() const { return mesh.data * rounds * batch(); }
  std::string Name() const {
    return StrCat("data ", mesh.data, " sequence ", mesh.sequence, " tensor ", mesh.tensor,
                  zero ? " zero" : "", " bucket ", bucket, " slices ", slices, " of ", slice_batch,
                  " rounds ", rounds, " tokens ", tokens, " chunk ", chunk, " recompute ",
                  static_cast<int>(recompute));
  }
};

config::ModelConfig DrawModel(int64_t tensor, TestRandom& random) {
  const auto& mixers = MixerRegistry();
  const auto any = [&]() -> const MixerEntry& {
    return mixers[static_cast<size_t>(random.Int(0, static_cast<int64_t>(mixers.size()) - 1))];
  };
  std::vector<std::string> pattern;
  for (int64_t i = random.Int(1, 3); i > 0; --i) {
    const MixerEntry &first = any(), &second = any();
    const bool both = !first.channel_mixer && second.channel_mixer;
    pattern.push_back(both ? first.name + "+" + second.name : first.name);
  }
  config::ModelConfig model = SmallModel(pattern, random.Int(1, 3));
  const auto some = [&] { return tensor * random.Int(1, 2); };
  model.set_vocab_size(tensor * random.Int(5, 9));
  model.mutable_recurrent()->set_gate_blocks(some());
  model.mutable_recurrent()->set_width(model.recurrent().gate_blocks() * random.Int(1, 5));
  model.mutable_mamba()->set_width(tensor * random.Int(1, 7));
  model.mutable_mamba()->set_states(random.Int(1, 5));
  model.mutable_mamba()->set_input_dependent(random.Int(0, 2) > 0);
  model.mutable_mamba()->set_dt_rank(model.mamba().input_dependent() ? random.Int(0, 3) : 0);
  model.mutable_attention()->set_heads(some());
  model.mutable_attention()->set_head_width(4 * random.Int(1, 2));
  model.mutable_attention()->set_window(random.Int(1, 20));
  model.mutable_lightning_attention()->set_heads(some());
  model.mutable_lightning_attention()->set_head_width(random.Int(1, 5));
  model.mutable_mlstm()->set_heads(some());
  model.mutable_mlstm()->set_width(model.mlstm().heads() * 4 * random.Int(1, 2));
  model.mutable_mlstm()->set_key_width(model.mlstm().heads() * random.Int(1, 4));
  model.mutable_mlstm()->set_gate_soft_cap(static_cast<double>(random.Int(0, 1)) * 4);
  const auto gate = [&] {
    return random.Int(0, 1) == 0 ? config::MlstmConfig::SIGMOID : config::MlstmConfig::EXPONENTIAL;
  };
  model.mutable_mlstm()->set_input_gate(gate());
  model.mutable_mlstm()->set_forget_gate(gate());
  model.mutable_slstm()->set_heads(some());
  model.mutable_slstm()->set_forget_gate(gate());
  model.mutable_mlp()->set_width(tensor * random.Int(1, 7));
  model.set_tied_embedding(random.Int(0, 1) == 0);
  model.set_norm(static_cast<config::ModelConfig::Norm>(random.Int(0, 2)));
  model.set_norm_epsilon(1e-3);
  model.set_logit_soft_cap(static_cast<double>(random.Int(0, 1)) * 5);
  return model;
}

Layout DrawLayout(TestRandom& random) {
  Layout layout;
  do {
    const auto axis = [&] { return static_cast<int>(random.Int(1, 3)); };
    layout.mesh = {.data = axis(), .sequence = axis(), .tensor = axis()};
  } while (layout.mesh.ranks() > 12);
  layout.zero = random.Int(0, 1) == 0;
  layout.bucket = random.Int(0, 1) == 0 ? 48 : random.Int(1, 2000);
  layout.slices = static_cast<int>(random.Int(1, 3));
  layout.slice_batch = random.Int(1, 2);
  layout.rounds = random.Int(1, 2);
  layout.recompute = kRecomputeModes[random.Int(0, 2)];
  if (random.Int(0, 2) == 0) {
    layout.tokens = random.Int(1, 9);
  } else {
    layout.chunk = random.Int(1, 6);
    layout.tokens = layout.chunk * random.Int(1, 4);
    if (layout.mesh.sequence == 1) layout.tokens += random.Int(0, 2);
  }
  return layout;
}

// The sequences of a step, of documents that start anywhere or of one; some labels do not count.
struct Data {
  Data(const Layout& layout, int64_t vocab, TestRandom& random)
      : tokens(RandomTokens(layout.sequences(), layout.length(), vocab, random)),
        labels(RandomTokens(layout.sequences(), layout.length(), vocab, random)),
        positions(RandomPositions(layout.sequences(), layout.length(), random, false)) {
    const bool documents = random.Int(0, 1) == 0;
    for (int64_t i = 0; i < labels.tensor.size(); ++i) {
      if (random.Int(0, 3) == 0) labels.tensor.data<int32_t>()[i] = -1;
      if (documents) continue;
      positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % layout.length());
    }
  }
  OwnedTensor tokens, labels, positions;
};

// Of sequences [first, first + count), what rank `rank` of `ranks` holds when they run `chunk`
// tokens each at once (layers/chunked.h); 0: all.
OwnedTensor Part(const Tensor& whole, int64_t first, int64_t count, int rank, int ranks,
                 int64_t chunk) {
  const Tensor rows = whole.Rows(first, first + count);
  const int64_t length = whole.dim(1) / ranks;
  if (chunk == 0 || ranks == 1) chunk = length;
  OwnedTensor part(whole.dtype, {count, length});
  for (int64_t t = 0; t < length; t += chunk) {
    const int64_t begin = t * ranks + rank * chunk;
    PasteTime(TimeSlice(rows, begin, begin + chunk).tensor, part.tensor, t);
  }
  return part;
}

// Of plain gradient descent, which hands on what it has updated bucket by bucket.
constexpr int kSteps = 2;
constexpr double kRate = 0.05;
void Descend(const Tensor& value, const Tensor& gradient) {
  for (int64_t i = 0; i < value.size(); ++i) {
    value.data<double>()[i] -= kRate * gradient.data<double>()[i];
  }
}

// Of each step: the loss, and the gradient of each parameter, whole.
struct Trained {
  double loss[kSteps] = {};
  std::vector<OwnedTensor> gradients[kSteps];
};

// A rank's slice of a whole parameter.
OwnedTensor Local(const ParamStore& store, ParamId id, const Tensor& whole) {
  const Slice& slice = store.slice(id);
  OwnedTensor local(DType::kF64, slice.extent);
  CopyPart(slice, LocalSlice(store.table().spec(id), 1, 0), whole.raw, slice, local.tensor.raw,
           sizeof(double));
  return local;
}

// What this rank owns of the gradients, to a fraction of the largest element of each.
void ExpectGradients(const ParamStore& store, const std::vector<OwnedTensor>& expected) {
  for (const BucketPlan::Part& own : store.owned()) {
    const Tensor& whole = expected[static_cast<size_t>(own.param)].tensor;
    double largest = 1e-6, error = 0;
    for (int64_t i = 0; i < whole.size(); ++i) largest = std::max(largest, std::abs(Get(whole, i)));
    const OwnedTensor local = Local(store, own.param, whole);
    const Tensor actual = store.owned_grad(own);
    for (int64_t i = 0; i < own.range.size(); ++i) {
      const double apart = std::abs(Get(actual, i) - Get(local.tensor, own.range.begin + i));
      if (!(apart <= error)) error = apart;  // or NaN
    }
    EXPECT_LE(error, 1e-7 * largest) << store.table().spec(own.param).name;
  }
}

Trained Reference(const Model& model, const std::vector<OwnedTensor>& start, const Layout& layout,
                  const Data& data) {
  Trained result;
  const Mesh mesh;
  ParamStore store(model.params(), mesh, DType::kF64, true);
  const auto count = static_cast<ParamId>(start.size());
  for (ParamId id = 0; id < count; ++id) {
    Copy(start[static_cast<size_t>(id)].tensor, store.value(id));
  }
  for (int step = 0; step < kSteps; ++step) {
    Arena arena;
    Run run{mesh, store, arena};
    run.positions = data.positions.tensor;
    const OwnedTensor sums(DType::kF64, {2});
    store.ZeroGrads();
    ForwardBackward(model, run,
                    {data.tokens.tensor, data.labels.tensor,
                     1.0 / static_cast<double>(layout.sequences() * layout.length()), sums.tensor},
                    0, true);
    store.ReduceGrads();
    result.loss[step] = ReadLoss(sums.tensor).sum;
    for (ParamId id = 0; id < count; ++id) {
      result.gradients[step].push_back(Clone(store.grad(id)));
      Descend(store.value(id), store.grad(id));
    }
  }
  return result;
}

void ExpectLikeReference(const config::ModelConfig& config, const Layout& layout,
                         TestRandom& random) {
  const Model whole(config, 1);
  std::vector<OwnedTensor> start;
  {
    const Mesh one;
    const ParamStore store = RandomStore(whole.params(), one, random);
    for (ParamId id = 0; id < static_cast<ParamId>(whole.params().specs().size()); ++id) {
      start.push_back(Clone(store.value(id)));
    }
  }
  const Data data(layout, config.vocab_size(), random);
  const Trained expected = Reference(whole, start, layout, data);

  RunRanks(layout.mesh.ranks(), [&](std::unique_ptr<Communicator> world) {
    const Mesh plain(layout.mesh, std::move(world)), mesh = AuditedMesh(plain);
    const Model model(config, layout.mesh.tensor, layout.recompute);
    ParamStore store(model.params(), mesh, DType::kF64, true,
                     {.zero = layout.zero, .bucket_elements = layout.bucket});
    for (ParamId id = 0; id < static_cast<ParamId>(start.size()); ++id) {
      Copy(Local(store, id, start[static_cast<size_t>(id)].tensor).tensor, store.value(id));
    }
    Arena arena;
    {
      // Scratch that nobody has written is no zero.
      ArenaScope scope(arena);
      Poison(arena.Allocate(DType::kF64, {1 << 19}));
    }
    Run run{mesh, store, arena};
    Slices slices(mesh, layout.slices, Device::kCpu, nullptr);
    const int64_t batch = layout.batch();
    const int rank = mesh.sequence().rank();
    const auto part = [&](const OwnedTensor& all, int64_t first) {
      return Part(all.tensor, first, batch, rank, layout.mesh.sequence, layout.chunk);
    };
    for (int step = 0; step < kSteps; ++step) {
      const OwnedTensor sums(DType::kF64, {2});
      store.ZeroGrads();
      for (int64_t round = 0; round < layout.rounds; ++round) {
        const int64_t first = (round * layout.mesh.data + mesh.data().rank()) * batch;
        const OwnedTensor tokens = part(data.tokens, first), labels = part(data.labels, first);
        const OwnedTensor positions = part(data.positions, first);
        run.positions = positions.tensor;
        slices.ForwardBackward(
            model, run,
            {tokens.tensor, labels.tensor,
             1.0 / static_cast<double>(layout.sequences() * layout.length()), sums.tensor},
            layout.chunk, round + 1 == layout.rounds);
      }
      store.ReduceGrads();
      const double loss =
          AllReduceValue(mesh.replicas(), ReadLoss(sums.tensor).sum, ReduceOp::kSum);
      EXPECT_NEAR(loss, expected.loss[step], 1e-9 * expected.loss[step]) << "step " << step;
      ExpectGradients(store, expected.gradients[step]);
      int bucket = 0;
      store.GatherDone();
      for (const auto& [place, buckets] : store.stretches()) {
        Descend(store.owned_master(place), store.owned_grad(place));
        for (const int end = bucket + buckets; bucket < end;) store.Gather(bucket++);
      }
    }
  });
}

TEST(AnyLayoutTest, EqualsOneRank) {
  TestRandom random;
  for (int left = 40; left > 0;) {
    const Layout layout = DrawLayout(random);
    const config::ModelConfig config = DrawModel(layout.mesh.tensor, random);
    ConfigErrors errors;
    ValidateModel(config, layout.mesh.tensor, errors);
    ValidateSequence(config, "length", layout.length(), layout.mesh.sequence, errors);
    if (layout.chunk > 0) {
      ValidateSequence(config, "chunk", layout.chunk * layout.mesh.sequence, layout.mesh.sequence,
                       errors);
    }
    if (!errors.messages().empty()) continue;
    --left;
    const std::string name = layout.Name() + "\n" + config.ShortDebugString();
    SCOPED_TRACE(name);
    ExpectLikeReference(config, layout, random);
    // Ranks are threads of their own, which know of no trace.
    ASSERT_FALSE(HasFailure()) << name;
  }
}

}  // namespace
}  // namespace eyrie
