#include "source/postgres/replication.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace larder::source::postgres {

using namespace pgoutput;  // NOLINT: its messages

namespace {

constexpr std::size_t kMostRelations = 65'536;
constexpr std::size_t kMostReasons = 8;  // lines of one batch
constexpr std::string_view kVersion = "1";

std::unexpected<Error> out_of_order(std::string what) {
  return fail(ErrorCode::source_down, "the replication stream makes no sense: " + std::move(what),
              "postgres");
}

template <class Number>
std::optional<Number> number(std::string_view text) {
  Number value = 0;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), value);
  if (error != std::errc() || end != text.end() || text.empty()) return std::nullopt;
  return value;
}

std::string_view next_word(std::string_view& text) {
  const std::size_t space = std::min(text.find(' '), text.size());
  const std::string_view word = text.substr(0, space);
  text.remove_prefix(std::min(space + 1, text.size()));
  return word;
}

}  // namespace

policy::TxnId widen(std::uint32_t xid, policy::TxnId near) {
  const auto distance = static_cast<std::int32_t>(xid - static_cast<std::uint32_t>(near));
  const policy::TxnId wide = near + static_cast<policy::TxnId>(static_cast<std::int64_t>(distance));
  // Before the first of all: there is no such transaction, the next one with these bits is meant.
  return distance < 0 && wide > near ? wide + (policy::TxnId{1} << 32) : wide;
}

std::string heartbeat_text(std::string_view token, TimeUs at) {
  return fmt::format("{} {} {} ", kVersion, token, at);
}

std::optional<HeartbeatText> parse_heartbeat(std::string_view content) {
  if (next_word(content) != kVersion) return std::nullopt;
  HeartbeatText heartbeat{.token = next_word(content)};
  const auto at = number<TimeUs>(next_word(content));
  const auto xmin = number<policy::TxnId>(content);
  if (!at || !xmin) return std::nullopt;
  heartbeat.at = *at;
  heartbeat.xmin = *xmin;
  return heartbeat;
}

// ---- the stream ----

ChangeLog::ChangeLog(Options options) : options_(std::move(options)) {}

void ChangeLog::set_tables(std::vector<TableName> tables) { options_.tables = std::move(tables); }

void ChangeLog::begin_stream(policy::TxnId near) {
  relations_.clear();
  transaction_.reset();
  near_ = near;
}

void ChangeLog::seek(Lsn position) {
  position_ = position;
  ready_ = {};
  ready_.to = position;
  why_.clear();
}

void ChangeLog::reach(Lsn position) { ready_.to = std::max(ready_.to, position); }

bool ChangeLog::ready() const {
  return ready_.to > position_ || ready_.everything || ready_.heartbeat != 0;
}

ChangeLog::Batch ChangeLog::next() {
  Batch result{.batch = std::exchange(ready_, {}), .why = std::exchange(why_, {})};
  result.batch.from = position_;
  position_ = ready_.to = result.batch.to;
  return result;
}

void ChangeLog::take(const Keepalive& alive) {
  if (!transaction_) reach(alive.end);
}

Result<void> ChangeLog::take(const Message& message) {
  struct Visitor {
    ChangeLog& log;
    Result<void> operator()(const Begin& m) const { return log.begin(m); }
    Result<void> operator()(const Commit& m) const { return log.commit(m); }
    Result<void> operator()(const Origin&) const { return {}; }
    Result<void> operator()(const Relation& m) const { return log.relation(m); }
    Result<void> operator()(const Type&) const { return {}; }
    Result<void> operator()(const Insert& m) const {
      return log.row(m.relation, {.old = nullptr, .now = &m.row});
    }
    Result<void> operator()(const Update& m) const {
      static const OldRow kNothing;  // an update without an old row is not an insert
      return log.row(m.relation, {.old = m.old ? &*m.old : &kNothing, .now = &m.row});
    }
    Result<void> operator()(const Delete& m) const {
      return log.row(m.relation, {.old = &m.old, .now = nullptr});
    }
    Result<void> operator()(const Truncate& m) const { return log.truncate(m); }
    Result<void> operator()(const LogicalMessage& m) const { return log.message(m); }
  };
  return std::visit(Visitor{*this}, message);
}

