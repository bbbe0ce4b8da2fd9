"""redis-py with its defaults. The same script for the version that Debian ships and for the newest."""

import json
import os
import sys
import time

import redis

HOST, PORT = os.environ["LARDER_HOST"], int(os.environ["LARDER_PORT"])
RUN = f"redis-py:{redis.__version__}:{os.getpid()}"
checks = 0


def check(what, condition):
    global checks
    if not condition:
        sys.exit(f"redis-py {redis.__version__}: {what}")
    checks += 1


def error_of(call):
    try:
        call()
    except redis.RedisError as error:
        return str(error)
    return ""


def strings(r):
    a, b = f"{RUN}:a", f"{RUN}:b"
    check("ping", r.ping() is True)
    check("set", r.set(a, b"\x00one\r\n") is True)
    check("get", r.get(a) == b"\x00one\r\n")
    check("get of an absent key", r.get(f"{RUN}:absent") is None)
    check("set ex", r.set(b, "two", ex=100) is True)
    check("ttl", 98 <= r.ttl(b) <= 100)
    check("ttl without a life", r.ttl(a) == -1)
    check("set nx on a present key", r.set(a, "other", nx=True) is None)
    check("mget", r.mget(a, f"{RUN}:absent", b) == [b"\x00one\r\n", None, b"two"])
    check("getdel", r.getdel(b) == b"two")
    first = r.incr(f"{RUN}:n")
    check("incrby", r.incrby(f"{RUN}:n", 41) == first + 41)
    check("delete", r.delete(a, b) == 1)
    large = os.urandom(300_000)
    check("a large value", r.set(a, large, px=60_000) and r.get(a) == large)


def pipeline(r):
    with r.pipeline(transaction=False) as p:
        for i in range(500):
            p.set(f"{RUN}:p:{i}", i).get(f"{RUN}:p:{i}")
        answers = p.execute()
    check("pipeline sets", all(a is True for a in answers[0::2]))
    check("pipeline gets", answers[1::2] == [str(i).encode() for i in range(500)])
    found = set(r.scan_iter(match=f"{RUN}:p:*", count=50))
    check("scan finds all", len(found) == 500)


def transactions(r, other):
    key = f"{RUN}:watched"
    with r.pipeline() as p:
        check("multi, exec", p.set(key, 1).incr(key).get(key).execute() == [True, 2, b"2"])
    with r.pipeline() as p:
        p.watch(key)
        other.set(key, 10)
        p.multi()
        p.set(key, 3)
        try:
            p.execute()
            check("exec after a conflict", False)
        except redis.WatchError:
            check("exec after a conflict", True)
    check("the value of the other writer", r.get(key) == b"10")
    seen = r.transaction(lambda p: p.multi() or p.incr(key), key)
    check("transaction()", seen == [11])


def pubsub(r, other):
    listener = r.pubsub()
    listener.subscribe(f"{RUN}:news")
    listener.psubscribe(f"{RUN}:p*")
    check("subscribed", listener.get_message(timeout=10)["type"] == "subscribe")
    check("psubscribed", listener.get_message(timeout=10)["type"] == "psubscribe")
    check("publish reaches one", other.publish(f"{RUN}:news", "hello") == 1)
    message = listener.get_message(timeout=10)
    check("message", (message["type"], message["data"]) == ("message", b"hello"))
    other.publish(f"{RUN}:pattern", "again")
    message = listener.get_message(timeout=10)
    check("pmessage", (message["type"], message["data"]) == ("pmessage", b"again"))
    listener.unsubscribe()
    listener.close()


def errors(r):
    check("unknown command", "unknown command" in error_of(lambda: r.execute_command("NOSUCH", 1)))
    r.set(f"{RUN}:text", "text")
    check("not an integer", "not an integer" in error_of(lambda: r.incr(f"{RUN}:text")))


def declared(r):
    row = json.loads(r.get("product:1"))
    check("a row as JSON", row["id"] == 1 and isinstance(row["name"], str))
    row["price"] += 1
    check("set of a declared key", r.set("product:1", json.dumps(row)) is True)
    check("the new price", json.loads(r.get("product:1")) == row)
    answers = r.mget("product:1", "product:999999", f"{RUN}:text")
    check("mget of declared and plain keys", json.loads(answers[0]) == row)
    check("mget of an absent row", answers[1] is None and answers[2] == b"text")
    explained = r.execute_command("LARDER.EXPLAIN", "product:1")
    if not isinstance(explained, dict):
        explained = dict(zip(explained[0::2], explained[1::2]))
    check("explain", explained[b"cache"] == b"product")
    check("a bad id", error_of(lambda: r.get("product:abc")).startswith("LARDER_BADKEY"))


def served(r):
    """Commands that the server has answered, this one included."""
    return r.info("stats")["total_commands_processed"]


def becomes(what, read, wanted):
    """A push needs its moment; whoever waits longer than ten seconds waits in vain."""
    end = time.monotonic() + 10
    while read() != wanted and time.monotonic() < end:
        time.sleep(0.001)
    check(what, read() == wanted)


def client_side_caching(other):
    """The client's own cache, kept right by CLIENT TRACKING (redis-py 5.1 and later)."""
    from redis.cache import CacheConfig

    r = redis.Redis(HOST, PORT, protocol=3, cache_config=CacheConfig())
    key, absent = f"{RUN}:cached", f"{RUN}:cached-absent"
    other.set(key, "one")
    check("a value to cache", r.get(key) == b"one")
    before = served(other)
    check("a cached value", all(r.get(key) == b"one" for _ in range(100)))
    check("the server was not asked", served(other) - before < 50)
    other.set(key, "two")
    becomes("the other's write is seen", lambda: r.get(key), b"two")
    check("several keys", r.mget(key, absent) == [b"two", None])
    other.set(absent, "now")
    becomes("an absent key that came", lambda: r.mget(key, absent), [b"two", b"now"])
    r.set(key, "own")
    becomes("its own write is seen", lambda: r.get(key), b"own")
    other.flushall()
    becomes("a flush is seen", lambda: r.get(key), None)
    if os.environ.get("LARDER_DECLARED", "1") == "1":
        row = json.loads(r.get("product:1"))
        r.get("product:1")
        before = served(other)
        check("a cached row", all(json.loads(r.get("product:1")) == row for _ in range(100)))
        check("the server was not asked for the row", served(other) - before < 50)
        row["price"] += 1
        other.set("product:1", json.dumps(row))
        becomes("the row that was written", lambda: json.loads(r.get("product:1")), row)
    r.close()


def main():
    r, other = redis.Redis(HOST, PORT), redis.Redis(HOST, PORT)
    strings(r)
    pipeline(r)
    transactions(r, other)
    pubsub(r, other)
    errors(r)
    if "protocol" in redis.Connection.__init__.__code__.co_varnames:
        strings(redis.Redis(HOST, PORT, protocol=3))  # HELLO 3 where this version speaks it
    strings(redis.Redis(HOST, PORT, client_name="larder-test"))
    if os.environ.get("LARDER_DECLARED", "1") == "1":
        declared(r)
    if int(redis.__version__.split(".")[0]) >= 6:
        client_side_caching(other)
    print(f"ok: {checks} checks (redis-py {redis.__version__})")


main()
