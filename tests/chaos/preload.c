/* What a disk and a clock may do, and an end at an exact place, put between the program and the C library.
 *
 * The first bytes of the file named by CHAOS_CONTROL are shared with the harness, which writes them: an errno that
 * every fsync fails with, milliseconds that it takes longer, seconds that the wall clock is ahead, a count of
 * commits of `events` and a signal; then a function, the number of its call that the process is killed at, before
 * it is done, whether it was, and the calls of each function so far. Zero is no fault; nothing is counted without
 * such a number. The monotonic clock is left alone, as a clock that is set leaves it.
 *
 * Counted are, over all threads, calls that change or sync what is below the folder CHAOS_BELOW. Of several
 * processes that share a file only the one that is meant has that variable.
 *
 * A commit of a local table is the link that gives its entry of the log its name: data files are whole by
 * then, and nobody sees them. The process sends itself the signal right before the count-th of those links.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MKDIR = 1, CREATE, WRITE, PWRITE, FTRUNCATE, FSYNC, FDATASYNC, LINK, RENAME, UNLINK, FUNCTIONS = UNLINK };

struct control {
  volatile int32_t sync_errno;
  volatile int32_t sync_millis;
  volatile int64_t clock_seconds;
  atomic_int commits;
  volatile int32_t signal;
  volatile int32_t kill_call;
  volatile int32_t kill_at;
  volatile int32_t killed;
  atomic_int calls[FUNCTIONS];
};

static struct control none;
static struct control *control = &none;
static const char *below;

/* The function that the C library, or whoever comes next, has under this name. */
#define NEXT(name)                                                                       \
  static __typeof__(&name) next;                                                         \
  if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
  const char *name = getenv("CHAOS_CONTROL");
  int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *shared = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (shared == MAP_FAILED) return;
  control = shared;
  below = getenv("CHAOS_BELOW");
}

static int counting(void) { return below && control->kill_at; }

static void called(int call, const char *path) {
  if (!counting() || strncmp(path, below, strlen(below)) != 0) return;
  int count = atomic_fetch_add(&control->calls[call - 1], 1) + 1;
  if (control->kill_call != call || control->kill_at != count) return;
  control->killed = 1;
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static void called_of(int call, int file) {
  char link[64], path[PATH_MAX];
  if (!counting()) return;
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length < 0) return;
  path[length] = 0;
  called(call, path);
}

static int synced(int (*next)(int), int call, int file) {
  called_of(call, file);
  int millis = control->sync_millis;
  if (millis) {
    struct timespec wait = {millis / 1000, (millis % 1000) * 1000000L};
    nanosleep(&wait, NULL);
  }
  if (control->sync_errno) {
    errno = control->sync_errno;
    return -1;
  }
  return next(file);
}

int fsync(int file) {
  NEXT(fsync);
  return synced(next, FSYNC, file);
}

int fdatasync(int file) {
  NEXT(fdatasync);
  return synced(next, FDATASYNC, file);
}

static void linking(const char *name) {
  called(LINK, name);
  if (!strstr(name, "/events/_delta_log/") || atomic_load(&control->commits) <= 0) return;
  if (atomic_fetch_sub(&control->commits, 1) == 1) raise(control->signal);
}

int link(const char *from, const char *to) {
  NEXT(link);
  linking(to);
  return next(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  NEXT(linkat);
  linking(to);
  return next(from_folder, from, to_folder, to, flags);
}

int mkdir(const char *path, mode_t mode) {
  NEXT(mkdir);
  called(MKDIR, path);
  return next(path, mode);
}

int open64(const char *path, int flags, ...) {
  NEXT(open64);
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list rest;
    va_start(rest, flags);
    mode = va_arg(rest, mode_t);
    va_end(rest);
    called(CREATE, path);
  }
  return next(path, flags, mode);
}

ssize_t write(int file, const void *bytes, size_t count) {
  NEXT(write);
  called_of(WRITE, file);
  return next(file, bytes, count);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
  NEXT(pwrite64);
  called_of(PWRITE, file);
  return next(file, bytes, count, at);
}

int ftruncate64(int file, off64_t length) {
  NEXT(ftruncate64);
  called_of(FTRUNCATE, file);
  return next(file, length);
}

int rename(const char *from, const char *to) {
  NEXT(rename);
  called(RENAME, to);
  return next(from, to);
}

int unlink(const char *path) {
  NEXT(unlink);
  called(UNLINK, path);
  return next(path);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  NEXT(clock_gettime);
  int result = next(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += control->clock_seconds;
  return result;
}
