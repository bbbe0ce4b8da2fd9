// The way from the journal to the database.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>

#include "cache/impl.h"
#include "cache/journal_sql.h"
#include "resilience/backoff.h"

namespace larder::cache {
namespace {

constexpr std::size_t kMostRecords = 512;                 // in one transaction
constexpr std::size_t kMostBytes = std::size_t{4} << 20;  // if that is more than one record
constexpr DurationUs kTransaction = 5 * kSecond;          // its deadline: a stop waits so long
constexpr DurationUs kLongestTransaction = 60 * kSecond;  // of one record that takes longer
constexpr resilience::BackoffLimits kBackoff{.first_us = 20 * kMillisecond, .most_us = kSecond};

// What trying again will not change.
bool is_refusal(ErrorCode code) {
  switch (code) {
    case ErrorCode::source_refused:
    case ErrorCode::bad_value:
    case ErrorCode::bad_key:
    case ErrorCode::too_large:
    case ErrorCode::read_only:
    case ErrorCode::syntax:
    case ErrorCode::unsupported: return true;
    default: return false;
  }
}

std::optional<std::int64_t> integer_of(const std::optional<std::string>& text) {
  std::int64_t value = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), value).ec != std::errc())
    return std::nullopt;
  return value;
}

std::string_view kind_of(journal::Op::Kind kind) {
  switch (kind) {
    case journal::Op::Kind::set: return "set";
    case journal::Op::Kind::remove: return "remove";
    case journal::Op::Kind::increment: break;
  }
  return "increment";
}

Error written_since(const boost::json::object& letter) {
  return {ErrorCode::bad_value,
          fmt::format("a newer write to '{}' was applied since: drop this one",
                      std::string_view(letter.at("entry_key").as_string())),
          {}};
}

}  // namespace

Flusher::Flusher(Node::Impl& node, journal::Journal& journal, unsigned source, std::uint64_t seed)
    : node_(node),
      journal_(journal),
      source_(source),
      shard_(fmt::format("{:016x}/{}", journal.id(), node.sources[source]->name)),
      random_(seed),
      limit_(kMostRecords),
      patience_(kTransaction),
      signal_(std::make_shared<Waiters>()) {}

const std::string& Flusher::name() const { return node_.sources[source_]->name; }

source::Dialect Flusher::dialect() const {
  for (const CacheSpec& spec : node_.specs)
    if (spec.source == name()) return spec.dialect;
  return source::Dialect::sqlite;
}

// ---- waking, and what is known of it ----

std::shared_ptr<Waiters> Flusher::arm() {
  MutexLock lock(mutex_);
  if (signal_->notified()) signal_ = std::make_shared<Waiters>();
  return signal_;
}

void Flusher::wake() {
  MutexLock lock(mutex_);
  signal_->notify();
}

std::optional<Error> Flusher::stopped() const {
  MutexLock lock(mutex_);
  return stopped_;
}

std::optional<Error> Flusher::trouble() const {
  MutexLock lock(mutex_);
  return trouble_;
}

void Flusher::give_up(Error error) {
  error.message =
      fmt::format("writes to source '{}' stay in the journal: {}", name(), error.message);
  if (node_.log) node_.log(error.message);
  MutexLock lock(mutex_);
  stopped_ = std::move(error);
}

// Says so once when it begins, and once when it is over.
void Flusher::note_trouble(const Error* error) {
  bool changed = false;
  {
    MutexLock lock(mutex_);
    changed = trouble_.has_value() != (error != nullptr);
    trouble_ = error ? std::optional(*error) : std::nullopt;
  }
  if (!changed || !node_.log) return;
  node_.log(error
                ? fmt::format("writes to source '{}' wait in the journal, and are tried again: {}",
                              name(), error->message)
                : fmt::format("writes to source '{}' flow again", name()));
}

// ---- statements ----

source::Statement Flusher::about_shard(const char* sql) const {
  return {.sql = sql, .params = {{"shard", shard_}}};
}

Result<source::Statement> Flusher::statement_of(const journal::Op& op) const {
  const CacheRuntime* const cache = node_.by_name(op.cache);
  if (cache == nullptr || cache->source != source_)
    return fail(ErrorCode::bad_key,
                fmt::format("the configuration no longer declares cache '{}' with source '{}'",
                            op.cache, name()));
  std::vector<std::string_view> parts;
  if (cache->spec.key.match(op.key, parts) != policy::Match::yes)
    return std::unexpected(bad_key_of(cache->spec, op.key));
  WriteOp write{.key = op.key, .value = op.value, .delta = op.delta};
  if (op.kind == journal::Op::Kind::remove) write.kind = WriteOp::Kind::remove;
  if (op.kind == journal::Op::Kind::increment) write.kind = WriteOp::Kind::increment;
  return node_.statement_of(*cache, write, parts);
}

