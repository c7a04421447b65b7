#include "core/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "core/checksum.h"
#include "core/memory.h"
#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

// A file from its parts; `length` of the header may lie.
std::string Compose(const std::string& header, const std::string& data, int64_t length = -1) {
  const uint64_t stored = length < 0 ? header.size() : static_cast<uint64_t>(length);
  std::string file(reinterpret_cast<const char*>(&stored), 8);
  return file + header + data;
}

class SafetensorsTest : public TempFolderTest {
 protected:
  // The message refusing this file, which must name it.
  std::string Refusal(const std::string& content) {
    const std::string path = Write("hostile.safetensors", content);
    const std::string message = BadInput([&] { SafetensorsFile file(path); });
    EXPECT_TRUE(message.starts_with(path + ": ")) << message;
    return message;
  }
  std::string RefusedHeader(const std::string& header) {
    return Refusal(Compose(header, "12345678"));
  }
  void WriteSample(const std::string& path) {
    const double wide[] = {1.5, -2.0, 1e300};
    const float rows[] = {1, 2, 3, 4, 5, 6};
    const int32_t scalar[] = {-7};
    const BFloat16 half[] = {BFloat16(0.5f), BFloat16(-3.0f)};
    SafetensorsWriter writer(path,
                             {{"wide", DType::kF64, {3}},
                              {"rows", DType::kF32, {2, 3}},
                              {"scalar", DType::kI32, {}},
                              {"empty", DType::kF32, {0, 4}},
                              {"half", DType::kBF16, {2}}},
                             {{"format", "pt"}, {"note", "a \"quoted\" one"}});
    writer.Write(wide);
    writer.Write(rows);
    writer.Write(scalar);
    writer.Write(nullptr);
    writer.Write(half);
    summary_ = writer.Finish();
  }
  SafetensorsSummary summary_;
};

TEST_F(SafetensorsTest, ReadsWhatItWrote) {
  WriteSample(Path("a.safetensors"));
  const SafetensorsFile file(Path("a.safetensors"));
  EXPECT_EQ(file.size(), summary_.size);
  EXPECT_EQ(file.size(), static_cast<int64_t>(std::filesystem::file_size(file.path())));
  EXPECT_EQ(file.Header().size() % 8, 0u);
  EXPECT_EQ(Checksum(file.Header().data(), file.Header().size()), summary_.header_checksum);
  EXPECT_EQ(file.metadata().at("note"), "a \"quoted\" one");
  ASSERT_EQ(file.entries().size(), 5u);
  OwnedTensor wide(DType::kF64, {3}), rows(DType::kF32, {2, 3}), scalar(DType::kI32, {}),
      half(DType::kBF16, {2});
  file.Read("wide", wide.tensor);
  file.Read("rows", rows.tensor);
  file.Read("scalar", scalar.tensor);
  file.Read("half", half.tensor);
  EXPECT_EQ(wide.tensor.data<double>()[2], 1e300);
  EXPECT_EQ(rows.tensor.data<float>()[5], 6);
  EXPECT_EQ(scalar.tensor.data<int32_t>()[0], -7);
  EXPECT_EQ(static_cast<float>(half.tensor.data<BFloat16>()[1]), -3.0f);
  const auto bytes = file.Bytes(*file.Find("rows"));
  EXPECT_EQ(Checksum(bytes.data(), bytes.size()), summary_.checksums[1]);
  EXPECT_EQ(file.Find("other"), nullptr);
}

TEST_F(SafetensorsTest, TypedReadsCheckNameTypeAndShape) {
  WriteSample(Path("a.safetensors"));
  const SafetensorsFile file(Path("a.safetensors"));
  OwnedTensor to(DType::kF32, {3, 2});
  EXPECT_NE(BadInput([&] { file.Read("none", to.tensor); }).find("\"none\""), std::string::npos);
  EXPECT_NE(BadInput([&] { file.Read("rows", to.tensor); }).find("[2, 3], not [3, 2]"),
            std::string::npos);
  EXPECT_NE(BadInput([&] { file.Read("wide", to.tensor); }).find("is F64, not F32"),
            std::string::npos);
}

TEST_F(SafetensorsTest, ListsTypesItCannotRead) {
  const std::string path = Write(
      "f16", Compose(R"({"h":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}})", "12345678"));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.entries()[0].type, "F16");
  OwnedTensor to(DType::kBF16, {4});
  EXPECT_NE(BadInput([&] { file.Read("h", to.tensor); }).find("F16"), std::string::npos);
}

