#include "core/threads.h"

#include <omp.h>

namespace eyrie {

void SetThreads(int threads) { omp_set_num_threads(threads); }
int Threads() { return omp_get_max_threads(); }

}  // namespace eyrie
