/* The kernels of mlp.c: compiled once for every instruction set.
 *
 * Rows go through the whole network in tiles whose activations stay in the caches. A product is made of blocks of
 * ROWS x PANEL results that stay in registers while one loop runs over the depth; bias, activation, gate and sum are
 * done on a block before it leaves. NaN in, NaN out.
 */
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "mlp.h"
#include "named.h"

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8 };
#elif defined(__AVX2__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 4 };
#endif
enum { PANEL = 2 * LANES };
_Static_assert(TILE % ROWS == 0 && GROUP % ROWS == 0 && PAD % PANEL == 0 && ROWS <= 8, "whole blocks");

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vector all(float x) { return x - (vector){0}; }
INLINE vector load(const float *from) { return *(const anywhere *)from; }
INLINE void store(float *to, vector v) { *(anywhere *)to = v; }
INLINE vector pick(whole where, vector a, vector b) { return (vector)((where & (whole)a) | (~where & (whole)b)); }

/* --- activations ------------------------------------------------------------------------------------------------ */

/* e^x = scale (1 + rest), to about 1 ulp from -87 to 88 and held at the ends beyond. */
INLINE vector exp_parts(vector x, vector *scale) {
    x = pick(x < -87.0f, all(-87.0f), x);
    x = pick(x > 88.0f, all(88.0f), x);
    const vector magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    vector shifted = x * 1.44269504f + magic, n = shifted - magic;
    vector r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    *scale = (vector)(((whole)shifted - 0x4B400000 + 127) << 23);
    return p * (r * r) + r;
}

INLINE vector exp_(vector x) {
    vector scale, rest = exp_parts(x, &scale);
    return scale * rest + scale;
}

INLINE vector expm1_(vector x) {
    vector scale, rest = exp_parts(x, &scale);
    return scale * rest + (scale - 1.0f);
}

INLINE vector sigmoid_(vector x) { return 1.0f / (1.0f + exp_(-x)); }

/* Cephes' polynomial near zero, where the exponentials would cancel. */
INLINE vector tanh_(vector x) {
    vector size = pick(x < 0.0f, -x, x), square = x * x;
    vector e = exp_(-2.0f * size), far = (1.0f - e) / (1.0f + e);
    vector p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    return pick(size < 0.625f, x + x * square * p, pick(x < 0.0f, -far, far));
}

INLINE vector activated(int kind, vector x) {
    switch (kind) {
    case RELU: return pick(x < 0.0f, all(0), x);
    case SILU: return pick(x < -87.0f, all(0), x * sigmoid_(x));
    case ELU: return pick(x < 0.0f, expm1_(x), x);
    case TANH: return tanh_(x);
    default: return sigmoid_(x);
    }
}

/* The slope of the activation: from its argument for SILU, for the others from its value. */
INLINE vector slope(int kind, vector kept) {
    switch (kind) {
    case RELU: return pick(kept <= 0.0f, all(0), all(1));
    case SILU: {
        vector s = sigmoid_(kept);
        return pick(kept < -87.0f, all(0), s * (1.0f + kept * (1.0f - s)));
    }
    case ELU: return pick(kept < 0.0f, kept + 1.0f, all(1));
    default: return 1.0f - kept * kept;
    }
}

/* --- products --------------------------------------------------------------------------------------------------- */

/* What becomes of a block of products before it leaves, in this order; null: nothing. All but `out` are buffers of the
 * leading dimension `ld`. */
typedef struct {
    const float *kept; /* times the slope of the activation there */
    float *before;     /* written, before the gate multiplies */
    const float *gate;
    const float *add;
    float *out;
    const float *scale, *shift; /* of the argument of the activation */
    float *active;              /* written: the activation */
    long ld, ld_out;
    int kind;
    long rows, columns; /* of `out`, where it is not padded to whole blocks; 0: it is */
} Finish;

