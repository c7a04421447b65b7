// The optimiser on shares of the parameters against the optimiser on all of them.
#include "launcher/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tests/launcher/checkpoint_util.h"

namespace eyrie {
namespace {

// Six steps with gradients that depend on the rank; the whole parameters of tensor rank 0, and
// each step's gradient norm.
struct Result {
  std::map<std::string, std::vector<double>> values;
  std::vector<double> norms;
};

Result Train(MeshShape shape, const BucketOptions& options, double clip) {
  Result result;
  std::mutex mutex;
  ParamTable table = MakeTable();
  table.Add({.name = "key",
             .shape = {3, 7},
             .partial_gradient = true,
             .weight_decay = true,
             .init = InitNormal(1.0)});
  config::OptimizerConfig config;
  config.set_gradient_clip(clip);
  RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh(shape, std::move(world));
    ParamStore store(table, mesh, DType::kF64, /*with_gradients=*/true, options);
    store.Initialise(1);
    Optimizer optimizer(config, store, mesh);
    const int64_t owners = options.zero ? shape.data * shape.sequence : 1;
    EXPECT_EQ(optimizer.m().size() * owners, store.elements());
    EXPECT_EQ(optimizer.v().bytes(), optimizer.m().bytes());
    std::vector<double> norms;
    for (int step = 1; step <= 6; ++step) {
      store.ZeroGrads();
      for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
        for (int64_t i = 0; i < store.grad(id).size(); ++i) {
          store.grad(id).data<double>()[i] =
              std::sin(static_cast<double>(i + 100 * id + 7 * step + 31 * mesh.replicas().rank())) +
              store.value(id).data<double>()[i];
        }
      }
      store.ReduceGrads();
      norms.push_back(optimizer.GradNorm());
      optimizer.Step(step, 0.01, norms.back());
    }
    const std::lock_guard lock(mutex);
    if (result.norms.empty()) result.norms = norms;
    EXPECT_EQ(norms, result.norms) << "not the same on every rank";
    if (mesh.tensor().rank() != 0) return;
    for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
      const double* values = store.value(id).data<double>();
      std::vector<double>& all = result.values[table.spec(id).name];
      if (all.empty()) all.assign(values, values + store.value(id).size());
      EXPECT_EQ(all, std::vector<double>(values, values + store.value(id).size()))
          << table.spec(id).name << ": replicas differ";
    }
  });
  return result;
}

TEST(Optimizer, SharedOutEqualsWhole) {
  for (const MeshShape shape : {MeshShape{2, 1, 1}, {4, 1, 1}, {2, 1, 2}, {3, 2, 1}, {1, 1, 4}}) {
    for (const double clip : {0.0, 1.0}) {
      const Result plain = Train(shape, {}, clip);
      for (const int64_t elements : {1, 128, 1 << 20}) {
        SCOPED_TRACE(testing::Message() << shape.data << "x" << shape.sequence << "x"
                                        << shape.tensor << " buckets of " << elements);
        const Result zero = Train(shape, {.zero = true, .bucket_elements = elements}, clip);
        for (size_t i = 0; i < plain.norms.size(); ++i) {
          EXPECT_NEAR(zero.norms[i], plain.norms[i], 1e-12 * plain.norms[i]);
        }
        for (const auto& [name, values] : plain.values) {
          ASSERT_EQ(zero.values.at(name).size(), values.size());
          for (size_t i = 0; i < values.size(); ++i) {
            ASSERT_NEAR(zero.values.at(name)[i], values[i], 1e-12) << name << " at " << i;
          }
        }
      }
    }
  }
}

// With ZeRO on four replicas a rank holds a quarter of the moments, but for the padding.
TEST(Optimizer, MomentsAreDividedByTheReplicas) {
  const ParamTable table = MakeTable();
  const config::OptimizerConfig config;
  RunRanks(4, [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh({4, 1, 1}, std::move(world));
    ParamStore whole(table, mesh, DType::kF32, true);
    ParamStore shared(table, mesh, DType::kF32, true, {.zero = true, .bucket_elements = 128});
    const size_t plain = Optimizer(config, whole, mesh).m().bytes();
    const size_t zero = Optimizer(config, shared, mesh).m().bytes();
    EXPECT_GE(zero, plain / 4);
    EXPECT_LE(zero, plain / 4 + 64);
  });
}

}  // namespace
}  // namespace eyrie
