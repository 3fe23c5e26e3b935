/* Preloaded into the loop and all it starts: makes one write to a disk fail, or kills there.
 *
 * Counted are the calls that change a regular file or a folder below a given one, over all
 * processes of a group. What to do at the n-th stands in a file that all of them map (FAULTS_CONTROL); its
 * layout is that of Control in lab.py. Calls that the C library makes itself are not seen. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAIL_ONCE, FAIL_FROM_THEN_ON, KILL_ALL, KILL_THE_LOOP };

struct control {
    int64_t armed;
    int64_t count;
    int64_t at;      /* the call to act at; 0: none */
    int64_t action;
    int64_t error;   /* an errno */
    int64_t loop;    /* its process, and its group */
    int64_t fired;
    int64_t unused;
    char folder[960];
    char what[1024]; /* the call that was acted at */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED)
        control = found;
}

static int counts(void) {
    return control && control->armed && getpgrp() == control->loop;
}

static int below(const char *path) {
    size_t length = strlen(control->folder);
    return length && !strncmp(path, control->folder, length) && path[length] == '/';
}

static int handle_name(int handle, char *name) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, name, PATH_MAX - 1);
    name[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int path_name(int folder, const char *path, char *name) {
    if (path[0] == '/') {
        snprintf(name, PATH_MAX, "%s", path);
        return 1;
    }
    if (folder != AT_FDCWD) {
        if (!handle_name(folder, name))
            return 0;
    } else if (!getcwd(name, PATH_MAX))
        return 0;
    size_t length = strlen(name);
    snprintf(name + length, PATH_MAX - length, "/%s", path);
    return 1;
}

/* Whether the call is to fail; errno is set then. */
static int act(const char *call, const char *name, int needs_room) {
    int64_t count = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    int64_t at = control->at, action = control->action;
    if (!at || count < at || (count > at && (action != FAIL_FROM_THEN_ON || !needs_room)))
        return 0;
    if (!__atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST))
        snprintf(control->what, sizeof control->what, "%s(%.900s)", call, name);
    if (action == KILL_ALL)
        kill(-control->loop, SIGKILL);
    else if (action == KILL_THE_LOOP) {
        kill(control->loop, SIGKILL);
        return 0;
    }
    errno = (int)control->error;
    return 1;
}

static int handle_fails(const char *call, int handle, int needs_room) {
    char name[PATH_MAX];
    struct stat status;
    int before = errno;
    if (!counts() || fstat(handle, &status) ||
        !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) || !handle_name(handle, name) ||
        !below(name)) {
        errno = before;
        return 0;
    }
    errno = before;
    return act(call, name, needs_room);
}

static int path_fails(const char *call, int folder, const char *path, int needs_room) {
    char name[PATH_MAX];
    int before = errno;
    if (!counts() || !path_name(folder, path, name) || !below(name)) {
        errno = before;
        return 0;
    }
    return act(call, name, needs_room);
}

#define NEXT(type, name, ...) \
    static type (*next)(__VA_ARGS__); \
    if (!next) \
        next = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* A full disk takes a part of what is written first. */
#define TORN (control->error == ENOSPC)

ssize_t write(int handle, const void *data, size_t size) {
    NEXT(ssize_t, "write", int, const void *, size_t);
    if (!handle_fails("write", handle, 1))
        return next(handle, data, size);
    int error = errno;
    if (TORN && next(handle, data, size / 2) < 0)
        return -1;
    errno = error;
    return -1;
}

static ssize_t torn_pwrite(int handle, const void *data, size_t size, off_t offset) {
    int error = errno;
    if (TORN && syscall(SYS_pwrite64, handle, data, size / 2, offset) < 0)
        return -1;
    errno = error;
    return -1;
}

ssize_t pwrite(int handle, const void *data, size_t size, off_t offset) {
    NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return handle_fails("pwrite", handle, 1) ? torn_pwrite(handle, data, size, offset)
                                             : next(handle, data, size, offset);
}

