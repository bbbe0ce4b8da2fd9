import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** What the two Java scripts share: where the node is, counting, and the price in a row. */
final class Checks {
  static final String HOST = System.getenv("LARDER_HOST");
  static final int PORT = Integer.parseInt(System.getenv("LARDER_PORT"));
  static final boolean DECLARED = !"0".equals(System.getenv("LARDER_DECLARED"));
  private static final Pattern PRICE = Pattern.compile("\"price\":\\s*(\\d+)");
  private static int checks;

  static void check(String what, boolean condition) {
    if (!condition) {
      throw new AssertionError(what);
    }
    checks++;
  }

  static long price(String row) {
    Matcher found = PRICE.matcher(row == null ? "" : row);
    check("a row as JSON: " + row, found.find());
    return Long.parseLong(found.group(1));
  }

  static String withPrice(String row, long price) {
    return PRICE.matcher(row).replaceFirst("\"price\":" + price);
  }

  /** The message of the error that the call ends with, or an empty one. */
  static String errorOf(Runnable call) {
    try {
      call.run();
    } catch (RuntimeException error) {
      return String.valueOf(error.getMessage());
    }
    return "";
  }

  static void done(String name) {
    System.out.println("ok: " + checks + " checks (" + name + ")");
  }
}
