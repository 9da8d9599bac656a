/* Networks of fluvial.nets.mlp in float32 on a CPU: the formulas stand there. Threads take whole tiles of rows, in order;
 * sums over rows are added up in the order of the threads, so that as many threads give the same bits. */
#include "mlp.h"

#include <stdlib.h>
#include <string.h>

#define DECLARED(set)                                                                                                  \
    long pack_bytes_##set(const Linear *, int);                                                                        \
    void pack_##set(const Linear *, int, int, Packed *);                                                               \
    void linear_##set(const Linear *, const Packed *, long, const float *, float *, long, long, float *, int);         \
    void linear_back_##set(const Linear *, const Packed *, long, const float *, const float *, float *, long, long,    \
                           float *, int, float *);                                                                     \
    void mlp_forward_##set(const Pass *, long, long, float *);                                                         \
    void mlp_backward_##set(const Pass *, long, long, float *, float *);                                               \
    static const Kernels kernels_##set = {pack_bytes_##set,  pack_##set, linear_##set, linear_back_##set,          \
                                           mlp_forward_##set, mlp_backward_##set};

DECLARED(any)
#ifdef HAVE_avx2
DECLARED(avx2)
#endif
#ifdef HAVE_avx512
DECLARED(avx512)
#endif
#ifdef HAVE_avx512bf16
DECLARED(avx512bf16)
#endif

/* One library for every node of a cluster: the right copy is picked where it runs. */
static const Kernels *kernels(int bf16) {
    (void)bf16;
#ifdef HAVE_avx512bf16
    if (bf16) return &kernels_avx512bf16;
#endif
#ifdef HAVE_avx512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return &kernels_avx512;
#endif
#ifdef HAVE_avx2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
    return &kernels_any;
}

/* Whether this processor multiplies pairs of bfloat16. */
int fluvial_has_bf16(void) {
#ifdef HAVE_avx512bf16
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#else
    return 0;
#endif
}

static int maps_of(const Network *net) { return net->hidden + net->gates + 2; }

static void *take(long bytes) { return aligned_alloc(64, (size_t)padded(bytes, 64)); }

/* Maps, packed; null if there is no memory. All of it is one piece of memory. */
static Packed *pack_all(const Linear *map, int maps, int bf16, int transposed, int threads) {
    const Kernels *k = kernels(bf16);
    long panels = 0, bytes = 0, at[maps];
    for (int i = 0; i < maps; i++) {
        at[i] = bytes;
        bytes += padded(k->pack_bytes(map + i, transposed), 64);
        panels += padded(transposed ? map[i].in : map[i].out, 4) / 4;
    }
    long head = padded(maps * (long)sizeof(Packed) + 2 * panels * (long)sizeof(int), 64);
    char *memory = take(head + bytes);
    if (!memory) return 0;
    Packed *packed = (Packed *)memory;
    int *ranges = (int *)(packed + maps);
    for (int i = 0; i < maps; i++) {
        long most = padded(transposed ? map[i].in : map[i].out, 4) / 4;
        packed[i].values = (float *)(memory + head + at[i]);
        packed[i].begin = ranges, packed[i].end = ranges + most;
        ranges += 2 * most;
    }
    (void)threads; /* without OpenMP: one thread */
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int i = 0; i < maps; i++) k->pack(map + i, transposed, bf16, packed + i);
    return packed;
}

/* Floats that a thread needs: its buffers, its entrance and the gradient of it, the last rows' gradient, and copies. */
static long scratch_of(const Network *net) {
    long width = leading(net->width), entrance = leading(net->inputs + net->context), most = leading(GROUP);
    if (net->bf16) {
        long outputs = leading(net->outputs);
        most = most > width ? most : width, most = most > entrance ? most : entrance, most = most > outputs ? most : outputs;
    }
    return padded(TILE * (BUFFERS * width + 2 * entrance + net->outputs + most) + 2 * PAD, 16);
}

/* Floats that `saved` of the forward pass must hold for the backward pass. */
long fluvial_mlp_saved(const Network *net, long n) {
    return tiles_of(n) * most_rows(n) * slots(net) * leading(net->width);
}

/* out [n][outputs] from x [n][inputs] and context [n][context]; `saved` may be null. Returns 0, or 1 without memory. */
int fluvial_mlp(const Network *net, long n, int threads, const float *x, const float *context, float *out,
                float *saved) {
    long tiles = tiles_of(n);
    threads = threads < tiles ? threads : (int)tiles;
    Packed *packed = pack_all(net->maps, maps_of(net), net->bf16, 0, threads);
    long each = scratch_of(net);
    float *scratch = take(threads * each * (long)sizeof(float));
    int failed = !packed || !scratch;
    if (!failed) {
        Pass pass = {.net = net, .forward = packed, .n = n, .x = x, .context = context, .out = out, .saved = saved};
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int t = 0; t < threads; t++)
            kernels(net->bf16)->forward(&pass, tiles * t / threads, tiles * (t + 1) / threads, scratch + t * each);
    }
    free(scratch), free(packed);
    return failed;
}