TEST_F(SafetensorsTest, AnEmptyFileOfNoTensorsIsFine) {
  SafetensorsWriter(Path("none"), {}).Finish();
  EXPECT_TRUE(SafetensorsFile(Path("none")).entries().empty());
}

TEST_F(SafetensorsTest, RefusesDamagedFraming) {
  Refusal("");
  Refusal("1234567");
  EXPECT_NE(Refusal(Compose("{}", "", 3)).find("truncated"), std::string::npos);
  Refusal(Compose("{}", "", 100'000'001));
  Refusal(std::string(8, '\xff') + "{}");
  Refusal(Compose("", ""));
  EXPECT_NE(Refusal(Compose("{}", "x")).find("too long"), std::string::npos);
  const std::string missing = Path("missing");
  EXPECT_NE(BadInput([&] { SafetensorsFile file(missing); }).find(missing), std::string::npos);
  BadInput([&] { SafetensorsFile file(Path(".")); });
}

TEST_F(SafetensorsTest, RefusesBadHeaders) {
  for (
      const char* header : {
          "[]",
          " {}",
          "{",
          "{]",
          "{\"a\":1}",
          "{\"a\":{}}",
          "nonsense",
          "{} x",
          "{\"a\":1e999}",
          "{\"\xff\":1}",
          // one field wrong
          R"({"a":{"dtype":"Q5","shape":[2],"data_offsets":[0,8]}})",
          R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})",
          R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})",
          R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})",
          R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})",
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})",
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})",
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})",
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":["0","8"]}})",
          R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})",
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})",
          R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})",
          // sizes that overflow
          R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})",
          R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})",
          R"({"a":{"dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]}})",
          // places that do not tile the data
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          // metadata
          R"({"__metadata__":[],"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
          R"({"__metadata__":{"k":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
      }) {
    SCOPED_TRACE(header);
    RefusedHeader(header);
  }
  // The same, right: so that none of these is refused for another reason.
  const SafetensorsFile good(Write(
      "good", Compose(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678")));
  EXPECT_EQ(good.entries()[0].bytes, 8u);
}

TEST_F(SafetensorsTest, RefusesKeysThatComeTwice) {
  const std::string tensor = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_NE(RefusedHeader("{\"a\":" + tensor + ",\"a\":" + tensor + "}").find("twice"),
            std::string::npos);
  EXPECT_NE(RefusedHeader(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})")
                .find("twice"),
            std::string::npos);
}

TEST_F(SafetensorsTest, RefusesDeepNestingAndKeepsNamesOnOneLine) {
  EXPECT_NE(RefusedHeader("{\"a\":" + std::string(1'000'000, '[')).find("nested"),
            std::string::npos);
  RefusedHeader("{\"line\\nbreak\":{}}");  // Refusal checks for one line
}

TEST_F(SafetensorsTest, TruncationsAreRefusedAndNoChangedByteCrashes) {
  WriteSample(Path("a.safetensors"));
  const std::string whole = Slurp(Path("a.safetensors"));
  for (size_t size = 0; size < whole.size(); size += 3) Refusal(whole.substr(0, size));
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string changed = whole;
    for (unsigned i = 0; i <= random() % 3; ++i) {
      changed[random() % changed.size()] = static_cast<char>(random());
    }
    const std::string path = Write("changed", changed);
    try {
      const SafetensorsFile file(path);
      for (const auto& entry : file.entries()) {
        const auto bytes = file.Bytes(entry);
        Checksum(bytes.data(), bytes.size());
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      EXPECT_TRUE(std::string(error.what()).starts_with(path)) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(SafetensorsTest, AFullDiskIsAFailureThatNamesTheFile) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{4096, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  const std::vector<float> data(4096, 1.0f);
  ExitCode code = ExitCode::kOk;
  std::string message;
  try {
    SafetensorsWriter writer(Path("big"), {{"t", DType::kF32, {4096}}});
    writer.Write(data.data());
    writer.Finish();
  } catch (const Error& error) {
    code = error.code();
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(code, ExitCode::kFailed);
  EXPECT_EQ(message, Path("big") + ": cannot write: " + std::strerror(EFBIG));
}

TEST_F(SafetensorsTest, NeverOverwritesAndReportsAMissingFolder) {
  Write("there", "x");
  for (const std::string& path : {Path("there"), Path("no/such/folder")}) {
    try {
      SafetensorsWriter writer(path, {});
      ADD_FAILURE() << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kFailed);
      EXPECT_TRUE(std::string(error.what()).starts_with(path + ": cannot create: "));
    }
  }
}

}  // namespace
}  // namespace eyrie
