#include "base/error.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

namespace larder {

std::string_view error_prefix(ErrorCode code) {
  switch (code) {
    case ErrorCode::wrong_type: return "WRONGTYPE";
    case ErrorCode::out_of_memory: return "OOM";
    case ErrorCode::bad_key: return "LARDER_BADKEY";
    case ErrorCode::bad_value:
    case ErrorCode::too_large: return "LARDER_BADVALUE";
    case ErrorCode::read_only: return "LARDER_READONLY";
    case ErrorCode::source_down: return "LARDER_SOURCE_DOWN";
    case ErrorCode::source_refused: return "LARDER_SOURCE_ERROR";
    case ErrorCode::engine_down: return "LARDER_ENGINE_DOWN";
    case ErrorCode::timeout: return "LARDER_TIMEOUT";
    case ErrorCode::overloaded: return "LARDER_OVERLOADED";
    case ErrorCode::internal:
    case ErrorCode::syntax:
    case ErrorCode::unsupported:
    case ErrorCode::config:
    case ErrorCode::io:
    case ErrorCode::cancelled: return "ERR";
  }
  return "ERR";
}

std::string to_string(const Error& error) {
  std::string text =
      error.origin.empty()
          ? fmt::format("{} {}", error_prefix(error.code), error.message)
          : fmt::format("{} {} ({})", error_prefix(error.code), error.message, error.origin);
  for (char& c : text)
    if (c == '\r' || c == '\n') c = ' ';
  return text;
}

void assert_failed(const char* expression, const char* file, int line) {
  fmt::print(stderr, "larder: broken invariant: {} at {}:{}\n", expression, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace larder
