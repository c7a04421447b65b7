#include "launcher/signals.h"

#include <csignal>

namespace eyrie {
namespace {
volatile std::sig_atomic_t received = 0;
}  // namespace

void WatchSignals() {
  struct sigaction action = {};
  action.sa_handler = [](int signal) { received = signal == SIGUSR1 ? SIGTERM : signal; };
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

int ReceivedSignal() { return received; }

}  // namespace eyrie
