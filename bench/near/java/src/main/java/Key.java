import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;

/**
 * A key as its bytes, hashed anew each time: a String would keep its hash after the first pass over
 * the sequence and compare by identity. The hash takes eight bytes at once, faster than String's.
 */
final class Key {
  static final int BYTES = 14;
  static final VarHandle WORD =
      MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);

  private final byte[] bytes;

  private Key(byte[] bytes) {
    this.bytes = bytes;
  }

  static Key of(int number) {
    byte[] bytes = {'k', 'e', 'y', ':', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = BYTES - 1; i >= 4; i--) {
      bytes[i] = (byte) ('0' + number % 10);
      number /= 10;
    }
    return new Key(bytes);
  }

  Key copy() {
    return new Key(bytes.clone());
  }

  @Override
  public int hashCode() {
    int last = bytes.length - Long.BYTES; // keys are longer than that; the two words may overlap
    long a = (long) WORD.get(bytes, 0) * 0x9e3779b97f4a7c15L;
    long b = ((long) WORD.get(bytes, last) ^ (a >>> 32)) * 0xd6e8feb86659fd93L;
    return (int) ((a ^ b) >>> 32);
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Key key && Arrays.equals(bytes, key.bytes);
  }
}
