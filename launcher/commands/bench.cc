#include "launcher/commands/bench.h"

#include <unistd.h>

#include <CLI/App.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "core/blas.h"
#include "core/device.h"
#include "core/tensor_math.h"
#include "core/threads.h"
#include "kernels/adamw/adamw.h"
#include "kernels/streaming.h"
#include "launcher/commands/commands.h"

namespace eyrie {
namespace {

using Clock = std::chrono::steady_clock;

// Twice the last-level cache, within reason.
size_t SweepBytes() {
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::clamp<size_t>(cache > 0 ? 2 * static_cast<size_t>(cache) : 0, size_t{64} << 20,
                            size_t{1} << 30);
}

// Calls body(begin, end) for each thread's share of [0, count), in whole cache lines of floats.
template <class Body>
void ForShares(int64_t count, const Body& body) {
  constexpr int64_t kLine = 16;
  const int64_t threads = Threads(), lines = count / kLine;
  ParallelFor(threads, [&](int64_t i) {
    body(lines * i / threads * kLine, lines * (i + 1) / threads * kLine);
  });
}

float SumOf(const float* x, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

// Uniform in [-scale, scale) from a hash of the index (Steele et al., "Fast splittable pseudorandom
// number generators", OOPSLA'14: SplitMix64's finaliser).
float Draw(uint64_t index, float scale) {
  uint64_t z = (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return scale * static_cast<float>(static_cast<int32_t>(z >> 32)) * 0x1p-31f;
}

std::string CellText(const nlohmann::ordered_json& value) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return std::to_string(value.get<int64_t>());
  char text[32];
  const double number = value.get<double>();
  std::snprintf(text, sizeof text, std::abs(number) >= 1000 ? "%.0f" : "%.4g", number);
  return text;
}

}  // namespace

Tensor BenchDevice::Zeros(DType dtype, Shape shape) {
  return owned_.emplace_back(dtype, shape, device_).tensor;
}

Tensor BenchDevice::Uniform(DType dtype, Shape shape, float scale) {
  const OwnedTensor drawn(DType::kF32, shape);
  float* values = drawn.tensor.data<float>();
  const int64_t size = drawn.tensor.size(), threads = Threads();
  const uint64_t first = draws_;
  ParallelFor(threads, [&](int64_t thread) {
    for (int64_t i = size * thread / threads; i < size * (thread + 1) / threads; ++i) {
      values[i] = Draw(first + static_cast<uint64_t>(i), scale);
    }
  });
  draws_ += static_cast<uint64_t>(size);
  const OwnedTensor rounded(dtype, shape);
  Convert(drawn.tensor, rounded.tensor);
  const Tensor tensor = Zeros(dtype, shape);
  Copy(rounded.tensor, tensor);
  return tensor;
}

Tensor BenchDevice::Integers(Shape shape, const std::function<int64_t(int64_t)>& value) {
  const OwnedTensor host(DType::kI32, shape);
  for (int64_t i = 0; i < host.tensor.size(); ++i) {
    host.tensor.data<int32_t>()[i] = static_cast<int32_t>(value(i));
  }
  const Tensor tensor = Zeros(DType::kI32, shape);
  Copy(host.tensor, tensor);
  return tensor;
}

Tensor BenchDevice::Positions(int64_t batch, int64_t time, int64_t first) {
  return Integers({batch, time}, [&](int64_t i) { return first + i % time; });
}

Tensor BenchDevice::Tokens(Shape shape, int64_t vocab) {
  return Integers(shape, [&](int64_t) {
    const double uniform = (1 + static_cast<double>(Draw(draws_++, 1.0f))) / 2;
    return std::min(static_cast<int64_t>(uniform * static_cast<double>(vocab)), vocab - 1);
  });
}

double BenchDevice::SecondsOf(const std::function<void()>& body) const {
  if (device_ == Device::kCuda) return cuda::SecondsOf(body);
  const auto start = Clock::now();
  body();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double BenchDevice::MedianSeconds(const std::function<void()>& body) {
  std::vector<double> seconds;
  SecondsOf(body);  // not counted
  for (int repeat = 0; repeat < repeats_; ++repeat) {
    EvictCaches();
    seconds.push_back(SecondsOf(body));
  }
  return Median(std::move(seconds));
}

// Reading alone: what it leaves in the caches need not be written back while the body runs. On a
// GPU it also keeps the stream busy until the body has been given to it.
void BenchDevice::EvictCaches() {
  if (device_ == Device::kCuda) {
    if (sweep_.bytes() == 0) sweep_ = Buffer(size_t{1} << 28, device_);
    const Tensor sweep = sweep_.At(0, DType::kF32, {int64_t{1} << 26});
    const Mark before = mark();
    const Tensor workspace = Zeros(DType::kF32, {SumOfSquaresWorkspace(sweep)});
    SumOfSquares(sweep, Zeros(DType::kF64, {1}), workspace);
    return Release(before);
  }
  if (sweep_.bytes() == 0) sweep_ = Buffer(SweepBytes());
  const auto* values = static_cast<const float*>(sweep_.data());
  ForShares(static_cast<int64_t>(sweep_.bytes() / sizeof(float)), [&](int64_t begin, int64_t end) {
    // The sum of a sweep of zeros: the compiler cannot know, and must read.
    EYRIE_CHECK(SumOf(values + begin, end - begin) <= 0);
  });
}

double BenchDevice::ReadBandwidth() {
  if (device_ == Device::kCuda) return CopyBandwidth();
  if (read_ == 0) {
    EvictCaches();
    std::vector<double> seconds;
    for (int i = 0; i < repeats_; ++i) seconds.push_back(SecondsOf([&] { EvictCaches(); }));
    read_ = static_cast<double>(sweep_.bytes()) / Median(std::move(seconds));
  }
  return read_;
}

double BenchDevice::CopyBandwidth() {
  if (copy_ > 0) return copy_;
  if (device_ == Device::kCuda) {
    const Mark before = mark();
    const Tensor from = Zeros(DType::kF32, {int64_t{1} << 28});
    const Tensor to = Zeros(DType::kF32, from.shape);
    copy_ = 2 * static_cast<double>(from.bytes()) / MedianSeconds([&] { Copy(from, to); });
    Release(before);
    return copy_;
  }
  const size_t half = SweepBytes() / 2;
  const Buffer from(half), to(half);
  const auto* source = static_cast<const float*>(from.data());
  auto* target = static_cast<float*>(to.data());
  const auto floats = static_cast<int64_t>(half / sizeof(float));
  const auto measure = [&](const auto& copy) {
    const double seconds = MedianSeconds([&] {
      ForShares(floats, [&](int64_t begin, int64_t end) {
        copy(source + begin, target + begin, end - begin);
      });
    });
    return 2 * static_cast<double>(half) / seconds;
  };
  copy_ = std::max(measure([](const float* x, float* y, int64_t count) {
                     std::memcpy(y, x, static_cast<size_t>(count) * sizeof(float));
                   }),
                   measure([](const float* x, float* y, int64_t count) {
                     StreamingCopy(x, y, count);
                     StreamingDone();
                   }));
  return copy_;
}

double BenchDevice::GemmRate() {
  if (gemm_ == 0) {
    const int64_t size = device_ == Device::kCuda ? 8192 : 2048;
    const Mark before = mark();
    const GemmArgs product{.m = size,
                           .n = size,
                           .k = size,
                           .a = Uniform({size, size}),
                           .lda = size,
                           .b = Uniform({size, size}),
                           .ldb = size,
                           .c = Zeros(dtype_, {size, size}),
                           .ldc = size};
    const double seconds = MedianSeconds([&] { Gemm(product); });
    const auto n = static_cast<double>(size);
    gemm_ = 2.0 * n * n * n / seconds;
    Release(before);
  }
  return gemm_;
}

void BenchReport::AddRow(std::vector<nlohmann::ordered_json> values) {
  EYRIE_CHECK(values.size() == columns_.size(), name_);
  rows_.push_back(std::move(values));
}

void BenchReport::Print(bool json) const {
  if (json) {
    nlohmann::ordered_json object{{"benchmark", name_}};
    object.update(facts_);
    auto& rows = object["rows"] = nlohmann::ordered_json::array();
    for (const auto& values : rows_) {
      auto& row = rows.emplace_back();
      for (size_t i = 0; i < columns_.size(); ++i) row[columns_[i]] = values[i];
    }
    std::printf("%s\n", object.dump().c_str());
    return;
  }
  for (const auto& fact : facts_.items()) {
    std::printf("%s: %s\n", fact.key().c_str(), CellText(fact.value()).c_str());
  }
  // Text flush left, numbers flush right.
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    widths.push_back(columns_[i].size());
    for (const auto& row : rows_) widths[i] = std::max(widths[i], CellText(row[i]).size());
  }
  const auto print = [&](const auto& cell) {
    std::string line;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string text = cell(i);
      const std::string blank(widths[i] - text.size(), ' ');
      const bool left = !rows_.empty() && rows_[0][i].is_string();
      line += (i == 0 ? "" : "  ") + (left ? text + blank : blank + text);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::printf("%s\n", line.c_str());
  };
  print([&](size_t i) { return columns_[i]; });
  for (const auto& row : rows_) {
    print([&](size_t i) { return CellText(row[i]); });
  }
}

void AddBenchCommand(CLI::App& app, ExitCode& code) {
  CLI::App* command = app.add_subcommand(
      "bench",
      "Measure this machine's speed, next to what its memory and arithmetic allow.\n\n"
      "Ceilings are measured in the same run, with as many threads. Figures are medians, on "
      "random\n"
      "data. With --json the table is one JSON object.");
  command->require_subcommand(1);
  AddBenchKernels(*command, code);
  AddBenchCheckpoint(*command, code);
  AddBenchStep(*command, code);
  AddBenchDecode(*command, code);
}

}  // namespace eyrie
