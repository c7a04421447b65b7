// `eyrie bench checkpoint`: saving and loading, next to writing and reading as many plain bytes.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "launcher/agree.h"
#include "launcher/bucket_options.h"
#include "launcher/checkpoint_writer.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/options.h"
#include "launcher/config.h"
#include "launcher/job.h"
#include "launcher/staged_directory.h"
#include "layers/model.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

struct CheckpointOptions {
  ConfigOptions config;
  std::string directory;
  int repeats = 3;
  bool json = false;
};

// A file accessed as plainly as can be.
class PlainFile {
 public:
  PlainFile(const fs::path& path, int flags)
      : path_(path), descriptor_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    Check(descriptor_);
  }
  ~PlainFile() { close(descriptor_); }
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;

  void Write(const void* data, size_t bytes) {
    EYRIE_CHECK(Check(write(descriptor_, data, bytes)) == static_cast<ssize_t>(bytes));
  }
  size_t Read(void* data, size_t bytes) {
    return static_cast<size_t>(Check(read(descriptor_, data, bytes)));
  }
  void Sync() { Check(fsync(descriptor_)); }
  // What is on disk is no longer in memory: the next reader waits for the disk.
  void Forget() {
    errno = posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
    Check(errno == 0 ? 0 : -1);
  }

 private:
  ssize_t Check(ssize_t result) const {
    if (result < 0) ThrowFailure(path_.string(), ": ", std::strerror(errno));
    return result;
  }
  fs::path path_;
  int descriptor_;
};

// One rank's part in the benchmark.
class CheckpointBench {
 public:
  // `directory` exists, and is the benchmark's own.
  CheckpointBench(const config::Config& config, const Mesh& mesh, const fs::path& directory)
      : config_(config),
        mesh_(mesh),
        directory_(directory),
        model_(config.model(), mesh.shape().tensor),
        params_(model_.params(), mesh, DType::kF32, /*with_gradients=*/false,
                BucketOptionsOf(config.parallel())),
        writer_(directory, config, mesh, params_) {
    params_.Initialise(config.train().seed());
    groups_ = {{"", params_.flat_values()}};
    for (const char* moment : {"adamw.m/", "adamw.v/"}) {
      groups_.push_back({moment, device_.Uniform({params_.plan().owned_elements()}), true});
    }
  }

  BenchReport Measure(int repeats) {
    std::vector<double> save, begin, load, plain_write, plain_read;
    // The first round takes blocks of the disk that later ones find again, and does not count.
    for (int round = 0; round <= repeats; ++round) {
      if (round == 1) {
        for (auto* times : {&save, &begin, &load, &plain_write, &plain_read}) times->clear();
      }
      save.push_back(SecondsToSave(/*asynchronous=*/false));
      Forget();
      load.push_back(SecondsOf(
          [&] { LoadCheckpoint(checkpoint_, ReadManifest(checkpoint_), params_, groups_); }));
      share_ = ShareOfBytes();
      begin.push_back(SecondsToSave(/*asynchronous=*/true));
      RemoveCheckpoint();
      plain_write.push_back(SecondsOf([&] { PlainWrite(); }));
      plain_read.push_back(SecondsOf([&] { PlainRead(); }));
      Collectively(mesh_.world(), [&] { fs::remove(PlainPath()); });
    }
    const double gigabytes = static_cast<double>(total_) / 1e9;
    BenchReport report("checkpoint", {"operation", "seconds", "GB/s", "plain GB/s", "share"});
    report.Set("GB", gigabytes);
    report.Set("ranks", mesh_.world().size());
    const auto add = [&](const char* operation, double seconds, double plain) {
      report.AddRow({operation, seconds, gigabytes / seconds, gigabytes / plain, plain / seconds});
    };
    add("save", Median(save), Median(plain_write));
    add("load", Median(load), Median(plain_read));
    report.AddRow({"begin", Median(begin), gigabytes / Median(begin), nullptr, nullptr});
    return report;
  }

 private:
  static constexpr size_t kChunk = size_t{16} << 20;

