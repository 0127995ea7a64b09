// Faults of the system, for a process that is started with this library in LD_PRELOAD.
//
// faults_begin() chooses a folder and a list of faults. From then on calls of the C library that
// concern files below that folder are counted by kind, and the n-th call of a kind kills or stops
// the process, waits, or fails. The first write that fails writes half of its data instead, and so
// does one that kills: on a full disk the next one gets the error.

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { ANY, READ, WRITE, LOOK, NAME, SYNC, LOCK, KINDS };
enum action { KILL, STOP, WAIT, FAIL };
enum { MOST_FAULTS = 8, MOST_FILES = 1 << 16 };

struct fault {
  long kind, at, span, action, value;  // value: milliseconds, or errno
};
struct shared {  // with the process that started this one
  long calls[KINDS], struck[MOST_FAULTS];
};

static struct shared *shared;
static struct fault faults[MOST_FAULTS];
static long num_faults;
static char root[4096];
static char watched[MOST_FILES];
static __thread struct {
  int file;
  const void *data;
  size_t size;
  ssize_t written;
} half;

#define REAL(name)                                                  \
  ({                                                                \
    static __typeof__(&name) real;                                  \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);   \
    real;                                                           \
  })

void faults_begin(const char *folder, const struct fault *list, long count, struct shared *memory) {
  strncpy(root, folder, sizeof root - 1);
  memcpy(faults, list, count * sizeof *list);
  num_faults = count;
  shared = memory;
}

static int is_watched(int file) { return file >= 0 && file < MOST_FILES && watched[file]; }

static int is_inside(int folder, const char *path) {
  if (!shared || !path) return 0;
  if (path[0] != '/') return is_watched(folder);
  size_t length = strlen(root);
  return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

// Count a call; returns 0, or -1 with errno if it has to fail.
static int strike(enum kind kind) {
  long of_kind = __atomic_fetch_add(&shared->calls[kind], 1, __ATOMIC_RELAXED);
  long of_any = __atomic_fetch_add(&shared->calls[ANY], 1, __ATOMIC_RELAXED);
  int failure = 0;
  for (long i = 0; i < num_faults; i++) {
    const struct fault *fault = &faults[i];
    long now = fault->kind == ANY ? of_any : fault->kind == kind ? of_kind : -1;
    if (now < fault->at || now >= fault->at + fault->span) continue;
    int is_first = !__atomic_fetch_add(&shared->struck[i], 1, __ATOMIC_RELAXED);
    if (fault->action == WAIT) usleep(1000 * fault->value);
    if (fault->action == STOP) kill(getpid(), SIGSTOP);
    if (fault->action == KILL || (fault->action == FAIL && is_first)) {
      if (half.size) half.written = REAL(write)(half.file, half.data, half.size);
    }
    if (fault->action == KILL) kill(getpid(), SIGKILL);
    if (fault->action == FAIL) failure = fault->value;
  }
  if (failure) errno = failure;
  return failure ? -1 : 0;
}

static int watch(int file) {
  if (file >= 0 && file < MOST_FILES) watched[file] = 1;
  return file;
}

#define OPEN(name, folder, parameters, arguments)                                \
  int name parameters {                                                          \
    va_list more;                                                                \
    va_start(more, flags);                                                       \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;    \
    va_end(more);                                                                \
    if (!is_inside(folder, path)) return REAL(name) arguments;                   \
    if (strike(flags & O_CREAT ? NAME : LOOK)) return -1;                        \
    return watch(REAL(name) arguments);                                          \
  }
OPEN(open, -1, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, -1, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPEN(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))

#define ON_PATH(result, failed, name, kind, folder, parameters, arguments)       \
  result name parameters {                                                       \
    if (is_inside(folder, path) && strike(kind)) return failed;                  \
    return REAL(name) arguments;                                                 \
  }
ON_PATH(int, -1, stat, LOOK, -1, (const char *path, struct stat *out), (path, out))
ON_PATH(int, -1, stat64, LOOK, -1, (const char *path, struct stat64 *out), (path, out))
ON_PATH(int, -1, lstat, LOOK, -1, (const char *path, struct stat *out), (path, out))
ON_PATH(int, -1, lstat64, LOOK, -1, (const char *path, struct stat64 *out), (path, out))
ON_PATH(int, -1, fstatat, LOOK, folder,
        (int folder, const char *path, struct stat *out, int flags), (folder, path, out, flags))
ON_PATH(int, -1, fstatat64, LOOK, folder,
        (int folder, const char *path, struct stat64 *out, int flags), (folder, path, out, flags))
ON_PATH(int, -1, statx, LOOK, folder,
        (int folder, const char *path, int flags, unsigned mask, struct statx *out),
        (folder, path, flags, mask, out))
ON_PATH(DIR *, NULL, opendir, LOOK, -1, (const char *path), (path))
ON_PATH(int, -1, mkdir, NAME, -1, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, -1, rmdir, NAME, -1, (const char *path), (path))
ON_PATH(int, -1, unlink, NAME, -1, (const char *path), (path))
ON_PATH(int, -1, unlinkat, NAME, folder, (int folder, const char *path, int flags),
        (folder, path, flags))
ON_PATH(int, -1, rename, NAME, -1, (const char *path, const char *to), (path, to))
ON_PATH(int, -1, renameat, NAME, folder, (int folder, const char *path, int at, const char *to),
        (folder, path, at, to))

#define ON_FILE(result, name, kind, parameters, arguments)                       \
  result name parameters {                                                       \
    if (shared && is_watched(file) && strike(kind)) return -1;                   \
    return REAL(name) arguments;                                                 \
  }
ON_FILE(ssize_t, read, READ, (int file, void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, pread, READ, (int file, void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pread64, READ, (int file, void *data, size_t size, off64_t at),
        (file, data, size, at))
ON_FILE(ssize_t, writev, WRITE, (int file, const struct iovec *parts, int count),
        (file, parts, count))
ON_FILE(int, ftruncate, WRITE, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, WRITE, (int file, off64_t size), (file, size))
ON_FILE(int, fsync, SYNC, (int file), (file))
ON_FILE(int, fdatasync, SYNC, (int file), (file))
ON_FILE(int, flock, LOCK, (int file, int operation), (file, operation))

ssize_t write(int file, const void *data, size_t size) {
  if (shared && is_watched(file)) {
    half.file = file, half.data = data, half.size = size / 2, half.written = 0;
    int failed = strike(WRITE);
    half.size = 0;
    if (failed) return half.written ? half.written : -1;
  }
  return REAL(write)(file, data, size);
}

int close(int file) {
  if (file >= 0 && file < MOST_FILES) watched[file] = 0;
  return REAL(close)(file);
}
