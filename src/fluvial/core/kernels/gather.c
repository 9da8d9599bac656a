/* Rows of a table in the order of an index: copied as they are, or standardised in float64 and split in two. */
#include <stdint.h>
#include <string.h>

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
