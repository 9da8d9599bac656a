/* The rational-quadratic spline of fluvial.core.spline in float32 on a CPU: the formulas stand there, one sweep here.
 *
 * Parameters are [n][3K + 1]: logits of K widths, logits of K heights, K + 1 raw slopes.
 */
#include "spline.h"

Kernel spline_forward_any, spline_backward_any;
#ifdef HAVE_avx2
Kernel spline_forward_avx2, spline_backward_avx2;
#define AVX2(kernel) __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? kernel##_avx2 :
#else
#define AVX2(kernel)
#endif
#ifdef HAVE_avx512
Kernel spline_forward_avx512, spline_backward_avx512;
#define AVX512(kernel) __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") ? kernel##_avx512 :
#else
#define AVX512(kernel)
#endif
/* One library for every node of a cluster: the right copy is picked where it runs. */
#define pick(kernel) (AVX512(kernel) AVX2(kernel) kernel##_any)

static void in_pieces(const Job *job, Kernel *kernel, long n, int threads) {
    const long piece = 64 * BLOCK;
    long pieces = (n + piece - 1) / piece;
    (void)threads; /* without OpenMP: one thread */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && pieces > 1)
    for (long p = 0; p < pieces; p++) kernel(job, p * piece, (p + 1) * piece < n ? (p + 1) * piece : n);
}

int fluvial_most_bins(void) { return MOST_BINS; }

void fluvial_spline(long n, int bins, float bound, float floor_, float limit, int inverse, int threads, const float *x,
                    const float *parameters, float *value, float *log_slope) {
    Job job = {x, parameters, 0, 0, value, log_slope, 0, 0, bins, inverse, bound, floor_, limit, 0};
    in_pieces(&job, pick(spline_forward), n, threads);
}

/* The same, of one set of parameters for all elements: [3K + 1]. */
void fluvial_spline_shared(long n, int bins, float bound, float floor_, float limit, int inverse, int threads,
                           const float *x, const float *parameters, float *value, float *log_slope) {
    Job job = {x, parameters, 0, 0, value, log_slope, 0, 0, bins, inverse, bound, floor_, limit, 1};
    in_pieces(&job, pick(spline_forward), n, threads);
}

/* x is the argument of the forward map: of the inverse, its value. */
void fluvial_spline_backward(long n, int bins, float bound, float floor_, float limit, int inverse, int threads,
                             const float *x, const float *parameters, const float *grad_value, const float *grad_log,
                             float *grad_x, float *grad_parameters) {
    Job job = {x, parameters, grad_value, grad_log, 0, 0, grad_x, grad_parameters, bins, inverse, bound, floor_, limit, 0};
    in_pieces(&job, pick(spline_backward), n, threads);
}
