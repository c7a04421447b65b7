// What the benchmarks share: where they run (memory, random data, time and the machine's own rates)
// and how they report.
#pragma once

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "core/tensor.h"

namespace CLI {
class App;
}

namespace eyrie {

// The device that benchmarks measure, and all that depends on it: allocation, data and clocks.
class BenchDevice {
 public:
  // Timings are medians of `repeats`, after one that is not counted. Random data is of type
  // `dtype`.
  explicit BenchDevice(int repeats, Device device = Device::kCpu, DType dtype = DType::kF32)
      : repeats_(repeats), device_(device), dtype_(dtype) {}

  DType dtype() const { return dtype_; }
  DType full() const { return FullPrecision(dtype_); }

  // Tensors that live as long as this object, or until Release with a mark from before them.
  Tensor Zeros(DType dtype, Shape shape);
  // Uniform in [-scale, scale); each call draws anew. In `dtype`, unless another is asked for.
  Tensor Uniform(Shape shape, float scale = 1.0f) { return Uniform(dtype_, shape, scale); }
  Tensor Uniform(DType dtype, Shape shape, float scale);
  // Element i is value(i), as int32.
  Tensor Integers(Shape shape, const std::function<int64_t(int64_t)>& value);
  // [B, T]: each sequence is one document, or comes `first` tokens after its start.
  Tensor Positions(int64_t batch, int64_t time, int64_t first = 0);
  // Int32, uniform in [0, vocab).
  Tensor Tokens(Shape shape, int64_t vocab);
  using Mark = size_t;
  Mark mark() const { return owned_.size(); }
  void Release(Mark mark) { owned_.resize(mark); }

  // The median time of `body`, in seconds. Before each call that counts the caches are filled with
  // other data, so that the body meets its own in main memory, as a step that has passed over all
  // others does.
  double MedianSeconds(const std::function<void()>& body);
  // The time of one call, as it is, until the device is done with it.
  double SecondsOf(const std::function<void()>& body) const;

  // What memory and arithmetic allow, measured with this thread count, each once.
  double CopyBandwidth();  // bytes read plus bytes written a second, by the faster of two copies
  double ReadBandwidth();  // bytes read a second; on a GPU that of a copy
  double GemmRate();       // FLOPs a second, of a product of square matrices of type `dtype`

 private:
  void EvictCaches();

  int repeats_;
  Device device_;
  DType dtype_;
  uint64_t draws_ = 0;
  std::vector<OwnedTensor> owned_;
  Buffer sweep_;  // larger than the last-level cache
  double copy_ = 0.0, read_ = 0.0, gemm_ = 0.0;
};

// A table of measurements. Rows hold a value for each column, a string or a number; null where
// there is none.
class BenchReport {
 public:
  // `columns` are the names of the values, with their unit, e.g. "seconds" or "gb_per_s".
  BenchReport(std::string name, std::vector<std::string> columns)
      : name_(std::move(name)), columns_(std::move(columns)) {}

  // A value that holds for the whole table, such as a ceiling.
  void Set(const std::string& name, nlohmann::ordered_json value) { facts_[name] = value; }
  void AddRow(std::vector<nlohmann::ordered_json> values);
  // To stdout: aligned text, or one JSON object {"benchmark", facts..., "rows": [{column: value}]}.
  void Print(bool json) const;

 private:
  std::string name_;
  std::vector<std::string> columns_;
  nlohmann::ordered_json facts_ = nlohmann::ordered_json::object();
  std::vector<std::vector<nlohmann::ordered_json>> rows_;
};

inline double Median(std::vector<double> values) {
  EYRIE_CHECK(!values.empty());
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

// The benchmarks. Each function, in bench_<name>.cc, adds one to the command `bench`.
void AddBenchKernels(CLI::App& bench, ExitCode& code);
void AddBenchCheckpoint(CLI::App& bench, ExitCode& code);
void AddBenchStep(CLI::App& bench, ExitCode& code);
void AddBenchDecode(CLI::App& bench, ExitCode& code);

}  // namespace eyrie
