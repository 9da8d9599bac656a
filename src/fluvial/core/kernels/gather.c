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
static void gather(long n, long size, const char *rows, const int32_t *order, char *out) {
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
static void gather_affine(long n, long size, long nx, long nc, const char *rows, const int32_t *order,
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
static long read_all(int file, long n, const int64_t *firsts, const int64_t *lasts, char *out) {
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

/* A permutation of n numbers by Fisher and Yates, a function of the seed: fluvial.data.gather.permutation is the same. */
static void permutation(uint64_t seed, long n, int32_t *order) {
    for (long i = 0; i < n; i++) order[i] = (int32_t)i;
    for (long i = n - 1; i > 0; i--) {
        uint64_t z = seed + (uint64_t)i * 0x9E3779B97F4A7C15u; /* splitmix64 */
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        long j = (long)(((z >> 32) * (uint64_t)(i + 1)) >> 32);
        int32_t kept = order[i];
        order[i] = order[j], order[j] = kept;
    }
}

/* Windows of a file, each of `blocks` stretches of it, one after the other through a buffer; their rows, permuted, but
 * for those where `keep` is 0 (null: all), go to `out`, or, where that is null, standardised to x and c. All in one
 * call: a thread of Python waits for the others after each. Returns the bytes read, fewer than asked for where the file
 * ends; -errno if that fails. */
long fluvial_read_windows(int file, long windows, long size, long nx, long nc, const int64_t *blocks,
                          const int64_t *firsts, const int64_t *lasts, const uint64_t *seeds, char *buffer,
                          int32_t *order, const uint8_t *keep, char *out, const double *shift, const double *scale,
                          float *x, float *c) {
    long done = 0;
    for (long w = 0; w < windows; firsts += blocks[w], lasts += blocks[w], w++) {
        long bytes = 0;
        for (long i = 0; i < blocks[w]; i++) bytes += lasts[i] - firsts[i];
        long got = read_all(file, blocks[w], firsts, lasts, buffer), n = bytes / size, kept = n;
        if (got < 0) return got;
        done += got;
        if (got != bytes) return done;
        permutation(seeds[w], n, order);
        if (keep) {
            kept = 0;
            for (long i = 0; i < n; i++)
                if (keep[i]) order[kept++] = order[i];
            keep += n;
        }
        if (out) {
            gather(kept, size, buffer, order, out);
            out += kept * size;
        } else {
            gather_affine(kept, size, nx, nc, buffer, order, shift, scale, x, c);
            x += kept * nx, c += kept * nc;
        }
    }
    return done;
}
