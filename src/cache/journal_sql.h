// The tables that write = "behind" has in the database, and the statements on them.
//
//   larder_applied       a row for each journal and source: the database has all its writes up to
//                        `seq`; only the owner of `epoch`, a number that nobody else has, moves it
//   larder_dead_letter   what the database refused
//
// Whoever may write to the cached tables needs SELECT, INSERT, UPDATE and DELETE on both.
#pragma once

#include <string>
#include <vector>

#include "source/sql_text.h"

namespace larder::cache::journal_sql {

// Makes what is missing; repeatable. For `larder source prepare`.
std::vector<std::string> tables(source::Dialect dialect);

// All take :shard.
inline constexpr const char* kAdvance =  // and :epoch, :before, :seq
    "UPDATE larder_applied SET seq = :seq WHERE shard = :shard AND epoch = :epoch AND seq = "
    ":before";
inline constexpr const char* kClaim =  // and :new
    "UPDATE larder_applied SET epoch = :new WHERE shard = :shard";
inline constexpr const char* kClaimAgain =  // and :new, :epoch, :tried
    "UPDATE larder_applied SET epoch = :new WHERE shard = :shard AND epoch IN (:epoch, :tried)";
inline constexpr const char* kPosition = "SELECT seq FROM larder_applied WHERE shard = :shard";
inline constexpr const char* kCountLetters =
    "SELECT count(*) FROM larder_dead_letter WHERE shard = :shard AND obsolete = 0";
inline constexpr const char* kAddLetter =  // and :seq, :place, :cache, :key, :kind, :value, ...
    "INSERT INTO larder_dead_letter (shard, seq, place, cache, entry_key, kind, value, delta,"
    " written_us, refused_us, error, obsolete) VALUES (:shard, :seq, :place, :cache, :key, :kind,"
    " :value, :delta, :written, :refused, :error, 0)";
inline constexpr const char* kMakeObsolete =  // and :key
    "UPDATE larder_dead_letter SET obsolete = 1 WHERE shard = :shard AND entry_key = :key";
inline constexpr const char* kDropLetter =  // and :seq
    "DELETE FROM larder_dead_letter WHERE shard = :shard AND seq = :seq";
inline constexpr const char* kTakeLetter =  // and :seq
    "DELETE FROM larder_dead_letter WHERE shard = :shard AND seq = :seq AND obsolete = 0";

// Makes the row of a shard, if there is none.
const char* make_shard(source::Dialect dialect);
// A JSON array of the first :n, by number; of those of :seq.
std::string list_letters(source::Dialect dialect);
std::string one_letter(source::Dialect dialect);
// Runs first in each flush, where what COMMIT says could be less than durable otherwise; "": none.
const char* be_durable(source::Dialect dialect);

}  // namespace larder::cache::journal_sql
