#include "journal/log.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace larder::journal {

Log::Log(std::unique_ptr<Storage> storage, const Options& options, Durable durable)
    : options_(options), storage_(std::move(storage)), durable_(std::move(durable)) {}

Result<std::unique_ptr<Log>> Log::open(std::unique_ptr<Storage> storage, const Options& options,
                                       const Segments::Each& replay, Durable durable) {
  std::unique_ptr<Log> log(new Log(std::move(storage), options, std::move(durable)));
  Result<std::unique_ptr<Segments>> segments =
      Segments::open(*log->storage_, options.segments, replay);
  if (!segments) return std::unexpected(std::move(segments.error()));
  log->segments_ = std::move(*segments);
  log->thread_ = std::thread([&self = *log] { self.work(); });
  return log;
}

Log::~Log() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_one();
  if (thread_.joinable()) thread_.join();
}

std::optional<Error> Log::failed() const {
  const std::lock_guard lock(mutex_);
  return failed_;
}

void Log::trim(Seq seq) {
  const std::lock_guard lock(mutex_);
  trim_ = std::max(trim_, seq);
  ready_.notify_one();
}

Result<Log::Queued> Log::enqueue(std::string_view record) {
  if (record.size() > kMostRecord)
    return fail(
        ErrorCode::too_large,
        fmt::format("a write of {} bytes; a journal takes {} at once", record.size(), kMostRecord),
        "journal");
  const std::size_t size = kRecordHeader + record.size();
  const std::lock_guard lock(mutex_);
  if (failed_) return std::unexpected(*failed_);
  if (stopping_) return fail(ErrorCode::cancelled, "the node is stopping", "journal");
  if (segments_->bytes() + queued_bytes_ + size > options_.capacity_bytes)
    return fail(ErrorCode::overloaded,
                "the journal is full: the database does not take what was written as fast as it "
                "comes, or is down; wait, or raise the journal's capacity",
                "journal");
  if (queued_bytes_ + size > options_.queue_bytes && queued_bytes_ > 0)
    return fail(ErrorCode::overloaded, "more waits to be written than the disk takes", "journal");
  if (!gathering_) gathering_ = std::make_shared<Group>();
  gathering_->records.add(record);
  queued_bytes_ += size;
  ready_.notify_one();
  Queued queued;
  queued.group_ = gathering_;
  queued.place_ = gathering_->records.count() - 1;
  return queued;
}

Task<Result<Seq>> Log::durable(Queued queued) {
  co_await queued.group_->done.wait();
  if (!queued.group_->first) co_return std::unexpected(queued.group_->first.error());
  co_return *queued.group_->first + queued.place_;
}

Task<Result<Seq>> Log::append(std::string record) {
  Result<Queued> queued = enqueue(record);
  if (!queued) co_return std::unexpected(queued.error());
  Result<Seq> seq = co_await durable(std::move(*queued));
  co_return seq;
}

void Log::note(const std::string& record) {
  [[maybe_unused]] const Result<Queued> queued = enqueue(record);
}

void Log::work() {
  for (;;) {
    std::shared_ptr<Group> group;
    Seq trim = 0;
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [&] { return gathering_ || trim_ != 0 || stopping_; });
      group = std::exchange(gathering_, nullptr);
      trim = std::exchange(trim_, 0);
      if (!group && trim == 0) return;
    }
    if (group) write(*group);
    // What cannot be removed now goes with what comes after it.
    if (trim != 0 && !segments_->failed() && !segments_->trim(trim)) note_failure();
  }
}

void Log::write(Group& group) {
  const Seq first = segments_->next();
  const std::size_t size = group.records.size() - kFrameHeader;
  const Result<void> written = segments_->append(group.records, durable_);
  group.first = written ? Result<Seq>(first) : std::unexpected(written.error());
  {
    const std::lock_guard lock(mutex_);
    queued_bytes_ -= size;
  }
  note_failure();
  group.done.notify();
}

void Log::note_failure() {
  const std::lock_guard lock(mutex_);
  failed_ = segments_->failed();
}

}  // namespace larder::journal
