// Errors in a job of many ranks. What every rank does at the same point, such as reading files,
// runs inside Collectively: if it fails anywhere, every rank leaves with the same exit code, and
// one of them with the message.
#pragma once

#include <exception>
#include <new>

#include "core/error.h"
#include "parallel/communicator.h"

namespace eyrie {

// An error that all ranks know of: each may simply leave.
class AgreedError : public Error {
 public:
  using Error::Error;
};

// Calls body() on this rank and waits for the others. When it threw on some ranks, throws an
// AgreedError on all: the lowest of those with its own message, the rest with none.
template <class Body>
void Collectively(Communicator& group, const Body& body) {
  int code = 0;
  std::string message;
  try {
    body();
  } catch (const Error& error) {
    code = static_cast<int>(error.code());
    message = error.what();
  } catch (const std::bad_alloc&) {
    code = static_cast<int>(ExitCode::kFailed);
    message = "out of memory";
  } catch (const std::exception& error) {
    code = static_cast<int>(ExitCode::kFailed);
    message = error.what();
  }
  // The lowest failing rank speaks: it has the largest of (size - rank).
  const double speaker =
      AllReduceValue(group, code == 0 ? 0 : group.size() - group.rank(), ReduceOp::kMax);
  if (speaker == 0) return;
  const bool speaks = speaker == group.size() - group.rank();
  const double agreed = AllReduceValue(group, speaks ? code : 0, ReduceOp::kMax);
  throw AgreedError(static_cast<ExitCode>(static_cast<int>(agreed)),
                    speaks ? message : std::string());
}

}  // namespace eyrie
