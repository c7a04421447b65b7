// Gradients that leave bucket by bucket as backward completes them, and parameters that come back.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/param_store.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

const MeshShape kShape{2, 2, 2};

ParamTable MakeTable() {
  ParamTable table;
  const auto add = [&](const char* name, Shape shape, int axis, bool partial = false) {
    table.Add({.name = name,
               .shape = shape,
               .shard_axis = axis,
               .partial_gradient = partial,
               .init = InitNormal(0.5)});
  };
  add("table", {60, 10}, 0);
  add("columns", {12, 5}, 0);
  add("key", {3, 50}, -1, /*partial=*/true);
  add("rows", {5, 40}, 1);
  add("norm", {7}, -1);
  return table;
}

// Counts what is started and not yet waited for; nothing is complete before it is waited for.
class LateCommunicator final : public Communicator {
 public:
  explicit LateCommunicator(std::unique_ptr<Communicator> inner, std::vector<std::string>& log)
      : inner_(std::move(inner)), log_(log) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Event AllReduce(const Tensor& t, ReduceOp op) override {
    return Late("all-reduce", t, [=, this] { inner_->AllReduce(t, op).Wait(); });
  }
  Event AllGather(const Tensor& in, const Tensor& out) override {
    return Late("all-gather", out, [=, this] { inner_->AllGather(in, out).Wait(); });
  }
  Event ReduceScatter(const Tensor& in, const Tensor& out) override {
    return Late("reduce-scatter", in, [=, this] { inner_->ReduceScatter(in, out).Wait(); });
  }
  Event Broadcast(const Tensor& t, int root) override { return inner_->Broadcast(t, root); }
  Event Exchange(const std::vector<Message>& sent, const std::vector<Message>& received) override {
    return inner_->Exchange(sent, received);
  }
  void Barrier() override { inner_->Barrier(); }
  std::unique_ptr<Communicator> Split(int color, int key) override {
    return std::make_unique<LateCommunicator>(inner_->Split(color, key), log_);
  }
  std::unique_ptr<Communicator> SplitNode() override { return inner_->SplitNode(); }

 private:
  struct Later final : Event::Pending {
    explicit Later(std::function<void()> what) : action(std::move(what)) {}
    void Wait() override { action(); }
    std::function<void()> action;
  };
  Event Late(const char* what, const Tensor& tensor, std::function<void()> action) {
    log_.push_back(StrCat(what, " ", tensor.size()));
    return Event(std::make_unique<Later>(std::move(action)));
  }

  std::unique_ptr<Communicator> inner_;
  std::vector<std::string>& log_;
};

template <class Body>
void OnRanks(const BucketOptions& options, const Body& body) {
  const ParamTable table = MakeTable();
  RunRanks(kShape.ranks(), [&](std::unique_ptr<Communicator> world) {
    std::vector<std::string> log;
    const Mesh mesh(kShape, std::make_unique<LateCommunicator>(std::move(world), log));
    ParamStore store(table, mesh, DType::kF64, /*with_gradients=*/true, options);
    body(mesh, store, log);
  });
}

// Rank r adds 10^r, so that sums tell who took part.
void AddGradient(const Mesh& mesh, const ParamStore& store, ParamId id) {
  double value = 1;
  for (int i = 0; i < mesh.world().rank(); ++i) value *= 10;
  for (int64_t i = 0; i < store.grad(id).size(); ++i) {
    store.grad(id).data<double>()[i] += value * static_cast<double>(i + 1);
  }
}

void ExpectReduced(const Mesh& mesh, const ParamStore& store) {
  for (const BucketPlan::Part& part : store.owned()) {
    const ParamSpec& spec = store.table().spec(part.param);
    const double sum = spec.partial_gradient       ? 11111111
                       : mesh.tensor().rank() == 0 ? 1010101
                                                   : 10101010;
    for (int64_t i = 0; i < part.range.size(); ++i) {
      ASSERT_EQ(store.owned_grad(part).data<double>()[i],
                sum * static_cast<double>(part.range.begin + i + 1))
          << spec.name;
    }
  }
}

