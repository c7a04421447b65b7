#include "launcher/tensorboard.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "launcher/host_name.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "events.out.tfevents.";

double Now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// CRC-32C (Castagnoli, reflected), which is not the CRC-32 of zlib.
constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    table[byte] = crc;
  }
  return table;
}

// As TFRecords store it: rotated, and a constant added, so that a record may hold other CRCs.
uint32_t MaskedCrc(std::string_view bytes) {
  static constexpr auto kTable = MakeCrcTable();
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xff];
  }
  return std::rotr(~crc, 15) + 0xa282ead8u;
}

// Little-endian.
template <class T>
std::string Bytes(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof value; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  return bytes;
}

// TensorBoard reads files in the order of their names: the new one must come last, even after
// another of the same second or a clock that went back.
fs::path NextFile(const fs::path& directory) {
  auto time = static_cast<long long>(Now());
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with(kPrefix)) continue;
    time = std::max(time, std::strtoll(name.c_str() + kPrefix.size(), nullptr, 10) + 1);
  }
  char digits[32];
  std::snprintf(digits, sizeof digits, "%010lld.", time);
  return directory / StrCat(kPrefix, digits, HostName());
}

}  // namespace

TensorboardWriter::TensorboardWriter(const fs::path& directory, int64_t last_step)
    : file_(NextFile(directory)), out_(file_, std::ios::binary) {
  if (!out_) ThrowFailure(file_.string(), ": cannot open for writing");
  tensorboard::Event version;
  version.set_file_version("brain.Event:2");
  Append(version);
  tensorboard::Event start;
  start.set_step(last_step + 1);
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  Append(start);
}

void TensorboardWriter::Write(const StepMetrics& metrics) {
  tensorboard::Event event;
  event.set_step(metrics.step);
  const auto add = [&](const char* tag, double value) {
    auto& scalar = *event.mutable_summary()->add_value();
    scalar.set_tag(tag);
    scalar.set_simple_value(static_cast<float>(value));
  };
  add("loss", metrics.loss);
  if (metrics.validation_loss) add("validation_loss", *metrics.validation_loss);
  if (metrics.validation_accuracy) add("validation_accuracy", *metrics.validation_accuracy);
  add("grad_norm", metrics.grad_norm);
  add("learning_rate", metrics.learning_rate);
  add("tokens_per_second", metrics.tokens_per_second);
  Append(event);
}

void TensorboardWriter::Append(tensorboard::Event& event) {
  event.set_wall_time(Now());
  const std::string data = event.SerializeAsString();
  const std::string length = Bytes(static_cast<uint64_t>(data.size()));
  out_ << length << Bytes(MaskedCrc(length)) << data << Bytes(MaskedCrc(data)) << std::flush;
  if (!out_) ThrowFailure(file_.string(), ": cannot write");
}

}  // namespace eyrie
