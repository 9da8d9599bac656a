/* The kernels of spline.c: compiled once for every instruction set.
 *
 * Elements go through in blocks: first each finds its bin (one pass over its logits), then a whole block is evaluated
 * side by side, in loops that compilers turn into vector instructions. Nothing is allocated. NaN in, NaN out.
 */
#include <stdint.h>
#include <string.h>

#include "named.h"
#include "spline.h"

#define FORWARD NAMED(spline_forward)
#define BACKWARD NAMED(spline_backward)

enum { LANES = 8 };
typedef float vector __attribute__((vector_size(32)));
typedef int32_t whole __attribute__((vector_size(32)));
#define COUNT ((whole){0, 1, 2, 3, 4, 5, 6, 7})
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (whole){__VA_ARGS__})
#endif

typedef struct {
    int32_t index[BLOCK];
    float width[BLOCK], height[BLOCK], left[BLOCK], bottom[BLOCK], raw0[BLOCK], raw1[BLOCK];
    float chosen[2][BLOCK], before[2][BLOCK]; /* shares of the box, as the softmax gives them */
} Bins;

/* e^x to about 1 ulp from −87 to 88, and held at the ends beyond. */
INLINE float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f; /* 1.5 · 2^23: adding it rounds to a whole number */
    union { float f; int32_t i; } shifted, scale;
    shifted.f = x * 1.44269504f + magic;
    float n = shifted.f - magic;
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    scale.i = (int32_t)((uint32_t)(shifted.i - 0x4B400000 + 127) << 23);
    return p * scale.f;
}

/* ln x to about 1 ulp for positive normal x (Cephes). */
INLINE float log_(float x) {
    union { float f; int32_t i; } u;
    u.f = x;
    int32_t e = ((u.i - 0x3F3504F3) >> 23);
    u.i -= (int32_t)((uint32_t)e << 23);
    float m = u.f - 1.0f, z = m * m, n = (float)e;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * z - 2.12194440e-4f * n - 0.5f * z;
    return x == x ? m + p + 0.693359375f * n : x;
}