TEST(Reduction, BucketsLeaveAsTheirParametersBecomeReady) {
  for (const bool zero : {false, true}) {
    OnRanks({.zero = zero, .bucket_elements = 128},
            [&](const Mesh& mesh, ParamStore& store, std::vector<std::string>& log) {
              const auto params = static_cast<ParamId>(store.table().specs().size());
              for (int step = 0; step < 2; ++step) {
                store.ZeroGrads();
                for (ParamId id = 0; id < params; ++id) AddGradient(mesh, store, id);
                // An earlier microbatch: nothing leaves.
                log.clear();
                store.GradsReady(0);
                EXPECT_TRUE(log.empty());
                store.ZeroGrads();
                store.ReduceAsReady();
                for (ParamId first = params - 1; first >= 0; --first) {
                  AddGradient(mesh, store, first);
                  store.GradsReady(first);
                  const auto partials = static_cast<size_t>(first <= 2);  // "key"
                  EXPECT_EQ(log.size(),
                            partials + static_cast<size_t>(store.plan().buckets() -
                                                           store.plan().FirstBucketFrom(first)));
                }
                EXPECT_GE(store.plan().buckets(), 5);
                const char* what = zero ? "reduce-scatter" : "all-reduce";
                EXPECT_EQ(log.back(), StrCat(what, " 128"));
                EXPECT_EQ(log[1], "all-reduce 150");
                store.ReduceGrads();
                EXPECT_EQ(log.size(), static_cast<size_t>(store.plan().buckets()) + 1);
                ExpectReduced(mesh, store);
              }
            });
  }
}

// Passes that share the work of a step, one of them ahead.
TEST(Reduction, BucketsWaitForTheLastOfSeveralPasses) {
  OnRanks({.bucket_elements = 128}, [&](const Mesh& mesh, ParamStore& store,
                                        std::vector<std::string>& log) {
    const auto params = static_cast<ParamId>(store.table().specs().size());
    for (int step = 0; step < 2; ++step) {
      store.ZeroGrads();
      log.clear();
      store.ReduceAsReady(2);
      for (ParamId ahead = params - 1; ahead >= 2; --ahead) store.GradsReady(ahead);
      EXPECT_TRUE(log.empty());
      for (ParamId first = params - 1; first >= 0; --first) {
        AddGradient(mesh, store, first);
        store.GradsReady(first);
        // All buckets from here on have left, and nothing else but the partial sum of "key".
        const auto left = [&](ParamId from) {
          return static_cast<size_t>(from <= 2) +
                 static_cast<size_t>(store.plan().buckets() - store.plan().FirstBucketFrom(from));
        };
        if (first < 2) {
          EXPECT_EQ(log.size(), left(first + 1));
          store.GradsReady(first);
        }
        EXPECT_EQ(log.size(), left(first));
      }
      store.ReduceGrads();
      ExpectReduced(mesh, store);
    }
  });
}

TEST(Reduction, ReduceGradsStartsWhatHasNot) {
  for (const bool zero : {false, true}) {
    for (const int64_t elements : {int64_t{1}, int64_t{200}, int64_t{1} << 20}) {
      OnRanks({.zero = zero, .bucket_elements = elements},
              [&](const Mesh& mesh, ParamStore& store, std::vector<std::string>&) {
                for (ParamId id = 0; id < 5; ++id) AddGradient(mesh, store, id);
                store.ReduceGrads();
                ExpectReduced(mesh, store);
              });
    }
  }
}

TEST(Reduction, ValuesWaitForTheirBucketsAlone) {
  OnRanks({.zero = true, .bucket_elements = 128},
          [&](const Mesh&, ParamStore& store, std::vector<std::string>& log) {
            for (int step = 1; step <= 2; ++step) {
              for (const BucketPlan::Part& part : store.owned()) {
                for (int64_t i = 0; i < part.range.size(); ++i) {
                  store.owned_master(part).data<double>()[i] =
                      static_cast<double>(step * 10000 + part.param * 1000 + part.range.begin + i);
                }
              }
              log.clear();
              for (int bucket = 0; bucket < store.plan().buckets(); ++bucket) store.Gather(bucket);
              EXPECT_EQ(log.size(), static_cast<size_t>(store.plan().buckets()));
              // In another order than they arrive.
              for (const ParamId id : {1, 0, 4, 2, 3}) {
                const double* values = store.value(id).data<double>();
                for (int64_t i = 0; i < store.value(id).size(); ++i) {
                  ASSERT_EQ(values[i], static_cast<double>(step * 10000 + id * 1000 + i));
                }
              }
              store.GatherDone();
            }
          });
}

}  // namespace
}  // namespace eyrie