  // The time until all ranks are done; all start together.
  double SecondsOf(const std::function<void()>& body) {
    mesh_.world().Barrier();
    return device_.SecondsOf([&] { Collectively(mesh_.world(), body); });
  }
  // How long training would wait for a save: for an asynchronous one, until it has begun.
  double SecondsToSave(bool asynchronous) {
    RemoveCheckpoint();
    mesh_.world().Barrier();
    const double seconds = device_.SecondsOf([&] {
      writer_.Begin(groups_, {.step = 1}, asynchronous);
      if (!asynchronous) writer_.Finish();
    });
    if (asynchronous) writer_.Finish();
    return seconds;
  }
  void RemoveCheckpoint() {
    Collectively(mesh_.world(), [&] {
      if (mesh_.is_root()) fs::remove_all(checkpoint_);
    });
  }
  void Forget() {
    Collectively(mesh_.world(), [&] {
      if (!mesh_.is_root()) return;
      for (const auto& entry : fs::directory_iterator(checkpoint_)) {
        PlainFile(entry.path(), O_RDONLY).Forget();
      }
    });
  }
  // The bytes of the checkpoint, shared out evenly.
  size_t ShareOfBytes() {
    total_ = 0;
    // Together: the root removes the checkpoint later.
    Collectively(mesh_.world(), [&] {
      for (const auto& entry : fs::directory_iterator(checkpoint_)) total_ += entry.file_size();
    });
    return total_ / static_cast<size_t>(mesh_.world().size());
  }
  fs::path PlainPath() const { return directory_ / StrCat("plain-", mesh_.world().rank()); }
  void PlainWrite() {
    const auto* source = static_cast<const char*>(groups_.back().flat.raw);
    const size_t cycle = groups_.back().flat.bytes();
    PlainFile file(PlainPath(), O_WRONLY | O_CREAT | O_EXCL);
    for (size_t done = 0; done < share_;) {
      const size_t bytes = std::min({kChunk, share_ - done, cycle - done % cycle});
      file.Write(source + done % cycle, bytes);
      done += bytes;
    }
    file.Sync();
    file.Forget();
  }
  void PlainRead() {
    if (chunk_.bytes() == 0) chunk_ = Buffer(kChunk);
    PlainFile file(PlainPath(), O_RDONLY);
    while (file.Read(chunk_.data(), kChunk) > 0) {
    }
  }

  const config::Config& config_;
  const Mesh& mesh_;
  const fs::path directory_;
  const fs::path checkpoint_ = directory_ / CheckpointName(1);
  BenchDevice device_{1};
  Model model_;
  ParamStore params_;
  CheckpointWriter writer_;
  std::vector<NamedFlat> groups_;
  Buffer chunk_;
  size_t total_ = 0, share_ = 0;
};

ExitCode BenchCheckpoint(const CheckpointOptions& options, Job& job) {
  config::Config config;
  std::optional<StagedDirectory> own;  // goes when the benchmark ends
  const auto id = static_cast<int64_t>(
      AllReduceValue(job.world(), job.world().rank() == 0 ? getpid() : 0, ReduceOp::kMax));
  const fs::path directory = TemporaryName(fs::path(options.directory) / "bench-checkpoint", id);
  Collectively(job.world(), [&] {
    config = options.config.Load();
    Resolve(config, job.world().size());
    config.mutable_data()->clear_tokenizer();  // need not exist for this
    if (!fs::is_directory(options.directory)) {
      ThrowBadInput("--directory ", options.directory, ": no such directory");
    }
    if (job.world().rank() == 0) own.emplace(directory);
  });
  const Mesh mesh = job.MakeMesh(config);
  const BenchReport report = CheckpointBench(config, mesh, directory).Measure(options.repeats);
  if (mesh.is_root()) report.Print(options.json);
  return ExitCode::kOk;
}

}  // namespace

void AddBenchCheckpoint(CLI::App& bench, ExitCode& code) {
  auto options = std::make_shared<CheckpointOptions>();
  CLI::App* command = bench.add_subcommand(
      "checkpoint",
      "Time saving and loading a checkpoint, moments included.\n\n"
      "The share is of plain files with the same bytes in the same folder, one a rank: written in\n"
      "pieces of 16 MiB and synced, as a save is; read likewise. Both readers find nothing in the\n"
      "page cache. `begin` is how long an asynchronous save keeps training waiting. Under mpirun\n"
      "the ranks share the work. Takes twice the checkpoint's size of memory, and its size on\n"
      "disk.");
  AddConfigOptions(*command, options->config);
  command
      ->add_option("--directory", options->directory, "an existing folder on the disk to measure")
      ->required()
      ->type_name("DIR");
  command->add_option("--repeats", options->repeats, "saves and loads of each kind (default: 3)")
      ->check(PositiveCount());
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &code] {
    code = RunJob([&](Job& job) { return BenchCheckpoint(*options, job); });
  });
}

}  // namespace eyrie
