#include "core/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/param_table.h"

namespace eyrie {
namespace {

// What `body` throws, as "code: message"; empty if nothing.
template <class Body>
std::string Thrown(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return StrCat(static_cast<int>(error.code()), ": ", error.what());
  }
  return "";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Error, CarriesAnExitCodeAndOneLine) {
  EXPECT_EQ(Thrown([] { ThrowBadInput("model.width must be positive, is ", -1); }),
            "2: model.width must be positive, is -1");
  EXPECT_EQ(Thrown([] { ThrowFailure("disk full"); }), "3: disk full");
  const std::string bug = Thrown([] { EYRIE_CHECK(1 + 1 == 3, "sum of ", "ones"); });
  EXPECT_TRUE(Contains(bug, "tensor_test.cc")) << bug;
  EXPECT_TRUE(Contains(bug, "1 + 1 == 3: sum of ones")) << bug;
  EXPECT_EQ(Thrown([] { EYRIE_CHECK(true); }), "");
}

TEST(Shape, KnowsItsExtents) {
  Shape shape{2, 3, 4};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.size(), 24);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 4);
  EXPECT_EQ(shape.ToString(), "[2, 3, 4]");
  shape.Set(1, 5);
  EXPECT_EQ(shape, (Shape{2, 5, 4}));
  EXPECT_FALSE(shape == (Shape{2, 5}));
  EXPECT_FALSE(shape == (Shape{2, 5, 5}));
  EXPECT_EQ(Shape().size(), 1);
  EXPECT_EQ(Shape().ToString(), "[]");
  EXPECT_EQ((Shape{3, 0}).size(), 0);
}

TEST(Shape, RefusesTooManyAndNegativeExtents) {
  EXPECT_NE(Thrown([] { Shape{1, 1, 1, 1, 1, 1}; }), "");
  EXPECT_NE(Thrown([] { Shape{2, -1}; }), "");
  Shape full{1, 1, 1, 1, 1};
  EXPECT_NE(Thrown([&] { full.Append(1); }), "");
}

TEST(Tensor, ViewsShareMemory) {
  const OwnedTensor owned(DType::kF32, {3, 4});
  const Tensor& tensor = owned.tensor;
  std::iota(tensor.data<float>(), tensor.data<float>() + 12, 0.0f);
  EXPECT_EQ(tensor.bytes(), 48u);

  const Tensor flat = tensor.View({12});
  EXPECT_EQ(flat.raw, tensor.raw);
  const Tensor rows = tensor.Rows(1, 3);
  EXPECT_EQ(rows.shape, (Shape{2, 4}));
  EXPECT_EQ(rows.data<float>()[0], 4.0f);
  rows.data<float>()[0] = -1.0f;
  EXPECT_EQ(flat.data<float>()[4], -1.0f);
  EXPECT_EQ(tensor.Rows(3, 3).size(), 0);
}

TEST(Tensor, RefusesWrongTypesShapesAndRows) {
  const OwnedTensor owned(DType::kF32, {3, 4});
  const Tensor& tensor = owned.tensor;
  EXPECT_TRUE(Contains(Thrown([&] { tensor.data<double>(); }), "tensor holds F32"));
  EXPECT_TRUE(Contains(Thrown([&] { tensor.View({5}); }), "[3, 4] viewed as [5]"));
  EXPECT_NE(Thrown([&] { tensor.Rows(2, 1); }), "");
  EXPECT_NE(Thrown([&] { tensor.Rows(-1, 1); }), "");
  EXPECT_NE(Thrown([&] { tensor.Rows(0, 4); }), "");
}

TEST(Tensor, AbsentTensorsHaveNoData) {
  const Tensor absent;
  EXPECT_FALSE(absent.defined());
  EXPECT_EQ(absent.data<float>(), nullptr);
  EXPECT_EQ(absent.data<int32_t>(), nullptr);  // absent has no type either
}

TEST(Tensor, CopiesAndClears) {
  const OwnedTensor from(DType::kI32, {6}), to(DType::kI32, {2, 3});
  std::iota(from.tensor.data<int32_t>(), from.tensor.data<int32_t>() + 6, 1);
  Copy(from.tensor, to.tensor);
  EXPECT_EQ(to.tensor.data<int32_t>()[5], 6);
  FillZero(to.tensor);
  EXPECT_EQ(to.tensor.data<int32_t>()[5], 0);
  const OwnedTensor shorter(DType::kI32, {5}), other(DType::kF32, {6});
  EXPECT_NE(Thrown([&] { Copy(from.tensor, shorter.tensor); }), "");
  EXPECT_NE(Thrown([&] { Copy(from.tensor, other.tensor); }), "");
}

TEST(Buffer, IsZeroedAlignedAndBounded) {
  const Buffer buffer(1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  const Tensor tensor = buffer.At(200, DType::kF64, {100});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(tensor.data<double>()[i], 0.0);
  EXPECT_NE(Thrown([&] { buffer.At(208, DType::kF64, {100}); }), "");
}

TEST(Arena, GivesDisjointAlignedMemoryAndTakesItBack) {
  Arena arena;
  const Tensor first = arena.Allocate(DType::kF32, {3});
  const Tensor second = arena.Allocate(DType::kF64, {5});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second.raw) % 64, 0u);
  EXPECT_GE(static_cast<char*>(second.raw) - static_cast<char*>(first.raw), 12);

  void* place = nullptr;
  {
    ArenaScope scope(arena);
    place = arena.Allocate(DType::kF32, {100}).raw;
  }
  EXPECT_EQ(arena.Allocate(DType::kF32, {100}).raw, place);
  EXPECT_EQ(arena.peak_bytes(), 256u + 256u + 512u);
}

