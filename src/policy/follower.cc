#include "policy/follower.h"

namespace larder::policy {

bool Follower::other_history(const Position& p) const {
  return rules_.history && !position_.same_history(p);
}

void Follower::adopt(const Position& p) {
  position_ = p;
  known_ = true;
}

void Follower::reset() {
  known_ = false;
  position_ = {};
  ++generation_;
}

Follower::Verdict Follower::on_change(const Position& message) {
  if (!known_) return Verdict::apply;
  if (other_history(message)) {
    reset();
    return Verdict::reset;
  }
  if (message.n <= position_.n) return Verdict::duplicate;
  if (rules_.gap && message.n - position_.n > 1) return Verdict::gap;
  position_.n = message.n;
  return Verdict::apply;
}

Follower::Verdict Follower::on_heartbeat(const Position& said) {
  if (!known_) {
    if (!said.has_state()) return Verdict::gap;  // nothing to follow, so nothing is promised
    adopt(said);
    return Verdict::apply;
  }
  if (other_history(said)) {
    reset();
    return Verdict::reset;
  }
  if (rules_.gap && said.n > position_.n) return Verdict::gap;
  return said.n < position_.n ? Verdict::duplicate : Verdict::apply;
}

bool Follower::may_install(const Position& answer, std::uint64_t generation) {
  if (rules_.generation && generation != generation_) return false;
  if (!answer.has_state()) {
    if (known_ && rules_.history) reset();
    return false;
  }
  if (!known_) {
    adopt(answer);
    return true;
  }
  if (other_history(answer)) {
    reset();
    return false;
  }
  return !rules_.order || answer.n >= position_.n;
}

}  // namespace larder::policy
