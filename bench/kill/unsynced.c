// LD_PRELOAD: remembers how much of each file below a folder named "journal" has been made durable,
// so that the rest can be taken away when the process has been killed: as if the power had gone.
//
//   UNSYNCED_LOG   lines are appended here: "S size path" (made durable), "R from to" (renamed)
//   UNSYNCED_LIES  set: fdatasync() does nothing and reports success. A log that would be right in
//                  spite of that was not tested
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(const char* line) {
  const char* const log = getenv("UNSYNCED_LOG");
  if (!log) return;
  const int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line)) abort();
  close(fd);
}

static int is_journal(int fd, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, PATH_MAX - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  return strstr(path, "/journal/") != NULL;
}

// What was appended while it ran may or may not be durable: the size before it surely is.
static int synced(int fd, const char* name) {
  int (*const real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  char path[PATH_MAX];
  if (!is_journal(fd, path)) return real(fd);
  if (getenv("UNSYNCED_LIES") && strcmp(name, "fdatasync") == 0) return 0;
  struct stat about;
  if (fstat(fd, &about) != 0) abort();
  const int result = real(fd);
  char line[PATH_MAX + 64];
  snprintf(line, sizeof line, "S %lld %s\n", (long long)about.st_size, path);
  if (result == 0) note(line);
  return result;
}

int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }

int rename(const char* from, const char* to) {
  int (*const real)(const char*, const char*) =
      (int (*)(const char*, const char*))dlsym(RTLD_NEXT, "rename");
  const int result = real(from, to);
  char line[2 * PATH_MAX + 8];
  snprintf(line, sizeof line, "R %s %s\n", from, to);
  if (result == 0 && strstr(to, "/journal/")) note(line);
  return result;
}