TEST(Arena, KeepsWhatItGrewTo) {
  Arena arena;
  const auto step = [&] {
    ArenaScope scope(arena);
    std::vector<Tensor> tensors;
    for (int64_t size : {int64_t{10}, int64_t{1} << 20, int64_t{1} << 22, int64_t{7}}) {
      tensors.push_back(arena.Allocate(DType::kF32, {size}));
      std::fill_n(tensors.back().data<float>(), size, static_cast<float>(size));
    }
    for (const Tensor& tensor : tensors) {
      const float* values = tensor.data<float>();
      EXPECT_EQ(values[0], static_cast<float>(tensor.size()));
      EXPECT_EQ(values[tensor.size() - 1], static_cast<float>(tensor.size()));
    }
    std::vector<void*> places;
    for (const Tensor& tensor : tensors) places.push_back(tensor.raw);
    return places;
  };
  EXPECT_EQ(step(), step());
}

uint16_t Rounded(float value) { return BFloat16(value).bits; }
float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }

TEST(BFloat16, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(Rounded(1.0f), 0x3f80);
  EXPECT_EQ(Rounded(FromBits(0x3f807fffu)), 0x3f80);  // just below the middle
  EXPECT_EQ(Rounded(FromBits(0x3f808000u)), 0x3f80);  // a tie, down to even
  EXPECT_EQ(Rounded(FromBits(0x3f808001u)), 0x3f81);  // just above
  EXPECT_EQ(Rounded(FromBits(0x3f818000u)), 0x3f82);  // a tie, up to even
  EXPECT_EQ(Rounded(FromBits(0x3fffffffu)), 0x4000);  // carries into the exponent
  EXPECT_EQ(Rounded(-1.0f), 0xbf80);
  EXPECT_EQ(Rounded(FromBits(0xbf818000u)), 0xbf82);
  EXPECT_EQ(Rounded(0.0f), 0x0000);
  EXPECT_EQ(Rounded(-0.0f), 0x8000);
  EXPECT_EQ(Rounded(FromBits(0x00008001u)), 0x0001);  // denormal
}

TEST(BFloat16, KeepsInfinitiesAndNans) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Rounded(kInfinity), 0x7f80);
  EXPECT_EQ(Rounded(-kInfinity), 0xff80);
  EXPECT_EQ(Rounded(std::numeric_limits<float>::max()), 0x7f80);
  for (uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(FromBits(nan))))) << nan;
  }
}

TEST(BFloat16, EveryValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = FromBits(bits << 16);
    if (std::isnan(value)) continue;
    ASSERT_EQ(Rounded(value), bits);
  }
}

TEST(ParamTable, CountsElementsAndRefusesDuplicates) {
  ParamTable table;
  EXPECT_EQ(table.Add({.name = "a", .shape = {2, 3}, .init = InitConstant(1.0)}), 0);
  EXPECT_EQ(table.Add({.name = "b", .shape = {4}, .init = InitConstant(1.0)}), 1);
  EXPECT_EQ(table.TotalElements(), 10);
  EXPECT_EQ(table.spec(1).name, "b");
  EXPECT_TRUE(
      Contains(Thrown([&] { table.Add({.name = "a", .shape = {1}, .init = InitConstant(0.0)}); }),
               "parameter declared twice: a"));
  EXPECT_TRUE(
      Contains(Thrown([&] { table.Add({.name = "c", .shape = {1}}); }), "c has no initialisation"));
}

// Far more than any machine has: shapes and sizes work, elements are refused.
TEST(Meta, HasShapesWithoutMemory) {
  EXPECT_EQ(MetaOf(Device::kCpu), Device::kMeta);
  EXPECT_EQ(MetaOf(Device::kCuda), Device::kMetaCuda);
  const OwnedTensor large(DType::kF32, {int64_t{1} << 40, 64}, Device::kMeta);
  EXPECT_TRUE(large.tensor.defined());
  EXPECT_EQ(large.buffer.bytes(), size_t{1} << 48);
  EXPECT_THROW(large.tensor.data<float>(), Error);
  Arena arena(Device::kMeta);
  {
    const ArenaScope scope(arena);
    const Tensor copy = arena.Allocate(DType::kF32, large.tensor.shape);
    EXPECT_EQ(copy.device, Device::kMeta);
    Copy(large.tensor, copy);
    FillZero(copy);
    CopyRows(copy.View({1, int64_t{1} << 40, 64}), 5, large.tensor.View({1, int64_t{1} << 40, 64}),
             0, 100);
    EXPECT_EQ(arena.peak_bytes(), large.buffer.bytes());
  }
  const OwnedTensor real(DType::kF32, {4});
  const Tensor meta = arena.Allocate(DType::kF32, {4});
  EXPECT_THROW(Copy(meta, real.tensor), Error);
  EXPECT_THROW(Copy(real.tensor, meta), Error);
}

}  // namespace
}  // namespace eyrie
