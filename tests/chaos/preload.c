/* What a disk and a clock may do, and an end at an exact place, put between the program and the C library.
 *
 * The first 40 bytes of the file named by CHAOS_CONTROL are shared with the harness, which writes them: an
 * errno that every fsync fails with, milliseconds that it takes longer, seconds that the wall clock is ahead,
 * a count of commits of `events` and a signal; then the number of the call that the process is killed at,
 * before it is done, the count of such calls so far, whether it was killed, and which function it is. Zero is no
 * fault. The monotonic clock is left alone, as a clock that is set leaves it.
 *
 * Such calls are those that change or sync a file below CHAOS_SPOOL, counted over all threads.
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
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct control {
  volatile int32_t sync_errno;
  volatile int32_t sync_millis;
  volatile int64_t clock_seconds;
  atomic_int commits;
  volatile int32_t signal;
  volatile int32_t kill_at;
  volatile int32_t steps;
  volatile int32_t killed;
  volatile int32_t kill_call;
};

enum { FSYNC = 1, FDATASYNC, PWRITE, RENAME, UNLINK, FTRUNCATE };

static struct control none;
static struct control *control = &none;

__attribute__((constructor)) static void start(void) {
  const char *name = getenv("CHAOS_CONTROL");
  int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *shared = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (shared != MAP_FAILED) control = shared;
  close(file);
}

static void step(int call, const char *path) {
  const char *spool = getenv("CHAOS_SPOOL");
  if (!spool || strncmp(path, spool, strlen(spool)) != 0) return;
  if (control->kill_call != call) return;
  if (__sync_add_and_fetch(&control->steps, 1) != control->kill_at) return;
  control->killed = 1;
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static void step_of(int call, int file) {
  char link[64], path[PATH_MAX];
  if (!control->kill_at) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return;
  path[length] = 0;
  step(call, path);
}

static int synced(const char *name, int call, int file) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  step_of(call, file);
  int millis = control->sync_millis;
  if (millis) {
    struct timespec wait = {millis / 1000, (millis % 1000) * 1000000L};
    nanosleep(&wait, NULL);
  }
  if (control->sync_errno) {
    errno = control->sync_errno;
    return -1;
  }
  return real(file);
}

int fsync(int file) { return synced("fsync", FSYNC, file); }

int fdatasync(int file) { return synced("fdatasync", FDATASYNC, file); }

static void linking(const char *name) {
  if (!strstr(name, "/events/_delta_log/") || atomic_load(&control->commits) <= 0) return;
  if (atomic_fetch_sub(&control->commits, 1) == 1) raise(control->signal);
}

int link(const char *from, const char *to) {
  linking(to);
  return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link"))(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  typedef int (*linker)(int, const char *, int, const char *, int);
  linking(to);
  return ((linker)dlsym(RTLD_NEXT, "linkat"))(from_folder, from, to_folder, to, flags);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
  static ssize_t (*real)(int, const void *, size_t, off64_t);
  if (!real) real = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
  step_of(PWRITE, file);
  return real(file, bytes, count, at);
}

int ftruncate64(int file, off64_t length) {
  static int (*real)(int, off64_t);
  if (!real) real = (int (*)(int, off64_t))dlsym(RTLD_NEXT, "ftruncate64");
  step_of(FTRUNCATE, file);
  return real(file, length);
}

int rename(const char *from, const char *to) {
  static int (*real)(const char *, const char *);
  if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
  if (control->kill_at) step(RENAME, to);
  return real(from, to);
}

int unlink(const char *path) {
  static int (*real)(const char *);
  if (!real) real = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
  if (control->kill_at) step(UNLINK, path);
  return real(path);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += control->clock_seconds;
  return result;
}