/* All of it for one vector after the other, where `kind` is a constant; the block is left for `out`. */
INLINE void finish_kind(const Finish *finish, float *block, long row, long column, const int vectors, const int kind) {
    const Finish f = *finish; /* a copy of one's own: stores cannot change it */
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++, block += LANES) {
            long c = column + v * LANES, at = (row + r) * f.ld + c;
            vector x = load(block);
            if (f.kept) x *= slope(kind, load(f.kept + at));
            if (f.before) store(f.before + at, x);
            if (f.gate) x *= load(f.gate + at);
            if (f.add) x += load(f.add + at);
            store(block, x);
            if (f.scale) x = x * load(f.scale + c) + load(f.shift + c);
            if (f.active) store(f.active + at, activated(kind, x));
        }
}

INLINE void finish(const Finish *f, float *block, long row, long column, const int vectors) {
    if (f->kept || f->gate || f->add || f->active) switch (f->kind) {
        case RELU: finish_kind(f, block, row, column, vectors, RELU); break;
        case SILU: finish_kind(f, block, row, column, vectors, SILU); break;
        case ELU: finish_kind(f, block, row, column, vectors, ELU); break;
        case TANH: finish_kind(f, block, row, column, vectors, TANH); break;
        case SIGMOID: finish_kind(f, block, row, column, vectors, SIGMOID); break;
        }
    if (!f->out) return;
    float *out = f->out + row * f->ld_out + column;
    long rows = f->rows ? f->rows - row : ROWS, columns = f->rows ? f->columns - column : vectors * LANES;
    if (rows >= ROWS && columns >= vectors * LANES) {
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < vectors; v++)
                store(out + r * f->ld_out + v * LANES, load(block + (r * vectors + v) * LANES));
        return;
    }
    columns = columns < vectors * LANES ? columns : vectors * LANES;
    for (long r = 0; r < ROWS && r < rows; r++)
        memcpy(out + r * f->ld_out, block + r * vectors * LANES, (size_t)columns * sizeof(float));
}

static void finish_two(const Finish *f, float *block, long row, long column) { finish(f, block, row, column, 2); }
static void finish_one(const Finish *f, float *block, long row, long column) { finish(f, block, row, column, 1); }

/* What a block of ROWS x `vectors` vectors starts from, and how it is written; the indices are constants, so that it is
 * registers. */
#define EACH(vectors, r, v)                                                                                            \
    _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) _Pragma("GCC unroll 2") for (int v = 0; v < (vectors); v++)

#ifdef __AVX512BF16__
/* Two rows of depth in one step: every number is a pair of bfloat16. */
INLINE vector add_product(vector sum, vector a, vector b, const int pairs) {
    return pairs ? (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b) : sum + a * b;
}
#else
INLINE vector add_product(vector sum, vector a, vector b, const int pairs) {
    (void)pairs;
    return sum + a * b;
}
#endif

/* A number in all places, bit for bit (pairs of bfloat16 are no floats to compute with). */
INLINE vector same(const float *x) {
    int32_t bits;
    memcpy(&bits, x, sizeof bits);
    return (vector)(bits - (whole){0});
}

/* A block: rows of a [.][lda] times a panel, over the depth from begin to end. */
INLINE void product(const float *a, long lda, const float *panel, const float *bias, int begin, int end,
                    const Finish *f, long row, long column, const int vectors, const int pairs) {
    vector sum[ROWS][2];
    float results[ROWS * PANEL];
    EACH(vectors, r, v) sum[r][v] = bias ? load(bias + v * LANES) : all(0);
    panel += (long)begin * PANEL;
    for (int p = begin; p < end; p++, panel += PANEL) {
        vector b0 = load(panel), b1 = vectors > 1 ? load(panel + LANES) : b0;
        _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) {
            vector x = same(a + r * lda + p);
            sum[r][0] = add_product(sum[r][0], x, b0, pairs);
            if (vectors > 1) sum[r][1] = add_product(sum[r][1], x, b1, pairs);
        }
    }
    EACH(vectors, r, v) store(results + (r * vectors + v) * LANES, sum[r][v]);
    (vectors > 1 ? finish_two : finish_one)(f, results, row, column);
}

