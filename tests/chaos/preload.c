/* What a disk and a clock may do, put between the program and the C library.
 *
 * The first 16 bytes of the file named by CHAOS_CONTROL are shared with the harness, which writes them:
 * an errno that every fsync fails with, milliseconds that it takes longer, seconds that the wall clock is
 * ahead. Zero is no fault. The monotonic clock is left alone, as a clock that is set leaves it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct control {
  volatile int32_t sync_errno;
  volatile int32_t sync_millis;
  volatile int64_t clock_seconds;
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

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += control->clock_seconds;
  return result;
}
