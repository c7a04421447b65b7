#include "parallel/param_store.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor_math.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr uint64_t kSeed = 17;

// One parameter of every kind, none of a size that fills cache lines.
ParamTable MakeTable() {
  ParamTable table;
  const auto add = [&](std::string name, Shape shape, int axis, bool partial = false) {
    table.Add({.name = std::move(name),
               .shape = shape,
               .shard_axis = axis,
               .partial_gradient = partial,
               .init = InitNormal(0.5)});
  };
  add("scalar", {}, -1);
  add("norm", {7}, -1);
  add("columns", {12, 5}, 0);
  add("rows", {5, 12}, 1);
  add("conv", {4, 20}, 1);
  add("blocks", {8, 3, 3}, 0);
  add("middle", {3, 4, 5}, 1);
  add("key", {3, 5}, -1, /*partial=*/true);
  return table;
}

// Walks the elements of a slice: visit(local index, index in the flattened global tensor).
template <class Visit>
void ForEach(const Slice& slice, const Shape& global, const Visit& visit) {
  for (int64_t local = 0; local < slice.extent.size(); ++local) {
    int64_t rest = local, index = 0, stride = 1;
    for (int axis = global.rank() - 1; axis >= 0; --axis) {
      index += (rest % slice.extent[axis] + slice.offset[axis]) * stride;
      rest /= slice.extent[axis];
      stride *= global[axis];
    }
    visit(local, index);
  }
}

template <class T>
class ParamStoreTest : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(ParamStoreTest, Types);

// Initial shards are the slices of the whole, on every mesh.
TYPED_TEST(ParamStoreTest, EveryLayoutStartsFromTheSameModel) {
  using T = TypeParam;
  const ParamTable table = MakeTable();
  const Mesh one;
  ParamStore whole(table, one, DTypeOf<T>::value, /*with_gradients=*/false);
  whole.Initialise(kSeed);
  for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
    const ParamSpec& spec = table.spec(id);
    EXPECT_EQ(whole.value(id).shape, spec.shape) << spec.name;
    const Random random(kSeed, spec.name);
    for (int64_t i = 0; i < spec.shape.size(); ++i) {
      EXPECT_EQ(whole.value(id).template data<T>()[i],
                static_cast<T>(0.5 * random.Normal(static_cast<uint64_t>(i))));
    }
  }
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{1, 1, 2}, MeshShape{1, 1, 4},
                                MeshShape{2, 1, 1}, MeshShape{2, 1, 2}, MeshShape{1, 2, 2}}) {
    RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
      const Mesh mesh(shape, std::move(world));
      ParamStore store(table, mesh, DTypeOf<T>::value, /*with_gradients=*/false);
      store.Initialise(kSeed);
      for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
        const ParamSpec& spec = table.spec(id);
        const int cuts = spec.shard_axis < 0 ? 1 : shape.tensor;
        EXPECT_EQ(store.value(id).size() * cuts, spec.shape.size()) << spec.name;
        const T* mine = store.value(id).template data<T>();
        const T* all = whole.value(id).template data<T>();
        ForEach(store.slice(id), spec.shape, [&](int64_t local, int64_t index) {
          EXPECT_EQ(mine[local], all[index]) << spec.name << " at " << index;
        });
      }
    });
  }
}

// Between parameters lie zeros, so that norms can be taken over the flat buffer.
TYPED_TEST(ParamStoreTest, PaddingIsZeroAndParametersDoNotOverlap) {
  using T = TypeParam;
  const ParamTable table = MakeTable();
  const Mesh one;
  ParamStore store(table, one, DTypeOf<T>::value, /*with_gradients=*/true);
  store.Initialise(kSeed);
  int64_t end = 0;
  for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
    const T* flat = store.flat_values().template data<T>();
    ASSERT_GE(store.offset(id), end);
    for (; end < store.offset(id); ++end) EXPECT_EQ(flat[end], T(0));
    EXPECT_EQ(store.value(id).raw, flat + end);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(store.value(id).raw) % 64, 0u);
    end += store.value(id).size();
  }
  EXPECT_LE(end, store.elements());
  EXPECT_EQ(store.flat_grads().size(), store.flat_values().size());
}

