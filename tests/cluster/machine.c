/* A machine of its own for one process and its children, as far as its wall clock and its disk's speed go: preloaded, it
 * adds seconds to the wall clock, and makes each fsync and fdatasync take so many microseconds longer. Both numbers (signed,
 * 64 bits) stand in the file named by JOBS_TEST_MACHINE, and whoever writes that file may change them at any time. The other
 * clocks are left alone, as on a machine whose wall clock is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct machine {
    int64_t ahead_s;
    int64_t sync_us;
};

static int (*next_gettime)(clockid_t, struct timespec *);
static int (*next_fsync)(int);
static int (*next_fdatasync)(int);
static const volatile struct machine *machine;

__attribute__((constructor)) static void begin(void) {
    next_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    next_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    next_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("JOBS_TEST_MACHINE");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *seen = mmap(NULL, sizeof(struct machine), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (seen != MAP_FAILED)
        machine = seen;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = next_gettime == NULL ? (int)syscall(SYS_clock_gettime, clock, now) : next_gettime(clock, now);
    if (result == 0 && machine != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += machine->ahead_s;
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec at;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &at) != 0)
        return -1;
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec at;
    if (clock_gettime(CLOCK_REALTIME_COARSE, &at) != 0)
        return -1;
    if (now != NULL)
        *now = at.tv_sec;
    return at.tv_sec;
}

static void wait_for_disk(void) {
    int64_t wait_us = machine == NULL ? 0 : machine->sync_us;
    struct timespec left = {wait_us / 1000000, wait_us % 1000000 * 1000};
    if (wait_us > 0)
        nanosleep(&left, NULL);
}

int fsync(int file) {
    wait_for_disk();
    return next_fsync == NULL ? (int)syscall(SYS_fsync, file) : next_fsync(file);
}

int fdatasync(int file) {
    wait_for_disk();
    return next_fdatasync == NULL ? (int)syscall(SYS_fdatasync, file) : next_fdatasync(file);
}
