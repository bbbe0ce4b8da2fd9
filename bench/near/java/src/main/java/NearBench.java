import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;
import java.util.stream.Stream;

import com.github.benmanes.caffeine.cache.Cache;
import com.github.benmanes.caffeine.cache.Caffeine;

/**
 * Caffeine under the workload of ../workload.h: the same flags, sequences, rules and names of
 * results as the C++ program; one JSON object a repetition on stdout.
 */
public final class NearBench {
  private static final int SAMPLES = 1 << 14;

  private final Map<String, String> flags;
  private final int entries;
  private final int valueBytes;
  private final int threads;
  private final int repetitions;
  private final long limitNs;
  private final long warmNs;
  private final ExecutorService pool;
  private Cache<Key, byte[]> cache;
  private String content = "";

  private NearBench(Map<String, String> flags) {
    this.flags = flags;
    entries = Integer.parseInt(flags.get("entries"));
    valueBytes = Integer.parseInt(flags.get("value_bytes"));
    threads = Integer.parseInt(flags.get("threads"));
    repetitions = Integer.parseInt(flags.get("repetitions"));
    limitNs = nanos(flags.get("seconds"));
    warmNs = nanos(flags.get("warm_seconds"));
    pool = Executors.newFixedThreadPool(threads);
  }

  public static void main(String[] arguments) throws Exception {
    Map<String, String> flags = new HashMap<>();
    for (String word : arguments) {
      String[] parts = word.substring(2).split("=", 2);
      flags.put(parts[0], parts[1]);
    }
    var bench = new NearBench(flags);
    for (String operation : flags.get("operations").split(",")) {
      bench.measure(operation);
    }
    bench.pool.shutdown();
  }

  private static long nanos(String seconds) {
    return (long) (Double.parseDouble(seconds) * 1e9);
  }

  private void measure(String operation) throws Exception {
    switch (operation) {
      case "get_view", "get_zipf" -> get(operation, NearBench.this::view);
      case "get_copy" -> get(operation, NearBench.this::copy);
      case "get_or_load" -> getOrLoad();
      case "insert" -> insert();
      case "memory" -> memory();
      default -> throw new IllegalArgumentException(operation);
    }
  }

  // ---- what is in the cache ----

  private static Cache<Key, byte[]> newCache(int capacity) {
    return Caffeine.newBuilder().maximumSize(capacity).initialCapacity(capacity).build();
  }

  private int[] numbers(String name) {
    return Sequence.read(Path.of(flags.get("sequences"), name + ".u32"));
  }

  private Sequence chunk(int number) {
    return new Sequence(numbers("load-" + entries + "-" + number));
  }

  private void put(IntStream numbers) {
    var worker = new Worker(valueBytes, 0);
    numbers.forEach(number -> cache.put(Key.of(number), worker.numbered(number).clone()));
  }

  /** All N keys are there: a quarter more room than they need. */
  private void hold() {
    if (!content.equals("held")) {
      cache = newCache(entries / 4 * 5);
      put(IntStream.range(0, entries));
      cache.cleanUp();
      content = "held";
    }
  }

  /** As full as it gets with room for N, by what was asked for. */
  private void fill() {
    if (!content.equals("full")) {
      cache = newCache(entries);
      put(Arrays.stream(numbers("order-" + entries)));
      Sequence first = chunk(0);
      var worker = new Worker(valueBytes, 0);
      for (int at = 0; at < first.size(); at++) {
        worker.getOrLoad(cache, first, at);
      }
      content = "full";
    }
  }

  // ---- operations ----

  private long view(Worker worker, Sequence sequence, int at) {
    byte[] value = cache.getIfPresent(sequence.keys[at]);
    if (value == null) {
      return 0;
    }
    worker.hits++;
    return Worker.firstWord(value);
  }

  private long copy(Worker worker, Sequence sequence, int at) {
    byte[] value = cache.getIfPresent(sequence.keys[at]);
    if (value == null) {
      return 0;
    }
    worker.hits++;
    System.arraycopy(value, 0, worker.buffer, 0, value.length);
    return Worker.firstWord(worker.buffer);
  }

  /** Key and value are copied in, as for everybody. */
  private long put(Worker worker, Sequence sequence, int at) {
    int number = sequence.numbers[at];
    cache.put(sequence.keys[at].copy(), worker.numbered(number).clone());
    return number;
  }

  private void get(String operation, Worker.Step step) throws Exception {
    hold();
    String file = operation.equals("get_zipf") ? "zipf" : "get";
    repeat(operation, new Sequence(numbers(file + "-" + entries)), true, step);
  }

