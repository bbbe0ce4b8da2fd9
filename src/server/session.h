// One client's connection: parse all commands that have arrived, answer them, write once.
//
// A session lives on one loop. Near hits are answered without a coroutine and without allocation;
// whatever may suspend runs as a coroutine of the session, one command at a time, so that answers
// keep the order of the commands. Pushes (Pub/Sub) never come inside of an answer.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache/node.h"
#include "engine/embedded/leases.h"
#include "engine/embedded/plain.h"
#include "net/runtime.h"
#include "server/clients.h"
#include "server/commands.h"
#include "server/invalidator.h"
#include "server/passed.h"
#include "server/passing.h"
#include "server/pubsub.h"
#include "wire/resp.h"

namespace larder::server {

// Client libraries choose features by this version of Redis. Texts are those of 7.0; redis-py turns
// its client-side caching on from 7.4. Larder's own version is in INFO.
inline constexpr std::string_view kSpokenVersion = "7.4.0";

struct SessionLimits {
  wire::Limits wire;
  std::size_t input_bytes = 16 << 10;       // the read buffer, while no command is larger
  std::size_t output_soft_bytes = 1 << 20;  // answers beyond this are written before more are made
  std::size_t reply_bytes = 512u << 20;     // of one command: MGET and EXEC can ask for any amount
  std::size_t push_bytes = 32 << 20;        // a subscriber that lets more pile up is closed
  std::size_t subscriptions = 10'000;       // of one client
  std::size_t channel_bytes = 4 << 10;      // of a channel's or a pattern's name
  std::size_t queued_commands = 100'000;    // by MULTI
  std::size_t queued_bytes = 64 << 20;
  std::size_t watches = 10'000;
  std::size_t watched_bytes = 16 << 20;  // of their keys
  std::size_t tracked_prefixes = 1'000;  // of one client
};

// Counters of all sessions. Relaxed adds, once a batch.
struct SessionStats {
  alignas(64) std::atomic<std::uint64_t> commands{0};
  std::atomic<std::uint64_t> input_bytes{0};
  std::atomic<std::uint64_t> output_bytes{0};
  std::atomic<std::uint64_t> errors{0};
};

// What all sessions share. Everything pointed to outlives them.
struct SessionContext {
  cache::Node* node = nullptr;
  near::Store* near = nullptr;
  // Plain keys: held here, or passed on to the engine. One of them is null.
  engine::PlainCommands* plain = nullptr;
  Passed* passed = nullptr;
  engine::Leases* leases = nullptr;  // null with `passed`
  PubSub* pubsub = nullptr;
  Invalidator* invalidator = nullptr;
  Clients* clients = nullptr;
  TaskGroup* group = nullptr;  // owns the sessions
  SessionLimits limits;
  std::string password;  // "" = none
  std::size_t max_connections = 0;
  std::size_t max_tracked = 0;
  bool evict_plain = true;
  TimeUs started = 0;
  std::string run_id;   // 40 hex digits
  std::string address;  // of the first listener, for INFO and CLUSTER
  unsigned threads = 0;
  SessionStats stats;
};

class Session final : public Peer::Owner {
 public:
  // REQUIRES: on the stream's loop.
  Session(SessionContext& context, std::unique_ptr<net::Stream> stream);
  ~Session() override;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Serves until the client leaves, is closed, or the context's group stops.
  Task<void> run();

 private:
  friend class CommandTable;
  friend class Passed;

  // CLIENT TRACKING as this client has it.
  struct TrackingState {
    bool on = false;
    bool broadcast = false;
    bool optin = false;
    bool optout = false;
    bool noloop = false;
    bool caching = false;  // CLIENT CACHING yes or no, for the next command
    Tracking::Client redirect = 0;
    // Is what the next command reads to be remembered?
    bool remembers() const {
      return on && !broadcast && !(optin && !caching) && !(optout && caching);
    }
  };

