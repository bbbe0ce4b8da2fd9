#include "cache/audit.h"

#include <boost/json.hpp>

#include "cache/auditor.h"

namespace larder::cache {
namespace {

namespace json = boost::json;

json::object json_of(const AuditCounts& counts, const std::vector<std::string>& ages) {
  json::array stale;
  for (std::size_t i = 0; i < ages.size() && i < counts.stale.size(); ++i) {
    const policy::Consistency c = policy::consistency_of(counts.checked, counts.stale[i]);
    stale.push_back(json::object{{"age", ages[i]},
                                 {"entries", counts.stale[i]},
                                 {"consistent", c.ratio},
                                 {"nines", c.nines},
                                 {"at_least", c.at_least}});
  }
  return {{"cache", counts.cache},       {"checked", counts.checked},
          {"stale", std::move(stale)},   {"violations", counts.violations},
          {"repaired", counts.repaired}, {"moved", counts.moved},
          {"skipped", counts.skipped}};
}

json::object json_of(const AuditFinding& found, TimeUs now) {
  return {{"cache", found.cache},
          {"key", found.key},
          {"tiers", found.tiers},
          {"found_ago_ms", std::max<DurationUs>(0, now - found.found_at) / kMillisecond},
          {"stale_ms", found.stale_us / kMillisecond},
          {"entry_age_ms", found.entry_us / kMillisecond},
          {"violation", found.violation},
          {"cause", found.cause},
          {"repair", found.repair},
          {"steps", json::array(found.steps.begin(), found.steps.end())}};
}

}  // namespace

json::object json_of(const AuditReport& report) {
  json::array caches;
  for (const AuditCounts& counts : report.caches) caches.push_back(json_of(counts, report.ages));
  json::array findings;
  for (const AuditFinding& found : report.findings) findings.push_back(json_of(found, report.at));
  return {{"ages", json::array(report.ages.begin(), report.ages.end())},
          {"caches", std::move(caches)},
          {"findings", std::move(findings)},
          {"pending", report.pending},
          {"dropped", report.dropped},
          {"problem", report.problem}};
}

std::string to_json(const AuditReport& report) { return json::serialize(json_of(report)); }

}  // namespace larder::cache
