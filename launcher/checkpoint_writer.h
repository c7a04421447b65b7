// Saving the checkpoints of a run, while training goes on.
//
// A save has two halves. Begin copies what this rank writes, and a thread of its own writes the
// copy to disk; the thread speaks to no other rank. Finish, when all ranks' threads are done, joins
// what they wrote into one checkpoint. Between the two, ranks agree by their own means when that
// is: the trainer sends progress() along with what it reduces at every step.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "launcher/checkpoint.h"
#include "launcher/shard_files.h"

namespace eyrie {

class CheckpointWriter {
 public:
  // Writes one file of the plan, as WriteShard does.
  using ShardSink = std::function<void(const std::filesystem::path& directory, size_t index,
                                       const PieceSource& source, CheckpointPlan& plan)>;

  // Checkpoints go into `directory`, the run's checkpoints/. `config` must be the same on all
  // ranks; all arguments outlive the writer. Collective. The root reads the tokenizer, for every
  // checkpoint to come: its file may be gone by then. Throws kBadInput on every rank without it.
  CheckpointWriter(const std::filesystem::path& directory, const config::Config& config,
                   const Mesh& mesh, const ParamStore& store, ShardSink sink = WriteShard);
  // Drops a save that is under way, after its thread's current tensor.
  ~CheckpointWriter();

  // Starts to save `groups` as the checkpoint of `position.step`. With `asynchronous` it returns
  // when this rank's share is copied, to host memory that is kept for the next save; `groups` may
  // change from then on. Without, it copies nothing and returns when the share is on disk.
  // Collective over mesh.world(), not to be called inside Collectively; the save before must be
  // finished. Throws on every rank if any cannot begin.
  void Begin(const std::vector<NamedFlat>& groups, const Position& position, bool asynchronous);

  // Between Begin and Finish.
  bool under_way() const { return save_ != nullptr; }
  // Of the copy that it keeps for asynchronous saves, and has from the first one on.
  size_t copy_bytes() const { return snapshot_.bytes(); }
  // How this rank's share is doing. In the order of urgency: of all ranks, the largest says what
  // to do, which is to Finish unless it is kWriting.
  enum class Progress : int { kDone, kWriting, kFailed };
  Progress progress() const;

  // Waits for the shares of all ranks and completes the checkpoint, replacing one of the same step.
  // Collective, like Begin. Throws on every rank if any failed (kFailed: disk full, ...); then the
  // directory holds the checkpoints that it held.
  void Finish();

 private:
  struct Save;

  // Copies the pieces of one file, one after another.
  void TakeSnapshot(const std::vector<NamedFlat>& groups, const CheckpointPlan& plan,
                    const CheckpointPlan::File& file);

  const std::filesystem::path directory_;
  const config::Config& config_;
  const Mesh& mesh_;
  const ParamStore& store_;
  const ShardSink sink_;
  std::vector<std::byte> tokenizer_;  // the root's; empty where a tokenizer has no file
  Buffer snapshot_;  // of all pieces for an asynchronous save; of one, from a GPU, otherwise
  std::unique_ptr<Save> save_;
};

}  // namespace eyrie
