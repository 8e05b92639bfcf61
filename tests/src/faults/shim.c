// Loaded into one kvd before the C library (LD_PRELOAD), this makes its disk or its clock be wrong
// as the environment says. What is not asked for passes through.
//
// KVD_SHIM_TEAR=PART:N   half of the Nth write to a file whose path contains PART is made, and the
//                        process is gone, as in a crash of the machine within a write
// KVD_SHIM_LYING_SYNC=1  syncs answer that all is on disk, and bring nothing there
// KVD_SHIM_CLOCK_S=N     the wall clock is N seconds ahead (or, negative, behind)
#define _GNU_SOURCE
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char tear_part[64];
static long tear_at;
static atomic_long writes;
static int lying_sync;
static long clock_s;

__attribute__((constructor)) static void read_environment(void) {
    const char *tear = getenv("KVD_SHIM_TEAR");
    if (tear && sscanf(tear, "%63[^:]:%ld", tear_part, &tear_at) != 2) abort();
    lying_sync = getenv("KVD_SHIM_LYING_SYNC") != NULL;
    const char *seconds = getenv("KVD_SHIM_CLOCK_S");
    if (seconds) clock_s = atol(seconds);
}

static int is_the_one(int fd) {
    if (!tear_at) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, tear_part) && atomic_fetch_add(&writes, 1) + 1 == tear_at;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) {
    if (is_the_one(fd)) {
        syscall(SYS_pwrite64, fd, data, length / 2, offset);
        kill(getpid(), SIGKILL);
        pause();
    }
    return syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    return pwrite64(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length) {
    if (is_the_one(fd)) {
        syscall(SYS_write, fd, data, length / 2);
        kill(getpid(), SIGKILL);
        pause();
    }
    return syscall(SYS_write, fd, data, length);
}

int fdatasync(int fd) { return lying_sync ? 0 : (int)syscall(SYS_fdatasync, fd); }

int fsync(int fd) { return lying_sync ? 0 : (int)syscall(SYS_fsync, fd); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += clock_s;
    return failed;
}
