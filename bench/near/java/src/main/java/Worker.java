import java.util.Arrays;
import java.util.function.Function;

import com.github.benmanes.caffeine.cache.Cache;

/** One thread, and what it did in one repetition. */
final class Worker {
  /** One operation; returns the first word of the value. */
  interface Step {
    long run(Worker worker, Sequence sequence, int at);
  }

  static final int BATCH = 256; // operations between two looks at the clock
  static final int SAMPLE_EVERY = 7;

  final byte[] buffer;
  final Function<Key, byte[]> load = this::load;
  int next;
  long hits;
  long operations;
  long elapsedNs;
  long[] samples = {};
  private int number;
  private boolean loaded;

  Worker(int valueBytes, int next) {
    buffer = new byte[valueBytes];
    Arrays.fill(buffer, (byte) 'v');
    this.next = next;
  }

  static long firstWord(byte[] value) {
    return (long) Key.WORD.get(value, 0);
  }

  /** The buffer as the value of that key. */
  byte[] numbered(int number) {
    Key.WORD.set(buffer, 0, (long) number);
    return buffer;
  }

  private byte[] load(Key key) {
    loaded = true;
    return numbered(number).clone();
  }

  /** A hit or, as one step of the cache, a load; the key of a miss stays with the cache. */
  long getOrLoad(Cache<Key, byte[]> cache, Sequence sequence, int at) {
    number = sequence.numbers[at];
    loaded = false;
    byte[] value = cache.get(sequence.keys[at], load);
    if (!loaded) {
      hits++;
    }
    return firstWord(value);
  }

  /** For a time, or, if count > 0, exactly so many operations. */
  void run(Sequence sequence, long limitNs, int count, Step step) {
    hits = 0;
    operations = 0;
    long sum = 0;
    int begin = next;
    long start = System.nanoTime();
    do {
      int size = count > 0 ? (int) Math.min(BATCH, count - operations) : BATCH;
      sum += batch(sequence, size, step);
      operations += size;
      elapsedNs = System.nanoTime() - start;
    } while (count > 0 ? operations < count : elapsedNs < limitNs);
    if (sum != sequence.sum(begin, operations)) {
      throw new IllegalStateException("a value of another key");
    }
  }

  private long batch(Sequence sequence, int size, Step step) {
    long sum = 0;
    int at = next;
    for (int i = 0; i < size; i++) {
      sum += step.run(this, sequence, at);
      if (++at == sequence.size()) {
        at = 0;
      }
    }
    next = at;
    return sum;
  }

  /** One of SAMPLE_EVERY operations, less what reading the clock takes. */
  void sample(Sequence sequence, int count, Step step) {
    long keptHits = hits;
    long empty = clockPairNs();
    long[] times = new long[count];
    for (int i = 0; i < count; i++) {
      batch(sequence, SAMPLE_EVERY - 1, step);
      long start = System.nanoTime();
      batch(sequence, 1, step);
      times[i] = Math.max(0, System.nanoTime() - start - empty);
    }
    samples = times;
    hits = keptHits;
  }

  private static long clockPairNs() {
    long[] pairs = new long[10_001];
    for (int i = 0; i < pairs.length; i++) {
      long start = System.nanoTime();
      pairs[i] = System.nanoTime() - start;
    }
    Arrays.sort(pairs);
    return pairs[pairs.length / 2];
  }
}