INLINE float clamp_(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

INLINE float absolute(float x) { return x < 0 ? -x : x; }

INLINE vector all(float x) { return (vector){x, x, x, x, x, x, x, x}; }

INLINE vector pick(whole where, vector a, vector b) { return (vector)((where & (whole)a) | (~where & (whole)b)); }

INLINE vector exp_vector(vector x) {
    x = pick(x < -87.0f, all(-87.0f), x);
    const vector magic = all(12582912.0f);
    vector shifted = x * 1.44269504f + magic, n = shifted - magic;
    vector r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    whole scale = ((whole)shifted - 0x4B400000 + 127) << 23;
    return p * (vector)scale;
}

INLINE vector load(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE float largest(vector v) {
    vector w = SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v = pick(v > w, v, w);
    w = SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    v = pick(v > w, v, w);
    return v[0] > v[1] ? v[0] : v[1];
}

INLINE float sum_of(vector v) {
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v[0] + v[1];
}

/* Exponentials of K logits less their largest, padded with zeros to whole vectors; returns their sum. */
INLINE float exponentials(const float *logits, int bins, float *out) {
    int full = bins & ~(LANES - 1);
    vector rest = all(-1e30f), most, sum = all(0);
    memcpy(&rest, logits + full, (size_t)(bins - full) * sizeof(float));
    most = rest;
    for (int j = 0; j < full; j += LANES) {
        vector v = load(logits + j);
        most = pick(v > most, v, most);
    }
    float top = largest(most);
    for (int j = 0; j < full; j += LANES) {
        vector e = exp_vector(load(logits + j) - top);
        sum += e;
        memcpy(out + j, &e, sizeof e);
    }
    if (full < bins) {
        vector e = exp_vector(rest - top);
        e = pick(COUNT < bins - full, e, all(0));
        sum += e;
        memcpy(out + full, &e, sizeof e);
    }
    return sum_of(sum);
}

/* The sum of the first k of a padded array. */
INLINE float sum_before(const float *values, int k) {
    double sum = 0; /* across vectors, as locate sums: starts of bins need the digits */
    int j = 0;
    for (; j + LANES <= k; j += LANES) sum += sum_of(load(values + j));
    return (float)(sum + sum_of(pick(COUNT < k - j, load(values + j), all(0))));
}

/* The first bin whose right end lies beyond the position (the last bin at most), and the sum of those before it. */
INLINE int locate(const float *values, int bins, float share, float even, float position, float *sum) {
    double cumulated = 0;
    for (int k = 0; k < bins; k += LANES) {
        vector v = load(values + k), zero = all(0);
        v += SHUFFLE(v, zero, 8, 0, 1, 2, 3, 4, 5, 6);
        v += SHUFFLE(v, zero, 8, 8, 0, 1, 2, 3, 4, 5);
        v += SHUFFLE(v, zero, 8, 8, 8, 8, 0, 1, 2, 3);
        vector number = __builtin_convertvector(COUNT + (k + 1), vector);
        whole passed = (position >= share * ((float)cumulated + v) + even * number) & (COUNT + k < bins - 1);
        int n = 0;
        for (int l = 0; l < LANES; l++) n -= passed[l];
        if (n < LANES) {
            float ends[LANES + 1] = {0};
            memcpy(ends + 1, &v, sizeof v);
            *sum = (float)(cumulated + ends[n]);
            return k + n;
        }
        cumulated += v[LANES - 1];
    }
    *sum = (float)cumulated; /* never reached: the last bin is never passed */
    return bins - 1;
}

/* The bin of every element of a block: found along `axis` (0: widths, 1: heights), described along both. What the
 * softmax sums stays in `shares`, `stride` apart for each element, and one over its sum in `total`. */
INLINE void find(int count, int bins, float bound, float floor_, int axis, const float *x, const float *parameters,
                 float *shares, int stride, int padded, float *total, Bins *b) {
    float keep = 1 - floor_, even = floor_ / (float)bins;
    for (int i = 0; i < count; i++) {
        const float *p = parameters + (long)i * (3 * bins + 1);
        float *e[2] = {shares + (long)i * stride, shares + (long)i * stride + padded};
        float scale[2];
        for (int a = 0; a < 2; a++) scale[a] = total[2 * i + a] = 1 / exponentials(p + a * bins, bins, e[a]);
        float position = (x[i] + bound) / (2 * bound), cumulated;
        int k = locate(e[axis], bins, keep * scale[axis], even, position, &cumulated);
        b->index[i] = k;
        b->before[axis][i] = cumulated * scale[axis];
        b->before[1 - axis][i] = sum_before(e[1 - axis], k) * scale[1 - axis];
        for (int a = 0; a < 2; a++) b->chosen[a][i] = e[a][k] * scale[a];
        b->raw0[i] = p[2 * bins + k];
        b->raw1[i] = p[2 * bins + k + 1];
    }
    for (int i = count; i < BLOCK; i++) { /* a last, smaller block: its other places hold any sound bin */
        b->index[i] = 0;
        b->raw0[i] = b->raw1[i] = 0;
        for (int a = 0; a < 2; a++) b->before[a][i] = 0, b->chosen[a][i] = 1 / (float)bins;
    }
    for (int i = 0; i < BLOCK; i++) {
        b->width[i] = 2 * bound * (even + keep * b->chosen[0][i]);
        b->height[i] = 2 * bound * (even + keep * b->chosen[1][i]);
        b->left[i] = 2 * bound * (even * (float)b->index[i] + keep * b->before[0][i]) - bound;
        b->bottom[i] = 2 * bound * (even * (float)b->index[i] + keep * b->before[1][i]) - bound;
    }
}

INLINE float root(float x) { return __builtin_sqrtf(x); }

/* theta of a point of the box at r = (y − bottom) / height; see _solve in spline.py. */
INLINE float solve(float r, float d0, float bend) {
    float b = d0 - r * bend, q = b * b + 4 * (1 - b) * r;
    float s = root(q < 0 ? 0 : q);
    float up = 2 * r / ((b < 0 ? 0 : b) + s), down = (s - b) / (2 * (1 - (b > 0 ? 0 : b)));
    float theta = b > 0 ? up : down;
    theta = r > 0 ? theta : (r <= 0 ? 0 : r);
    theta = clamp_(theta, 0, 1);
    float t = theta * (1 - theta), denominator = 1 + bend * t;
    float residual = theta * theta + d0 * t - r * denominator;
    float slope = (bend + 2 - d0) * theta * theta + 2 * t + d0 * (1 - theta) * (1 - theta);
    return clamp_(theta - residual * denominator / slope, 0, 1);
}

INLINE float slope_of(float raw, float limit) { return exp_(raw * limit / (limit + absolute(raw))); }

void FORWARD(const Job *job, long from, long to) {
    float shares[2 * (MOST_BINS + LANES)], total[2 * BLOCK], x[BLOCK] = {0}, value[BLOCK], log_slope[BLOCK];
    int bins = job->bins, inverse = job->inverse, padded = (bins & ~(LANES - 1)) + LANES;
    float bound = job->bound, limit = job->limit;
    Bins b;
    for (long start = from; start < to; start += BLOCK) {
        int count = to - start < BLOCK ? (int)(to - start) : BLOCK;
        memcpy(x, job->x + start, (size_t)count * sizeof(float));
        find(count, bins, bound, job->floor_, inverse, x, job->parameters + start * (3 * bins + 1), shares, 0, padded,
             total, &b);
        for (int i = 0; i < BLOCK; i++) {
            float mean = b.height[i] / b.width[i];
            float s0 = slope_of(b.raw0[i], limit), s1 = slope_of(b.raw1[i], limit);
            float d0 = s0 / mean, d1 = s1 / mean, bend = d0 + d1 - 2;
            float inside = clamp_(x[i], -bound, bound), outside = x[i] - inside;
            float edge = outside < 0 ? s0 : s1;
            float theta = inverse ? solve(clamp_((inside - b.bottom[i]) / b.height[i], 0, 1), d0, bend)
                                  : clamp_((inside - b.left[i]) / b.width[i], 0, 1);
            float u = 1 - theta, t = theta * u, denominator = 1 + bend * t;
            value[i] = inverse ? b.left[i] + theta * b.width[i] + outside / edge
                               : b.bottom[i] + b.height[i] * (theta * theta + d0 * t) / denominator + outside * edge;
            float numerator = d1 * theta * theta + 2 * t + d0 * u * u;
            float l = log_(mean * numerator / (denominator * denominator));
            log_slope[i] = inverse ? -l : l;
        }
        memcpy(job->value + start, value, (size_t)count * sizeof(float));
        memcpy(job->log_slope + start, log_slope, (size_t)count * sizeof(float));
    }
}

/* What _partials and _local_gradients in spline.py derive, for one block: x is the argument of the forward map. */
INLINE void local_gradients(const Job *job, const float *x, const float *grad_value, const float *grad_log, const Bins *b,
                            float *grad_x, float grad_size[2][BLOCK], float grad_start[2][BLOCK],
                            float grad_raw[2][BLOCK]) {
    float bound = job->bound, limit = job->limit, keep = 2 * bound * (1 - job->floor_);
    int inverse = job->inverse;
    for (int i = 0; i < BLOCK; i++) {
        float width = b->width[i], height = b->height[i], mean = height / width;
        float s0 = slope_of(b->raw0[i], limit), s1 = slope_of(b->raw1[i], limit);
        float d0 = s0 / mean, d1 = s1 / mean, bend = d0 + d1 - 2;
        float inside = clamp_(x[i], -bound, bound), outside = x[i] - inside;
        float theta = clamp_((inside - b->left[i]) / width, 0, 1), u = 1 - theta, t = theta * u;
        float over = 1 / (1 + bend * t), numerator = d1 * theta * theta + 2 * t + d0 * u * u;
        float slope = mean * numerator * over * over, lean = u - theta;
        float log_theta = 2 * (d1 * theta + lean - d0 * u) / numerator - 2 * bend * lean * over;
        float log_x = outside == 0 ? log_theta / width : 0;

        float gv = grad_value[i], gl = grad_log[i];
        float through = inverse ? (gv - gl * log_x) / slope : gv * slope + gl * log_x;
        grad_x[i] = through;
        gv = inverse ? -through : gv;
        gl = inverse ? -gl : gl;

        float r = (theta * theta + d0 * t) * over;
        float at_theta = (outside == 0 ? gv * slope : 0) + gl * log_x;
        float common = gv * height * t * over, from_bend = 2 * gl * t * over;
        float g0 = (common * (1 - r) + gl * u * u / numerator - from_bend) / mean;
        float g1 = (-common * r + gl * theta * theta / numerator - from_bend) / mean;
        float at_mean = (gl - (g0 * s0 + g1 * s1)) / mean, tail = gv * outside;
        g0 += outside < 0 ? tail : 0;
        g1 += outside > 0 ? tail : 0;
        grad_size[0][i] = (-at_theta * theta - at_mean * mean / width) * keep;
        grad_size[1][i] = (gv * r + at_mean / width) * keep;
        grad_start[0][i] = -at_theta * keep;
        grad_start[1][i] = gv * keep;
        float squash0 = limit / (limit + absolute(b->raw0[i])), squash1 = limit / (limit + absolute(b->raw1[i]));
        grad_raw[0][i] = g0 * s0 * squash0 * squash0;
        grad_raw[1][i] = g1 * s1 * squash1 * squash1;
    }
}

void BACKWARD(const Job *job, long from, long to) {
    float shares[BLOCK * 2 * (MOST_BINS + LANES)], total[2 * BLOCK], x[BLOCK] = {0}, gv[BLOCK] = {0}, gl[BLOCK] = {0};
    float grad_x[BLOCK], grad_size[2][BLOCK], grad_start[2][BLOCK], grad_raw[2][BLOCK];
    int bins = job->bins, padded = (bins & ~(LANES - 1)) + LANES, stride = 2 * padded;
    Bins b;
    for (long start = from; start < to; start += BLOCK) {
        int count = to - start < BLOCK ? (int)(to - start) : BLOCK;
        memcpy(x, job->x + start, (size_t)count * sizeof(float));
        memcpy(gv, job->grad_value + start, (size_t)count * sizeof(float));
        memcpy(gl, job->grad_log + start, (size_t)count * sizeof(float));
        find(count, bins, job->bound, job->floor_, 0, x, job->parameters + start * (3 * bins + 1), shares, stride, padded,
             total, &b);
        local_gradients(job, x, gv, gl, &b, grad_x, grad_size, grad_start, grad_raw);
        memcpy(job->grad_x + start, grad_x, (size_t)count * sizeof(float));
        for (int i = 0; i < count; i++) {
            float *out = job->grad_parameters + (start + i) * (3 * bins + 1);
            int k = b.index[i];
            for (int a = 0; a < 2; a++) {
                /* Backward of the softmax in one sweep: the bins before the chosen one move its start. */
                const float *e = shares + (long)i * stride + a * padded;
                float mean = grad_start[a][i] * b.before[a][i] + grad_size[a][i] * b.chosen[a][i];
                float earlier = (grad_start[a][i] - mean) * total[2 * i + a], later = -mean * total[2 * i + a];
                for (int j = 0; j < k; j++) out[a * bins + j] = e[j] * earlier;
                for (int j = k; j < bins; j++) out[a * bins + j] = e[j] * later;
                out[a * bins + k] += b.chosen[a][i] * grad_size[a][i];
            }
            memset(out + 2 * bins, 0, (size_t)(bins + 1) * sizeof(float));
            out[2 * bins + k] = grad_raw[0][i];
            out[2 * bins + k + 1] = grad_raw[1][i];
        }
    }
}
