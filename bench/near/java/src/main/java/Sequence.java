import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;

/** Keys in the order of their use: new objects side by side, none of them one that a cache has. */
final class Sequence {
  final int[] numbers;
  final Key[] keys;

  Sequence(int[] numbers) {
    this.numbers = numbers;
    keys = new Key[numbers.length];
    for (int i = 0; i < keys.length; i++) {
      keys[i] = Key.of(numbers[i]);
    }
  }

  static int[] read(Path file) {
    try {
      var words = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
      int[] numbers = new int[words.capacity() / 4];
      words.asIntBuffer().get(numbers);
      return numbers;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  int size() {
    return numbers.length;
  }

  /** Of the numbers of `count` keys from `begin` on, going round. */
  long sum(int begin, long count) {
    long whole = 0;
    long rest = 0;
    for (int number : numbers) {
      whole += number;
    }
    for (long i = 0; i < count % size(); i++) {
      rest += numbers[(int) ((begin + i) % size())];
    }
    return whole * (count / size()) + rest;
  }
}
