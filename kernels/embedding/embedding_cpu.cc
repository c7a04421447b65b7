#include "kernels/embedding/embedding_cpu.h"

#include "core/round.h"
#include "kernels/partition.h"
#include "kernels/row_math.h"

namespace eyrie {

// N tokens, V rows of the table here, D width.

template <class T>
void EmbeddingForwardCpu(const EmbeddingForwardArgs& args) {
  const int32_t* tokens = args.tokens.data<int32_t>();
  const T* table = args.table.data<T>();
  T* y = args.y.data<T>();
  const int64_t rows = args.table.dim(0);
  const int64_t width = args.table.dim(1);
  const T scale = static_cast<T>(args.scale);
  ForPieces(args.tokens.size(), args.y.size(), [&](int64_t n) {
    const int64_t row = tokens[n] - args.first_row;
    T* y_row = y + n * width;
    if (row < 0 || row >= rows) {
      std::fill(y_row, y_row + width, T(0));
      return;
    }
    ScaleRow(scale, table + row * width, y_row, width);
  });
}

// A thread owns a block of columns and walks all tokens in order, so that a token that occurs
// more than once is added up in one order and no two threads write to one element.
template <class T>
void EmbeddingBackwardCpu(const EmbeddingBackwardArgs& args) {
  constexpr int64_t kColumns = 64;
  const int32_t* tokens = args.tokens.data<int32_t>();
  const T* dy = args.dy.data<T>();
  T* dtable = args.dtable.data<T>();
  const int64_t count = args.tokens.size();
  const int64_t rows = args.dtable.dim(0);
  const int64_t width = args.dtable.dim(1);
  const T scale = static_cast<T>(args.scale);
  ForPieces(CeilDiv(width, kColumns), args.dy.size(), [&](int64_t piece) {
    const int64_t begin = piece * kColumns;
    const int64_t end = std::min(width, begin + kColumns);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t row = tokens[n] - args.first_row;
      if (row < 0 || row >= rows) continue;
      AddScaledRow(scale, dy + n * width + begin, dtable + row * width + begin, end - begin);
    }
  });
}

template void EmbeddingForwardCpu<float>(const EmbeddingForwardArgs&);
template void EmbeddingForwardCpu<double>(const EmbeddingForwardArgs&);
template void EmbeddingBackwardCpu<float>(const EmbeddingBackwardArgs&);
template void EmbeddingBackwardCpu<double>(const EmbeddingBackwardArgs&);

}  // namespace eyrie
