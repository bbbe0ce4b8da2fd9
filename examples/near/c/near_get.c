/* Looks up keys in the near tier of this host's node.
 *
 *   near_get NAME      NAME is the node's near.shared; one key a line on standard input
 *
 * Build: cc -std=c99 -I include examples/near/c/near_get.c -L build -llarder_near -o near_get
 */
#include <larder/near.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The value in a buffer that grows as it has to. */
static larder_near_result look(larder_near* near, const char* key, char** buffer, size_t* capacity,
                               size_t* size) {
  for (;;) {
    larder_near_result result = larder_near_get(near, key, strlen(key), *buffer, *capacity, size);
    if (result != LARDER_NEAR_TOO_SMALL) return result;
    char* larger = realloc(*buffer, *size);
    if (larger == NULL) return LARDER_NEAR_SYSTEM;
    *buffer = larger;
    *capacity = *size;
  }
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fputs("near_get NAME\n", stderr);
    return 2;
  }
  larder_near* near = NULL;
  larder_near_result opened = larder_near_open(argv[1], &near);
  if (opened != LARDER_NEAR_FOUND) {
    fprintf(stderr, "%s: %s\n", argv[1], larder_near_text(opened));
    return 1;
  }
  char key[1024];
  char* buffer = NULL;
  size_t capacity = 0;
  while (fgets(key, sizeof key, stdin) != NULL) {
    key[strcspn(key, "\n")] = '\0';
    size_t size = 0;
    larder_near_result result = look(near, key, &buffer, &capacity, &size);
    switch (result) {
      case LARDER_NEAR_FOUND: printf("FOUND %.*s\n", (int)size, buffer); break;
      case LARDER_NEAR_ABSENT: puts("ABSENT"); break;          /* no such row: no need to ask */
      case LARDER_NEAR_MISS: puts("MISS"); break;              /* ask the node */
      case LARDER_NEAR_NODE_DOWN: puts("NODE_DOWN"); break;    /* the node will not answer either */
      case LARDER_NEAR_RESTARTED: puts("RESTARTED"); break;    /* ask again, or ask the node */
      default: printf("ERROR %s\n", larder_near_text(result)); /* log it, and ask the node */
    }
    fflush(stdout);
  }
  free(buffer);
  larder_near_close(near);
  return 0;
}