/* rows x columns: a [rows][lda], padded to whole blocks, times a packed matrix. */
INLINE void multiply_(const Packed *w, const float *a, long lda, long rows, const Finish *f, const int pairs) {
    long depth = pairs ? (w->depth + 1) / 2 : w->depth;
    for (long column = 0; column < w->columns; column += PANEL) {
        long panel = column / PANEL;
        const float *values = w->values + panel * depth * PANEL, *bias = w->bias ? w->bias + column : 0;
        int begin = w->begin[panel], end = w->end[panel];
        if (pairs) begin /= 2, end = (end + 1) / 2;
        if (w->columns - column > LANES)
            for (long r = 0; r < rows; r += ROWS)
                product(a + r * lda, lda, values, bias, begin, end, f, r, column, 2, pairs);
        else
            for (long r = 0; r < rows; r += ROWS)
                product(a + r * lda, lda, values, bias, begin, end, f, r, column, 1, pairs);
    }
}

/* sums [ROWS][ld] += a^T b over the rows of a [rows][lda] and b [rows][ldb]. */
INLINE void sum_products(const float *a, long lda, const float *b, long ldb, long rows, float *sums, long ld,
                         const int vectors, const int pairs) {
    vector sum[ROWS][2];
    EACH(vectors, r, v) sum[r][v] = load(sums + r * ld + v * LANES);
    for (long p = 0; p < rows; p++, a += lda, b += ldb) {
        vector b0 = load(b), b1 = vectors > 1 ? load(b + LANES) : b0;
        _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) {
            vector x = same(a + r);
            sum[r][0] = add_product(sum[r][0], x, b0, pairs);
            if (vectors > 1) sum[r][1] = add_product(sum[r][1], x, b1, pairs);
        }
    }
    EACH(vectors, r, v) store(sums + r * ld + v * LANES, sum[r][v]);
}

/* sums [out, padded][ld] += grad^T input. */
INLINE void sum_all(const Linear *map, const float *grad, long ldg, const float *input, long ldi, long rows,
                    float *sums, long ld, const int pairs) {
    for (long i = 0; i < map->in; i += PANEL) {
        int wide = map->in - i > LANES;
        for (long o = 0; o < map->out; o += ROWS) {
            long last = o + ROWS < map->out ? o + ROWS : map->out;
            int seen = !map->reach;
            for (long k = o; k < last && !seen; k++) seen = map->reach[k] > i;
            if (!seen) continue;
            if (wide)
                sum_products(grad + o, ldg, input + i, ldi, rows, sums + o * ld + i, ld, 2, pairs);
            else
                sum_products(grad + o, ldg, input + i, ldi, rows, sums + o * ld + i, ld, 1, pairs);
        }
    }
}

#ifdef __AVX512BF16__
/* to [rows, whole blocks][return value]: pairs of neighbours in a row; beyond the depth zeros. */
static long pair_columns(const float *a, long lda, long rows, long depth, float *to) {
    long ld = padded(depth, 2 * LANES) / 2 + LANES;
    for (long r = 0; r < rows; r++)
        for (long p = 0; p < depth; p += 2 * LANES) {
            long left = depth - p;
            __mmask32 there = left >= 32 ? ~0u : (1u << left) - 1;
            __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, a + r * lda + p);
            __m512 high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), a + r * lda + p + LANES);
            _mm512_storeu_si512(to + r * ld + p / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    return ld;
}

/* Up to LANES numbers of one row and of another in pairs. */
INLINE __m512i paired(const float *first, const float *second, __mmask16 there, __mmask16 there_too) {
    const whole count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i halves = (__m512i)(count | (count + 16) << 16);
    __m512 low = _mm512_maskz_loadu_ps(there, first), high = _mm512_maskz_loadu_ps(there_too, second);
    return _mm512_permutexvar_epi16(halves, (__m512i)_mm512_cvtne2ps_pbh(high, low)); /* neighbours: one of each */
}