ssize_t pwrite64(int handle, const void *data, size_t size, off_t offset) {
    NEXT(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return handle_fails("pwrite", handle, 1) ? torn_pwrite(handle, data, size, offset)
                                             : next(handle, data, size, offset);
}

ssize_t writev(int handle, const struct iovec *parts, int count) {
    NEXT(ssize_t, "writev", int, const struct iovec *, int);
    return handle_fails("writev", handle, 1) ? -1 : next(handle, parts, count);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    NEXT(ssize_t, "sendfile", int, int, off_t *, size_t);
    return handle_fails("sendfile", out, 1) ? -1 : next(out, in, offset, size);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t size) {
    NEXT(ssize_t, "sendfile64", int, int, off_t *, size_t);
    return handle_fails("sendfile", out, 1) ? -1 : next(out, in, offset, size);
}

ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags) {
    NEXT(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    return handle_fails("copy_file_range", out, 1) ? -1 : next(in, from, out, to, size, flags);
}

int fsync(int handle) {
    NEXT(int, "fsync", int);
    return handle_fails("fsync", handle, 0) ? -1 : next(handle);
}

int fdatasync(int handle) {
    NEXT(int, "fdatasync", int);
    return handle_fails("fdatasync", handle, 0) ? -1 : next(handle);
}

int ftruncate(int handle, off_t size) {
    NEXT(int, "ftruncate", int, off_t);
    return handle_fails("ftruncate", handle, 0) ? -1 : next(handle, size);
}

int ftruncate64(int handle, off_t size) {
    NEXT(int, "ftruncate64", int, off_t);
    return handle_fails("ftruncate", handle, 0) ? -1 : next(handle, size);
}

int rename(const char *from, const char *to) {
    NEXT(int, "rename", const char *, const char *);
    return path_fails("rename", AT_FDCWD, to, 0) ? -1 : next(from, to);
}

int renameat(int from_folder, const char *from, int folder, const char *to) {
    NEXT(int, "renameat", int, const char *, int, const char *);
    return path_fails("rename", folder, to, 0) ? -1 : next(from_folder, from, folder, to);
}

int renameat2(int from_folder, const char *from, int folder, const char *to, unsigned flags) {
    NEXT(int, "renameat2", int, const char *, int, const char *, unsigned);
    return path_fails("rename", folder, to, 0) ? -1 : next(from_folder, from, folder, to, flags);
}

int link(const char *from, const char *to) {
    NEXT(int, "link", const char *, const char *);
    return path_fails("link", AT_FDCWD, to, 1) ? -1 : next(from, to);
}

int linkat(int from_folder, const char *from, int folder, const char *to, int flags) {
    NEXT(int, "linkat", int, const char *, int, const char *, int);
    return path_fails("link", folder, to, 1) ? -1 : next(from_folder, from, folder, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(int, "mkdir", const char *, mode_t);
    return path_fails("mkdir", AT_FDCWD, path, 1) ? -1 : next(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    NEXT(int, "mkdirat", int, const char *, mode_t);
    return path_fails("mkdir", folder, path, 1) ? -1 : next(folder, path, mode);
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

/* Only what makes a file counts: opening one that is there needs no room. */
static int open_fails(int folder, const char *path, int flags) {
    if ((flags & __O_TMPFILE) == __O_TMPFILE)
        return path_fails("open", folder, path, 1);
    int before = errno, makes = flags & O_CREAT && syscall(SYS_faccessat, folder, path, F_OK) != 0;
    errno = before;
    return makes && path_fails("open", folder, path, 1);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(int, #name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        return open_fails(AT_FDCWD, path, flags) ? -1 : next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        NEXT(int, #name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        return open_fails(folder, path, flags) ? -1 : next(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        NEXT(FILE *, #name, const char *, const char *); \
        int flags = how[0] == 'r' ? O_RDONLY : O_WRONLY | O_CREAT; \
        return open_fails(AT_FDCWD, path, flags) ? NULL : next(path, how); \
    }
FOPEN(fopen)
FOPEN(fopen64)
