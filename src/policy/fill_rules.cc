#include "policy/fill_rules.h"

namespace larder::policy {

std::string_view to_string(Refusal refusal) {
  switch (refusal) {
    case Refusal::none: return "none";
    case Refusal::no_state: return "no_state";
    case Refusal::ticket: return "ticket";
    case Refusal::epoch: return "epoch";
    case Refusal::source: return "source";
    case Refusal::tombstone: return "tombstone";
    case Refusal::tag: return "tag";
    case Refusal::too_large: return "too_large";
    case Refusal::key_mismatch: return "key_mismatch";
    case Refusal::no_room: return "no_room";
    case Refusal::later: return "later";
    case Refusal::not_worth: return "not_worth";
    case Refusal::floor: return "floor";
  }
  return "?";
}

Refusal judge_install(const Ticket& ticket, const Ticket& now, const Rules& rules) {
  if (rules.generation && ticket.generation != now.generation) return Refusal::epoch;
  if (rules.ticket && ticket.version != now.version) return Refusal::ticket;
  return Refusal::none;
}

Refusal judge_fill(const FillCheck& check, const Rules& rules) {
  const Refusal install = judge_install(check.ticket, check.now, rules);
  if (install != Refusal::none) return install;
  if (!check.snapshot.known()) return Refusal::none;  // then the ticket is the safety
  if (rules.source && check.snapshot.source_id != check.source_id) return Refusal::source;
  if (rules.tombstone && !check.snapshot.sees_all_up_to(check.key_tombstone))
    return Refusal::tombstone;
  if (rules.tag_tombstone)
    for (const TxnId x : check.tag_tombstones)
      if (!check.snapshot.sees_all_up_to(x)) return Refusal::tag;
  return Refusal::none;
}

}  // namespace larder::policy
