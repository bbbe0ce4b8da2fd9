/* The near tier of this host's Larder node, read by other processes.
 *
 * A node with `near.shared = "NAME"` keeps its near tier in shared memory. A process on the same
 * host attaches to it with this API and reads values at the speed of memory: no socket, no lock, no
 * system call. It reads as the node itself would answer: never a value that was invalidated, whose
 * time to live has passed, that is beyond its cache's staleness bound, or of a node that is not
 * alive. What it may not answer it calls a miss; then ask the node with the Redis client.
 *
 * C99, and C++. Link with -llarder_near; it needs nothing but the C library.
 *
 * The arena is mapped read-only. A reader can neither damage it nor hold up anybody, also when it
 * is killed in the middle of a read. The one thing that it writes is a file of hints: which entries
 * were read, so that the node does not evict them (/dev/shm/larder-NAME.hits, where permitted).
 *
 * Thread safety: a handle is for all threads at once. open() and stats() may be called at any time;
 * close() when no other call on the handle is running or to come. Nothing waits for anybody. After
 * fork() the child may use the handle, too.
 * No function throws, installs a signal handler, starts a thread or prints. errno is left
 * undefined.
 */
#ifndef LARDER_NEAR_H
#define LARDER_NEAR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#error "the near tier is shared on Linux only"
#endif
#define LARDER_NEAR_API __attribute__((visibility("default")))

/* What a call comes to. Zero and above are answers, below zero is what a program should log. */
typedef enum larder_near_result {
  LARDER_NEAR_FOUND = 0,  /* the value is in the buffer. Also of calls that just succeed */
  LARDER_NEAR_ABSENT = 1, /* the node knows that the source has no such row */
  LARDER_NEAR_MISS = 2,   /* nothing that may be answered: ask the node */
  LARDER_NEAR_TOO_SMALL =
      3, /* it is there, and the buffer is too small: *size says what it takes */
  LARDER_NEAR_NODE_DOWN = 4, /* the node is not alive, or not yet: ask it, or do without */
  LARDER_NEAR_RESTARTED = 5, /* the node has another life than at the last call. Said once a life;
                                the next call works again */

  LARDER_NEAR_INVALID = -1,   /* a null pointer, or a name that cannot be one */
  LARDER_NEAR_NOT_FOUND = -2, /* there is no such near tier (yet) */
  LARDER_NEAR_DENIED = -3,    /* this user may not read it, or everybody may write it */
  LARDER_NEAR_VERSION = -4,   /* it is that of another version of Larder */
  LARDER_NEAR_CORRUPT = -5,   /* what is in it cannot be */
  LARDER_NEAR_SYSTEM = -6     /* no memory, no file descriptor */
} larder_near_result;

typedef struct larder_near larder_near;

/* Attaches to the near tier `name`, the node's `near.shared`.
 * FOUND: *handle is yours until larder_near_close(). It is given also for a node that is not alive
 * at the moment. INVALID, NOT_FOUND, DENIED, VERSION, CORRUPT, SYSTEM: *handle is null.
 * Cost: a few system calls; memory of its own about 50 KiB, and page tables as it reads. */
LARDER_NEAR_API larder_near_result larder_near_open(const char* name, larder_near** handle);

/* Copies the value of a key to `buffer`. Keys and values are bytes, neither begins or ends with
 * anything of ours; a declared cache's value is what GET answers (JSON, mostly).
 * FOUND: *size is the value's size, at most `capacity`. TOO_SMALL: *size is what it needs; by the
 * next call it may need more. All others: *size is 0; the buffer may have been written to even so.
 * ABSENT, MISS, NODE_DOWN, RESTARTED: see above. CORRUPT, INVALID: errors.
 * The value is the key's at some moment between the beginning and the end of the call: whoever
 * calls after an invalidation or a write has been confirmed gets nothing older.
 * `buffer` may be null if `capacity` is 0. Cost: about that of the node's own lookup plus the copy,
 * under 100 ns for small values; now and then a microsecond for the file of hints. */
LARDER_NEAR_API larder_near_result larder_near_get(larder_near* handle, const void* key,
                                                   size_t key_size, void* buffer, size_t capacity,
                                                   size_t* size);

/* What the calls of this handle came to (approximate if more than 64 threads use it), and what is
 * known of the node. */
typedef struct larder_near_info {
  uint64_t found;
  uint64_t absent;
  uint64_t misses;
  uint64_t too_small;
  uint64_t node_down;
  uint64_t restarted;
  uint64_t corrupt;
  uint64_t hits_dropped; /* hints for the node that were not passed on */
  uint64_t bytes;        /* of the near tier that is mapped */
  uint64_t instance;     /* of the node; another number: another life */
  int64_t lease_us;      /* for how long the node counts as alive, unless it says so again;
                            0 or below: it does not */
} larder_near_info;

/* Writes the first `info_size` bytes of it: sizeof(larder_near_info) as you know it; a later
 * version may have more. FOUND, or INVALID. Cost: a microsecond. */
LARDER_NEAR_API larder_near_result larder_near_stats(larder_near* handle, larder_near_info* info,
                                                     size_t info_size);

/* Detaches. Null is allowed. */
LARDER_NEAR_API void larder_near_close(larder_near* handle);

/* A result in words, for logs: never null, static. */
LARDER_NEAR_API const char* larder_near_text(larder_near_result result);

/* The library's version, "0.1.0": static. */
LARDER_NEAR_API const char* larder_near_version(void);

#ifdef __cplusplus
}
#endif

#endif
