// Text and other bytes among the ranks of a group, in memory of the host.
#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.h"

namespace eyrie {

// The root's `text`, whatever the others give. Collective.
std::string BroadcastText(Communicator& group, const std::string& text);

// Every rank's, one after the other, to `take(text)` of the root alone: its own last. Collective;
// ranks other than the root wait for their turn, so `take` must not throw.
void GatherText(Communicator& group, const std::string& text,
                const std::function<void(const std::string& text)>& take);

}  // namespace eyrie