  private void insert() throws Exception {
    fill();
    // When they come round again they are long gone: four times what fits.
    int first = 2 * entries;
    int count = Math.max(4 * entries, 1 << 20);
    var sequence = new Sequence(IntStream.range(first, first + count).toArray());
    repeat("insert", sequence, false, this::put);
  }

  private void getOrLoad() throws Exception {
    fill();
    for (int repetition = -1; repetition < repetitions; repetition++) {
      // The first chunk once more, for the compiler.
      Sequence chunk = chunk(repetition + 1);
      int share = chunk.size() / threads;
      var workers = workers(chunk);
      drive(workers, chunk, 0, share / 4 * 3, share / 4 / Worker.SAMPLE_EVERY,
          (worker, sequence, at) -> worker.getOrLoad(cache, sequence, at));
      if (repetition >= 0) {
        report("get_or_load", repetition, workers);
      }
    }
  }

  // ---- threads and time ----

  private List<Worker> workers(Sequence sequence) {
    int share = sequence.size() / threads;
    return IntStream.range(0, threads).mapToObj(i -> new Worker(valueBytes, i * share)).toList();
  }

  private void repeat(String operation, Sequence sequence, boolean onlyHits, Worker.Step step)
      throws Exception {
    var workers = workers(sequence);
    drive(workers, sequence, warmNs, 0, SAMPLES, step);
    for (int repetition = 0; repetition < repetitions; repetition++) {
      drive(workers, sequence, limitNs, 0, SAMPLES, step);
      if (onlyHits && workers.stream().anyMatch(w -> w.hits != w.operations)) {
        throw new IllegalStateException("not all were hits");
      }
      report(operation, repetition, workers);
    }
  }

  private void drive(List<Worker> workers, Sequence sequence, long limit, int count, int samples,
      Worker.Step step) throws InterruptedException, ExecutionException {
    var barrier = new CyclicBarrier(threads);
    var running = workers.stream().map(worker -> pool.submit(() -> {
      barrier.await();
      worker.run(sequence, limit, count, step);
      barrier.await();
      worker.sample(sequence, samples, step);
      return null;
    })).toList();
    for (Future<?> one : running) {
      one.get();
    }
  }

  private void report(String operation, int repetition, List<Worker> workers) {
    long operations = workers.stream().mapToLong(w -> w.operations).sum();
    double hits = workers.stream().mapToLong(w -> w.hits).sum();
    double seconds = workers.stream().mapToLong(w -> w.elapsedNs).average().orElseThrow() / 1e9;
    long[] samples =
        workers.stream().flatMapToLong(w -> Arrays.stream(w.samples)).sorted().toArray();
    print(operation, "\"threads\": %d, \"repetition_index\": %d, \"iterations\": %d, "
        + "\"items_per_second\": %.0f, \"hit_ratio\": %.6f, "
        + "\"p50_ns\": %d, \"p99_ns\": %d, \"p999_ns\": %d",
        threads, repetition, operations, operations / seconds, hits / operations,
        samples[samples.length / 2], samples[(int) (samples.length * 0.99)],
        samples[(int) (samples.length * 0.999)]);
  }

  private void print(String operation, String format, Object... values) {
    String name = Stream.of(operation, "caffeine", entries, valueBytes)
        .map(Object::toString).reduce((a, b) -> a + "/" + b).orElseThrow();
    System.out.printf(Locale.ROOT, "{\"name\": \"%s\", \"run_type\": \"iteration\", %s}%n", name,
        String.format(Locale.ROOT, format, values));
  }

  // ---- memory ----

  private static double heapBytes() throws InterruptedException {
    for (int i = 0; i < 3; i++) {
      System.gc();
      Thread.sleep(50); // what the collection has queued for other threads
    }
    return Runtime.getRuntime().totalMemory() - Runtime.getRuntime().freeMemory();
  }

  /** What is live after a collection: resident memory is what one allows the heap to be. */
  private void memory() throws InterruptedException {
    double before = heapBytes();
    int count = entries / 4 * 5;
    cache = newCache(entries);
    put(IntStream.range(0, count));
    cache.cleanUp();
    double grown = heapBytes() - before;
    long held =
        IntStream.range(0, count).filter(i -> cache.getIfPresent(Key.of(i)) != null).count();
    print("memory", "\"threads\": 1, \"repetition_index\": 0, \"held_entries\": %d, "
        + "\"overhead_bytes\": %.1f, \"live_heap\": true",
        held, grown / held - Key.BYTES - valueBytes);
  }
}
