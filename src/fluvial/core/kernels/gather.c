/* Rows of a table in the order of an index: copied as they are, or standardised in float64 and split in two. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Rows lie far apart; the processor is told of a row this many rows before it is needed. */
#define AHEAD 16

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
/* The copy for this processor is picked when the library is loaded. */
#define FOR_THIS_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_THIS_PROCESSOR
#endif

static inline void fetch(const char *row, long size) {
    for (long at = 0; at < size; at += 64) __builtin_prefetch(row + at);
    __builtin_prefetch(row + size - 1);
}

#if defined(__GNUC__)
typedef char Line __attribute__((vector_size(64), aligned(1), may_alias));
#endif

FOR_THIS_PROCESSOR
void fluvial_gather(long n, long size, const char *rows, const int32_t *order, char *out) {
    for (long i = 0; i < n; i++, out += size) {
        if (i + AHEAD < n) fetch(rows + (long)order[i + AHEAD] * size, size);
        const char *row = rows + (long)order[i] * size;
#if defined(__GNUC__)
        if (size >= 64) { /* in lines, of which the last laps over the one before: a call for so little takes longer */
            for (long at = 0; at < size - 64; at += 64) *(Line *)(out + at) = *(const Line *)(row + at);
            *(Line *)(out + size - 64) = *(const Line *)(row + size - 64);
            continue;
        }
#endif
        memcpy(out, row, size);
    }
}

/* Rows of k float32 (records of `size` bytes): (v - shift) / scale; the first nx columns go to x, the next nc to c. */
FOR_THIS_PROCESSOR
void fluvial_gather_affine(long n, long size, long nx, long nc, const char *rows, const int32_t *order,
                           const double *shift, const double *scale, float *x, float *c) {
    for (long i = 0; i < n; i++) {
        if (i + AHEAD < n) fetch(rows + (long)order[i + AHEAD] * size, size);
        const float *row = (const float *)(rows + (long)order[i] * size);
        for (long j = 0; j < nx; j++) x[i * nx + j] = (float)(((double)row[j] - shift[j]) / scale[j]);
        for (long j = 0; j < nc; j++)
            c[i * nc + j] = (float)(((double)row[nx + j] - shift[nx + j]) / scale[nx + j]);
    }
}

static void advise(int file, long n, const int64_t *firsts, const int64_t *lasts) {
#ifdef POSIX_FADV_WILLNEED
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    for (long i = 0; i < n; i++) posix_fadvise(file, firsts[i], lasts[i] - firsts[i], POSIX_FADV_WILLNEED);
#endif
}

/* Stretches of a file, one after the other, into one buffer: the bytes read, fewer where the file ends; −errno if that fails.
   What the system holds in memory is copied; from the first stretch that it does not, it is told of all the others,
   so that it fetches many at once. */
long fluvial_read(int file, long n, const int64_t *firsts, const int64_t *lasts, char *out) {
    long done = 0;
#ifdef RWF_NOWAIT
    int held = 1;
#else
    int held = 0;
    advise(file, n, firsts, lasts);
#endif
    for (long i = 0; i < n; i++) {
        for (int64_t at = firsts[i]; at < lasts[i];) {
            ssize_t got;
#ifdef RWF_NOWAIT
            if (held) {
                struct iovec piece = {out + done, lasts[i] - at};
                got = preadv2(file, &piece, 1, at, RWF_NOWAIT);
                if (got <= 0) { /* not in memory, or a system that cannot say so; the end of the file is found again */
                    held = 0;
                    advise(file, n - i, firsts + i, lasts + i);
                    continue;
                }
            } else
#endif
                got = pread(file, out + done, lasts[i] - at, at);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) return -errno;
            if (got == 0) return done;
            at += got;
            done += got;
        }
    }
    return done;
}
