// Errors and results. A miss is a value, never an error; an exception never crosses a module.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace larder {

// The closed list of what can go wrong. The server turns each into the prefix of a RESP error
// (error_prefix), the command line into an exit code.
enum class ErrorCode : std::uint8_t {
  internal,        // a bug of Larder
  syntax,          // the request is malformed            ERR
  wrong_type,      // operation against the wrong type    WRONGTYPE
  out_of_memory,   // the memory bound is reached         OOM
  bad_key,         // key of a declared cache, bad part   LARDER_BADKEY
  bad_value,       // a value that cannot be written      LARDER_BADVALUE
  read_only,       // the cache declares no write mode    LARDER_READONLY
  source_down,     // the source cannot be reached        LARDER_SOURCE_DOWN
  source_refused,  // the source refused the statement    LARDER_SOURCE_ERROR
  engine_down,     // the engine cannot be reached        LARDER_ENGINE_DOWN
  timeout,         // a deadline passed                   LARDER_TIMEOUT
  overloaded,      // a queue or pool is at its bound     LARDER_OVERLOADED
  too_large,       // over a configured limit             LARDER_BADVALUE
  unsupported,     // not available here, says what to use ERR
  config,          // the configuration is wrong          (exit 2)
  io,              // a file or socket                    ERR
  cancelled,       // the node is shutting down           ERR
};

struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;  // one line, says what to do where that is known; never a secret
  std::string origin;   // who says so: "sqlite", "config:3:7", "" for Larder itself

  friend bool operator==(const Error&, const Error&) = default;
};

template <class T = void>
using Result = std::expected<T, Error>;

[[nodiscard]] inline std::unexpected<Error> fail(ErrorCode code, std::string message,
                                                 std::string origin = {}) {
  return std::unexpected(Error{code, std::move(message), std::move(origin)});
}

// "LARDER_TIMEOUT", "ERR", ...: the first word of the RESP error.
std::string_view error_prefix(ErrorCode code);

// "LARDER_TIMEOUT message (sqlite)", on one line: CR and LF become spaces.
std::string to_string(const Error& error);

// Invariants of Larder itself, never input. On in every build: a cache that lies is worse than one
// that stops.
[[noreturn]] void assert_failed(const char* expression, const char* file, int line);
#define LARDER_ASSERT(expression)                               \
  do {                                                          \
    if (!(expression)) [[unlikely]]                             \
      ::larder::assert_failed(#expression, __FILE__, __LINE__); \
  } while (false)

}  // namespace larder
