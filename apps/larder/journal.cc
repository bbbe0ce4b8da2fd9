// larder journal: the journal of write = "behind" on the disk, and what the databases refused.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdlib>

#include "base/units.h"
#include "commands.h"
#include "journal/record.h"
#include "journal/segments.h"
#include "remote.h"

namespace larder::app {
namespace {

namespace json = boost::json;
using journal::Segments;

constexpr int kTimeoutS = 60;

struct Options {
  std::string file = "larder.toml";
  std::string data_dir;  // "": the configuration's
  std::string address = "127.0.0.1:7379";
  std::int64_t number = 100;
  bool all = false;
  bool yes = false;
  bool as_json = false;
};

int failed(const std::string& problem) {
  fmt::print(stderr, "{}\n", problem);
  return kFailed;
}

// ---- on the disk ----

Result<std::unique_ptr<journal::Storage>> open_storage(const Options& options) {
  std::string folder = options.data_dir;
  if (folder.empty()) {
    const auto config = load_or_complain(options.file);
    if (!config) return fail(ErrorCode::config, "");
    folder = config->node.data_dir;
  }
  return journal::open_folder(folder + "/journal");
}

json::object to_json(const Segments::Report& report) {
  json::array segments;
  for (const Segments::Report::Segment& one : report.segments)
    segments.push_back({{"name", one.name},
                        {"bytes", one.bytes},
                        {"first", one.first},
                        {"next", one.next},
                        {"problem", one.problem},
                        {"lost_bytes", one.lost_bytes},
                        {"lost_records", one.lost_records}});
  return {{"damaged", report.damaged},
          {"first", report.first},
          {"next", report.next},
          {"lost_records", report.lost_records},
          {"segments", std::move(segments)}};
}

void print_report(const Segments::Report& report) {
  for (const Segments::Report::Segment& one : report.segments) {
    fmt::print("{}  {:>10}  records {} to {}\n", one.name, format_size(one.bytes), one.first,
               one.next == 0 ? 0 : one.next - 1);
    if (one.problem.empty()) continue;
    fmt::print("  {}", one.problem);
    if (one.lost_bytes > 0)
      fmt::print("; {} bytes behind it, with at least {} records", one.lost_bytes,
                 one.lost_records);
    fmt::print("\n");
  }
}

// What those records say that can be read, of all that is there: a part may be applied already.
struct Contents {
  std::uint64_t writes = 0;
  std::map<std::string, journal::Seq> applied;
};

int complain(const Error& error) {
  if (!error.message.empty()) fmt::print(stderr, "{}\n", text_of(error));
  return error.code == ErrorCode::config ? kUsage : kFailed;
}

int check(const Options& options) {
  auto storage = open_storage(options);
  if (!storage) return complain(storage.error());
  Contents contents;
  const auto report = Segments::check(**storage, [&](journal::Seq, std::string_view bytes) {
    const auto record = journal::decode_record(bytes);
    if (!record) return;
    if (record->kind == journal::Record::Kind::write) ++contents.writes;
    if (record->kind == journal::Record::Kind::applied)
      contents.applied[record->source] = record->upto;
  });
  if (!report) return complain(report.error());
  if (options.as_json) {
    fmt::print("{}\n", json::serialize(to_json(*report)));
  } else {
    print_report(*report);
    fmt::print("{} writes can be read", contents.writes);
    for (const auto& [source, seq] : contents.applied)
      fmt::print("; source {} has those up to number {}", source, seq);
    fmt::print("\n{}\n", !report->damaged
                             ? "the journal is whole"
                             : fmt::format("damaged: at least {} records cannot be read. `larder "
                                           "journal repair` cuts there and keeps the rest of the "
                                           "file as *.damaged",
                                           report->lost_records));
  }
  return report->damaged ? kFailed : kDone;
}

int repair(const Options& options) {
  auto storage = open_storage(options);
  if (!storage) return complain(storage.error());
  const auto found = Segments::check(**storage);
  if (!found) return complain(found.error());
  if (!found->damaged) {
    fmt::print("nothing to do: the journal is whole\n");
    return kDone;
  }
  print_report(*found);
  if (!options.yes) {
    fmt::print(
        "at least {} records would be lost, which were acknowledged to whoever wrote them.\n"
        "Nothing was changed. Restore the file from a backup if you can; otherwise: larder journal "
        "repair --yes\n",
        found->lost_records);
    return kFailed;
  }
  const auto done = Segments::repair(**storage);
  if (!done) return complain(done.error());
  fmt::print("cut; what was cut off is beside it as *.damaged. The node can start.\n");
  return kDone;
}

// ---- of a running node ----

Result<std::string> ask(const Options& options, const std::vector<std::string>& command) {
  const char* const password = std::getenv("LARDER_PASSWORD");
  auto remote = Remote::connect(options.address, password != nullptr ? password : "", kTimeoutS);
  if (!remote) return std::unexpected(remote.error());
  auto reply = remote->call(command);
  if (!reply) return std::unexpected(reply.error());
  if (reply->type == wire::Reply::Type::error)
    return fail(ErrorCode::source_refused, std::string(reply->text));
  return std::string(reply->text);
}

Result<json::value> ask_json(const Options& options, const std::vector<std::string>& command) {
  const auto answer = ask(options, command);
  if (!answer) return std::unexpected(answer.error());
  boost::system::error_code ec;
  json::value parsed = json::parse(*answer, ec);
  if (ec) return fail(ErrorCode::internal, "the node's answer is no JSON");
  return parsed;
}

int status(const Options& options) {
  const auto answer = ask_json(options, {"LARDER.JOURNAL", "STATUS"});
  if (!answer) return failed(text_of(answer.error()));
  if (options.as_json) {
    fmt::print("{}\n", json::serialize(*answer));
    return kDone;
  }
  const json::object& root = answer->as_object();
  if (const json::value* why = root.if_contains("failed"))
    fmt::print("the journal has failed: {}\n", std::string_view(why->as_string()));
  for (const json::value& one : root.at("caches").as_array()) {
    const json::object& cache = one.as_object();
    fmt::print("cache {}: {} writes wait, the first for {:.1f} s\n",
               std::string_view(cache.at("cache").as_string()),
               cache.at("waiting").to_number<std::int64_t>(),
               cache.at("oldest_ms").to_number<double>() / 1000);
  }
  for (const json::value& one : root.at("sources").as_array()) {
    const json::object& source = one.as_object();
    fmt::print("source {}: {}", std::string_view(source.at("source").as_string()),
               std::string_view(source.at("state").as_string()));
    if (source.at("problem").is_string())
      fmt::print(": {}", std::string_view(source.at("problem").as_string()));
    fmt::print("\n");
  }
  return kDone;
}

int list(const Options& options) {
  const auto answer = ask_json(options, {"LARDER.JOURNAL", "LIST", std::to_string(options.number)});
  if (!answer) return failed(text_of(answer.error()));
  if (options.as_json) {
    fmt::print("{}\n", json::serialize(*answer));
    return kDone;
  }
  const json::array& letters = answer->as_array();
  if (letters.empty()) fmt::print("no dead letters\n");
  for (const json::value& one : letters) {
    const json::object& letter = one.as_object();
    const std::string_view value = letter.at("value").as_string();
    const auto kind = std::string_view(letter.at("kind").as_string());
    fmt::print("{}  {} {} {}{}\n    {}\n", letter.at("seq").to_number<std::int64_t>(), kind,
               std::string_view(letter.at("entry_key").as_string()),
               kind == "increment" ? std::to_string(letter.at("delta").to_number<std::int64_t>())
                                   : std::string(value.substr(0, 200)),
               letter.at("obsolete").to_number<int>() != 0
                   ? "  (its key was written since: it cannot be replayed)"
                   : "",
               std::string_view(letter.at("error").as_string()));
  }
  return kDone;
}

// One, or all that there are, in order.
int for_letters(const Options& options, const std::string& verb, bool obsolete_too) {
  std::vector<std::int64_t> numbers{options.number};
  if (options.all) {
    constexpr const char* kMost = "1000000";
    const auto answer = ask_json(options, {"LARDER.JOURNAL", "LIST", kMost});
    if (!answer) return failed(text_of(answer.error()));
    numbers.clear();
    for (const json::value& one : answer->as_array()) {
      const json::object& letter = one.as_object();
      const auto seq = letter.at("seq").to_number<std::int64_t>();
      if (!obsolete_too && letter.at("obsolete").to_number<int>() != 0) continue;
      if (numbers.empty() || numbers.back() != seq) numbers.push_back(seq);
    }
  }
  int code = kDone;
  std::size_t done = 0;
  for (const std::int64_t number : numbers) {
    const auto answer = ask(options, {"LARDER.JOURNAL", verb, std::to_string(number)});
    if (answer) {
      ++done;
      continue;
    }
    fmt::print(stderr, "{}: {}\n", number, text_of(answer.error()));
    code = kFailed;
  }
  fmt::print("{} of {} done\n", done, numbers.size());
  return code;
}

}  // namespace

void register_journal(CLI::App& app, Run& run) {
  auto* const group = app.add_subcommand(
      "journal", "The journal of write = \"behind\": is it whole, what waits, what was refused");
  group->require_subcommand(1);
  const auto options = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* help, auto work) {
    auto* const sub = group->add_subcommand(name, help);
    sub->callback([options, &run, work] { run = [options, work] { return work(*options); }; });
    return sub;
  };
  const auto on_disk = [&](CLI::App* sub) {
    sub->add_option("-c,--config", options->file, "Configuration (TOML), for its data_dir")
        ->type_name("FILE")
        ->capture_default_str();
    sub->add_option("--data-dir", options->data_dir, "Instead of the configuration's")
        ->type_name("DIR");
  };
  const auto of_node = [&](CLI::App* sub) {
    sub->add_option("-a,--address", options->address,
                    "Where the node listens; a password is taken from LARDER_PASSWORD")
        ->type_name("HOST:PORT")
        ->capture_default_str();
  };
  auto* const checks =
      add("check", "Reads the journal of a node that does not run; changes nothing",
          [](const Options& o) { return check(o); });
  on_disk(checks);
  checks->add_flag("--json", options->as_json, "One JSON object on stdout");
  auto* const repairs =
      add("repair", "Cuts a damaged journal before the damage, after showing what would be lost",
          [](const Options& o) { return repair(o); });
  on_disk(repairs);
  repairs->add_flag("--yes", options->yes, "Do it");
  auto* const shows = add("status", "What waits to be written, and why it waits",
                          [](const Options& o) { return status(o); });
  of_node(shows);
  shows->add_flag("--json", options->as_json, "One JSON object on stdout");
  auto* const lists = add("list", "The dead letters: writes that the database refused, and why",
                          [](const Options& o) { return list(o); });
  of_node(lists);
  lists->add_option("-n,--number", options->number, "How many")->check(CLI::Range(1, 1'000'000));
  lists->add_flag("--json", options->as_json, "One JSON array on stdout");
  const auto on_letters = [&](CLI::App* sub) {
    of_node(sub);
    auto* const one = sub->add_option("number", options->number, "As `larder journal list` has it");
    auto* const all = sub->add_flag("--all", options->all, "Every one, in order");
    one->excludes(all);
    one->check(CLI::PositiveNumber);
  };
  on_letters(add("replay", "Writes a dead letter to the database again",
                 [](const Options& o) { return for_letters(o, "REPLAY", false); }));
  on_letters(add("drop", "Forgets a dead letter",
                 [](const Options& o) { return for_letters(o, "DROP", true); }));
  group->footer(
      "A write of a cache with write = \"behind\" is acknowledged when the journal in data_dir has "
      "it\ndurably, and goes to the database a moment later. What the database refuses is kept "
      "there, in\nthe table larder_dead_letter, until it is replayed or dropped; what comes after "
      "it goes on.\n\n"
      "Examples:\n"
      "  larder journal status\n"
      "  larder journal list\n"
      "  larder journal replay 4711\n"
      "  larder journal drop --all\n"
      "  larder journal check --data-dir larder-data\n\n"
      "Exit codes: 0 done, 1 it failed, or the journal is damaged, 2 wrong usage.");
}

}  // namespace larder::app