TYPED_TEST(ParamStoreTest, DependsOnTheSeed) {
  using T = TypeParam;
  const ParamTable table = MakeTable();
  const Mesh one;
  ParamStore store(table, one, DTypeOf<T>::value, /*with_gradients=*/false);
  store.Initialise(1);
  const std::vector<T> first(store.value(2).template data<T>(),
                             store.value(2).template data<T>() + store.value(2).size());
  store.Initialise(2);
  int equal = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    equal += first[i] == store.value(2).template data<T>()[i];
  }
  EXPECT_EQ(equal, 0);
}

// A gradient is summed over data x sequence; over tensor only where its ranks hold parts of it.
TYPED_TEST(ParamStoreTest, ReducesGradients) {
  using T = TypeParam;
  const ParamTable table = MakeTable();
  const MeshShape shape{2, 1, 2};
  RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();  // 0: (d 0, t 0), 1: (d 0, t 1), 2: (d 1, t 0), 3: (d 1, t 1)
    const Mesh mesh(shape, std::move(world));
    ParamStore store(table, mesh, DTypeOf<T>::value, /*with_gradients=*/true);
    constexpr T kByRank[] = {1, 10, 100, 1000};
    for (int pass = 0; pass < 2; ++pass) {
      store.ZeroGrads();
      for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
        for (int64_t i = 0; i < store.grad(id).size(); ++i) {
          store.grad(id).template data<T>()[i] = kByRank[rank] * static_cast<T>(id + 1);
        }
      }
      store.ReduceGrads();
    }
    for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
      const T sum = table.spec(id).partial_gradient ? 1111 : rank % 2 == 0 ? 101 : 1010;
      for (int64_t i = 0; i < store.grad(id).size(); ++i) {
        EXPECT_EQ(store.grad(id).template data<T>()[i], sum * static_cast<T>(id + 1))
            << table.spec(id).name;
      }
    }
  });
}

// Whatever lies in memory from before, a sum starts with its first contribution, which is written
// where it is asked for and added to zeros where it is not, and is zero without any.
TEST(ParamStore, GradientsStartAnew) {
  const ParamTable table = MakeTable();
  const Mesh mesh;
  ParamStore store(table, mesh, DType::kF32, /*with_gradients=*/true);
  const auto expect = [&](ParamId id, float value) {
    const Tensor gradient = store.grad(id);
    for (int64_t i = 0; i < gradient.size(); ++i) EXPECT_EQ(gradient.data<float>()[i], value);
  };
  for (int step = 0; step < 2; ++step) {
    Fill(store.flat_grads(), std::numeric_limits<double>::quiet_NaN());
    store.ZeroGrads();
    const ParamStore::GradientSum first = store.AddTo(0);
    EXPECT_FALSE(first.started);
    Fill(first.tensor, 2.0);
    expect(0, 2.0f);
    const ParamStore::GradientSum second = store.AddTo(0);
    EXPECT_TRUE(second.started);
    EXPECT_EQ(second.tensor.raw, first.tensor.raw);
    expect(1, 0.0f);
    EXPECT_TRUE(store.AddTo(1).started);
    store.ReduceGrads();
    expect(0, 2.0f);
    for (const BucketPlan::Part& part : store.owned()) {
      const Tensor gradient = store.owned_grad(part);
      for (int64_t i = 0; i < gradient.size(); ++i) {
        EXPECT_EQ(gradient.data<float>()[i], part.param == 0 ? 2.0f : 0.0f);
      }
    }
  }
}

