#include "engine/redis/scripts.h"

#include <string>

// Fields of the state hash: e (epoch), mark, src (identity of the source), F, Ft (floors), Fn (the
// floor of n-stamps), A (position of the feed), H (heartbeat), n (number of the last change), tn
// (how many tombstones), tl (how many after the last trimming), v (whose tickets were given: how
// names of entries and tickets begin, a line each), and the tombstones "k:<key>" and "t:<tag>". A
// tombstone is the text "c;s;x,x,x": every x must be visible, c must lie below xmin, the ticket's n
// must reach s.
//
// An entry is "<size of header>\n<header><value>", the header "e tn neg load ttl as_of soft useless
// xmin xmax src xip tags" (words), then each tag as " <size>:<tag>".
//
// A ticket is "<0 or 1: somebody waits><token> <e> <n>".

namespace larder::engine::redis::scripts {
namespace {

constexpr const char* kCommon = R"lua(
local S = KEYS[1]
local function num(v) return tonumber(v) or 0 end
local function text(x) return string.format('%.0f', x) end
local function server()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
end
local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
local function pack(parts)
  local out = {}
  for i = 1, #parts do
    local s = parts[i]
    if type(s) == 'number' then s = text(s) end
    out[i] = #s .. ':' .. s
  end
  return table.concat(out)
end
-- A cluster of Redis 6.2 has no channels by shard.
local function publish(command, channel, message)
  local done = redis.pcall(command, channel, message)
  if type(done) == 'table' and done.err then redis.call('PUBLISH', channel, message) end
end
local function visible(x, snap)
  if x < snap.xmin then return true end
  return x < snap.xmax and not snap.xip[x]
end
local function snapshot(xmin, xmax, xip)
  local snap = {xmin = num(xmin), xmax = num(xmax), xip = {}}
  for x in string.gmatch(xip, '%d+') do snap.xip[tonumber(x)] = true end
  return snap
end
local function split(tomb)
  local c, s, list = string.match(tomb, '^(%-?%d+);(%d+);(.*)$')
  local xs = {}
  for x in string.gmatch(list, '%d+') do xs[#xs + 1] = tonumber(x) end
  return tonumber(c), tonumber(s), xs
end
-- Has a load with this snapshot, under a ticket given at n = tn, seen what the tombstone says?
local function seen(tomb, snap, tn)
  if not tomb then return true end
  local c, s, xs = split(tomb)
  if tn < s then return false end
  if c >= 0 and c >= snap.xmin then return false end
  for i = 1, #xs do
    if not visible(xs[i], snap) then return false end
  end
  return true
end
local function header(raw)
  local at, stop, size = string.find(raw, '^(%d+)\n')
  if not at then return nil end
  local h = string.sub(raw, stop + 1, stop + size)
  local e, tn, soft, xmin, xmax, src, xip, count, tags = string.match(h,
    '^(%S+) (%d+) %d %d+ %d+ %d+ (%d+) %d+ (%d+) (%d+) (%d+) (%S+) (%d+)(.*)$')
  if not e then return nil end
  local r = {e = e, tn = num(tn), soft = num(soft), src = src, tags = {},
             snap = snapshot(xmin, xmax, xip)}
  local pos = 1
  for i = 1, num(count) do
    local _, colon, len = string.find(tags, '^ (%d+):', pos)
    if not colon then return nil end
    r.tags[i] = string.sub(tags, colon + 1, colon + len)
    pos = colon + len + 1
  end
  return r
end
-- Floors and tombstones of the tags; '' if the entry may count.
local function judge_tags(tags, snap, tn, ft, fn)
  if #tags == 0 then return '' end
  if fn and tn < num(fn) then return 'tag' end
  if ft and num(ft) >= snap.xmin then return 'tag' end
  for i = 1, #tags do
    if not seen(redis.call('HGET', S, 't:' .. tags[i]), snap, tn) then return 'tag' end
  end
  return ''
end
local function valid(raw, e, ft, fn)
  if not raw then return nil end
  local h = header(raw)
  if not h or h.e ~= e then return nil end
  if judge_tags(h.tags, h.snap, h.tn, ft, fn) ~= '' then return nil end
  return h
end
)lua";

// KEYS: S, then entry and ticket of each key. ARGV: a ticket's ms (0: only look, give none), then
// of each key: token, wants a ticket (0 or 1), waits (0 or 1), its text.
constexpr const char* kLookup = R"lua(
local st = redis.call('HMGET', S, 'e', 'n', 'H', 'Ft', 'Fn', 'v')
local e, now, found, versions = st[1], clock(), {}, st[6] or ''
-- Whoever changes the key may not know this version of its cache. False: no memory.
local function known(entry, ticket, key)
  local names = '\n' .. string.sub(entry, 1, -#key - 1) .. '\n' ..
    string.sub(ticket, 1, -#key - 1) .. '\n'
  if string.find(versions, names, 1, true) then return true end
  versions = versions .. names
  local done = redis.pcall('HSET', S, 'v', versions)
  return type(done) == 'number'
end
for i = 1, (#KEYS - 1) / 2 do
  local at = 4 * i - 2
  if not e then
    found[i] = {0, '', 0}
  else
    local raw = redis.call('GET', KEYS[2 * i])
    local h = valid(raw, e, st[4], st[5])
    -- Whoever changed the key may not have known this version of the cache.
    if h and not seen(redis.call('HGET', S, 'k:' .. ARGV[at + 3]), h.snap, h.tn) then h = nil end
    if not h then raw = '' end
    if h and h.soft > now and ARGV[at + 1] == '0' then
      found[i] = {1, raw, 0}
    elseif ARGV[1] == '0' then
      found[i] = {0, raw, 0}
    elseif redis.call('EXISTS', KEYS[2 * i + 1]) == 1 then
      if ARGV[at + 2] == '1' then redis.pcall('SETRANGE', KEYS[2 * i + 1], 0, '1') end
      found[i] = {3, raw, redis.call('PTTL', KEYS[2 * i + 1])}
    else
      -- No memory for a ticket: the caller loads without storing. Hits of others are answered.
      local given = known(KEYS[2 * i], KEYS[2 * i + 1], ARGV[at + 3]) and
        redis.pcall('SET', KEYS[2 * i + 1],
          '0' .. ARGV[at] .. ' ' .. e .. ' ' .. text(num(st[2])), 'PX', ARGV[1])
      found[i] = {given and not given.err and 2 or 0, raw, 0}
    end
  end
end
return {server(), e or '', num(st[2]), num(st[3]), now, found}
)lua";

// KEYS: S, entry, ticket. ARGV: token, epoch, src, xmin, xmax, xip, ms to keep, middle of the
// header (neg .. useless), value, key, channel, PUBLISH or SPUBLISH, tags...
constexpr const char* kFill = R"lua(
local st = redis.call('HMGET', S, 'e', 'src', 'F', 'n', 'Ft', 'Fn', 'H')
local e, n = st[1], num(st[4])
local snap = snapshot(ARGV[4], ARGV[5], ARGV[6])
local tags = {}
for i = 13, #ARGV do tags[#tags + 1] = ARGV[i] end
local ticket = redis.call('GET', KEYS[3])
local flag, token, te, tn
if ticket then flag, token, te, tn = string.match(ticket, '^(%d)(%S+) (%S+) (%d+)$') end
local mine = token == ARGV[1]
tn = num(tn)

local function judge()
  if not e then return 'no_state' end
  if ARGV[2] ~= e then return 'epoch' end
  if not mine or te ~= e then return 'ticket' end
  if snap.xmax == 0 then return judge_tags(tags, snap, tn, nil, st[6]) end
  if ARGV[3] ~= st[2] then return 'source' end
  if st[3] and num(st[3]) >= snap.xmin then return 'floor' end
  if not seen(redis.call('HGET', S, 'k:' .. ARGV[10]), snap, tn) then return 'tombstone' end
  local why = judge_tags(tags, snap, tn, st[5], st[6])
  if why ~= '' then return why end
  local there = valid(redis.call('GET', KEYS[2]), e, st[5], st[6])
  if there and there.src == ARGV[3] then
    if there.snap.xmax > snap.xmax then return 'later' end
    for x in pairs(snap.xip) do
      if visible(x, there.snap) then return 'later' end
    end
  end
  return ''
end

local why = judge()
if why == '' then
  local h = {e, text(tn), ARGV[8], ARGV[4], ARGV[5], ARGV[3], ARGV[6], text(#tags)}
  for i = 1, #tags do h[#h + 1] = #tags[i] .. ':' .. tags[i] end
  h = table.concat(h, ' ')
  local stored = redis.pcall('SET', KEYS[2], #h .. '\n' .. h .. ARGV[9], 'PX', ARGV[7])
  if stored.err then why = 'no_room' end
end
local replid = server()
if mine then redis.call('DEL', KEYS[3]) end
-- Whoever waits is woken; also if the ticket is gone by other ways than an invalidation's message.
if not ticket or (mine and flag == '1') then
  publish(ARGV[12], ARGV[11], pack({'f', replid, e or '', n, num(st[7]), 0, 0, 1, ARGV[10]}))
end
return {replid, e or '', n, num(st[7]), why}
)lua";

// KEYS: S, stream, then entry and ticket of each schema of each key, in the order of the changes.
// ARGV: mode (i or f), expected A, new A, heartbeat, src, xmin, committed_at, channel, PUBLISH or
// SPUBLISH, most of the stream, soft limit and hard limit of tombstones, how many changes; of each
// change: x, rule (e, b, t), src, number of keys, number of tags, (key, its schemas)..., tags...
constexpr const char* kChange = R"lua(
-- First a write that works at maxmemory: what follows it may use memory.
redis.call('HDEL', S, '-')
local st = redis.call('HMGET', S, 'e', 'mark', 'src', 'A', 'n', 'H', 'tn', 'tl', 'v')
local e, records, n = st[1], st[1] or st[2], num(st[5])
local replid = server()
local heartbeat, made = num(st[6]), num(st[7])

local function answer(applied)
  local now = redis.call('HMGET', S, 'A', 'src')
  return {replid, e or '', n, applied, now[1] or '0', now[2] or '0', clock()}
end
if ARGV[1] == 'f' and (not e or st[4] ~= ARGV[2] or st[3] ~= ARGV[5]) then
  return answer(0)
end

-- False: this x stands there already.
local function record(field, x, rule, stamp)
  local old = redis.call('HGET', S, field)
  local c, s, xs = -1, 0, {}
  if old then c, s, xs = split(old) end
  if rule == 'e' then
    for i = 1, #xs do if xs[i] == x then return false end end
  end
  if not old then made = made + 1 end
  if rule == 'e' then
    xs[#xs + 1] = x
    table.sort(xs)
    while #xs > 8 do c = math.max(c, table.remove(xs, 1)) end
  elseif rule == 'b' then
    c = math.max(c, x)
  else
    s = stamp
  end
  for i = 1, #xs do xs[i] = text(xs[i]) end
  redis.call('HSET', S, field, text(c) .. ';' .. text(s) .. ';' .. table.concat(xs, ','))
  return true
end

-- Of this epoch: beginning of the names of entries and of tickets, and the cache's part of it.
local versions = {}
for entry, ticket in string.gmatch(st[9] or '', '\n([^\n]+)\n([^\n]+)\n') do
  versions[#versions + 1] = {entry, ticket, string.match(entry, '^(.*)[.]')}
end
local function void(entry, ticket, x, fresh)
  if fresh then
    redis.call('DEL', entry, ticket)
  else
    local h = header(redis.call('GET', entry) or '')
    if h and not visible(x, h.snap) then redis.call('DEL', entry) end
  end
end

local key_at, at = 3, 14
for i = 1, num(ARGV[13]) do
  local x, rule, src = num(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
  local nk, nt = num(ARGV[at + 3]), num(ARGV[at + 4])
  at = at + 5
  -- The number of another incarnation of the source says nothing here.
  local known = records and (src == '0' or not st[3] or src == st[3])
  local keys, tags = {}, {}
  for k = 1, nk do
    local key, schemas = ARGV[at], num(ARGV[at + 1])
    at = at + 2
    -- Whoever came before with this x may have known fewer schemas of the key: what has not seen x
    -- goes in any case. But no ticket: T refuses what has not seen x, and nobody would be told.
    local fresh = not known or rule == 't' or record('k:' .. key, x, rule, 0)
    local named, caches = {}, {}
    for j = key_at, key_at + 2 * schemas - 1, 2 do
      named[KEYS[j]] = true
      caches[string.match(string.sub(KEYS[j], 1, -#key - 1), '^(.*)[.]') or ''] = true
      void(KEYS[j], KEYS[j + 1], x, fresh)
    end
    -- Versions of the same cache that the writer did not name, or of any if he named none. Their keys
    -- are not declared: where that is refused, T keeps them from view.
    for j = 1, #versions do
      local entry, ticket, cache = versions[j][1] .. key, versions[j][2] .. key, versions[j][3]
      if (schemas == 0 or caches[cache or '']) and not named[entry] then
        pcall(void, entry, ticket, x, fresh)
      end
    end
    if fresh then keys[#keys + 1] = key end
    key_at = key_at + 2 * schemas
  end
  for k = 1, nt do
    local tag = ARGV[at]
    at = at + 1
    -- A mark alone has no tickets yet, and n begins anew.
    local records_tag = known and (rule ~= 't' or e)
    if not records_tag or record('t:' .. tag, x, rule, n + 1) then tags[#tags + 1] = tag end
  end
  if e and #keys + #tags > 0 then
    n = n + 1
    local message = {'c', replid, e, n, heartbeat, num(ARGV[7]), x, #keys}
    for k = 1, #keys do message[#message + 1] = keys[k] end
    for k = 1, #tags do message[#message + 1] = tags[k] end
    message = pack(message)
    redis.call('HSET', S, 'n', text(n))
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[10], text(n) .. '-1', 'm', message)
    publish(ARGV[9], ARGV[8], message)
  end
end

-- Lowest x first: below xmin beyond the soft limit, whatever it is beyond the hard one. A look at all
-- of them costs: an eighth of the soft limit must have come since the last one, and beyond the hard
-- limit more goes than must.
local xmin, soft = num(ARGV[6]), num(ARGV[11])
local hard = math.max(num(ARGV[12]), soft)
local due = made > soft and xmin > 0 and made >= num(st[8]) + math.floor(soft / 8)
if records and (made > hard or due) then
  local most = made > hard and hard - math.floor((hard - soft) / 16) or hard
  local all = redis.call('HGETALL', S)
  local found = {}
  for i = 1, #all, 2 do
    local field = all[i]
    if string.sub(field, 2, 2) == ':' then
      local c, s, xs = split(all[i + 1])
      local high = c
      for j = 1, #xs do high = math.max(high, xs[j]) end
      found[#found + 1] = {field, high, s}
    end
  end
  table.sort(found, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)
  local keep = math.floor(soft / 2)
  local floors = redis.call('HMGET', S, 'F', 'Ft', 'Fn')
  local f, ft, fn = tonumber(floors[1]) or -1, tonumber(floors[2]) or -1, num(floors[3])
  made = #found
  for i = 1, #found - keep do
    local field, high, s = found[i][1], found[i][2], found[i][3]
    if high >= 0 and high >= xmin and made <= most then break end
    redis.call('HDEL', S, field)
    made = made - 1
    f = math.max(f, high)
    if string.sub(field, 1, 1) == 't' then
      ft = math.max(ft, high)
      fn = math.max(fn, s)
    end
  end
  redis.call('HSET', S, 'tl', text(made))
  if f >= 0 then redis.call('HSET', S, 'F', text(f)) end
  if ft >= 0 then redis.call('HSET', S, 'Ft', text(ft)) end
  if fn > 0 then redis.call('HSET', S, 'Fn', text(fn)) end
end
if records then redis.call('HSET', S, 'tn', text(made)) end

if ARGV[1] == 'f' then
  redis.call('HSET', S, 'A', ARGV[3])
  if ARGV[4] ~= '0' then
    redis.call('HSET', S, 'H', ARGV[4])
    publish(ARGV[9], ARGV[8], pack({'h', replid, e, n, ARGV[4], 0, 0, 0}))
  end
end
return answer(1)
)lua";

constexpr const char* kRead = R"lua(
local st = redis.call('HMGET', S, 'e', 'n', 'A', 'src', 'H')
return {server(), st[1] or '', num(st[2]), st[3] or '0', st[4] or '0', num(st[5]), clock()}
)lua";

// ARGV: mark, src (0: not known).
constexpr const char* kEpochBegin = R"lua(
redis.call('DEL', S)
redis.call('HSET', S, 'mark', ARGV[1])
if ARGV[2] ~= '0' then redis.call('HSET', S, 'src', ARGV[2]) end
return {server(), '', 0, 1, '0', ARGV[2], clock()}
)lua";

// KEYS: S, stream. ARGV: mark, epoch, F, A, src, H, channel, PUBLISH or SPUBLISH.
constexpr const char* kEpochWrite = R"lua(
local replid = server()
local st = redis.call('HMGET', S, 'e', 'n', 'A', 'src', 'mark')
-- Under the mark of one incarnation the changes of another are not recorded.
if st[5] ~= ARGV[1] or (st[4] and st[4] ~= ARGV[5]) then
  return {replid, st[1] or '', num(st[2]), 0, st[3] or '0', st[4] or '0', clock()}
end
-- What was trimmed while the mark stood has raised F already.
local floor = math.max(num(redis.call('HGET', S, 'F')), num(ARGV[3]))
redis.call('HDEL', S, 'mark')
redis.call('DEL', KEYS[2])
redis.call('HSET', S, 'e', ARGV[2], 'F', text(floor), 'A', ARGV[4], 'src', ARGV[5], 'H', ARGV[6],
  'n', '0')
publish(ARGV[8], ARGV[7], pack({'e', replid, ARGV[2], 0, ARGV[6], 0, 0, 0}))
return {replid, ARGV[2], 0, 1, ARGV[4], ARGV[5], clock()}
)lua";

// KEYS: S, stream. ARGV: after, most.
constexpr const char* kHistory = R"lua(
local out = {}
local items = redis.call('XRANGE', KEYS[2], text(num(ARGV[1]) + 1) .. '-0', '+', 'COUNT', ARGV[2])
for i = 1, #items do out[i] = items[i][2][2] end
return out
)lua";

std::string with_common(const char* script) { return std::string(kCommon) + script; }

}  // namespace

std::string_view lookup() {
  static const std::string text = with_common(kLookup);
  return text;
}
std::string_view fill() {
  static const std::string text = with_common(kFill);
  return text;
}
std::string_view change() {
  static const std::string text = with_common(kChange);
  return text;
}
std::string_view read() {
  static const std::string text = with_common(kRead);
  return text;
}
std::string_view epoch_begin() {
  static const std::string text = with_common(kEpochBegin);
  return text;
}
std::string_view epoch_write() {
  static const std::string text = with_common(kEpochWrite);
  return text;
}
std::string_view history() {
  static const std::string text = with_common(kHistory);
  return text;
}

}  // namespace larder::engine::redis::scripts
