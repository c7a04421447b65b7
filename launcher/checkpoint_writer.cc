#include "launcher/checkpoint_writer.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "core/device.h"
#include "core/mapped_file.h"
#include "core/round.h"
#include "core/threads.h"
#include "launcher/agree.h"
#include "launcher/staged_directory.h"
#include "launcher/tokenizer.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// Completes every rank's manifest: each has filled in what it wrote itself, and zero is the start
// of everything else.
void ShareChecksums(Communicator& world, CheckpointPlan& plan) {
  std::vector<uint32_t> words;
  const auto visit = [&](const auto& number) {
    for (auto& file : *plan.manifest.mutable_file()) {
      file.set_size(static_cast<int64_t>(number(static_cast<uint64_t>(file.size()))));
      file.set_header_xxh3(number(file.header_xxh3()));
    }
    for (auto& tensor : *plan.manifest.mutable_tensor()) {
      for (auto& piece : *tensor.mutable_piece()) piece.set_xxh3(number(piece.xxh3()));
    }
  };
  visit([&](uint64_t number) {
    words.push_back(static_cast<uint32_t>(number));
    words.push_back(static_cast<uint32_t>(number >> 32));
    return number;
  });
  // Sums with one term that is not zero: no carries, so two halves make a whole again.
  const Tensor view{words.data(), DType::kI32, Device::kCpu, {static_cast<int64_t>(words.size())}};
  world.AllReduce(view, ReduceOp::kSum).Wait();
  size_t next = 0;
  visit([&](uint64_t) {
    const uint64_t low = words[next], high = words[next + 1];
    next += 2;
    return high << 32 | low;
  });
}

CheckpointPlan PlanSave(const config::Config& config, const Mesh& mesh, const ParamStore& store,
                        const std::vector<NamedFlat>& groups, const Position& position) {
  std::vector<StoredGroup> stored;
  for (const NamedFlat& group : groups)
    stored.push_back({group.prefix, group.flat.dtype, group.owned});
  CheckpointPlan plan = PlanCheckpoint(store.table(), stored, mesh.shape(), store.plan());
  plan.manifest.set_step(position.step);
  plan.manifest.set_samples(position.samples);
  plan.manifest.set_tokens(position.tokens);
  *plan.manifest.mutable_config() = config;
  return plan;
}

// To host memory; there on all threads of this rank.
void CopyOut(const char* from, Device device, char* to, size_t bytes) {
  if (device != Device::kCpu) return CopyBytes(to, Device::kCpu, from, device, bytes);
  constexpr size_t kChunk = size_t{4} << 20;
  ParallelFor(static_cast<int64_t>(CeilDiv(bytes, kChunk)), [&](int64_t chunk) {
    const size_t begin = static_cast<size_t>(chunk) * kChunk;
    std::memcpy(to + begin, from + begin, std::min(kChunk, bytes - begin));
  });
}

}  // namespace

// A save under way. While its thread runs, `plan` and `error` are the thread's alone.
struct CheckpointWriter::Save {
  CheckpointPlan plan;
  fs::path target, temporary;
  // Held by the root alone, and gone with it unless renamed.
  std::optional<StagedDirectory> staged;
  std::exception_ptr error;
  std::atomic<Progress> progress = Progress::kDone;
  std::jthread thread;  // last: it ends before what it uses goes

  // Writes this rank's file, if it has one.
  void Write(const ShardSink& sink, size_t file, const PieceSource& source) {
    try {
      sink(temporary, file, source, plan);
      progress = Progress::kDone;
    } catch (...) {
      error = std::current_exception();
      progress = Progress::kFailed;
    }
  }
};

