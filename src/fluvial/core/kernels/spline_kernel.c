/* The kernels of spline.c: compiled once for every instruction set.
 *
 * Elements go through in blocks, side by side: their logits are turned, so that a vector holds one bin of LANES elements;
 * loops over the elements of a block are such as compilers turn into vector instructions. Nothing is allocated. NaN in,
 * NaN out.
 */
#include <stdint.h>
#include <string.h>

#include "named.h"
#include "spline.h"

#define FORWARD NAMED(spline_forward)
#define BACKWARD NAMED(spline_backward)

#ifdef __AVX__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
_Static_assert(BLOCK % LANES == 0, "whole vectors");
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

INLINE vector all(float x) { return x - (vector){0}; }

INLINE vector pick(whole where, vector a, vector b) {
#ifdef __AVX__ /* compilers make one instruction of the loop, and of that with where = a > b a maximum */
    vector chosen;
    for (int i = 0; i < LANES; i++) chosen[i] = where[i] ? a[i] : b[i];
    return chosen;
#else
    return (vector)((where & (whole)a) | (~where & (whole)b));
#endif
}

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

/* Bins, padded to whole vectors. */
INLINE int height_of(int bins) { return (bins + LANES - 1) & ~(LANES - 1); }

INLINE vector load(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, vector v) { memcpy(to, &v, sizeof v); }

