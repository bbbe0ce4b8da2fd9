#!/usr/bin/env bash
# redis-cli with its defaults: one command a call, commands on stdin, RESP3, --scan, --pipe, Pub/Sub.
set -euo pipefail

host=${LARDER_HOST:?} port=${LARDER_PORT:?}
checks=0
run="cli:$$"

cli() { redis-cli -h "$host" -p "$port" "$@"; }

same() {  # same WHAT EXPECTED ACTUAL
  if [[ $2 != "$3" ]]; then
    printf 'redis-cli: %s: expected [%s], got [%s]\n' "$1" "$2" "$3" >&2
    exit 1
  fi
  checks=$((checks + 1))
}

matches() {  # matches WHAT PATTERN ACTUAL
  # shellcheck disable=SC2053  # the right side is meant to be a pattern
  if [[ $3 != $2 ]]; then
    printf 'redis-cli: %s: expected something like [%s], got [%s]\n' "$1" "$2" "$3" >&2
    exit 1
  fi
  checks=$((checks + 1))
}

same 'ping' PONG "$(cli ping)"
matches 'hello' '*proto*3*' "$(cli -3 hello 3 | tr '\n' ' ')"
matches 'info' '*redis_version:*' "$(cli info server)"

# Strings and their life.
same 'set' OK "$(cli set "$run:a" one)"
same 'get' one "$(cli get "$run:a")"
same 'get over RESP3' one "$(cli -3 get "$run:a")"
same 'get of an absent key' '' "$(cli get "$run:absent")"
same 'ttl without a life' -1 "$(cli ttl "$run:a")"
same 'set ex' OK "$(cli set "$run:b" two EX 100)"
matches 'ttl' '@(99|100)' "$(cli ttl "$run:b")"
same 'set nx on a present key' '' "$(cli set "$run:a" other nx)"
same 'mget' 'one two ' "$(cli mget "$run:a" "$run:b" "$run:absent" | tr '\n' ' ' | sed 's/  $/ /')"
same 'incr' 1 "$(cli incr "$run:n")"
same 'del' 2 "$(cli del "$run:a" "$run:b")"
same 'exists' 0 "$(cli exists "$run:a")"
printf 'binary\0value' | cli -x set "$run:binary" >/dev/null
same 'a value with a zero byte' 12 "$(cli strlen "$run:binary")"

# Many commands over one connection: stdin, then --pipe, which asks for nothing until the end.
same 'commands on stdin' 'OK OK OK ' \
  "$(for i in 1 2 3; do echo "set $run:p:$i v$i"; done | cli | tr '\n' ' ')"
matches '--pipe' '*errors: 0, replies: 500*' \
  "$(for i in {1..500}; do printf 'SET %s:q:%d %d\r\n' "$run" "$i" "$i"; done | cli --pipe)"
same 'the last value of --pipe' 500 "$(cli get "$run:q:500")"
same '--scan' "$run:p:1 $run:p:2 $run:p:3 " "$(cli --scan --pattern "$run:p:*" | sort | tr '\n' ' ')"
same '--scan finds all' 500 "$(cli --scan --pattern "$run:q:*" | sort -u | wc -l)"

# Transactions.
same 'multi, exec' 'OK QUEUED QUEUED OK 1 ' \
  "$(printf 'multi\nset %s:m 5\nincr %s:t\nexec\n' "$run" "$run" | cli | tr '\n' ' ')"
coproc watcher { exec stdbuf -oL redis-cli -h "$host" -p "$port"; }
watcher_id=$watcher_PID
reply() { IFS= read -r -t 10 line <&"${watcher[0]}" || line='no answer'; }
say() { printf '%s\n' "$*" >&"${watcher[1]}"; }
say watch "$run:m"; reply; same 'watch' OK "$line"
same 'the write that conflicts' OK "$(cli set "$run:m" 6)"
say multi; reply; same 'multi after watch' OK "$line"
say set "$run:m" 7; reply; same 'queued' QUEUED "$line"
say exec; reply; same 'exec after a conflict' '' "$line"
same 'the value of the other writer' 6 "$(cli get "$run:m")"
say quit
wait "$watcher_id" 2>/dev/null || true

# Pub/Sub: the listener says when it is subscribed; then one message.
coproc listener { exec stdbuf -oL redis-cli -h "$host" -p "$port" subscribe "$run:news"; }
listener_id=$listener_PID
hear() { IFS= read -r -t 10 line <&"${listener[0]}" || line='nothing'; }
while [[ ${line-} != 1 ]]; do hear; [[ $line != nothing ]] || same 'subscribed' 1 "$line"; done
same 'publish reaches one' 1 "$(cli publish "$run:news" hello)"
hear; same 'kind' message "$line"
hear; same 'channel' "$run:news" "$line"
hear; same 'message' hello "$line"
kill "$listener_id"; wait "$listener_id" 2>/dev/null || true

# Errors.
matches 'unknown command' '*ERR unknown command*' "$(cli nosuchcommand x 2>&1 || true)"
matches 'wrong number of arguments' '*ERR wrong number of arguments*' "$(cli get 2>&1 || true)"

if [[ ${LARDER_DECLARED:-1} == 1 ]]; then
  before=$(cli get product:1)
  matches 'a row as JSON' '{*"name"*}' "$before"
  price=$(jq -er .price <<<"$before" 2>/dev/null || sed -E 's/.*"price": *([0-9]+).*/\1/' <<<"$before")
  after=$(sed -E "s/\"price\": *[0-9]+/\"price\":$((price + 1))/" <<<"$before")
  same 'set of a declared key' OK "$(cli set product:1 "$after")"
  matches 'the new price' "*\"price\":$((price + 1))*" "$(cli get product:1)"
  same 'two reads in one' "$(cli get product:1)" "$(cli mget product:1 product:999999 | head -1)"
  matches 'explain' '*cache*product*' "$(cli larder.explain product:1 | tr '\n' ' ')"
  matches 'explain over RESP3' '*cache*product*' "$(cli -3 larder.explain product:1 | tr '\n' ' ')"
  matches 'a bad id' '*LARDER_BADKEY*' "$(cli get product:abc 2>&1 || true)"
fi
echo "ok: $checks checks"
