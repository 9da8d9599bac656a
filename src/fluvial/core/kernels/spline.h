/* What spline.c and its kernels share. */
#ifndef FLUVIAL_SPLINE_H
#define FLUVIAL_SPLINE_H

enum { BLOCK = 16, MOST_BINS = 512 };

typedef struct {
    const float *x, *parameters, *grad_value, *grad_log;
    float *value, *log_slope, *grad_x, *grad_parameters;
    int bins, inverse;
    float bound, floor_, limit;
    int shared; /* one set of parameters for all elements: of the value alone */
} Job;

/* Work on the elements from `from` to below `to`. */
typedef void Kernel(const Job *job, long from, long to);

#endif
