import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.JedisPubSub;
import redis.clients.jedis.Pipeline;
import redis.clients.jedis.Response;
import redis.clients.jedis.Transaction;
import redis.clients.jedis.params.ScanParams;
import redis.clients.jedis.params.SetParams;
import redis.clients.jedis.resps.ScanResult;
import redis.clients.jedis.util.SafeEncoder;

/** Jedis with its defaults. */
public final class JedisClient {
  private static final String RUN = "jedis:" + ProcessHandle.current().pid();

  private static Jedis connect() {
    return new Jedis(Checks.HOST, Checks.PORT);
  }

  private static void strings(Jedis r) {
    String a = RUN + ":a";
    String b = RUN + ":b";
    Checks.check("ping", "PONG".equals(r.ping()));
    Checks.check("set", "OK".equals(r.set(a, "one")));
    Checks.check("get", "one".equals(r.get(a)));
    Checks.check("get of an absent key", r.get(RUN + ":absent") == null);
    Checks.check("set ex", "OK".equals(r.set(b, "two", SetParams.setParams().ex(100))));
    long ttl = r.ttl(b);
    Checks.check("ttl " + ttl, ttl >= 98 && ttl <= 100);
    Checks.check("set nx", r.set(a, "other", SetParams.setParams().nx()) == null);
    List<String> values = r.mget(a, RUN + ":absent", b);
    Checks.check("mget " + values, values.equals(Arrays.asList("one", null, "two")));
    Checks.check("incr", r.incrBy(RUN + ":n", 42) == 42);
    Checks.check("del", r.del(a, b) == 2);
  }

  private static void pipeline(Jedis r) {
    Response<?>[] values = new Response<?>[500];
    try (Pipeline p = r.pipelined()) {
      for (int i = 0; i < values.length; i++) {
        p.set(RUN + ":p:" + i, Integer.toString(i));
        values[i] = p.get(RUN + ":p:" + i);
      }
      p.sync();
    }
    for (int i = 0; i < values.length; i++) {
      Checks.check("pipeline", Integer.toString(i).equals(values[i].get()));
    }
    Set<String> found = new HashSet<>();
    String cursor = ScanParams.SCAN_POINTER_START;
    do {
      ScanResult<String> page = r.scan(cursor, new ScanParams().match(RUN + ":p:*").count(50));
      found.addAll(page.getResult());
      cursor = page.getCursor();
    } while (!cursor.equals(ScanParams.SCAN_POINTER_START));
    Checks.check("scan finds all", found.size() == 500);
  }

  private static void transactions(Jedis r, Jedis other) {
    String key = RUN + ":watched";
    try (Transaction t = r.multi()) {
      t.set(key, "1");
      t.incr(key);
      Checks.check("multi, exec", t.exec().equals(Arrays.asList("OK", 2L)));
    }
    r.watch(key);
    other.set(key, "10");
    try (Transaction t = r.multi()) {
      t.set(key, "3");
      Checks.check("exec after a conflict", t.exec() == null);
    }
    Checks.check("the value of the other writer", "10".equals(r.get(key)));
  }

  private static void pubsub(Jedis r) throws InterruptedException {
    CountDownLatch subscribed = new CountDownLatch(1);
    CountDownLatch received = new CountDownLatch(1);
    JedisPubSub listener =
        new JedisPubSub() {
          @Override
          public void onSubscribe(String channel, int count) {
            subscribed.countDown();
          }

          @Override
          public void onMessage(String channel, String message) {
            if (message.equals("hello")) {
              received.countDown();
            }
            unsubscribe();
          }
        };
    Thread thread =
        new Thread(
            () -> {
              try (Jedis connection = connect()) {
                connection.subscribe(listener, RUN + ":news");
              }
            });
    thread.start();
    Checks.check("subscribe", subscribed.await(10, TimeUnit.SECONDS));
    Checks.check("publish reaches one", r.publish(RUN + ":news", "hello") == 1);
    Checks.check("message", received.await(10, TimeUnit.SECONDS));
    thread.join(10_000);
    Checks.check("unsubscribe", !thread.isAlive());
  }

  private static void declared(Jedis r) {
    String row = r.get("product:1");
    long price = Checks.price(row) + 1;
    String changed = Checks.withPrice(row, price);
    Checks.check("set of a declared key", "OK".equals(r.set("product:1", changed)));
    Checks.check("the new price", Checks.price(r.get("product:1")) == price);
    List<String> values = r.mget("product:1", "product:999999");
    Checks.check("mget", Checks.price(values.get(0)) == price && values.get(1) == null);
    List<?> explained =
        (List<?>) r.sendCommand(() -> SafeEncoder.encode("LARDER.EXPLAIN"), "product:1");
    Checks.check("explain", SafeEncoder.encodeObject(explained).toString().contains("product"));
    String error = Checks.errorOf(() -> r.get("product:abc"));
    Checks.check("a bad id: " + error, error.startsWith("LARDER_BADKEY"));
  }

  public static void main(String[] args) throws InterruptedException {
    try (Jedis r = connect();
        Jedis other = connect()) {
      strings(r);
      pipeline(r);
      transactions(r, other);
      pubsub(r);
      String error = Checks.errorOf(() -> r.sendCommand(() -> SafeEncoder.encode("NOSUCH"), "1"));
      Checks.check("unknown command: " + error, error.contains("unknown command"));
      if (Checks.DECLARED) {
        declared(r);
      }
    }
    Checks.done("jedis");
  }
}
