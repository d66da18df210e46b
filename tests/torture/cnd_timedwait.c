/* What libfaketime leaves out: the timed waits of C11, by which the Kafka library waits. Loaded before it
 * with LD_PRELOAD; the end of each wait is moved by what the clock is wrong, so that the wait is as long
 * as it would be on a machine whose clock is so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

int cnd_timedwait(cnd_t *told, mtx_t *lock, const struct timespec *until) {
    int (*real)(cnd_t *, mtx_t *, const struct timespec *) = dlsym(RTLD_NEXT, "cnd_timedwait");
    struct timespec here, truly, end = *until;
    clock_gettime(CLOCK_REALTIME, &here);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &truly);
    end.tv_sec -= here.tv_sec - truly.tv_sec;
    end.tv_nsec -= here.tv_nsec - truly.tv_nsec;
    if (end.tv_nsec < 0) end.tv_nsec += 1000000000, end.tv_sec--;
    if (end.tv_nsec >= 1000000000) end.tv_nsec -= 1000000000, end.tv_sec++;
    return real(told, lock, &end);
}