CheckpointWriter::CheckpointWriter(const fs::path& directory, const config::Config& config,
                                   const Mesh& mesh, const ParamStore& store, ShardSink sink)
    : directory_(directory), config_(config), mesh_(mesh), store_(store), sink_(std::move(sink)) {
  Collectively(mesh.world(), [&] {
    const std::string tokenizer = ModelFileOf(config.data().tokenizer());
    if (tokenizer.empty() || !mesh.is_root()) return;
    const MappedFile file(tokenizer);
    tokenizer_.assign(file.bytes().begin(), file.bytes().end());
  });
}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::Begin(const std::vector<NamedFlat>& groups, const Position& position,
                             bool asynchronous) {
  EYRIE_CHECK(!under_way());
  CheckGroups(store_, groups);
  Communicator& world = mesh_.world();
  auto save = std::make_unique<Save>();
  save->plan = PlanSave(config_, mesh_, store_, groups, position);
  const auto& files = save->plan.files;
  const auto file = std::find_if(files.begin(), files.end(), [&](const CheckpointPlan::File& each) {
    return each.rank == world.rank();
  });
  const auto id =
      static_cast<int64_t>(AllReduceValue(world, mesh_.is_root() ? getpid() : 0, ReduceOp::kMax));
  save->target = directory_ / CheckpointName(position.step);
  save->temporary = TemporaryName(save->target, id);
  Collectively(world, [&] {
    if (mesh_.is_root()) save->staged.emplace(save->temporary);
    if (asynchronous && file != files.end()) TakeSnapshot(groups, save->plan, *file);
  });
  save_ = std::move(save);
  if (file == files.end()) return;
  const auto index = static_cast<size_t>(file - files.begin());
  if (!asynchronous) {
    save_->Write(sink_, index, [&](const PlannedPiece& piece) -> const void* {
      const NamedFlat& group = groups[piece.group];
      const char* from = group.At(piece.offset);
      if (group.flat.device == Device::kCpu) return from;
      const size_t bytes = BytesOf(save_->plan, piece);
      if (bytes > snapshot_.bytes()) snapshot_ = Buffer(bytes);
      CopyOut(from, group.flat.device, static_cast<char*>(snapshot_.data()), bytes);
      return snapshot_.data();
    });
    return;
  }
  save_->progress = Progress::kWriting;
  save_->thread = std::jthread([this, mine = save_.get(), index](const std::stop_token& stop) {
    size_t taken = 0;  // pieces are asked for in the order they were copied
    mine->Write(sink_, index, [&](const PlannedPiece& piece) -> const void* {
      if (stop.stop_requested()) ThrowFailure(mine->temporary.string(), ": not written to its end");
      return static_cast<const char*>(snapshot_.data()) +
             std::exchange(taken, taken + BytesOf(mine->plan, piece));
    });
  });
}

void CheckpointWriter::TakeSnapshot(const std::vector<NamedFlat>& groups,
                                    const CheckpointPlan& plan, const CheckpointPlan::File& file) {
  size_t bytes = 0;
  for (const PlannedPiece& piece : file.pieces) bytes += BytesOf(plan, piece);
  if (bytes > snapshot_.bytes()) snapshot_ = Buffer(bytes);
  char* to = static_cast<char*>(snapshot_.data());
  for (const PlannedPiece& piece : file.pieces) {
    const size_t size = BytesOf(plan, piece);
    const NamedFlat& group = groups[piece.group];
    CopyOut(group.At(piece.offset), group.flat.device, to, size);
    to += size;
  }
}

CheckpointWriter::Progress CheckpointWriter::progress() const {
  return under_way() ? save_->progress.load() : Progress::kDone;
}

void CheckpointWriter::Finish() {
  EYRIE_CHECK(under_way());
  // A disk may stall for longer than ranks wait for one another: they meet while any still writes.
  const auto writing = [&] {
    const double mine = progress() == Progress::kWriting ? 1 : 0;
    return AllReduceValue(mesh_.world(), mine, ReduceOp::kMax) != 0;
  };
  while (writing()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  // If an error leaves this function, the staged directory goes; all ranks have stopped writing.
  if (save_->thread.joinable()) save_->thread.join();
  const std::unique_ptr<Save> save = std::move(save_);
  Collectively(mesh_.world(), [&] {
    if (save->error) std::rethrow_exception(save->error);
  });
  ShareChecksums(mesh_.world(), save->plan);
  Collectively(mesh_.world(), [&] {
    if (!mesh_.is_root()) return;
    config::Manifest& manifest = save->plan.manifest;
    if (!tokenizer_.empty()) AddFile(save->temporary, kTokenizerName, tokenizer_, manifest);
    WriteManifest(save->temporary, manifest);
    save->staged->Replace(save->target);
  });
}

}  // namespace eyrie
