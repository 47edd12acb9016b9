/* What a disk and a clock may do, and an end at an exact place, put between the program and the C library.
 *
 * The first 32 bytes of the file named by CHAOS_CONTROL are shared with the harness, which writes them: an
 * errno that every fsync fails with, milliseconds that it takes longer, seconds that the wall clock is ahead,
 * a count of commits of `events` and a signal. Zero is no fault. The monotonic clock is left alone, as a
 * clock that is set leaves it.
 *
 * A commit of a local table is the link that gives its entry of the log its name: data files are whole by
 * then, and nobody sees them. The process sends itself the signal right before the count-th of those links.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
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
  volatile int64_t unused;
};

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

static int synced(const char *name, int file) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
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

int fsync(int file) { return synced("fsync", file); }

int fdatasync(int file) { return synced("fdatasync", file); }

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

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += control->clock_seconds;
  return result;
}
