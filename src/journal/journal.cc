#include "journal/journal.h"

#include <random>
#include <utility>

namespace larder::journal {
namespace {

std::uint64_t new_id() {
  std::random_device device;
  std::uint64_t id = 0;
  while (id == 0) id = (std::uint64_t{device()} << 32) | device();
  return id >> 1;  // fits the signed integers of databases
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::open(const std::string& folder, const Options& options) {
  auto storage = open_folder(folder);
  if (!storage) return std::unexpected(std::move(storage.error()));
  return open(std::move(*storage), options);
}

Result<std::unique_ptr<Journal>> Journal::open(std::unique_ptr<Storage> storage,
                                               const Options& options) {
  std::unique_ptr<Journal> journal(new Journal());
  Journal& self = *journal;
  const auto take = [&self](Seq seq, std::string_view bytes) { self.take(seq, bytes); };
  Log::Options log = options.log;
  if (log.segments.id == 0) log.segments.id = new_id();
  auto opened = Log::open(std::move(storage), log, take, take);
  if (!opened) return std::unexpected(std::move(opened.error()));
  journal->log_ = std::move(*opened);
  if (self.unreadable_) return std::unexpected(*self.unreadable_);
  for (const std::string& source : self.pending_.sources())
    self.replayed_ += self.pending_.waiting_records(source);
  return journal;
}

void Journal::on_durable(std::function<void()> tell) { tell_ = std::move(tell); }

void Journal::take(Seq seq, std::string_view bytes) {
  Result<Record> record = decode_record(bytes);
  if (!record) {
    unreadable_ = std::move(record.error());
    return;
  }
  switch (record->kind) {
    case Record::Kind::write:
      pending_.add(seq, std::move(*record));
      if (tell_) tell_();
      break;
    case Record::Kind::applied: pending_.applied(record->source, record->upto); break;
    case Record::Kind::yielded:
      for (const Op& op : record->ops)
        pending_.yield(record->source, op.key, static_cast<Seq>(op.delta));
      break;
  }
  taken_.store(seq, std::memory_order_release);
}

void Journal::applied(const std::string& source, Seq seq) {
  pending_.applied(source, seq);
  // First up to where pending() is complete: a record that is durable and on its way into it is
  // beyond that, and keeps its place.
  const Seq taken = taken_.load(std::memory_order_acquire);
  const std::optional<Seq> oldest = pending_.oldest();
  log_->note(encode({.kind = Record::Kind::applied, .source = source, .upto = seq, .ops = {}}));
  log_->trim(oldest.value_or(taken + 1));
}

Task<Result<void>> Journal::yield(std::string source, std::vector<Op> keys) {
  Record record{.kind = Record::Kind::yielded, .source = std::move(source), .ops = std::move(keys)};
  std::string bytes = encode(record);
  const Result<Seq> appended = co_await log_->append(std::move(bytes));
  if (!appended) co_return std::unexpected(appended.error());
  co_return Result<void>();
}

}  // namespace larder::journal
