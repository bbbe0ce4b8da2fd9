import io.lettuce.core.KeyScanCursor;
import io.lettuce.core.KeyValue;
import io.lettuce.core.LettuceFutures;
import io.lettuce.core.RedisClient;
import io.lettuce.core.RedisFuture;
import io.lettuce.core.RedisURI;
import io.lettuce.core.ScanArgs;
import io.lettuce.core.ScanIterator;
import io.lettuce.core.SetArgs;
import io.lettuce.core.TransactionResult;
import io.lettuce.core.api.StatefulRedisConnection;
import io.lettuce.core.api.async.RedisAsyncCommands;
import io.lettuce.core.api.sync.RedisCommands;
import io.lettuce.core.codec.StringCodec;
import io.lettuce.core.output.ArrayOutput;
import io.lettuce.core.output.StatusOutput;
import io.lettuce.core.protocol.CommandArgs;
import io.lettuce.core.pubsub.RedisPubSubAdapter;
import io.lettuce.core.pubsub.StatefulRedisPubSubConnection;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/** Lettuce with its defaults (RESP3 with HELLO, one multiplexed connection). */
public final class LettuceClient {
  private static final String RUN = "lettuce:" + ProcessHandle.current().pid();

  private static CommandArgs<String, String> args(String value) {
    return new CommandArgs<>(StringCodec.UTF8).addKey(value);
  }

  private static void strings(RedisCommands<String, String> r) {
    String a = RUN + ":a";
    String b = RUN + ":b";
    Checks.check("ping", "PONG".equals(r.ping()));
    Checks.check("set", "OK".equals(r.set(a, "one")));
    Checks.check("get", "one".equals(r.get(a)));
    Checks.check("get of an absent key", r.get(RUN + ":absent") == null);
    Checks.check("set ex", "OK".equals(r.set(b, "two", SetArgs.Builder.ex(100))));
    long ttl = r.ttl(b);
    Checks.check("ttl " + ttl, ttl >= 98 && ttl <= 100);
    Checks.check("set nx", r.set(a, "other", SetArgs.Builder.nx()) == null);
    List<KeyValue<String, String>> values = r.mget(a, RUN + ":absent", b);
    Checks.check("mget", values.get(0).getValue().equals("one") && !values.get(1).hasValue());
    Checks.check("incr", r.incrby(RUN + ":n", 42) == 42);
    Checks.check("del", r.del(a, b) == 2);
  }

  private static void pipeline(StatefulRedisConnection<String, String> connection) {
    RedisAsyncCommands<String, String> async = connection.async();
    List<RedisFuture<?>> answers = new ArrayList<>();
    for (int i = 0; i < 500; i++) {
      async.set(RUN + ":p:" + i, Integer.toString(i));
      answers.add(async.get(RUN + ":p:" + i));
    }
    RedisFuture<?>[] all = answers.toArray(new RedisFuture<?>[0]);
    Checks.check("pipeline", LettuceFutures.awaitAll(Duration.ofSeconds(10), all));
    for (int i = 0; i < all.length; i++) {
      Checks.check("pipeline", Integer.toString(i).equals(all[i].toCompletableFuture().join()));
    }
    Set<String> found = new HashSet<>();
    ScanIterator<String> keys =
        ScanIterator.scan(connection.sync(), ScanArgs.Builder.limit(50).match(RUN + ":p:*"));
    keys.forEachRemaining(found::add);
    Checks.check("scan finds all", found.size() == 500);
    KeyScanCursor<String> page = connection.sync().scan();
    Checks.check("scan with no arguments", !page.getKeys().isEmpty() || !page.isFinished());
  }

  private static void transactions(
      RedisCommands<String, String> r, RedisCommands<String, String> other) {
    String key = RUN + ":watched";
    r.multi();
    r.set(key, "1");
    r.incr(key);
    TransactionResult answers = r.exec();
    Checks.check("multi, exec", answers.get(0).equals("OK") && answers.get(1).equals(2L));
    r.watch(key);
    other.set(key, "10");
    r.multi();
    r.set(key, "3");
    Checks.check("exec after a conflict", r.exec().wasDiscarded());
    Checks.check("the value of the other writer", "10".equals(r.get(key)));
  }

  private static void pubsub(RedisClient client, RedisCommands<String, String> r)
      throws InterruptedException {
    CountDownLatch received = new CountDownLatch(1);
    try (StatefulRedisPubSubConnection<String, String> listener = client.connectPubSub()) {
      listener.addListener(
          new RedisPubSubAdapter<>() {
            @Override
            public void message(String channel, String message) {
              if (channel.equals(RUN + ":news") && message.equals("hello")) {
                received.countDown();
              }
            }
          });
      listener.sync().subscribe(RUN + ":news");
      Checks.check("publish reaches one", r.publish(RUN + ":news", "hello") == 1);
      Checks.check("message", received.await(10, TimeUnit.SECONDS));
      listener.sync().unsubscribe(RUN + ":news");
    }
  }

  private static void declared(RedisCommands<String, String> r) {
    String row = r.get("product:1");
    long price = Checks.price(row) + 1;
    String changed = Checks.withPrice(row, price);
    Checks.check("set of a declared key", "OK".equals(r.set("product:1", changed)));
    Checks.check("the new price", Checks.price(r.get("product:1")) == price);
    List<KeyValue<String, String>> values = r.mget("product:1", "product:999999");
    Checks.check("mget", Checks.price(values.get(0).getValue()) == price);
    Checks.check("mget of an absent row", !values.get(1).hasValue());
    List<Object> explained =
        r.dispatch(
            () -> "LARDER.EXPLAIN".getBytes(), new ArrayOutput<>(StringCodec.UTF8), args("product:1"));
    Checks.check("explain", explained.toString().contains("product"));
    String error = Checks.errorOf(() -> r.get("product:abc"));
    Checks.check("a bad id: " + error, error.startsWith("LARDER_BADKEY"));
  }

  public static void main(String[] arguments) throws InterruptedException {
    RedisClient client = RedisClient.create(RedisURI.create(Checks.HOST, Checks.PORT));
    try (StatefulRedisConnection<String, String> connection = client.connect();
        StatefulRedisConnection<String, String> second = client.connect()) {
      RedisCommands<String, String> r = connection.sync();
      strings(r);
      pipeline(connection);
      transactions(r, second.sync());
      pubsub(client, r);
      String error =
          Checks.errorOf(
              () ->
                  r.dispatch(
                      () -> "NOSUCH".getBytes(), new StatusOutput<>(StringCodec.UTF8), args("1")));
      Checks.check("unknown command: " + error, error.contains("unknown command"));
      if (Checks.DECLARED) {
        declared(r);
      }
    } finally {
      client.shutdown(Duration.ZERO, Duration.ofSeconds(2));
    }
    Checks.done("lettuce");
  }
}
