// What numbers on the command line must be. CLI11's own checks let NaN pass, and spell out the
// largest double where they refuse.
#pragma once

#include <string>

namespace CLI {
class Validator;
}

namespace eyrie {

// Larger sizes are mistakes, and their products overflow.
constexpr double kMostOfACount = 1 << 30;

// Refuses what is not a number in [least, most]. `kind` stands in the help, e.g. "POSITIVE".
CLI::Validator Within(double least, double most, const std::string& kind);
CLI::Validator PositiveCount();     // from 1 to kMostOfACount
CLI::Validator NonNegativeCount();  // from 0 to kMostOfACount

}  // namespace eyrie