  // ---- the connection (session.cc) ----
  void reserve_input();
  Task<void> flush();
  Task<void> write_pushes();
  void on_pushes() override;
  void on_kill() override;
  void on_finish() override;
  Task<void> end();
  void apply_reply_mode(std::size_t before);
  // What the fast path needs: logged in, no MULTI, no RESP2 channels, answers wanted.
  void update_ready();

  // ---- commands (dispatch.cc) ----
  bool answer_near(std::string_view key);
  // True: answered (or refused). False: `current_` may suspend, await run_later().
  bool run_now(Args args);
  Task<void> run_later(const CommandRow& row, Args args);
  bool admit(const CommandRow* row, Args args);
  bool run_row_now(const CommandRow& row, Args args);
  void error(std::string_view text);
  void error(const Error& error);
  void wrong_arity(std::string_view command);
  bool fits_reply(std::size_t bytes);  // answers the error
  bool fits_reply_of(std::span<const std::string_view> keys);
  void unknown_command(Args args);
  void unknown_subcommand(Args args);
  bool parse_integer(std::string_view text, std::int64_t& n);  // answers the error
  void run_plain(const CommandRow& row, Args args);
  void run_plain(std::span<const std::string_view> args);  // by name
  // Runs it here, or says false: pass() is to follow.
  bool plain_now(const CommandRow& row, Args args);
  std::int64_t plain_integer(std::span<const std::string_view> args);

  // ---- declared keys (declared.cc) ----
  // Which cache, or -1; answers LARDER_BADKEY and returns false for a bad part.
  bool route(std::string_view key, int& cache);
  bool run_keys_now(const CommandRow& row, Args args);
  bool run_many_now(const CommandRow& row, Args args, std::size_t declared);
  bool mget_now(Args args);
  void count_held(const CommandRow& row);  // of keys_
  bool declared_now(const CommandRow& row, Args args, std::string_view key, int cache);
  void declared_life(const CommandRow& row, std::string_view key);
  bool declared_expire(const CommandRow& row, Args args, int cache);
  void refuse_declared(const CommandRow& row, std::string_view key, int cache);
  bool parse_set(Args args, int cache, std::optional<DurationUs>& ttl_us);
  bool parse_life(std::string_view command, std::string_view text, bool seconds, bool absolute,
                  std::optional<DurationUs>& ttl_us);
  bool write_op(const CommandRow& row, Args args, std::vector<cache::WriteOp>& ops);
  void write_answer(const CommandRow& row, std::span<const cache::Written> written);
  Task<void> declared_later(const CommandRow& row, Args args);
  Task<void> declared_get(const CommandRow& row, Args args);
  Task<void> declared_mget(Args args);
  Task<void> held_later(const CommandRow& row, Args args);
  Task<void> declared_write(const CommandRow& row, Args args);
  Task<void> declared_del(Args args);
  Task<void> declared_invalidate(std::string_view key);
  Task<void> flush_all(const CommandRow& row, Args args);
  const cache::CacheSpec& spec(int cache) const;

  // ---- CLIENT TRACKING (tracking_commands.cc) ----
  void client_tracking(Args args);
  void client_caching(Args args);
  void client_tracking_info();
  bool tracking_fits(const TrackingState& wanted, std::span<const std::string> prefixes);
  void end_tracking();
  // The client may keep what these reads answer. To be called before they run.
  void note_reads(const CommandRow& row, Args args, bool pending);
  // Behind a read of keys_of_read_ that did not suspend: when their lives end.
  void note_lives();
  void note_life(std::string_view key);
  // Behind one that did: the client was answered `value` (null: none, or not known which).
  void settle_read(std::string_view key, const cache::Reading* answered);
  // Behind a plain command that has written: tells whoever holds its keys.
  void plain_written(const CommandRow& row, Args args, std::size_t reply_at);
  void plain_written(std::span<const engine::QueuedCommand> commands);

