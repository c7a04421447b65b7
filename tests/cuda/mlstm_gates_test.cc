// CUDA bodies of the mLSTM's gates against the CPU's in float64.
#include "kernels/mlstm/mlstm_gates.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

TEST(CudaMlstmGates, ForwardAndBackward) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const Shape& shape : {Shape{1, 1}, Shape{2, 3, 5}, Shape{2, 4099, 8}, Shape{1, 3, 700}}) {
      for (const double cap : {0.0, 15.0}) {
        for (const MlstmGate input : {MlstmGate::kExponential, MlstmGate::kSigmoid}) {
          SCOPED_TRACE(StrCat(Name(dtype), " ", shape.ToString(), " cap ", cap));
          const Shape heads{shape[-1]};
          const OwnedTensor i = RandomTensor(DType::kF32, shape, random, 5);
          const OwnedTensor f = RandomTensor(DType::kF32, shape, random, 5);
          const OwnedTensor bias_i = RandomTensor(DType::kF32, heads, random);
          const OwnedTensor bias_f = RandomTensor(DType::kF32, heads, random);
          const OwnedTensor dlog_i = RandomTensor(DType::kF32, shape, random);
          const OwnedTensor dlog_f = RandomTensor(DType::kF32, shape, random);

          // A run of both passes; `like` makes an input for it, `poisoned` an output.
          struct Outputs {
            OwnedTensor log_i, log_f, di, df, dbias_i, dbias_f;
            std::vector<Tensor> all() const {
              return {log_i.tensor, log_f.tensor,   di.tensor,
                      df.tensor,    dbias_i.tensor, dbias_f.tensor};
            }
          };
          const auto run = [&](const OwnedTensor& ri, const OwnedTensor& rf, const auto& like,
                               const Outputs& out) {
            const OwnedTensor bi = like(bias_i), bf = like(bias_f);
            const OwnedTensor gi = like(dlog_i), gf = like(dlog_f);
            MlstmGatesForward({.i = ri.tensor,
                               .f = rf.tensor,
                               .bias_i = bi.tensor,
                               .bias_f = bf.tensor,
                               .input = input,
                               .soft_cap = cap,
                               .log_i = out.log_i.tensor,
                               .log_f = out.log_f.tensor});
            MlstmGatesBackward({.i = ri.tensor,
                                .f = rf.tensor,
                                .bias_i = bi.tensor,
                                .bias_f = bf.tensor,
                                .input = input,
                                .soft_cap = cap,
                                .dlog_i = gi.tensor,
                                .dlog_f = gf.tensor,
                                .di = out.di.tensor,
                                .df = out.df.tensor,
                                .dbias_i = out.dbias_i.tensor,
                                .dbias_f = out.dbias_f.tensor});
          };
          const Outputs expected{OwnedTensor(DType::kF64, shape), OwnedTensor(DType::kF64, shape),
                                 OwnedTensor(DType::kF64, shape), OwnedTensor(DType::kF64, shape),
                                 OwnedTensor(DType::kF64, heads), OwnedTensor(DType::kF64, heads)};
          run(
              Rounded(i.tensor, dtype), Rounded(f.tensor, dtype),
              [](const OwnedTensor& x) { return Cast(x.tensor, DType::kF64); }, expected);
          const auto run_there = [&] {
            Outputs out{PoisonedCuda(DType::kF32, shape), PoisonedCuda(DType::kF32, shape),
                        PoisonedCuda(dtype, shape),       PoisonedCuda(dtype, shape),
                        ZeroCuda(DType::kF32, heads),     ZeroCuda(DType::kF32, heads)};
            run(
                ToCuda(i.tensor, dtype), ToCuda(f.tensor, dtype),
                [](const OwnedTensor& x) { return ToCuda(x.tensor); }, out);
            return out;
          };
          const Outputs one = run_there(), two = run_there();
          for (size_t k = 0; k < one.all().size(); ++k) {
            const bool narrow = one.all()[k].dtype == DType::kBF16;
            EXPECT_LT(RelativeError(ToHost(one.all()[k]).tensor, expected.all()[k]),
                      narrow ? 1e-2 : 1e-5)
                << "output " << k;
            EXPECT_TRUE(BitwiseEqual(ToHost(one.all()[k]).tensor, ToHost(two.all()[k]).tensor));
          }
        }
      }
    }
  }
}

TEST(CudaMlstmGates, RefuseWrongTypes) {
  const OwnedTensor x = ZeroCuda(DType::kBF16, {3, 5}), bias = ZeroCuda(DType::kF32, {5});
  const OwnedTensor narrow = ZeroCuda(DType::kBF16, {5}), log = ZeroCuda(DType::kF32, {3, 5});
  const auto forward = [&](const Tensor& bias_i, const Tensor& log_f) {
    MlstmGatesForward({.i = x.tensor,
                       .f = x.tensor,
                       .bias_i = bias_i,
                       .bias_f = bias.tensor,
                       .log_i = log.tensor,
                       .log_f = log_f});
  };
  EXPECT_NO_THROW(forward(bias.tensor, log.tensor));
  EXPECT_THROW(forward(narrow.tensor, log.tensor), Error);
  EXPECT_THROW(forward(bias.tensor, x.tensor), Error);
}

}  // namespace
}  // namespace eyrie
