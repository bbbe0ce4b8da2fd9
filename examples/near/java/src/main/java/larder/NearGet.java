package larder;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;

/**
 * Looks up keys in the near tier of this host's node: {@code NearGet NAME}, one key a line on
 * standard input. NAME is the node's near.shared.
 */
public final class NearGet {
  public static void main(String[] args) throws IOException {
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (Near near = new Near(args[0])) {
      for (String key = lines.readLine(); key != null; key = lines.readLine()) {
        Near.Answer answer = near.look(key);
        String value = answer.value() == null
            ? "" : " " + new String(answer.value(), StandardCharsets.UTF_8);
        System.out.println(answer.result() + value);
        System.out.flush();
      }
    } catch (IllegalStateException error) {
      System.err.println(args[0] + ": " + error.getMessage());
      System.exit(1);
    }
  }
}
