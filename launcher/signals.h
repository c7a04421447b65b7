// SIGTERM and SIGINT ask a run to save and end.
#pragma once

namespace eyrie {

// From now on these signals are remembered instead of killing the process.
void WatchSignals();
// The signal received so far, or 0.
int ReceivedSignal();

}  // namespace eyrie
