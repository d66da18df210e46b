/* What libfaketime leaves out: the timed waits of C11, by which the Kafka library waits. Loaded before it
 * with LD_PRELOAD. A wait ends when the clock that the process sees says so, as on a machine whose clock is
 * wrong: where that is set back meanwhile, later. It is looked at again every few hundredths of a second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define SLICE 50000000LL

int cnd_timedwait(cnd_t *told, mtx_t *lock, const struct timespec *until) {
    int (*real)(cnd_t *, mtx_t *, const struct timespec *) = dlsym(RTLD_NEXT, "cnd_timedwait");
    for (;;) {
        struct timespec here, end;
        clock_gettime(CLOCK_REALTIME, &here);
        long long left = (until->tv_sec - here.tv_sec) * SECOND + until->tv_nsec - here.tv_nsec;
        if (left <= 0) return thrd_timedout;
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &end);
        end.tv_nsec += left < SLICE ? left : SLICE;
        if (end.tv_nsec >= SECOND) end.tv_nsec -= SECOND, end.tv_sec++;
        int how = real(told, lock, &end);
        if (how != thrd_timedout) return how;
    }
}