source::Statement Flusher::dead_letter(journal::Seq seq, std::size_t place, const journal::Op& op,
                                       TimeUs written_at, const std::string& why) const {
  source::Statement statement = about_shard(journal_sql::kAddLetter);
  const auto add = [&](const char* param, source::Value value) {
    statement.params.push_back({param, std::move(value)});
  };
  add("seq", static_cast<std::int64_t>(seq));
  add("place", static_cast<std::int64_t>(place));
  add("cache", op.cache);
  add("key", op.key);
  add("kind", std::string(kind_of(op.kind)));
  add("value", op.value);
  add("delta", op.delta);
  add("written", written_at);
  add("refused", node_.now());
  add("error", why);
  return statement;
}

// ---- the loop ----

Task<void> Flusher::run() {
  resilience::Backoff backoff(kBackoff);
  std::optional<journal::Seq> suspect;  // the record that comes first: it was refused
  std::optional<Error> refused;         // twice
  while (!node_.group.stopping()) {
    const std::shared_ptr<Waiters> signal = arm();
    Outcome outcome = Outcome::done;
    if (!claimed_) {
      const Result<void> claimed = co_await claim();
      met_.notify();
      if (stopped()) co_return;
      if (claimed) continue;
      why_ = claimed.error();
      outcome = Outcome::away;
    } else {
      const journal::Pending::Batch batch =
          journal_.pending().first(name(), refused ? 1 : limit_, kMostBytes);
      if (batch.records.empty()) {
        co_await signal->wait();
        continue;
      }
      outcome = co_await flush(batch, refused);
      if (outcome == Outcome::refused && refused) outcome = Outcome::away;  // its letter, too
      if (outcome == Outcome::away && why_.code == ErrorCode::timeout) {
        if (batch.records.size() == 1) patience_ = std::min(2 * patience_, kLongestTransaction);
        limit_ = std::max<std::size_t>(batch.records.size() / 2, 1);
      }
      if (outcome == Outcome::done) {
        patience_ = kTransaction;
        refused.reset();
        limit_ = std::min(2 * limit_, kMostRecords);
      }
      if (outcome == Outcome::refused) {
        // By halves down to the one that it is. Is it, and not Larder's own tables, or what else
        // was wrong for a moment? Claiming anew tells.
        limit_ = std::max<std::size_t>(batch.records.size() / 2, 1);
        if (batch.records.size() == 1 && suspect == batch.upto()) {
          refused = why_;
        } else if (batch.records.size() == 1) {
          suspect = batch.upto();
          claimed_ = false;
        }
      }
    }
    switch (outcome) {
      case Outcome::done:
        backoff.reset();
        note_trouble(nullptr);
        break;
      case Outcome::refused: break;
      case Outcome::uncertain: claimed_ = false; break;
      case Outcome::away:
        note_trouble(&why_);
        co_await node_.group.sleep_until(node_.now() + backoff.next(random_));
    }
  }
  met_.notify();
}

// Asks what the database has, and makes sure that no older transaction of this journal commits any
// more: the row's lock waits for those under way, the epoch keeps off those to come.
Task<Result<void>> Flusher::claim() {
  std::vector<source::Statement> statements;
  const auto add = [&](const char* sql) -> source::Statement& {
    statements.push_back(about_shard(sql));
    return statements.back();
  };
  add(journal_sql::make_shard(dialect()));
  const auto mine = static_cast<std::int64_t>(random_.next() >> 1);
  source::Statement& take = add(ever_claimed_ ? journal_sql::kClaimAgain : journal_sql::kClaim);
  take.params.push_back({"new", mine});
  if (ever_claimed_) {
    take.params.push_back({"epoch", epoch_});
    take.params.push_back({"tried", tried_});
  }
  tried_ = mine;
  add(journal_sql::kPosition).wants_value = true;
  add(journal_sql::kCountLetters).wants_value = true;
  auto opened = co_await node_.sources[source_]->source->write(std::move(statements),
                                                               node_.now() + kTransaction);
  if (!opened) {
    Error error = opened.error();
    if (is_refusal(error.code))
      error.message =
          fmt::format("{}; `larder source prepare {}` makes the tables", error.message, name());
    co_return std::unexpected(std::move(error));
  }
  const std::unique_ptr<source::Transaction> transaction = std::move(*opened);
  if (transaction->affected()[1] == 0) {
    give_up({ErrorCode::config,
             "another process has taken them over: two nodes use copies of one journal. Stop one "
             "of them, and give it a data_dir of its own",
             "journal"});
    co_return Result<void>();
  }
  const auto seq = integer_of(transaction->values()[2]);
  const auto letters = integer_of(transaction->values()[3]);
  if (!seq || *seq < 0 || !letters)
    co_return fail(ErrorCode::source_refused, "larder_applied holds what Larder did not write");
  const auto has = static_cast<journal::Seq>(*seq);
  if (has >= journal_.next()) {
    give_up({ErrorCode::config,
             fmt::format("the database has writes up to number {} of this journal, which itself "
                         "ends at {}: an older copy of it was put back. Move data_dir/journal away "
                         "(what waits in it is lost), and start again",
                         has, journal_.next() - 1),
             "journal"});
    co_return Result<void>();
  }
  const Result<void> committed = co_await transaction->commit();
  if (!committed) co_return std::unexpected(committed.error());
  if (has < position_ && node_.log)
    node_.log(
        fmt::format("source '{}' has writes up to number {} of the journal, and had them up "
                    "to {}: it was restored, or has failed over to a server that was behind",
                    name(), has, position_));
  epoch_ = mine;
  position_ = has;
  dead_letters_ = *letters;
  claimed_ = ever_claimed_ = true;
  if (has > 0) journal_.applied(name(), has);
  co_return Result<void>();
}

