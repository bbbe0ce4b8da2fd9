package larder;

import com.sun.jna.Library;
import com.sun.jna.Memory;
import com.sun.jna.Native;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.PointerByReference;
import java.nio.charset.StandardCharsets;
import java.util.function.Function;

/**
 * The near tier of this host's Larder node, read from shared memory. For all threads at once.
 *
 * <pre>{@code
 * Near near = new Near("shop");   // the node's near.shared
 * byte[] product = near.get("product:7", key -> jedis.get(key.getBytes()));
 * }</pre>
 *
 * <p>Needs liblarder_near.so on the path of the system property {@code jna.library.path}.
 */
public final class Near implements AutoCloseable {
  /** What a look comes to; see larder/near.h. */
  public enum Result { FOUND, ABSENT, MISS, TOO_SMALL, NODE_DOWN, RESTARTED }

  public record Answer(Result result, byte[] value) {}

  interface Api extends Library {
    int larder_near_open(String name, PointerByReference handle);

    int larder_near_get(Pointer handle, byte[] key, long keySize, Pointer buffer, long capacity,
        Pointer size);

    void larder_near_close(Pointer handle);

    String larder_near_text(int result);
  }

  /** A thread's buffer: eight bytes for the size, then the value. */
  private final ThreadLocal<Memory> buffers = ThreadLocal.withInitial(() -> new Memory(4096));

  private final Api api = Native.load("larder_near", Api.class);
  private final Pointer handle;

  public Near(String name) {
    PointerByReference opened = new PointerByReference();
    check(api.larder_near_open(name, opened));
    handle = opened.getValue();
  }

  public Answer look(String key) {
    byte[] bytes = key.getBytes(StandardCharsets.UTF_8);
    while (true) {
      Memory buffer = buffers.get();
      int result = check(api.larder_near_get(
          handle, bytes, bytes.length, buffer.share(8), buffer.size() - 8, buffer));
      long size = buffer.getLong(0);
      if (Result.values()[result] == Result.FOUND) {
        return new Answer(Result.FOUND, buffer.getByteArray(8, (int) size));
      }
      if (Result.values()[result] != Result.TOO_SMALL) {
        return new Answer(Result.values()[result], null);
      }
      buffers.set(new Memory(size + 8));
    }
  }

  /** The value from here, or else what ask answers; null if there is no such row. */
  public byte[] get(String key, Function<String, byte[]> ask) {
    Answer answer = look(key);
    if (answer.result() == Result.RESTARTED) {
      answer = look(key);
    }
    boolean known = answer.result() == Result.FOUND || answer.result() == Result.ABSENT;
    return known ? answer.value() : ask.apply(key);
  }

  @Override
  public void close() {
    api.larder_near_close(handle);
  }

  private int check(int result) {
    if (result < 0) {
      throw new IllegalStateException(api.larder_near_text(result));
    }
    return result;
  }
}
