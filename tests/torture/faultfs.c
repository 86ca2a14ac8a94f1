// Preloaded into a program: the FAULT_K-th call that changes something below the folder FAULT_PATH fails, or ends the process.
//   FAULT_PATH   absolute
//   FAULT_K      from 1; 0: the calls are only counted
//   FAULT_MODE   once          the call fails with FAULT_ERRNO
//                from_then_on  so do all later ones; on a full disk (ENOSPC) names can still be removed and exchanged
//                half          like from_then_on, but half of a write is done
//                kill, killed_after   SIGKILL before or after the call
//                term          SIGTERM before the call, which is made
//                hold          the call waits for the file FAULT_GATE
//   FAULT_ERRNO  a number
//   FAULT_ONLY   the kind of call that counts (open, write, fsync, rename, mkdir, unlink, rmdir, ftruncate); all by default
//   FAULT_LOG    a file that gets a line for each call: number, thread, kind, path
#define _GNU_SOURCE
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
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum Fate { MADE, FAILS, HALF_MADE, KILLED_AFTER };

static const char *folder, *mode, *only, *gate;
static long struck_at, calls;
static int error, log_file = -1, struck;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void read_environment(void) {
    const char *text;
    folder = getenv("FAULT_PATH");
    only = getenv("FAULT_ONLY");
    gate = getenv("FAULT_GATE");
    mode = (text = getenv("FAULT_MODE")) ? text : "once";
    struck_at = (text = getenv("FAULT_K")) ? atol(text) : 0;
    error = (text = getenv("FAULT_ERRNO")) ? atoi(text) : EIO;
    if ((text = getenv("FAULT_LOG")))
        log_file = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static void killed(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void path_of(int file, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, out, PATH_MAX - 1);
    out[size < 0 ? 0 : size] = 0;
}

static void path_at(int dir, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (dir != AT_FDCWD) path_of(dir, base);
    else if (!getcwd(base, sizeof base)) base[0] = 0;
    if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) out[0] = 0;
}

static enum Fate fate(const char *kind, const char *path) {
    if (!folder || strncmp(path, folder, strlen(folder)) || (only && !is(only, kind))) return MADE;
    pthread_mutex_lock(&lock);
    long number = ++calls;
    int before = struck, now = number == struck_at;
    struck |= now;
    pthread_mutex_unlock(&lock);
    if (log_file >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%ld %ld %s %s\n", number, (long)syscall(SYS_gettid), kind, path);
        syscall(SYS_write, log_file, line, size);
    }
    if (now) {
        if (is(mode, "kill")) killed();
        if (is(mode, "killed_after")) return KILLED_AFTER;
        if (is(mode, "term")) return raise(SIGTERM), MADE;
        if (is(mode, "hold")) {
            while (access(gate, F_OK)) usleep(1000);
            return MADE;
        }
        return is(mode, "half") && is(kind, "write") ? HALF_MADE : FAILS;
    }
    if (!before || !(is(mode, "from_then_on") || is(mode, "half"))) return MADE;
    return error != ENOSPC || is(kind, "write") || is(kind, "open") || is(kind, "mkdir") ? FAILS : MADE;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define STRIKE(kind, call) \
    enum Fate fate_ = fate(kind, path_); \
    if (fate_ == FAILS || fate_ == HALF_MADE) { errno = error; return -1; } \
    __auto_type result_ = call; \
    if (fate_ == KILLED_AFTER) killed(); \
    return result_
#define STRIKE_AT(dir, path, kind, call) char path_[PATH_MAX]; path_at(dir, path, path_); STRIKE(kind, call)
#define STRIKE_FILE(file, kind, call) char path_[PATH_MAX]; path_of(file, path_); STRIKE(kind, call)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define MODE va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list)
#define OPEN(name) int name(const char *path, int flags, ...) { \
    MODE; REAL(name); if (!writes(flags)) return real(path, flags, mode); STRIKE_AT(AT_FDCWD, path, "open", real(path, flags, mode)); }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
    MODE; REAL(name); if (!writes(flags)) return real(dir, path, flags, mode); STRIKE_AT(dir, path, "open", real(dir, path, flags, mode)); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(write);
    if (file <= STDERR_FILENO) return real(file, bytes, size);
    char path[PATH_MAX];
    path_of(file, path);
    switch (fate("write", path)) {
    case FAILS: errno = error; return -1;
    case HALF_MADE:
        if (size > 1) return real(file, bytes, size / 2);
        errno = error;
        return -1;
    case KILLED_AFTER: real(file, bytes, size); killed();
    default: return real(file, bytes, size);
    }
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    if (file <= STDERR_FILENO) return real(file, parts, count);
    STRIKE_FILE(file, "write", real(file, parts, count));
}

int fsync(int file) { REAL(fsync); STRIKE_FILE(file, "fsync", real(file)); }
int fdatasync(int file) { REAL(fdatasync); STRIKE_FILE(file, "fsync", real(file)); }
int ftruncate(int file, off_t size) { REAL(ftruncate); STRIKE_FILE(file, "ftruncate", real(file, size)); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); STRIKE_FILE(file, "ftruncate", real(file, size)); }
int rename(const char *from, const char *to) { REAL(rename); STRIKE_AT(AT_FDCWD, from, "rename", real(from, to)); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); STRIKE_AT(AT_FDCWD, path, "mkdir", real(path, mode)); }
int unlink(const char *path) { REAL(unlink); STRIKE_AT(AT_FDCWD, path, "unlink", real(path)); }
int rmdir(const char *path) { REAL(rmdir); STRIKE_AT(AT_FDCWD, path, "rmdir", real(path)); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    STRIKE_AT(a, from, "rename", real(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(renameat2);
    STRIKE_AT(a, from, "rename", real(a, from, b, to, flags));
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    STRIKE_AT(dir, path, flags & AT_REMOVEDIR ? "rmdir" : "unlink", real(dir, path, flags));
}