/* Rows become columns. */
INLINE void turn(vector v[LANES]) {
#ifdef __AVX__
    vector t[LANES], u[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = SHUFFLE(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        t[i + 1] = SHUFFLE(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            u[i + 2 * j] = SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            u[i + 2 * j + 1] = SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < LANES / 2; i++) {
        v[i] = SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            float swap = v[i][j];
            v[i][j] = v[j][i], v[j][i] = swap;
        }
#endif
}

/* e^(logit - the largest) of LANES elements, `apart` from each other, as [bins, whole vectors][LANES]; returns their
 * sums. Elements from `count` on are no memory: their logits are 0. */
INLINE vector exponentials(const float *logits, long apart, int count, int bins, float *to) {
    for (int j = 0; j < bins; j += LANES) {
        size_t size = (size_t)(bins - j < LANES ? bins - j : LANES) * sizeof(float);
        vector v[LANES];
        for (int i = 0; i < LANES; i++) {
            v[i] = all(0);
            if (i < count && size == sizeof v[i]) v[i] = load(logits + i * apart + j);
            else if (i < count) memcpy(v + i, logits + i * apart + j, size);
        }
        turn(v);
        for (int i = 0; i < LANES; i++) store(to + (j + i) * LANES, v[i]);
    }
    vector most = load(to), sum = all(0);
    for (int j = 1; j < bins; j++) {
        vector v = load(to + j * LANES);
        most = pick(v > most, v, most);
    }
    for (int j = 0; j < bins; j++) {
        vector e = exp_vector(load(to + j * LANES) - most);
        sum += e;
        store(to + j * LANES, e);
    }
    return sum;
}

/* The bin of each of LANES elements: the first whose right end lies beyond the position (the last at most), what it holds,
 * and the sum of those before it. */
INLINE whole locate(const float *e, int bins, vector share, float even, vector position, vector *chosen, vector *before) {
    whole index = {0};
    vector sum = all(0), here = load(e);
    *chosen = here, *before = sum;
    for (int j = 0; j < bins - 1; j++) {
        vector next = load(e + (j + 1) * LANES);
        sum += here;
        whole passed = position >= share * sum + even * (float)(j + 1);
        index -= passed;
        *before = pick(passed, sum, *before);
        *chosen = pick(passed, next, *chosen);
        here = next;
    }
    return index;
}

/* What the bins `index` hold, and the sums of those before them. */
INLINE void look_up(const float *e, int bins, whole index, vector *chosen, vector *before) {
    *chosen = *before = all(0);
    for (int j = 0; j < bins; j++) {
        vector here = load(e + j * LANES);
        *before += pick(index > j, here, all(0));
        *chosen = pick(index == j, here, *chosen);
    }
}

/* The bin of every element of a block: found along `axis` (0: widths, 1: heights), described along both. The
 * exponentials of the softmax stay in `shares`, those of each LANES elements `stride` apart, widths before heights, and
 * one over their sums in `total`: both are there already unless they are `fresh`. Parameters lie `apart`. */
INLINE void find(int count, int bins, float bound, float floor_, int axis, const float *x, const float *parameters,
                 long apart, const int fresh, float *shares, int stride, float total[2][BLOCK], Bins *b) {
    float keep = 1 - floor_, even = floor_ / (float)bins;
    for (int i = 0; i < BLOCK; i += LANES) {
        float *e[2] = {shares + i / LANES * stride, shares + i / LANES * stride + height_of(bins) * LANES};
        vector scale[2], chosen[2], before[2];
        for (int a = 0; a < 2; a++) {
            scale[a] = fresh ? 1 / exponentials(parameters + i * apart + a * bins, apart, count - i, bins, e[a])
                             : load(total[a] + i);
            store(total[a] + i, scale[a]);
        }
        vector position = (load(x + i) + bound) / (2 * bound);
        whole index = locate(e[axis], bins, keep * scale[axis], even, position, chosen + axis, before + axis);
        look_up(e[1 - axis], bins, index, chosen + 1 - axis, before + 1 - axis);
        memcpy(b->index + i, &index, sizeof index);
        for (int a = 0; a < 2; a++) {
            store(b->chosen[a] + i, chosen[a] * scale[a]);
            store(b->before[a] + i, before[a] * scale[a]);
        }
    }
    for (int i = 0; i < BLOCK; i++) {
        const float *raw = parameters + i * apart + 2 * bins + b->index[i];
        b->raw0[i] = i < count ? raw[0] : 0;
        b->raw1[i] = i < count ? raw[1] : 0;
    }
    for (int i = 0; i < BLOCK; i++) {
        b->width[i] = 2 * bound * (even + keep * b->chosen[0][i]);
        b->height[i] = 2 * bound * (even + keep * b->chosen[1][i]);
        b->left[i] = 2 * bound * (even * (float)b->index[i] + keep * b->before[0][i]) - bound;
        b->bottom[i] = 2 * bound * (even * (float)b->index[i] + keep * b->before[1][i]) - bound;
    }
}

/* The backward pass of the softmax of LANES elements: the bins before the chosen one move its start. */
INLINE void to_logits(const float *e, int bins, whole index, vector chosen, vector before, vector total, vector grad_size,
                      vector grad_start, float *out, long apart, int count) {
    vector mean = grad_start * before + grad_size * chosen;
    vector earlier = (grad_start - mean) * total, later = -mean * total, own = chosen * grad_size;
    for (int j = 0; j < bins; j += LANES) {
        size_t size = (size_t)(bins - j < LANES ? bins - j : LANES) * sizeof(float);
        vector v[LANES];
        for (int i = 0; i < LANES; i++) {
            vector here = load(e + (j + i) * LANES) * pick(index > j + i, earlier, later);
            v[i] = here + pick(index == j + i, own, all(0));
        }
        turn(v);
        for (int i = 0; i < LANES && i < count; i++) {
            if (size == sizeof v[i]) store(out + i * apart + j, v[i]);
            else memcpy(out + i * apart + j, v + i, size);
        }
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

INLINE void forward(const Job *job, long from, long to, const int shared) {
    float shares[2 * MOST_BINS * LANES], total[2][BLOCK], x[BLOCK] = {0}, value[BLOCK], log_slope[BLOCK];
    int bins = job->bins, inverse = job->inverse;
    float bound = job->bound, limit = job->limit;
    long apart = shared ? 0 : 3 * bins + 1;
    Bins b;
    if (shared) find(BLOCK, bins, bound, job->floor_, inverse, x, job->parameters, 0, 1, shares, 0, total, &b);
    for (long start = from; start < to; start += BLOCK) {
        int count = to - start < BLOCK ? (int)(to - start) : BLOCK;
        memcpy(x, job->x + start, (size_t)count * sizeof(float));
        find(count, bins, bound, job->floor_, inverse, x, job->parameters + start * apart, apart, !shared, shares, 0, total,
             &b);
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

void FORWARD(const Job *job, long from, long to) {
    if (job->shared) forward(job, from, to, 1);
    else forward(job, from, to, 0);
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
    float shares[BLOCK * 2 * MOST_BINS], total[2][BLOCK], x[BLOCK] = {0}, gv[BLOCK] = {0}, gl[BLOCK] = {0};
    float grad_x[BLOCK], grad_size[2][BLOCK], grad_start[2][BLOCK], grad_raw[2][BLOCK];
    int bins = job->bins, height = height_of(bins) * LANES;
    long apart = 3 * bins + 1;
    Bins b;
    for (long start = from; start < to; start += BLOCK) {
        int count = to - start < BLOCK ? (int)(to - start) : BLOCK;
        float *out = job->grad_parameters + start * apart;
        memcpy(x, job->x + start, (size_t)count * sizeof(float));
        memcpy(gv, job->grad_value + start, (size_t)count * sizeof(float));
        memcpy(gl, job->grad_log + start, (size_t)count * sizeof(float));
        find(count, bins, job->bound, job->floor_, 0, x, job->parameters + start * apart, apart, 1, shares, 2 * height, total,
             &b);
        local_gradients(job, x, gv, gl, &b, grad_x, grad_size, grad_start, grad_raw);
        memcpy(job->grad_x + start, grad_x, (size_t)count * sizeof(float));
        for (int i = 0; i < count; i += LANES) {
            whole index;
            memcpy(&index, b.index + i, sizeof index);
            for (int a = 0; a < 2; a++)
                to_logits(shares + (2 * i / LANES + a) * height, bins, index, load(b.chosen[a] + i), load(b.before[a] + i),
                          load(total[a] + i), load(grad_size[a] + i), load(grad_start[a] + i),
                          out + i * apart + a * bins, apart, count - i);
        }
        for (int i = 0; i < count; i++) {
            float *slopes = out + i * apart + 2 * bins;
            memset(slopes, 0, (size_t)(bins + 1) * sizeof(float));
            slopes[b.index[i]] = grad_raw[0][i];
            slopes[b.index[i] + 1] = grad_raw[1][i];
        }
    }
}