// In mixed precision, values of full precision are their masters and the others rounded from them,
// on every replica and in every layout, at the start and after updates; all gradients are summed.
TEST(ParamStore, FullPrecisionAmongRoundedValues) {
  ParamTable table;
  const auto add = [&](const char* name, Shape shape, int axis, bool full_precision = false) {
    table.Add({.name = name,
               .shape = shape,
               .shard_axis = axis,
               .full_precision = full_precision,
               .init = InitNormal(0.5)});
  };
  add("table", {12, 9}, 0);
  add("rates", {8, 13}, 0, /*full_precision=*/true);
  add("norm", {7}, -1);
  add("gain", {5}, -1, /*full_precision=*/true);
  add("rows", {5, 12}, 1);
  const auto params = static_cast<ParamId>(table.specs().size());
  // Of the element at `index` of a local slice; no bfloat16.
  const auto updated = [](ParamId id, int64_t index) {
    return 1.0f + static_cast<float>(id) + 0x1p-20f * static_cast<float>(index + 1);
  };
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{3, 1, 1}, MeshShape{2, 2, 2}}) {
    for (const bool zero : {false, true}) {
      RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
        const Mesh mesh(shape, std::move(world));
        ParamStore store(table, mesh, Precision::Mixed(), /*with_gradients=*/true,
                         {.zero = zero, .bucket_elements = 48});
        const auto expect_values = [&](const auto& exact) {
          for (ParamId id = 0; id < params; ++id) {
            const Tensor value = store.value(id);
            const bool full = table.spec(id).full_precision;
            ASSERT_EQ(value.dtype, full ? DType::kF32 : DType::kBF16);
            for (int64_t i = 0; i < value.size(); ++i) {
              const float expected = exact(id, i);
              if (full) {
                ASSERT_EQ(value.data<float>()[i], expected) << table.spec(id).name;
              } else {
                ASSERT_EQ(value.data<BFloat16>()[i].bits, BFloat16(expected).bits)
                    << table.spec(id).name;
              }
            }
          }
        };
        const auto expect_masters = [&](const auto& exact) {
          for (const BucketPlan::Part& part : store.owned()) {
            for (int64_t i = 0; i < part.range.size(); ++i) {
              ASSERT_EQ(store.owned_master(part).data<float>()[i],
                        exact(part.param, part.range.begin + i));
            }
          }
        };
        store.Initialise(kSeed);
        ParamStore full(table, mesh, DType::kF32, /*with_gradients=*/false);
        full.Initialise(kSeed);
        const auto drawn = [&](ParamId id, int64_t i) { return full.value(id).data<float>()[i]; };
        expect_values(drawn);
        expect_masters(drawn);

        store.ReduceAsReady();
        for (ParamId id = params - 1; id >= 0; --id) {
          for (int64_t i = 0; i < store.grad(id).size(); ++i) {
            store.grad(id).data<float>()[i] = static_cast<float>((id + 1) * 100 + i);
          }
          store.GradsReady(id);
        }
        store.ReduceGrads();
        const auto replicas = static_cast<float>(mesh.replicas().size());
        for (const BucketPlan::Part& part : store.owned()) {
          for (int64_t i = 0; i < part.range.size(); ++i) {
            ASSERT_EQ(store.owned_grad(part).data<float>()[i],
                      replicas * static_cast<float>((part.param + 1) * 100 + part.range.begin + i));
          }
        }

        for (const BucketPlan::Part& part : store.owned()) {
          const Tensor master = store.owned_master(part);
          EXPECT_EQ(store.owned_copy(part).dtype,
                    table.spec(part.param).full_precision ? DType::kF32 : DType::kBF16);
          for (int64_t i = 0; i < part.range.size(); ++i) {
            master.data<float>()[i] = updated(part.param, part.range.begin + i);
          }
        }
        store.PublishMasters();
        expect_values(updated);
        expect_masters(updated);
        EXPECT_THROW(store.flat_values(), Error);
      });
    }
  }
}

TEST(ParamStore, NamesTheParameterThatDoesNotDivide) {
  ParamTable table;
  table.Add({.name = "odd.w", .shape = {9, 4}, .shard_axis = 0, .init = InitConstant(0.0)});
  try {
    LocalSlice(table.spec(0), 2, 0);
    FAIL() << "cut 9 rows in two";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("odd.w [9, 4] on 2 tensor ranks"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace eyrie