  // ---- plain commands on an engine (passing.cc) ----
  const CommandRow* find_row(Args args) const;
  bool keys_of(const CommandRow& row, Args args, std::vector<std::string_view>& keys);
  bool refuse_internal(std::string_view key);
  bool all_plain(const CommandRow& row, std::span<const std::string_view> keys);
  bool fly(Args args);
  bool declared_flight(std::string_view key);
  bool near_flight(Args args, Flight& flight);
  Task<void> run_flight(Flight& flight);
  Task<void> ask_life(Flight::Near& near, std::uint32_t slot);
  void keep_near(const Flight& flight);
  Task<void> land();
  void append_answer(const Result<engine::redis::Answer>& answer);
  bool everywhere(const CommandRow& row, Args args) const;
  Task<void> pass(const CommandRow& row, Args args);
  Task<void> pass_unlearned(Args args);
  Task<Result<engine::redis::Answer>> pass_keyspace(const CommandRow& row,
                                                    std::vector<std::string> words);
  Task<void> pass_flush(Args args);
  Task<Result<std::int64_t>> pass_count(std::vector<std::string> words);
  Task<Result<std::vector<std::string>>> pass_values(std::vector<std::string> keys);
  Task<Result<void>> take_own(std::uint32_t slot, std::int64_t database);
  Task<Result<engine::redis::Answer>> own_reply(engine::redis::Dedicated& link, bool waits);
  Task<Result<engine::redis::Answer>> over_own(std::string bytes, bool waits);
  Task<Result<engine::redis::Answer>> pass_waiting(std::uint32_t slot, std::string bytes);
  Task<void> pass_watch(Args args);
  Task<void> pass_unwatch(Args args);
  Task<void> pass_select(Args args);
  Task<void> pass_client(Args args);
  Task<Result<std::string>> pass_transaction(std::vector<engine::QueuedCommand> commands);
  void release_own();
  void drop_own();
  void lose_own();
  Task<void> forget_watches();
  static Task<void> run_relay(std::shared_ptr<Relay> relay, std::shared_ptr<Peer> peer);
  Task<void> over_relay(std::string bytes, int answers, std::uint32_t slot);
  void end_relay();
  Task<void> start_monitor();
  Task<void> pass_subscribe(Args args);
  bool subscribed() const;

  // ---- MULTI (transaction.cc) ----
  void queue(const CommandRow& row, Args args);
  void end_multi();
  void do_multi(Args args);
  void do_discard(Args args);
  void do_watch(Args args);
  void do_unwatch(Args args);
  void do_exec(Args args);  // plain commands alone
  void run_plain_transaction(std::span<const engine::QueuedCommand> commands,
                             std::span<const engine::Watch> watches, wire::Writer& out);
  Task<void> exec_mixed(Args args);
  // What a queued command is to a transaction.
  enum class Part : std::uint8_t { plain, declared_write, own };
  struct Kind {
    Part part = Part::own;
    bool writes_plain = false;
    bool flushes = false;
    int cache = -1;  // of a declared write
  };
  Kind kind_of(const CommandRow& row, Args args);
  bool check_queued(const CommandRow& row, Args args);
  // Why these may not be one transaction; "" if they may.
  std::string conflict(std::span<const Kind> kinds) const;

  // ---- sessions (session_commands.cc) ----
  void do_hello(Args args);
  void do_auth(Args args);
  void do_ping(Args args);
  void do_echo(Args args);
  void do_quit(Args args);
  void do_reset(Args args);
  void do_select(Args args);
  void do_client(Args args);
  void client_kill(Args args);
  void client_list(Args args);
  void client_reply(Args args);
  std::string describe(const Peer& peer) const;
  bool log_in(std::string_view user, std::string_view password);
  bool set_name(std::string_view name);

  // ---- the server (server_commands.cc) ----
  void do_command(Args args);
  void do_info(Args args);
  void do_config(Args args);
  void do_cluster(Args args);
  void do_slowlog(Args args);
  void do_latency(Args args);
  void do_memory(Args args);
  void do_time(Args args);
  void do_role(Args args);
  void do_lastsave(Args args);
  void do_wait(Args args);
  void do_unsupported(Args args);
  void command_info(const CommandRow& row);
  void command_docs(Args names);
  std::string info_section(std::string_view section) const;
  std::string_view policy_name() const;
  void help(std::initializer_list<std::string_view> lines);

