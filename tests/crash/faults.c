/* A library for LD_PRELOAD. It counts the calls of the C library by which a process changes files below one
 * directory, and at one of them kills the process or returns an error. It can also copy everything that an
 * fsync made durable, from which power.py restores the state after a power loss. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char home[PATH_MAX]; /* the directory to watch; empty: none */
static char copies[PATH_MAX]; /* the directory for copies of durable data; empty: no copies */
static long seen, target;
static int error, permanent;

/* Start to watch `directory`. At operation number `at` (from 1; 0 is none) the process is killed or, if `code`
 * is an errno, the operation fails with it; if `all_later` is set, every later operation fails too. Data that
 * becomes durable is copied to the directory `durable`, unless that is empty. */
void faults_arm(const char *directory, long at, int code, int all_later, const char *durable)
{
    snprintf(home, sizeof home, "%s/", directory);
    snprintf(copies, sizeof copies, "%s", durable);
    seen = 0, target = at, error = code, permanent = all_later;
}

long faults_seen(void) { return seen; }

/* Whether the operation that starts now must fail. Files can still be removed from a full disk. */
static int fails(int makes_room)
{
    pthread_mutex_lock(&lock);
    long number = ++seen;
    while (!error && number == target) /* while locked, so that no copy is incomplete */
        kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
    if (!target || number < target || (number > target && !permanent))
        return 0;
    if (makes_room && error == ENOSPC)
        return 0;
    errno = error;
    return 1;
}

/* Whether a path, relative to a directory unless it is absolute, is below the watched directory. */
static int is_watched(int folder, const char *path)
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
    return strncmp(full, home, strlen(home)) == 0;
}

static int is_watched_file(int file)
{
    int saved = errno, found = is_watched(file, "");
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
        return WRITES(flags) && is_watched(AT_FDCWD, path) && fails(0) ? -1 : REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        MODE(flags) \
        return WRITES(flags) && is_watched(folder, path) && fails(0) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

/* A write is split into two halves, so that a kill between them tears it. */
ssize_t write(int file, const void *data, size_t size)
{
    if (!home[0] || !is_watched_file(file))
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
        if (!home[0] || !is_watched_file(file)) \
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

/* Copy the bytes of a file, or the names and inodes in a directory, to a file named after its inode. */
static void copy_durable(int file)
{
    struct stat found;
    char path[PATH_MAX + 64], data[1 << 16];
    if (!copies[0] || !is_watched_file(file) || fstat(file, &found))
        return;
    pthread_mutex_lock(&lock);
    const char *content = S_ISDIR(found.st_mode) ? "names" : "bytes";
    snprintf(path, sizeof path, "%s/%lu.%s", copies, (unsigned long)found.st_ino, content);
    FILE *copy = fopen(path, "w");
    if (S_ISDIR(found.st_mode)) {
        DIR *names = fdopendir(REAL(openat)(file, ".", O_RDONLY | O_DIRECTORY));
        for (struct dirent *entry; (entry = readdir(names));)
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                fprintf(copy, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
        closedir(names);
    } else {
        snprintf(data, sizeof data, "/proc/self/fd/%d", file); /* because `file` may be write-only */
        int from = REAL(open)(data, O_RDONLY);
        for (ssize_t size; (size = read(from, data, sizeof data)) > 0;)
            fwrite(data, 1, size, copy);
        close(from);
    }
    fclose(copy);
    pthread_mutex_unlock(&lock);
}

#define SYNC(name) \
    int name(int file) \
    { \
        if (is_watched_file(file) && fails(0)) \
            return -1; \
        int result = REAL(name)(file); \
        if (!result) \
            copy_durable(file); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

#define ON_FILE(name, parameters, ...) \
    int name parameters { return is_watched_file(file) && fails(0) ? -1 : REAL(name)(__VA_ARGS__); }
ON_FILE(ftruncate, (int file, off_t size), file, size)
ON_FILE(ftruncate64, (int file, off_t size), file, size)

#define ON_NAME(name, makes_room, folder, path, parameters, ...) \
    int name parameters { return is_watched(folder, path) && fails(makes_room) ? -1 : REAL(name)(__VA_ARGS__); }
ON_NAME(rename, 0, AT_FDCWD, to, (const char *from, const char *to), from, to)
ON_NAME(renameat, 0, there, to, (int here, const char *from, int there, const char *to), here, from, there, to)
ON_NAME(mkdir, 0, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
ON_NAME(mkdirat, 0, folder, path, (int folder, const char *path, mode_t mode), folder, path, mode)
ON_NAME(unlink, 1, AT_FDCWD, path, (const char *path), path)
ON_NAME(unlinkat, 1, folder, path, (int folder, const char *path, int flags), folder, path, flags)
ON_NAME(rmdir, 1, AT_FDCWD, path, (const char *path), path)
