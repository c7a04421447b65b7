// A trace's times on a GPU are those of its stream.
#include "parallel/trace.h"

#include "core/blas.h"
#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

TEST(CudaTrace, SpansLastAsLongAsTheGpuWorks) {
  constexpr int64_t kSize = 2048;
  const OwnedTensor a = ZeroCuda(DType::kF32, {kSize, kSize}),
                    b = ZeroCuda(DType::kF32, {kSize, kSize});
  // Many milliseconds, which the host gives to the GPU in less than one.
  const auto work = [&](int times) {
    for (int i = 0; i < times; ++i) {
      Gemm({.m = kSize,
            .n = kSize,
            .k = kSize,
            .a = a.tensor,
            .lda = kSize,
            .b = a.tensor,
            .ldb = kSize,
            .c = b.tensor,
            .ldc = kSize});
    }
  };
  work(1);
  const double seconds = cuda::SecondsOf([&] { work(100); });
  Trace trace(Device::kCuda);
  const Moment origin = Moment::OnBoth(Device::kCuda);
  trace.Start();
  {
    const Trace::Scope outer(&trace, Trace::Kind::kCompute, "outer");
    work(100);
    { const Trace::Scope inner(&trace, Trace::Kind::kWait, "inner"); }
    work(100);
  }
  const Moment given = Moment::OnHost();
  trace.Stop();
  const Moment done = Moment::OnBoth(Device::kCuda);
  const auto& spans = trace.spans();
  ASSERT_EQ(spans.size(), 3u);
  const auto at = [&](const Moment& moment) { return moment.SecondsSince(origin); };
  // Other tests may use the GPU too, so that times differ.
  for (const size_t i : {0, 2}) {
    EXPECT_GT(at(spans[i].end) - at(spans[i].begin), seconds / 4);
    EXPECT_LT(at(spans[i].end) - at(spans[i].begin), 4 * seconds);
  }
  EXPECT_LT(at(spans[1].end) - at(spans[1].begin), seconds / 4);
  EXPECT_LE(at(spans[0].end), at(spans[1].begin));
  EXPECT_LE(at(spans[1].end), at(spans[2].begin));
  // The host was ahead; and its clock and the GPU's tell the same time.
  EXPECT_LT(at(given), at(spans[2].begin) + seconds / 4);
  EXPECT_LE(at(spans[2].end), at(done));
}

}  // namespace
}  // namespace eyrie
