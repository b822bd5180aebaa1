/* Preloaded into a trainer: sees every change that its process asks of the files below one directory,
 * whichever library asks, and at one of them kills the process or lets the change fail. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char home[PATH_MAX]; /* what is watched; nothing while it is empty */
static long seen, target;
static int error, for_good;

/* Watch `directory` from now on. At the operation number `at` (from 1; 0 is none) the process is killed,
 * or, if `code` is an errno, that operation fails, and with `forever` all later ones too. */
void faults_arm(const char *directory, long at, int code, int forever)
{
    snprintf(home, sizeof home, "%s/", directory);
    seen = 0, target = at, error = code, for_good = forever;
}

long faults_seen(void) { return seen; }

/* Whether the operation that begins now is to fail. A full disk still lets files be removed. */
static int fails(int makes_room)
{
    pthread_mutex_lock(&lock);
    long number = ++seen;
    pthread_mutex_unlock(&lock);
    if (!target || number < target || (number > target && !for_good))
        return 0;
    while (!error)
        kill(getpid(), SIGKILL);
    if (makes_room && error == ENOSPC)
        return 0;
    errno = error;
    return 1;
}

static int named(int folder, const char *path)
{
    char full[2 * PATH_MAX] = "", link[64];
    if (!home[0])
        return 0;
    if (path[0] != '/' && folder != AT_FDCWD) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, full, PATH_MAX - 1);
        snprintf(full + (length > 0 ? length : 0), PATH_MAX, "/");
    }
    strncat(full, path, PATH_MAX - 1);
    /* Kills reach MLflow's database as well; errors do not yet, for a run does not survive those in one clear line. */
    if (error && strstr(full, "/mlflow.db"))
        return 0;
    return strncmp(full, home, strlen(home)) == 0;
}

static int opened(int file)
{
    int saved = errno, found = named(file, "");
    errno = saved;
    return found;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        MODE(flags) \
        return WRITES(flags) && named(AT_FDCWD, path) && fails(0) ? -1 : REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        MODE(flags) \
        return WRITES(flags) && named(folder, path) && fails(0) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

/* A write comes in two halves, so that a kill between them tears it. */
ssize_t write(int file, const void *data, size_t size)
{
    if (!home[0] || !opened(file))
        return REAL(write)(file, data, size);
    if (fails(0))
        return -1;
    ssize_t half = REAL(write)(file, data, size / 2);
    if (half < (ssize_t)(size / 2) || fails(0))
        return half > 0 ? half : -1;
    ssize_t rest = REAL(write)(file, (const char *)data + half, size - half);
    return rest < 0 ? (half ? half : -1) : half + rest;
}

#define PWRITE(name) \
    ssize_t name(int file, const void *data, size_t size, off_t offset) \
    { \
        if (!home[0] || !opened(file)) \
            return REAL(name)(file, data, size, offset); \
        if (fails(0)) \
            return -1; \
        ssize_t half = REAL(name)(file, data, size / 2, offset); \
        if (half < (ssize_t)(size / 2) || fails(0)) \
            return half > 0 ? half : -1; \
        ssize_t rest = REAL(name)(file, (const char *)data + half, size - half, offset + half); \
        return rest < 0 ? (half ? half : -1) : half + rest; \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_FILE(name, parameters, ...) \
    int name parameters { return opened(file) && fails(0) ? -1 : REAL(name)(__VA_ARGS__); }
ON_FILE(fsync, (int file), file)
ON_FILE(fdatasync, (int file), file)
ON_FILE(ftruncate, (int file, off_t size), file, size)
ON_FILE(ftruncate64, (int file, off_t size), file, size)

#define ON_NAME(name, makes_room, folder, path, parameters, ...) \
    int name parameters { return named(folder, path) && fails(makes_room) ? -1 : REAL(name)(__VA_ARGS__); }
ON_NAME(rename, 0, AT_FDCWD, to, (const char *from, const char *to), from, to)
ON_NAME(renameat, 0, there, to, (int here, const char *from, int there, const char *to), here, from, there, to)
ON_NAME(mkdir, 0, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
ON_NAME(mkdirat, 0, folder, path, (int folder, const char *path, mode_t mode), folder, path, mode)
ON_NAME(unlink, 1, AT_FDCWD, path, (const char *path), path)
ON_NAME(unlinkat, 1, folder, path, (int folder, const char *path, int flags), folder, path, flags)
ON_NAME(rmdir, 1, AT_FDCWD, path, (const char *path), path)
