#include "kernels/mlstm/mlstm_gates.h"

#include "kernels/dispatch.h"
#include "kernels/mlstm/mlstm_gates_cpu.h"
#include "kernels/mlstm/mlstm_gates_cuda.h"

namespace eyrie {
namespace {

// `wide` are the tensors of full precision shaped like the pre-activations.
template <class Args>
void CheckGates(const char* kernel, const Args& args, std::initializer_list<Tensor> wide) {
  EYRIE_CHECK(args.i.defined() && args.i.shape.rank() >= 1 && args.i.dim(-1) > 0, kernel,
              ": gates have shape ", args.i.shape.ToString());
  EYRIE_CHECK(args.soft_cap >= 0, kernel, ": soft_cap ", args.soft_cap);
  CheckShape(kernel, "f", args.f, args.i.shape);
  CheckShape(kernel, "bias_i", args.bias_i, {args.i.dim(-1)});
  CheckShape(kernel, "bias_f", args.bias_f, {args.i.dim(-1)});
  for (const Tensor& tensor : wide) CheckShape(kernel, "a logarithm", tensor, args.i.shape);
  CheckTypes(kernel, args.i, args.i.dtype, {args.f});
  CheckTypes(kernel, args.i, FullPrecision(args.i.dtype), {args.bias_i, args.bias_f});
  CheckTypes(kernel, args.i, FullPrecision(args.i.dtype), wide);
}

}  // namespace

void MlstmGatesForward(const MlstmGatesForwardArgs& args) {
  const char* kernel = "MlstmGatesForward";
  CheckGates(kernel, args, {args.log_i, args.log_f});
  const KernelScope timed("mlstm", Moves({args.i, args.f, args.log_i, args.log_f}));
  EYRIE_DISPATCH_CUDA(args.i, MlstmGatesForwardCuda(args));
  DispatchCpu(kernel, args.i, [&](auto real) { MlstmGatesForwardCpu<decltype(real)>(args); });
}

void MlstmGatesBackward(const MlstmGatesBackwardArgs& args) {
  const char* kernel = "MlstmGatesBackward";
  CheckGates(kernel, args, {args.dlog_i, args.dlog_f});
  CheckShape(kernel, "di", args.di, args.i.shape);
  CheckShape(kernel, "df", args.df, args.i.shape);
  CheckShape(kernel, "dbias_i", args.dbias_i, args.bias_i.shape);
  CheckShape(kernel, "dbias_f", args.dbias_f, args.bias_f.shape);
  CheckTypes(kernel, args.i, args.i.dtype, {args.di, args.df});
  CheckTypes(kernel, args.i, FullPrecision(args.i.dtype), {args.dbias_i, args.dbias_f});
  const KernelScope timed("mlstm",
                          Moves({args.i, args.f, args.dlog_i, args.dlog_f, args.di, args.df}));
  EYRIE_DISPATCH_CUDA(args.i, MlstmGatesBackwardCuda(args));
  DispatchCpu(kernel, args.i, [&](auto real) { MlstmGatesBackwardCpu<decltype(real)>(args); });
}

}  // namespace eyrie