/* to [(rows + 1) / 2][ld]: pairs of one column in two rows that follow each other. */
static void pair_rows(const float *a, long lda, long rows, long columns, float *to, long ld) {
    for (long r = 0; r < rows; r += 2)
        for (long c = 0; c < columns; c += LANES) {
            __mmask16 there = (__mmask16)(columns - c >= LANES ? 0xFFFF : (1 << (columns - c)) - 1);
            const float *from = a + r * lda + c;
            _mm512_storeu_si512(to + r / 2 * ld + c, paired(from, from + lda, there, r + 1 < rows ? there : 0));
        }
}
#endif

/* `pairs`: memory for what is rounded to bfloat16, or null for products in float32. */
static void multiply(const Packed *w, const float *a, long lda, long rows, const Finish *f, float *pairs) {
#ifdef __AVX512BF16__
    if (pairs) {
        lda = pair_columns(a, lda, padded(rows, ROWS), w->depth, pairs);
        multiply_(w, pairs, lda, rows, f, 1);
        return;
    }
#endif
    (void)pairs;
    multiply_(w, a, lda, rows, f, 0);
}

/* Add to the sums of a map's gradients, weights [out, padded][in, padded] and then bias, those of some rows: `grad` of
 * its output and its input. `copy` is memory for TILE * leading(GROUP) numbers, or for pairs. */
