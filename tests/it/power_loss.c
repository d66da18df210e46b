/* What a disk has when the power goes: each file as it was when it was last synced, and no file that
 * never was. Loaded into the bridge with LD_PRELOAD: every fsync and fdatasync of a file below
 * POWER_LOSS_FROM copies that file to the same place below POWER_LOSS_TO before it returns. What was
 * renamed or removed is so on the disk from the next sync of anything on, as with a journal. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WAITING 64

/* A rename, or a removal where there is no new name. */
struct change {
    char from[PATH_MAX], to[PATH_MAX];
};

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static struct change changes[WAITING];
static int waiting;

/* Where `path` is kept; 0 where it is not. */
static int kept_as(const char *path, char *kept) {
    const char *below = getenv("POWER_LOSS_FROM"), *to = getenv("POWER_LOSS_TO");
    if (!below || !to || strncmp(path, below, strlen(below)) || strstr(path, " (deleted)")) return 0;
    return snprintf(kept, PATH_MAX, "%s%s", to, path + strlen(below)) < PATH_MAX;
}

static int rename_at_once(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}

static int remove_at_once(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    return real(path);
}

static void carry_out(void) {
    for (int at = 0; at < waiting; at++) {
        if (changes[at].to[0]) rename_at_once(changes[at].from, changes[at].to);
        else remove_at_once(changes[at].from);
    }
    waiting = 0;
}

static void note(const char *from, const char *to) {
    struct change *next;
    pthread_mutex_lock(&one_at_a_time);
    if (waiting == WAITING) carry_out();
    next = &changes[waiting];
    next->to[0] = 0;
    if (kept_as(from, next->from) && (!to || kept_as(to, next->to))) waiting++;
    pthread_mutex_unlock(&one_at_a_time);
}

static void make_folders(char *path) {
    for (char *at = path + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = 0;
        mkdir(path, 0700);
        *at = '/';
    }
}

static void copy(const char *from, char *to) {
    char next[PATH_MAX + 8], buffer[1 << 16];
    ssize_t got;
    snprintf(next, sizeof next, "%s.next", to);
    make_folders(to);
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) abort();
    while ((got = read(in, buffer, sizeof buffer)) > 0)
        if (write(out, buffer, got) != got) abort();
    close(in);
    close(out);
    /* In one step: the process may be killed at any moment. */
    rename_at_once(next, to);
}

static void synced(int fd) {
    char link[64], from[PATH_MAX], to[PATH_MAX];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, from, sizeof from - 1);
    if (length < 0 || fstat(fd, &about)) return;
    from[length] = 0;
    pthread_mutex_lock(&one_at_a_time);
    if (kept_as(from, to)) {
        carry_out();
        if (S_ISREG(about.st_mode)) copy(from, to);
    }
    pthread_mutex_unlock(&one_at_a_time);
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    int done = real(fd);
    if (done == 0) synced(fd);
    return done;
}

int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    int done = real(fd);
    if (done == 0) synced(fd);
    return done;
}

int rename(const char *from, const char *to) {
    int done = rename_at_once(from, to);
    if (done == 0) note(from, to);
    return done;
}

int unlink(const char *path) {
    int done = remove_at_once(path);
    if (done == 0) note(path, NULL);
    return done;
}
