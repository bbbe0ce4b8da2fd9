// Builds what a walsender says, for tests.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "source/postgres/pgoutput.h"

namespace larder::source::postgres::testing {

class Bytes {
 public:
  explicit Bytes(std::string start = {}) : bytes_(std::move(start)) {}
  Bytes& number(std::uint64_t value, int width) {
    for (int i = width - 1; i >= 0; --i) bytes_ += static_cast<char>(value >> 8 * i & 0xff);
    return *this;
  }
  Bytes& u8(std::uint64_t v) { return number(v, 1); }
  Bytes& u16(std::uint64_t v) { return number(v, 2); }
  Bytes& u32(std::uint64_t v) { return number(v, 4); }
  Bytes& u64(std::uint64_t v) { return number(v, 8); }
  Bytes& time(TimeUs at) { return u64(static_cast<std::uint64_t>(at - 946'684'800 * kSecond)); }
  Bytes& raw(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  Bytes& text(std::string_view text) { return raw(text).u8(0); }
  const std::string& str() const { return bytes_; }

 private:
  std::string bytes_;
};

// A field: a text, NULL (nullopt), or kUnchanged.
using Cell = std::optional<std::string>;
inline const std::string kUnchanged = "\x01unchanged";
using Cells = std::vector<Cell>;

inline std::string tuple(const Cells& cells) {
  Bytes out;
  out.u16(cells.size());
  for (const Cell& cell : cells) {
    if (!cell)
      out.raw("n");
    else if (*cell == kUnchanged)
      out.raw("u");
    else
      out.raw("t").u32(cell->size()).raw(*cell);
  }
  return out.str();
}

inline std::string begin(Lsn commit, std::uint32_t xid, TimeUs at = 0) {
  return Bytes("B").u64(commit).time(at).u32(xid).str();
}
inline std::string commit(Lsn commit, Lsn end, TimeUs at = 0) {
  return Bytes("C").u8(0).u64(commit).u64(end).time(at).str();
}
// Columns of the key are written "*id".
inline std::string relation(std::uint32_t id, std::string_view schema, std::string_view name,
                            char identity, std::initializer_list<std::string_view> columns) {
  Bytes out("R");
  out.u32(id).text(schema).text(name).raw(std::string(1, identity)).u16(columns.size());
  for (std::string_view column : columns) {
    const bool key = column.starts_with('*');
    if (key) column.remove_prefix(1);
    out.u8(key ? 1 : 0).text(column).u32(25).u32(0xffffffff);
  }
  return out.str();
}
inline std::string insert(std::uint32_t id, const Cells& row) {
  return Bytes("I").u32(id).raw("N").raw(tuple(row)).str();
}
inline std::string update(std::uint32_t id, const Cells& row) {
  return Bytes("U").u32(id).raw("N").raw(tuple(row)).str();
}
// kind: 'K' or 'O'
inline std::string update(std::uint32_t id, char kind, const Cells& old, const Cells& row) {
  return Bytes("U")
      .u32(id)
      .raw(std::string(1, kind))
      .raw(tuple(old))
      .raw("N")
      .raw(tuple(row))
      .str();
}
inline std::string erase(std::uint32_t id, char kind, const Cells& old) {
  return Bytes("D").u32(id).raw(std::string(1, kind)).raw(tuple(old)).str();
}
inline std::string truncate(const std::vector<std::uint32_t>& ids) {
  Bytes out("T");
  out.u32(ids.size()).u8(1);
  for (const std::uint32_t id : ids) out.u32(id);
  return out.str();
}
inline std::string message(bool transactional, Lsn lsn, std::string_view prefix,
                           std::string_view content) {
  return Bytes("M")
      .u8(transactional ? 1 : 0)
      .u64(lsn)
      .text(prefix)
      .u32(content.size())
      .raw(content)
      .str();
}

}  // namespace larder::source::postgres::testing
