// The index is the input; the tokens are always the same few bytes.
#include <algorithm>

#include "launcher/indexed_dataset.h"
#include "tests/fuzz/fuzz.h"

namespace eyrie {
namespace {

constexpr size_t kDataBytes = 4096;

}  // namespace

std::vector<std::string> FuzzSeeds() {
  const FuzzFolder folder;
  std::vector<std::string> seeds;
  for (const int64_t vocab : {100, 100'000}) {
    IndexedDatasetWriter writer((folder / "set").string(), vocab);
    for (const size_t tokens : {5, 1, 12}) writer.AddDocument(std::vector<int32_t>(tokens, 7));
    writer.Finish();
    seeds.push_back(Content(folder / "set.idx"));
  }
  return seeds;
}

}  // namespace eyrie

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace eyrie;
  static const FuzzFolder folder;
  static const auto tokens = folder.Write("set.bin", std::string(kDataBytes, '\1'));
  folder.Write("set.idx", {reinterpret_cast<const char*>(data), size});
  return AllowBadInput([&] {
    const IndexedDataset dataset((folder / "set").string());
    const int64_t total = dataset.total_tokens();
    std::vector<int32_t> out(static_cast<size_t>(std::min<int64_t>(total, 1000)));
    const auto count = static_cast<int64_t>(out.size());
    for (const int64_t first : {int64_t{0}, (total - count) / 2, total - count}) {
      dataset.CheckTokens(INT32_MAX, first, count);
      dataset.Read(first, count, out.data());
      if (count > 0) {
        const int64_t start = dataset.DocumentStartAtOrBefore(first);
        if (start < 0 || start > first) std::abort();
      }
    }
  });
}
