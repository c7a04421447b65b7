// Threading of the CPU backend: OpenMP loops over independent pieces.
#pragma once

#include <cstdint>

#include "core/vector_math.h"

namespace eyrie {

// Calls body(i) for i in [0, count), spread over the threads of this rank. Each i must be
// independent of the others, so that results do not depend on the number of threads.
template <class Body>
void ParallelFor(int64_t count, const Body& body) {
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) body(i);
}

void SetThreads(int threads);
int Threads();

}  // namespace eyrie
