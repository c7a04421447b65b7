// SIGTERM, SIGINT and SIGUSR1 ask a run to save and end. mpirun kills the ranks when it gets one of
// the first two, sooner or later; SIGUSR1 it passes on at once, and waits.
#pragma once

namespace eyrie {

// From now on these signals are remembered instead of killing the process.
void WatchSignals();
// The signal received so far, SIGTERM for SIGUSR1, or 0.
int ReceivedSignal();

}  // namespace eyrie
