#include "launcher/number_options.h"

#include <CLI/CLI.hpp>
#include <iomanip>

#include "core/error.h"

namespace eyrie {

CLI::Validator Within(double least, double most, const std::string& kind) {
  const auto check = [=](const std::string& text) -> std::string {
    double value = 0.0;
    if (!CLI::detail::lexical_cast(text, value)) return "\"" + text + "\" is not a number";
    if (value >= least && value <= most) return "";
    return StrCat(std::setprecision(10), text, " is not a number from ", least, " to ", most);
  };
  return CLI::Validator(check, kind);
}

CLI::Validator PositiveCount() { return Within(1, kMostOfACount, "POSITIVE"); }
CLI::Validator NonNegativeCount() { return Within(0, kMostOfACount, "NONNEGATIVE"); }

}  // namespace eyrie
