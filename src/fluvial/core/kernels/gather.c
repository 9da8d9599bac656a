/* Rows of a table in the order of an index: copied as they are, or standardised in float64 and split in two. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
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

FOR_THIS_PROCESSOR
void fluvial_gather(long n, long size, const char *rows, const int32_t *order, char *out) {
    for (long i = 0; i < n; i++) {
        if (i + AHEAD < n) fetch(rows + (long)order[i + AHEAD] * size, size);
        memcpy(out + i * size, rows + (long)order[i] * size, size);
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

/* Stretches of a file, one after the other, into one buffer: the bytes read, fewer where the file ends; −errno if that fails. */
long fluvial_read(int file, long n, const int64_t *firsts, const int64_t *lasts, char *out) {
    long done = 0;
#ifdef POSIX_FADV_WILLNEED /* so that the system fetches many at once */
    posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
    for (long i = 0; i < n; i++) posix_fadvise(file, firsts[i], lasts[i] - firsts[i], POSIX_FADV_WILLNEED);
#endif
    for (long i = 0; i < n; i++) {
        for (int64_t at = firsts[i]; at < lasts[i];) {
            ssize_t got = pread(file, out + done, lasts[i] - at, at);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) return -errno;
            if (got == 0) return done;
            at += got;
            done += got;
        }
    }
    return done;
}
