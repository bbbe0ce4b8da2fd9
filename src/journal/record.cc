#include "journal/record.h"

#include <optional>

namespace larder::journal {
namespace {

constexpr char kVersion = 1;

template <class T>
void put(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_text(std::string& to, std::string_view text) {
  put(to, static_cast<std::uint32_t>(text.size()));
  to.append(text);
}

// Takes from the front; after a failure everything is 0 or empty.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  template <class T>
  T number() {
    T value{};
    if (rest_.size() < sizeof value) return fail<T>();
    rest_.copy(reinterpret_cast<char*>(&value), sizeof value);
    rest_.remove_prefix(sizeof value);
    return value;
  }
  std::string text() {
    const auto size = number<std::uint32_t>();
    if (rest_.size() < size) return fail<std::string>();
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return text;
  }
  std::size_t left() const { return rest_.size(); }
  bool failed() const { return failed_; }

 private:
  template <class T>
  T fail() {
    failed_ = true;
    rest_ = {};
    return T{};
  }
  std::string_view rest_;
  bool failed_ = false;
};

}  // namespace

std::string encode(const Record& record) {
  LARDER_ASSERT(record.kind != Record::Kind::write || !record.ops.empty());
  std::string bytes(1, kVersion);
  put(bytes, record.kind);
  put(bytes, record.upto);
  put(bytes, record.written_at);
  put_text(bytes, record.source);
  put(bytes, static_cast<std::uint32_t>(record.ops.size()));
  for (const Op& op : record.ops) {
    put(bytes, op.kind);
    put(bytes, op.delta);
    put_text(bytes, op.cache);
    put_text(bytes, op.key);
    put_text(bytes, op.value);
  }
  return bytes;
}

Result<Record> decode_record(std::string_view bytes) {
  Reader reader(bytes);
  if (reader.number<char>() != kVersion)
    return fail(ErrorCode::config, "a record of the journal is of another version of Larder",
                "journal");
  Record record;
  record.kind = reader.number<Record::Kind>();
  record.upto = reader.number<std::uint64_t>();
  record.written_at = reader.number<TimeUs>();
  record.source = reader.text();
  const auto count = reader.number<std::uint32_t>();
  bool known = record.kind >= Record::Kind::write && record.kind <= Record::Kind::yielded &&
               (count > 0 || record.kind != Record::Kind::write);
  for (std::uint32_t i = 0; i < count && !reader.failed() && known; ++i) {
    Op op;
    op.kind = reader.number<Op::Kind>();
    op.delta = reader.number<std::int64_t>();
    op.cache = reader.text();
    op.key = reader.text();
    op.value = reader.text();
    known = op.kind >= Op::Kind::set && op.kind <= Op::Kind::increment;
    record.ops.push_back(std::move(op));
  }
  if (reader.failed() || reader.left() != 0 || !known)
    return fail(ErrorCode::config, "a record of the journal cannot be read", "journal");
  return record;
}

}  // namespace larder::journal