/* Add up the threads' sums of one map's gradients, in order, and write them without their padding. */
static void write_gradients(const Linear *map, const float *sums, long apart, int threads) {
    long ld = padded(map->in, PAD), bias = sum_rows(map) * ld;
    for (long o = 0; o < map->out; o++) {
        float *to = map->grad_weight + o * map->in;
        memcpy(to, sums + o * ld, (size_t)map->in * sizeof(float));
        map->grad_bias[o] = sums[bias + o];
        for (int t = 1; t < threads; t++) {
            const float *more = sums + t * apart + o * ld;
            for (long i = 0; i < map->in; i++) to[i] += more[i];
            map->grad_bias[o] += sums[t * apart + bias + o];
        }
    }
}

/* The gradients of x and context, each unless null, and of all weights, unless the first map's is null. */
int fluvial_mlp_backward(const Network *net, long n, int threads, const float *x, const float *context,
                         const float *grad_out, float *saved, float *grad_x, float *grad_context) {
    long tiles = tiles_of(n), apart = 0, at[maps_of(net)];
    int maps = maps_of(net), weights = net->maps->grad_weight != 0;
    threads = threads < tiles ? threads : (int)tiles;
    for (int i = 0; i < maps; i++) at[i] = apart, apart += sum_size(net->maps + i);
    Packed *back = pack_all(net->maps, maps, net->bf16, 1, threads), *packed = net->gates ? pack_all(net->maps, maps_of(net), net->bf16, 0, threads) : 0;
    long each = scratch_of(net);
    float *scratch = take(threads * each * (long)sizeof(float));
    float *sums = weights ? take(threads * apart * (long)sizeof(float)) : 0;
    int failed = !back || !scratch || (net->gates && !packed) || (weights && !sums);
    if (!failed) {
        Pass pass = {.net = net, .forward = packed, .backward = back, .n = n, .x = x, .context = context};
        pass.grad_out = grad_out, pass.saved = saved, pass.grad_x = grad_x, pass.grad_context = grad_context;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int t = 0; t < threads; t++)
            kernels(net->bf16)->backward(&pass, tiles * t / threads, tiles * (t + 1) / threads, scratch + t * each,
                                weights ? sums + t * apart : 0);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
        for (int i = 0; i < (weights ? maps : 0); i++)
            write_gradients(net->maps + i, sums + at[i], apart, threads);
    }
    free(sums), free(scratch), free(packed), free(back);
    return failed;
}

/* out [n][map->out] = x [n][map->in] weight^T + bias. */
int fluvial_linear(const Linear *map, int bf16, long n, int threads, const float *x, float *out) {
    long tiles = tiles_of(n), each = linear_scratch(map, bf16);
    threads = threads < tiles ? threads : (int)tiles;
    Packed *packed = pack_all(map, 1, bf16, 0, 1);
    float *scratch = take(threads * each * (long)sizeof(float));
    int failed = !packed || !scratch;
    if (!failed) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int t = 0; t < threads; t++)
            kernels(bf16)->linear(map, packed, n, x, out, tiles * t / threads, tiles * (t + 1) / threads, scratch + t * each, bf16);
    }
    free(scratch), free(packed);
    return failed;
}

/* The gradients of x, unless null, and of the weights, unless null. */
int fluvial_linear_backward(const Linear *map, int bf16, long n, int threads, const float *x, const float *grad,
                            float *grad_x) {
    long tiles = tiles_of(n), each = linear_scratch(map, bf16), apart = sum_size(map);
    threads = threads < tiles ? threads : (int)tiles;
    Packed *back = pack_all(map, 1, bf16, 1, 1);
    float *scratch = take(threads * each * (long)sizeof(float));
    float *sums = map->grad_weight ? take(threads * apart * (long)sizeof(float)) : 0;
    int failed = !back || !scratch || (map->grad_weight && !sums);
    if (!failed) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int t = 0; t < threads; t++)
            kernels(bf16)->linear_back(map, back, n, x, grad, grad_x, tiles * t / threads, tiles * (t + 1) / threads,
                                    scratch + t * each, bf16, sums ? sums + t * apart : 0);
        if (sums) write_gradients(map, sums, apart, threads);
    }
    free(sums), free(scratch), free(back);
    return failed;
}
