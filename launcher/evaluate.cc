#include "launcher/evaluate.h"

#include <algorithm>

#include "core/round.h"
#include "launcher/agree.h"
#include "layers/chunked.h"

namespace eyrie {
namespace {

struct Counts {
  int64_t right = 0;      // labels predicted
  int64_t sequences = 0;  // with a label that counts
  int64_t exact = 0;      // of these, with all labels predicted
};

// Copies [B, T] int32 to the host.
OwnedTensor ToHost(const Tensor& from) {
  OwnedTensor host(from.dtype, from.shape);
  Copy(from, host.tensor);
  return host;
}

// Adds a batch's, whose sequences may lie on several ranks: every rank of the sequence axis counts
// its own labels, and whole sequences. Collective over that axis.
void Count(const Mesh& mesh, const Tensor& labels, const Tensor& predicted, Counts& counts) {
  const OwnedTensor label = ToHost(labels), id = ToHost(predicted);
  const int64_t sequences = labels.dim(0), tokens = labels.dim(1);
  const OwnedTensor sums(DType::kI32, {sequences, 2});  // labels that count, and those predicted
  int32_t* sum = sums.tensor.data<int32_t>();
  for (int64_t i = 0; i < sequences * tokens; ++i) {
    const int32_t wanted = label.tensor.data<int32_t>()[i];
    if (wanted < 0) continue;
    const bool right = id.tensor.data<int32_t>()[i] == wanted;
    sum[i / tokens * 2] += 1;
    sum[i / tokens * 2 + 1] += right ? 1 : 0;
    counts.right += right ? 1 : 0;
  }
  mesh.sequence().AllReduce(sums.tensor, ReduceOp::kSum).Wait();
  for (int64_t b = 0; b < sequences; ++b) {
    if (sum[2 * b] == 0) continue;
    counts.sequences += 1;
    counts.exact += sum[2 * b] == sum[2 * b + 1] ? 1 : 0;
  }
}

}  // namespace

Evaluation Evaluate(Run& run, const Model& model, BatchReader& reader, int64_t sequences,
                    int64_t micro_batch, int64_t chunk_length) {
  const Communicator& data = run.mesh.data();
  const int64_t share = CeilDiv(sequences, data.size());
  const int64_t begin = std::min(sequences, share * data.rank());
  const int64_t end = std::min(sequences, begin + share);
  const ArenaScope evaluation(run.arena);
  const Tensor loss = run.arena.Allocate(DType::kF64, {2});
  FillZero(loss);
  Counts counts;
  for (int64_t first = begin; first < end; first += micro_batch) {
    const int64_t count = std::min(micro_batch, end - first);
    run.positions = reader.positions(count);
    Model::Batch batch = reader.Read(first, count);
    batch.loss = loss;
    ArenaScope scope(run.arena);
    Count(run.mesh, batch.labels, Evaluate(model, run, batch, chunk_length), counts);
  }
  const Loss total = ReadLoss(loss);
  const auto sum = [&](Communicator& ranks, auto value) {
    return AllReduceValue(ranks, static_cast<double>(value), ReduceOp::kSum);
  };
  Communicator& replicas = run.mesh.replicas();
  const double valid = sum(replicas, total.valid);
  if (valid == 0) {
    throw AgreedError(ExitCode::kBadInput,
                      run.mesh.is_root()
                          ? StrCat(reader.prefix(), ".labels.bin: no label counts in ",
                                   "the first ", sequences, " sequences")
                          : "");
  }
  return {.loss = sum(replicas, total.sum) / valid,
          .accuracy = sum(replicas, counts.right) / valid,
          .exact_sequences =
              sum(run.mesh.data(), counts.exact) / sum(run.mesh.data(), counts.sequences),
          .tokens = static_cast<int64_t>(valid),
          .sequences = sequences};
}

}  // namespace eyrie