Result<void> ChangeLog::begin(const Begin& begin) {
  if (transaction_) return out_of_order("a transaction inside a transaction");
  Transaction& transaction = transaction_.emplace(begin, widen(begin.xid, near_));
  near_ = std::max(near_, transaction.x);
  // Positions lie between records: what begins before one ends before it.
  transaction.passed_over = begin.commit < position_;
  return {};
}

Result<void> ChangeLog::commit(const Commit& commit) {
  if (!transaction_) return out_of_order("the end of a transaction that has not begun");
  if (commit.commit != transaction_->begin.commit || commit.end < commit.commit)
    return out_of_order("a transaction ends elsewhere than it says");
  Transaction done = std::move(*transaction_);
  transaction_.reset();
  // The sink may have moved on meanwhile.
  if (done.passed_over || commit.commit < position_) return {};
  reach(commit.end);
  if (done.heartbeat) beat(*done.heartbeat);
  if (done.everything) {
    ready_.everything = true;
    ready_.changes = {};
  }
  if (done.changes.empty() && !done.everything) return {};
  if (ready_.committed_at == 0 || commit.committed_at < ready_.committed_at)
    ready_.committed_at = commit.committed_at;
  if (ready_.everything) return {};
  std::ranges::move(done.changes, std::back_inserter(ready_.changes));
  return {};
}

Result<void> ChangeLog::relation(const Relation& relation) {
  if (relations_.size() >= kMostRelations && !relations_.contains(relation.id))
    return out_of_order("too many tables");
  Known known{.name = fmt::format("{}.{}", relation.schema, relation.name),
              .identity = relation.identity,
              .key = {},
              .columns = {},
              .targets = {},
              .broken = {}};
  for (const Column& column : relation.columns) {
    known.key.push_back(column.key);
    known.columns.emplace_back(column.name);
  }
  for (const TableName& table : options_.tables) {
    if (table.schema != relation.schema || table.name != relation.name) continue;
    known.partitioned = table.partitioned;
    Target target{.watched_id = table.watched.id, .columns = {}};
    for (const std::string& column : table.watched.columns) {
      const auto found = std::ranges::find(known.columns, column);
      if (found == known.columns.end() && known.broken.empty())
        known.broken = fmt::format(
            "table {} has no column {} any more, which depends_on names: every change of the table "
            "now voids all entries of the source; change the configuration",
            known.name, column);
      target.columns.push_back(static_cast<std::size_t>(found - known.columns.begin()));
    }
    known.targets.push_back(std::move(target));
  }
  Known& kept = relations_[relation.id] = std::move(known);
  if (!kept.broken.empty()) everything(kept, kept.broken);
  return {};
}

Result<void> ChangeLog::truncate(const Truncate& truncate) {
  if (!transaction_) return out_of_order("a TRUNCATE outside of a transaction");
  for (const std::uint32_t id : truncate.relations) {
    const auto found = relations_.find(id);
    if (found == relations_.end()) return out_of_order("a table that was not described");
    if (found->second.targets.empty()) continue;
    const bool complained = std::exchange(found->second.complained, false);
    everything(found->second, fmt::format("TRUNCATE of {}: all entries of the source are void",
                                          found->second.name));
    found->second.complained = complained;
  }
  return {};
}

Result<void> ChangeLog::message(const LogicalMessage& message) {
  std::optional<HeartbeatText> heartbeat;
  if (message.prefix == kPrefix) heartbeat = parse_heartbeat(message.content);
  if (heartbeat) {
    near_ = std::max(near_, heartbeat->xmin);
    // Another node's time means nothing here.
    if (heartbeat->token != options_.token) heartbeat.reset();
  }
  if (message.transactional) {
    if (!transaction_) return out_of_order("a message outside of its transaction");
    if (heartbeat) transaction_->heartbeat = HeartbeatText{{}, heartbeat->at, heartbeat->xmin};
    return {};
  }
  if (transaction_) return out_of_order("a message inside of another's transaction");
  if (message.lsn <= position_) return {};
  reach(message.lsn);
  if (heartbeat) beat(*heartbeat);
  return {};
}

void ChangeLog::beat(const HeartbeatText& heartbeat) {
  ready_.heartbeat = std::max(ready_.heartbeat, heartbeat.at);
  ready_.xmin = std::max(ready_.xmin, heartbeat.xmin);
}

// ---- rows ----