  // ---- channels (channel_commands.cc) ----
  void do_subscribe(Args args);
  void do_unsubscribe(Args args);
  void do_publish(Args args);
  void do_pubsub(Args args);
  void subscribe(ChannelKind kind, Args args);
  void unsubscribe(ChannelKind kind, Args args);
  void unsubscribe_all();
  static ChannelKind channel_kind(std::string_view command);
  void take_pushes();
  void note_subscriptions();
  std::size_t subscription_count(ChannelKind kind) const;
  void confirm(std::string_view what, std::optional<std::string_view> name, ChannelKind kind);

  // ---- LARDER.* (larder_commands.cc) ----
  Task<void> larder_get(Args args);
  void larder_explain(Args args);
  Task<void> larder_invalidate(Args args);
  Task<void> larder_remove(Args args);
  Task<void> larder_refresh(Args args);
  Task<void> larder_warm(Args args);
  Task<void> larder_audit(Args args);
  Task<void> larder_journal(Args args);
  Task<void> larder_lease(Args args);
  void larder_fill(Args args);
  void larder_stock(Args args);
  void larder_help(Args args);
  bool declared_only(Args args, std::string_view key);

  SessionContext& context_;
  const std::unique_ptr<net::Stream> stream_;
  const bool has_caches_;
  const std::shared_ptr<Peer> peer_;

  // Input: [begin_, end_) of input_ has come and is not yet answered.
  std::unique_ptr<char[]> input_;
  std::size_t input_capacity_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  wire::CommandParser parser_;
  bool parser_is_limited_ = false;  // until AUTH

  // Output. Only run() and what it awaits touch out_; pushes wait in pushes_.
  std::string out_;
  wire::Writer writer_{out_};
  std::string pushes_;           // being written by write_pushes()
  bool pushes_waiting_ = false;  // in the peer's mailbox, for the next flush()
  bool reading_ = false;         // run() waits for the client: pushes may be written at once
  bool pushing_ = false;         // write_pushes() runs
  bool yield_to_run_ = false;    // run() waits for write_pushes()
  std::optional<Waiters> pushed_;
  bool closing_ = false;  // take no more commands
  bool broken_ = false;   // and write nothing more either

  TimeUs now_ = 0;  // read once a batch, and after each suspension
  bool ready_ = false;
  const CommandTable& table_;
  const CommandRow* const get_row_;
  const CommandRow* const client_row_;
  const CommandRow* current_ = nullptr;
  bool needs_later_ = false;            // a `now` handler asks for its `later`
  std::vector<std::string_view> keys_;  // scratch
  std::string partial_;                 // MGET: what run_now has found before it had to suspend
  std::size_t partial_keys_ = 0;

  bool authenticated_ = false;
  enum class ReplyMode : std::uint8_t { on, off, skip_next, skip_this };
  ReplyMode reply_mode_ = ReplyMode::on;

  bool in_multi_ = false;
  bool multi_failed_ = false;
  std::size_t queued_bytes_ = 0;
  std::size_t watched_bytes_ = 0;
  std::vector<engine::QueuedCommand> queued_;
  std::vector<engine::Watch> watches_;

  std::array<std::set<std::string, std::less<>>, kChannelKinds> subscriptions_;

  // Passed on and not answered yet, in order; there are none while anything else is answered.
  std::deque<Flight> flights_;
  bool near_write_flies_ = false;  // one of them changes a key that may be near
  SentOrder sent_order_;           // of those
  std::optional<TaskGroup> flight_group_;
  std::size_t flying_bytes_ = 0;
  bool passing_ = false;  // run_keys_now() has found a command for pass()
  std::unique_ptr<OwnLink> own_;
  std::shared_ptr<Relay> relay_;

  TrackingState tracking_;
  bool reads_noted_ = false;                   // of the command that runs
  std::vector<std::string_view> noted_reads_;  // those of its keys that were not noted before
};

}  // namespace larder::server
