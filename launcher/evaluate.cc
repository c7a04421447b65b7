#include "launcher/evaluate.h"

#include <algorithm>

namespace eyrie {

Evaluation Evaluate(Run& run, const Model& model, BatchReader& reader, int64_t sequences,
                    int64_t micro_batch) {
  const Communicator& data = run.mesh.data();
  const int64_t share = (sequences + data.size() - 1) / data.size();
  const int64_t begin = std::min(sequences, share * data.rank());
  const int64_t end = std::min(sequences, begin + share);
  const OwnedTensor loss(DType::kF64, {2}, run.params.device());
  for (int64_t first = begin; first < end; first += micro_batch) {
    const int64_t count = std::min(micro_batch, end - first);
    run.positions = reader.positions(count);
    Model::Batch batch = reader.Read(first, count);
    batch.loss = loss.tensor;
    model.Evaluate(run, batch);
  }
  const Loss total = ReadLoss(loss.tensor);
  Communicator& replicas = run.mesh.replicas();
  const double sum = AllReduceValue(replicas, total.sum, ReduceOp::kSum);
  const double valid = AllReduceValue(replicas, static_cast<double>(total.valid), ReduceOp::kSum);
  return {.loss = sum / valid, .tokens = static_cast<int64_t>(valid), .sequences = sequences};
}

}  // namespace eyrie