Result<void> ChangeLog::row(std::uint32_t relation, Row row) {
  if (!transaction_) return out_of_order("a row outside of a transaction");
  const auto found = relations_.find(relation);
  if (found == relations_.end()) return out_of_order("a table that was not described");
  Known& known = found->second;
  const std::size_t columns = known.columns.size();
  const bool fits = (!row.now || row.now->size() == columns) &&
                    (!row.old || row.old->row.empty() || row.old->row.size() == columns);
  if (!fits) return out_of_order(fmt::format("a row of {} with other columns", known.name));
  if (transaction_->passed_over || known.targets.empty()) return {};
  if (!known.broken.empty()) {
    everything(known, known.broken);
    return {};
  }
  for (const Target& target : known.targets)
    if (!transaction_->everything) change(known, target, row);
  return {};
}

void ChangeLog::change(Known& known, const Target& target, Row row) {
  std::vector<Value> before;
  std::vector<Value> after;
  for (const std::size_t column : target.columns) {
    const Seen was = row.old ? old_value(known, row, column) : Seen(Value());
    const Seen is = row.now ? new_value(known, row, column) : Seen(Value());
    if (!was || !is) {
      everything(known, fmt::format("the log does not tell which {} a row of {} had: all entries "
                                    "of the source are void; run `larder source prepare`, or "
                                    "ALTER TABLE {} REPLICA IDENTITY FULL",
                                    known.columns[column], known.name, known.name));
      return;
    }
    before.push_back(*was);
    after.push_back(*is);
  }
  if (row.old) push(target, before);
  if (row.now && !(row.old && before == after)) push(target, after);
}

ChangeLog::Seen ChangeLog::old_value(const Known& known, Row row, std::size_t column) {
  const bool key = known.key[column];
  const auto value_of = [](const Field& field) -> Seen {
    if (field.kind == Field::Kind::unchanged) return std::nullopt;
    if (field.kind == Field::Kind::null) return Value();
    return Value(field.text);
  };
  if (row.old->row.empty()) {
    // Nothing of the identity has changed, so that the new row shows it. An identity of all columns
    // would have been sent: this comes from a partition that has another one.
    if (!key || known.identity == 'f' || known.identity == 'n' || !row.now) return std::nullopt;
    return value_of((*row.now)[column]);
  }
  const Field& field = row.old->row[column];
  if (!row.old->whole && (!key || field.kind == Field::Kind::null)) return std::nullopt;
  // The table says how rows are described, but each partition decides what of them is logged: what
  // seems to be NULL may have been left out.
  if (known.partitioned && field.kind == Field::Kind::null) return std::nullopt;
  return value_of(field);
}

ChangeLog::Seen ChangeLog::new_value(const Known& known, Row row, std::size_t column) {
  const Field& field = (*row.now)[column];
  switch (field.kind) {
    case Field::Kind::null: return Value();
    case Field::Kind::value: return Value(field.text);
    case Field::Kind::unchanged:
      // Not in the new row again: the old one has it or nobody.
      if (!row.old || row.old->row.empty()) return std::nullopt;
      return old_value(known, row, column);
  }
  return std::nullopt;
}

void ChangeLog::everything(Known& known, std::string why) {
  if (transaction_ && transaction_->passed_over) return;
  if (transaction_) {
    transaction_->everything = true;
    transaction_->changes = {};
  } else {
    ready_.everything = true;
    ready_.changes = {};
  }
  if (std::exchange(known.complained, true) || why_.size() >= kMostReasons) return;
  why_.push_back(std::move(why));
}

void ChangeLog::push(const Target& target, const std::vector<Value>& values) {
  RowChange change{.watched_id = target.watched_id, .values = {}, .x = transaction_->x};
  change.values.reserve(values.size());
  for (const Value& value : values)
    change.values.push_back(value ? std::optional<std::string>(*value) : std::nullopt);
  std::vector<RowChange>& changes = transaction_->changes;
  changes.push_back(std::move(change));
  if (changes.size() <= options_.most_changes) return;
  transaction_->everything = true;
  changes = {};
  if (why_.size() < kMostReasons)
    why_.push_back(
        fmt::format("one transaction made more than {} changes: all entries of the "
                    "source are void",
                    options_.most_changes));
}

}  // namespace larder::source::postgres