// One transaction. `refused`: why the only record of the batch goes to the dead letters.
Task<Flusher::Outcome> Flusher::flush(const journal::Pending::Batch& batch,
                                      std::optional<Error> refused) {
  std::vector<source::Statement> statements;
  std::vector<std::string> keys;
  if (const char* const durable = journal_sql::be_durable(dialect()); *durable != '\0')
    statements.push_back({.sql = durable, .params = {}});
  const std::size_t advance = statements.size();
  statements.push_back(about_shard(journal_sql::kAdvance));
  for (const auto& [param, value] :
       {std::pair("epoch", epoch_), std::pair("before", static_cast<std::int64_t>(position_)),
        std::pair("seq", static_cast<std::int64_t>(batch.upto()))})
    statements.back().params.push_back({param, value});

  std::int64_t letters = 0;
  const auto add_letter = [&](journal::Seq seq, const journal::Op& op, TimeUs written_at,
                              const std::string& why) {
    statements.push_back(
        dead_letter(seq, static_cast<std::size_t>(letters++), op, written_at, why));
  };
  journal::Coalesced work;
  if (refused) {
    const journal::Pending::Waiting& only = batch.records.front();
    for (const journal::Op& op : only.record->ops)
      add_letter(only.seq, op, only.record->written_at, to_string(*refused));
    for (const journal::Op& op : only.record->ops) keys.push_back(op.key);
  } else {
    work = journal::coalesce(batch);
  }
  for (const auto& [seq, op] : work.yielded) {
    const CacheRuntime* const cache = node_.by_name(op.cache);
    if (cache == nullptr || cache->spec.conflict == Conflict::dead_letter)
      add_letter(seq, op, 0, "others have changed the row meanwhile (conflict = \"dead-letter\")");
  }
  const std::size_t first = statements.size();
  for (const journal::Op& op : work.ops) {
    Result<source::Statement> statement = statement_of(op);
    if (!statement) {
      why_ = statement.error();
      co_return Outcome::refused;
    }
    statements.push_back(std::move(*statement));
    keys.push_back(op.key);
  }
  if (dead_letters_ > 0)
    for (const journal::Op& op : work.ops) {
      statements.push_back(about_shard(journal_sql::kMakeObsolete));
      statements.back().params.push_back({"key", op.key});
    }

  const TimeUs began = node_.now();
  auto opened =
      co_await node_.sources[source_]->source->write(std::move(statements), began + patience_);
  if (!opened) {
    why_ = opened.error();
    co_return is_refusal(why_.code) ? Outcome::refused : Outcome::away;
  }
  const std::unique_ptr<source::Transaction> transaction = std::move(*opened);
  if (transaction->affected()[advance] != 1) co_return Outcome::uncertain;
  for (std::size_t i = 0; i < work.ops.size(); ++i) {
    if (transaction->affected()[first + i] != 0 || work.ops[i].kind == journal::Op::Kind::remove)
      continue;
    why_ = changed_nothing(work.ops[i].key, work.ops[i].kind == journal::Op::Kind::increment);
    co_return Outcome::refused;
  }
  co_await node_.begin_incarnation(source_, transaction->source_id(), began);
  const Result<void> committed =
      co_await node_.commit(source_, *transaction, std::move(keys), true);
  if (!committed) {
    why_ = committed.error();
    co_return is_refusal(why_.code) ? Outcome::refused : Outcome::uncertain;
  }
  position_ = batch.upto();
  dead_letters_ += letters;
  if (letters > 0 && node_.log)
    node_.log(
        fmt::format("source '{}' has refused {} write{}, now with the dead letters (`larder "
                    "journal list`): {}",
                    name(), letters, letters == 1 ? "" : "s",
                    refused ? refused->message : "others have changed the rows"));
  journal_.applied(name(), position_);
  co_return Outcome::done;
}

