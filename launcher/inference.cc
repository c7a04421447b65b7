#include "launcher/inference.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <utility>

#include "launcher/agree.h"
#include "launcher/checkpoint.h"
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/manifest.h"

namespace eyrie {
namespace {

// Tokens of a prompt that run at once.
constexpr int64_t kChunk = 256;

}  // namespace

Inference::Inference(const InferenceOptions& options, Layout layout, Job& job) {
  const auto found =
      FindOnRoot(job.world(), [&] { return std::optional(FindCheckpoint(options.checkpoint)); });
  const std::filesystem::path& checkpoint = found->path;
  const config::Manifest& manifest = found->manifest;
  Collectively(job.world(), [&] {
    tokenizer_ = TokenizerOf(checkpoint, manifest);
    config_ = manifest.config();
    config_.clear_parallel();
    config_.mutable_run()->clear_device();
    config_.mutable_train()->clear_precision();
    config_.mutable_optimizer()->clear_moments();
    if (layout == Layout::kTensor) config_.mutable_parallel()->set_tensor(job.world().size());
    ApplySettings(options.settings, config_);
    Resolve(config_, job.world().size());
    if (layout == Layout::kTensor && config_.parallel().sequence() > 1) {
      ThrowBadInput("parallel.sequence = ", config_.parallel().sequence(),
                    ": decoding runs one token at a time, use parallel.tensor");
    }
    RequireSameModel(manifest.config().model(), config_.model(), checkpoint.string());
  });
  Build(job);
  Collectively(job.world(), [&] { LoadParameters(checkpoint, manifest, *params_); });
}

Inference::Inference(const config::Config& config, Job& job) : config_(config) {
  Collectively(job.world(), [&] {
    config_.clear_parallel();
    config_.mutable_parallel()->set_tensor(job.world().size());
    Resolve(config_, job.world().size());
  });
  Build(job);
  Collectively(job.world(), [&] { params_->Initialise(config_.train().seed()); });
}

void Inference::Build(Job& job) {
  mesh_ = std::make_unique<Mesh>(job.MakeMesh(config_));
  model_ = std::make_unique<Model>(config_.model(), mesh_->shape().tensor);
  Collectively(job.world(), [&] {
    params_ =
        std::make_unique<ParamStore>(model_->params(), *mesh_, PrecisionOf(config_),
                                     /*with_gradients=*/false, BucketOptions{}, DeviceOf(config_));
  });
  arena_ = std::make_unique<Arena>(DeviceOf(config_));
  run_ = std::make_unique<Run>(Run{*mesh_, *params_, *arena_});
}

void Inference::Repeat(Replay& replay, const std::function<void()>& step) {
  replay.Run(run_->params.device(), step);
  mesh_->tensor().Replayed();
}

Decoder::Decoder(Inference& inference, int64_t capacity)
    : inference_(inference),
      state_(inference.model().MakeState(inference.run().params, 1, capacity)),
      next_(inference.model().MakeState(inference.run().params, 1, capacity)),
      tokens_(DType::kI32, {1, kChunk}, inference.run().params.device()),
      positions_(DType::kI32, {1, kChunk}, inference.run().params.device()),
      logits_(DType::kF32, {1, kChunk, inference.config().model().vocab_size()},
              inference.run().params.device()),
      host_logits_(DType::kF32, {1, kChunk, inference.config().model().vocab_size()}) {}

Tensor Decoder::Feed(const std::vector<int32_t>& tokens,
                     const std::function<void(const Tensor&)>& each) {
  const auto total = static_cast<int64_t>(tokens.size());
  const int64_t vocab = logits_.tensor.dim(2);
  EYRIE_CHECK(total > 0);
  Tensor last;
  for (int64_t begin = 0; begin < total; begin += kChunk) {
    const int64_t count = std::min(kChunk, total - begin);
    std::vector<int32_t> fed(tokens.begin() + begin, tokens.begin() + begin + count);
    std::vector<int32_t> places(fed.size());
    std::iota(places.begin(), places.end(), static_cast<int32_t>(position_));
    const auto hand_over = [&](std::vector<int32_t>& from, const OwnedTensor& to) {
      Copy(Tensor{from.data(), DType::kI32, Device::kCpu, {count}},
           to.buffer.At(0, DType::kI32, {count}));
    };
    hand_over(fed, tokens_);
    hand_over(places, positions_);
    const auto first = [&](const OwnedTensor& owned, Shape shape) {
      return owned.buffer.At(0, owned.tensor.dtype, shape);
    };
    inference_.run().positions = first(positions_, {1, count});
    const int64_t wanted = each ? count : 1;
    const Tensor logits = first(logits_, {1, wanted, vocab});
    const auto step = [&] {
      inference_.model().Logits(inference_.run(), first(tokens_, {1, count}), &state_, &next_,
                                logits);
    };
    if (count == 1) {
      inference_.Repeat(steps_[turn_], step);
    } else {
      step();
    }
    std::swap(state_, next_);
    turn_ = 1 - turn_;
    position_ += count;
    const Tensor rows = first(host_logits_, {wanted, vocab});
    Copy(logits.View(rows.shape), rows);
    if (each) each(rows);
    last = rows.Rows(wanted - 1, wanted).View({vocab});
  }
  return last;
}

}  // namespace eyrie