static void gradients(const Linear *map, const float *grad, long ldg, const float *input, long ldi, long rows,
                      float *sums, float *copy, int bf16) {
    long ld = padded(map->in, PAD), full = map->out / LANES * LANES;
    float *bias = sums + sum_rows(map) * ld;
    for (long o = 0; o < full; o += LANES) {
        vector sum[4] = {load(bias + o)}; /* so many that none waits for the last */
        long r = 0;
        for (; r + 3 < rows; r += 4)
            for (int i = 0; i < 4; i++) sum[i] += load(grad + (r + i) * ldg + o);
        for (; r < rows; r++) sum[0] += load(grad + r * ldg + o);
        store(bias + o, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    for (long o = full; o < map->out; o++)
        for (long r = 0; r < rows; r++) bias[o] += grad[r * ldg + o];
#ifdef __AVX512BF16__
    if (bf16) {
        float *others = copy + TILE / 2 * leading(map->out);
        pair_rows(grad, ldg, rows, map->out, copy, leading(map->out));
        pair_rows(input, ldi, rows, map->in, others, leading(map->in));
        sum_all(map, copy, leading(map->out), others, leading(map->in), (rows + 1) / 2, sums, ld, 1);
        return;
    }
#endif
    (void)bf16;
    if (ldg <= leading(GROUP)) {
        sum_all(map, grad, ldg, input, ldi, rows, sums, ld, 0);
        return;
    }
    /* Rows so far apart that each lies in a page of its own: some columns at a time, side by side. */
    for (long o = 0; o < map->out; o += GROUP) {
        Linear part = *map;
        part.out = map->out - o < GROUP ? map->out - o : GROUP;
        part.reach = map->reach ? map->reach + o : 0;
        for (long r = 0; r < rows; r++)
            memcpy(copy + r * leading(GROUP), grad + r * ldg + o, (size_t)part.out * sizeof(float));
        sum_all(&part, copy, leading(GROUP), input, ldi, rows, sums + o * ld, ld, 0);
    }
}

/* --- packing ---------------------------------------------------------------------------------------------------- */

long NAMED(pack_bytes)(const Linear *map, int transposed) {
    long columns = transposed ? map->in : map->out, depth = transposed ? map->out : map->in;
    return padded(columns, PAD) * (depth + !transposed) * (long)sizeof(float);
}

/* Which rows of a panel count: the others are masked for all of its columns. */
static void range_of(const Linear *map, int transposed, long column, long count, int *begin, int *end) {
    *begin = 0, *end = (int)(transposed ? map->out : map->in);
    if (map->reach && transposed) {
        *begin = *end;
        for (long i = column; i < column + count; i++) *begin = map->from[i] < *begin ? map->from[i] : *begin;
    } else if (map->reach) {
        *end = 0;
        for (long o = column; o < column + count; o++) *end = map->reach[o] > *end ? map->reach[o] : *end;
    }
}

INLINE float weight_at(const Linear *map, int transposed, long row, long column) {
    return transposed ? map->weight[row * map->in + column] : map->weight[column * map->in + row];
}

#ifdef __AVX512BF16__
/* A panel of pairs of rows: those of the weights as they lie, or, of a matrix yet to be turned, of its columns. */
static void pack_pairs(const Linear *map, int transposed, const Packed *to, long column, long count, float *values) {
    memset(values, 0, (size_t)((to->depth + 1) / 2 * PANEL) * sizeof(float));
    if (transposed) {
        pair_rows(map->weight + column, map->in, map->out, count, values, PANEL);
        return;
    }
    float row[padded(to->depth, 2 * LANES) / 2 + LANES];
    for (long j = 0; j < count; j++) {
        pair_columns(map->weight + (column + j) * map->in, 0, 1, map->in, row);
        for (long p = 0; p < (to->depth + 1) / 2; p++) memcpy(values + p * PANEL + j, row + p, sizeof *row);
    }
}
#endif

void NAMED(pack)(const Linear *map, int transposed, int bf16, Packed *to) {
    float *values = to->values;
    to->columns = transposed ? map->in : map->out, to->depth = transposed ? map->out : map->in;
    to->bias = 0;
    if (!transposed) {
        to->bias = values;
        memset(values, 0, (size_t)padded(map->out, PAD) * sizeof(float));
        memcpy(values, map->bias, (size_t)map->out * sizeof(float));
        to->values = values += padded(map->out, PAD);
    }
    for (long column = 0, panel = 0; column < to->columns; column += PANEL, panel++) {
        long count = to->columns - column < PANEL ? to->columns - column : PANEL;
        range_of(map, transposed, column, count, to->begin + panel, to->end + panel);
#ifdef __AVX512BF16__
        if (bf16) {
            pack_pairs(map, transposed, to, column, count, values);
            values += (to->depth + 1) / 2 * PANEL;
            continue;
        }
#endif
        (void)bf16;
        for (long p = to->begin[panel]; p < to->end[panel]; p++) {
            float *row = values + p * PANEL;
            if (transposed)
                memcpy(row, map->weight + p * map->in + column, (size_t)count * sizeof(float));
            else
                for (long j = 0; j < count; j++) row[j] = weight_at(map, 0, p, column + j);
            for (long j = count; j < PANEL; j++) row[j] = 0;
        }
        values += to->depth * PANEL;
    }
}

/* --- the network ------------------------------------------------------------------------------------------------ */

typedef struct {
    const Pass *pass;
    const Network *net;
    const Linear *hidden, *gates, *last;
    long ld, lde, start, rows; /* leading dimensions of hidden layers and of the entrance; the rows of this tile */
    long size;                 /* numbers of a slot */
    float *entrance, *buffers[BUFFERS], *saved, *copy, *pairs;
} Tile;

/* The input of the first map: x, drawn in smoothly to +-10, and the context. */
static void enter(Tile *t) {
    const Network *net = t->net;
    for (long r = 0; r < t->rows; r++) {
        float *e = t->entrance + r * t->lde;
        const float *x = t->pass->x + (t->start + r) * net->inputs;
        for (int i = 0; i < net->inputs; i++) {
            float u = x[i] / 10.0f;
            e[i] = x[i] * (1.0f / __builtin_sqrtf(1.0f + u * u));
        }
        if (net->context)
            memcpy(e + net->inputs, t->pass->context + (t->start + r) * net->context,
                   (size_t)net->context * sizeof(float));
    }
}

static Tile tile_of(const Pass *pass, float *scratch) {
    const Network *net = pass->net;
    Tile t = {.pass = pass, .net = net, .ld = leading(net->width), .lde = leading(net->inputs + net->context)};
    t.hidden = net->maps + 1, t.gates = t.hidden + net->hidden, t.last = t.gates + net->gates;
    memset(scratch, 0, (size_t)(TILE * (BUFFERS * t.ld + t.lde)) * sizeof(float));
    for (int i = 0; i < BUFFERS; i++) t.buffers[i] = scratch + TILE * i * t.ld;
    t.entrance = scratch + TILE * BUFFERS * t.ld;
    t.copy = t.entrance + 2 * TILE * t.lde + TILE * net->outputs + PAD;
    t.pairs = net->bf16 ? t.copy : 0;
    return t;
}

static void go_to(Tile *t, long number) {
    t->start = first_row(t->pass->n, number);
    t->rows = first_row(t->pass->n, number + 1) - t->start;
    t->size = most_rows(t->pass->n) * t->ld;
    t->saved = t->pass->saved ? t->pass->saved + number * slots(t->net) * t->size : 0;
    enter(t);
}

static float *slot(const Tile *t, int i) { return t->saved + i * t->size; }

/* What a gate multiplies by: a sigmoid of a linear map of the context. */
static void open_gate(const Tile *t, int block, float *to) {
    const Linear *gate = t->gates + block;
    Finish f = {.active = to, .ld = t->ld, .kind = SIGMOID};
    multiply(t->pass->forward + (gate - t->net->maps), t->entrance + t->net->inputs, t->lde, t->rows, &f, t->pairs);
}

static void apply(const Tile *t, const Linear *map, const float *input, long ldi, Finish f) {
    f.ld = f.ld_out = t->ld, f.kind = t->net->activation;
    if (map - t->net->maps < t->net->hidden) f.scale = map[1].scale, f.shift = map[1].shift;
    multiply(t->pass->forward + (map - t->net->maps), input, ldi, t->rows, &f, t->pairs);
}

static void forward_tile(Tile *t) {
    const Network *net = t->net;
    int before = t->saved && keeps_argument(net), after = t->saved && !before;
    float *h = before ? slot(t, 0) : t->buffers[0], *a = after ? slot(t, 0) : t->buffers[1];
    float *inner = t->buffers[2], *gate = t->buffers[3];
    apply(t, net->maps, t->entrance, t->lde, (Finish){.out = before || net->residual ? h : 0, .active = a});
    for (int i = 0; i < net->hidden; i++) {
        if (!net->residual) {
            float *next = after ? slot(t, i + 1) : a == t->buffers[1] ? t->buffers[2] : t->buffers[1];
            apply(t, t->hidden + i, a, t->ld, (Finish){.out = before ? slot(t, i + 1) : 0, .active = next});
            a = next;
        } else if (i % 2 == 0) {
            inner = after ? slot(t, i + 1) : inner;
            apply(t, t->hidden + i, a, t->ld, (Finish){.out = before ? slot(t, i + 1) : 0, .active = inner});
        } else {
            Finish f = {.add = h};
            if (net->gates) {
                open_gate(t, i / 2, gate);
                f.gate = gate, f.before = t->saved ? slot(t, net->hidden + 1 + i / 2) : 0;
            }
            h = before ? slot(t, i + 1) : h, a = after ? slot(t, i + 1) : a;
            f.out = h, f.active = a;
            apply(t, t->hidden + i, inner, t->ld, f);
        }
    }
    Finish out = {.out = t->pass->out + t->start * net->outputs, .ld_out = net->outputs};
    out.rows = t->rows, out.columns = net->outputs;
    multiply(t->pass->forward + (t->last - net->maps), a, t->ld, t->rows, &out, t->pairs);
}

void NAMED(mlp_forward)(const Pass *pass, long first, long last, float *scratch) {
    Tile t = tile_of(pass, scratch);
    for (long number = first; number < last; number++) {
        go_to(&t, number);
        forward_tile(&t);
    }
}

/* What came out of the activation in slot i. */
static const float *active(const Tile *t, int i, float *buffer) {
    const float *kept = slot(t, i);
    if (!keeps_argument(t->net)) return kept;
    for (long k = 0; k < t->rows * t->ld; k += LANES) store(buffer + k, activated(t->net->activation, load(kept + k)));
    return buffer;
}

static void back(const Tile *t, const Linear *map, const float *grad, long ldg, Finish f) {
    f.ld = t->ld, f.kind = t->net->activation;
    if (!f.ld_out) f.ld_out = t->ld;
    multiply(t->pass->backward + (map - t->net->maps), grad, ldg, t->rows, &f, t->pairs);
}

/* Through a gate: h + g v. Leaves the gradient of v in `grad_v`, that of the gate's argument in `grad_gate`. */
static void back_through_gate(const Tile *t, int block, const float *grad, float *grad_v, float *grad_gate) {
    const float *v = slot(t, t->net->hidden + 1 + block);
    open_gate(t, block, grad_v);
    for (long k = 0; k < t->rows * t->ld; k += LANES) {
        vector g = load(grad_v + k), dh = load(grad + k);
        store(grad_gate + k, dh * load(v + k) * g * (1.0f - g));
        store(grad_v + k, dh * g);
    }
}

static void leave(const Tile *t, const float *grad) {
    const Network *net = t->net;
    for (long r = 0; r < t->rows; r++) {
        const float *g = grad + r * t->lde;
        long row = t->start + r;
        for (int i = 0; i < net->inputs && t->pass->grad_x; i++) {
            float u = t->pass->x[row * net->inputs + i] / 10.0f, s = 1.0f / __builtin_sqrtf(1.0f + u * u);
            t->pass->grad_x[row * net->inputs + i] = g[i] * s * s * s;
        }
        if (t->pass->grad_context)
            memcpy(t->pass->grad_context + row * net->context, g + net->inputs, (size_t)net->context * sizeof(float));
    }
}

/* The gradient of the output: as it lies, but for the last rows of all, beyond which there may be no memory. */
static const float *grad_of_output(const Tile *t, float *buffer, long *ld) {
    long outputs = t->net->outputs;
    const float *grad = t->pass->grad_out + t->start * outputs;
    *ld = outputs;
    if (t->start + t->rows < t->pass->n) return grad;
    memcpy(buffer, grad, (size_t)(t->rows * outputs) * sizeof(float));
    return buffer;
}

static void backward_tile(const Tile *t, float *sums, const long *offset, float *grad_entrance, float *tail) {
    const Network *net = t->net;
    long ldg;
    const float *grad = grad_of_output(t, tail, &ldg);
    float *dh = t->buffers[0], *other = t->buffers[1], *dv = t->buffers[2], *gate = t->buffers[3], *a = t->buffers[4];
    int weights = sums != 0, entrance = t->pass->grad_x || t->pass->grad_context;
#define GRADIENTS(map, g, ld_, in, ldi)                                                                                \
    if (weights) gradients((map), (g), (ld_), (in), (ldi), t->rows, sums + offset[(map) - net->maps], t->copy, net->bf16)
    if (entrance) memset(grad_entrance, 0, (size_t)(TILE * t->lde) * sizeof(float));
    GRADIENTS(t->last, grad, ldg, active(t, net->hidden, a), t->ld);
    back(t, t->last, grad, ldg, (Finish){.kept = slot(t, net->hidden), .out = dh});
    for (int i = net->hidden - 1; i >= 0; i--) {
        const Linear *map = t->hidden + i;
        if (!net->residual) {
            GRADIENTS(map, dh, t->ld, active(t, i, a), t->ld);
            back(t, map, dh, t->ld, (Finish){.kept = slot(t, i), .out = other});
            float *swap = dh;
            dh = other, other = swap;
        } else if (i % 2) {
            const float *g = dh;
            if (net->gates) {
                const Linear *steer = t->gates + i / 2;
                float *context = grad_entrance + net->inputs;
                back_through_gate(t, i / 2, dh, dv, gate);
                GRADIENTS(steer, gate, t->ld, t->entrance + net->inputs, t->lde);
                if (t->pass->grad_context) {
                    Finish f = {.ld = t->lde, .add = context, .out = context, .ld_out = t->lde};
                    f.rows = TILE, f.columns = net->context;
                    multiply(t->pass->backward + (steer - net->maps), gate, t->ld, t->rows, &f, t->pairs);
                }
                g = dv;
            }
            GRADIENTS(map, g, t->ld, active(t, i, a), t->ld);
            back(t, map, g, t->ld, (Finish){.kept = slot(t, i), .out = other});
        } else {
            GRADIENTS(map, other, t->ld, active(t, i, a), t->ld);
            back(t, map, other, t->ld, (Finish){.kept = slot(t, i), .add = dh, .out = dh});
        }
    }
    GRADIENTS(net->maps, dh, t->ld, t->entrance, t->lde);
    if (!entrance) return;
    Finish f = {.ld = t->lde, .add = grad_entrance, .out = grad_entrance, .ld_out = t->lde};
    multiply(t->pass->backward, dh, t->ld, t->rows, &f, t->pairs);
    leave(t, grad_entrance);
}

void NAMED(mlp_backward)(const Pass *pass, long first, long last, float *scratch, float *sums) {
    const Network *net = pass->net;
    int maps = net->hidden + net->gates + 2;
    long offset[maps], at = 0;
    for (int i = 0; i < maps; i++) offset[i] = at, at += sum_size(net->maps + i);
    Tile t = tile_of(pass, scratch);
    float *grad_entrance = t.entrance + TILE * t.lde, *tail = grad_entrance + TILE * t.lde;
    if (sums) memset(sums, 0, (size_t)at * sizeof(float));
    for (long number = first; number < last; number++) {
        go_to(&t, number);
        backward_tile(&t, sums, offset, grad_entrance, tail);
    }
}

/* --- a linear map alone ----------------------------------------------------------------------------------------- */

/* Rows as they lie, but for the last of all, beyond which there may be no memory. */
static const float *rows_of(const float *x, long ld, long start, long rows, long n, float *buffer) {
    if (start + rows < n) return x + start * ld;
    memcpy(buffer, x + start * ld, (size_t)(rows * ld) * sizeof(float));
    return buffer;
}

void NAMED(linear)(const Linear *map, const Packed *packed, long n, const float *x, float *out, long first, long last,
                   float *scratch, int bf16) {
    float *pairs = bf16 ? scratch + TILE * (map->in + map->out) + 4 * PAD : 0;
    for (long tile = first; tile < last; tile++) {
        long start = first_row(n, tile), rows = first_row(n, tile + 1) - start;
        Finish f = {.out = out + start * map->out, .ld_out = map->out, .rows = rows, .columns = map->out};
        multiply(packed, rows_of(x, map->in, start, rows, n, scratch), map->in, rows, &f, pairs);
    }
}

void NAMED(linear_back)(const Linear *map, const Packed *back, long n, const float *x, const float *grad, float *grad_x,
                        long first, long last, float *scratch, int bf16, float *sums) {
    float *copy = scratch + TILE * (map->in + map->out) + 4 * PAD, *pairs = bf16 ? copy : 0;
    if (sums) memset(sums, 0, (size_t)sum_size(map) * sizeof(float));
    for (long tile = first; tile < last; tile++) {
        long start = first_row(n, tile), rows = first_row(n, tile + 1) - start;
        const float *g = rows_of(grad, map->out, start, rows, n, scratch);
        if (sums) {
            const float *input = rows_of(x, map->in, start, rows, n, scratch + TILE * map->out + PAD);
            gradients(map, g, map->out, input, map->in, rows, sums, copy, bf16);
        }
        if (!grad_x) continue;
        Finish f = {.out = grad_x + start * map->in, .ld_out = map->in, .rows = rows, .columns = map->in};
        multiply(back, g, map->out, rows, &f, pairs);
    }
}