// ---- dead letters ----

Task<Result<std::optional<std::string>>> Flusher::ask(source::Statement statement) {
  statement.wants_value = true;
  std::vector<source::Statement> statements;
  statements.push_back(std::move(statement));
  auto opened = co_await node_.sources[source_]->source->write(std::move(statements),
                                                               node_.now() + kTransaction);
  if (!opened) co_return std::unexpected(opened.error());
  co_return (*opened)->values().front();
}

Task<Result<std::optional<std::string>>> Flusher::dead_letters(std::uint64_t most) {
  const std::string sql = journal_sql::list_letters(dialect());
  source::Statement statement = about_shard(sql.c_str());
  statement.params.push_back({"n", static_cast<std::int64_t>(most)});
  Result<std::optional<std::string>> answer = co_await ask(std::move(statement));
  co_return answer;
}

Task<Result<bool>> Flusher::drop_dead_letter(journal::Seq seq) {
  source::Statement statement = about_shard(journal_sql::kDropLetter);
  statement.params.push_back({"seq", static_cast<std::int64_t>(seq)});
  std::vector<source::Statement> statements;
  statements.push_back(std::move(statement));
  auto opened = co_await node_.sources[source_]->source->write(std::move(statements),
                                                               node_.now() + kTransaction);
  if (!opened) co_return std::unexpected(opened.error());
  const std::unique_ptr<source::Transaction> transaction = std::move(*opened);
  if (transaction->affected().front() == 0) co_return false;
  const Result<void> done = co_await transaction->commit();
  if (!done) co_return std::unexpected(done.error());
  co_return true;
}

Task<Result<bool>> Flusher::replay_dead_letter(journal::Seq seq) {
  const std::string sql = journal_sql::one_letter(dialect());
  source::Statement question = about_shard(sql.c_str());
  question.params.push_back({"seq", static_cast<std::int64_t>(seq)});
  const Result<std::optional<std::string>> found = co_await ask(std::move(question));
  if (!found) co_return std::unexpected(found.error());
  boost::system::error_code ec;
  const boost::json::value parsed = boost::json::parse(found->value_or("[]"), ec);
  if (ec || !parsed.is_array())
    co_return fail(ErrorCode::internal, "the list of dead letters is no JSON");
  if (parsed.as_array().empty()) co_return false;

  std::vector<source::Statement> statements{about_shard(journal_sql::kTakeLetter)};
  statements.front().params.push_back({"seq", static_cast<std::int64_t>(seq)});
  std::vector<journal::Op> ops;
  for (const boost::json::value& one : parsed.as_array()) {
    const boost::json::object& row = one.as_object();
    if (row.at("obsolete").to_number<int>() != 0) co_return std::unexpected(written_since(row));
    const std::string kind(row.at("kind").as_string());
    journal::Op op{.kind = kind == "set"      ? journal::Op::Kind::set
                           : kind == "remove" ? journal::Op::Kind::remove
                                              : journal::Op::Kind::increment,
                   .cache = std::string(row.at("cache").as_string()),
                   .key = std::string(row.at("entry_key").as_string()),
                   .value = std::string(row.at("value").as_string()),
                   .delta = row.at("delta").as_int64()};
    if (journal_.pending().holds(op.key, hash_bytes(op.key)))
      co_return fail(
          ErrorCode::bad_value,
          fmt::format("a newer write to '{}' waits in the journal: drop this one", op.key));
    Result<source::Statement> statement = statement_of(op);
    if (!statement) co_return std::unexpected(statement.error());
    statements.push_back(std::move(*statement));
    ops.push_back(std::move(op));
  }
  const TimeUs began = node_.now();
  auto opened =
      co_await node_.sources[source_]->source->write(std::move(statements), began + kTransaction);
  if (!opened) co_return std::unexpected(opened.error());
  const std::unique_ptr<source::Transaction> transaction = std::move(*opened);
  if (transaction->affected().front() != static_cast<std::int64_t>(ops.size()))
    co_return std::unexpected(written_since(parsed.as_array().front().as_object()));
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    if (transaction->affected()[i + 1] == 0 && ops[i].kind != journal::Op::Kind::remove)
      co_return std::unexpected(
          changed_nothing(ops[i].key, ops[i].kind == journal::Op::Kind::increment));
    keys.push_back(ops[i].key);
  }
  co_await node_.begin_incarnation(source_, transaction->source_id(), began);
  const Result<void> done = co_await node_.commit(source_, *transaction, std::move(keys), true);
  if (!done) co_return std::unexpected(done.error());
  co_return true;
}

}  // namespace larder::cache
