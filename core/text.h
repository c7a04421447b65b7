// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace eyrie {

// "13,927,781,376". For value >= 0.
inline std::string WithCommas(int64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace eyrie
