/* What mlp.c and its kernels share. */
#ifndef FLUVIAL_MLP_H
#define FLUVIAL_MLP_H

/* The most rows that go through the network together, what rows and columns of buffers are padded to, and how many buffers of
 * the size of a hidden layer a thread has, and how many outputs' gradients are gathered at a time. */
enum { TILE = 192, PAD = 32, BUFFERS = 5, GROUP = 120 };

typedef enum { RELU, SILU, ELU, TANH, SIGMOID } Activation;

/* A linear map, weight [out][in] and bias [out]. Where weights are masked, `reach` says for every output before which
 * input its last weight stands, and `from` for every input the first output that sees it; null: all see all. */
typedef struct {
    const float *weight, *bias;
    float *grad_weight, *grad_bias;
    const int *reach, *from;
    const float *scale, *shift; /* of what goes into the activation before this map, padded to whole blocks; or null */
    long out, in;
} Linear;

/* maps: first, hidden layers, gates, last. */
typedef struct {
    Linear *maps;
    int inputs, context, width, outputs, hidden, gates, residual, activation, bf16;
} Network;

/* A weight matrix rearranged for products: columns in panels of PANEL, each [depth][PANEL], with the rows that count. */
typedef struct {
    float *values, *bias;
    int *begin, *end;
    long columns, depth;
} Packed;

typedef struct {
    const Network *net;
    const Packed *forward, *backward; /* a packed matrix for every map */
    long n;
    const float *x, *context, *grad_out;
    float *out, *saved, *grad_x, *grad_context;
} Pass;

static inline long padded(long n, long to) { return (n + to - 1) / to * to; }

/* Rows are dealt out in blocks of 8 to tiles of at most TILE rows, about equally: threads, which take whole tiles, then
 * have as much to do as each other. */
static inline long blocks_of(long n) { return (n + 7) / 8; }
static inline long tiles_of(long n) {
    long tiles = (blocks_of(n) + TILE / 8 - 1) / (TILE / 8);
    return tiles > 2 ? padded(tiles, 4) : tiles;
}
static inline long first_row(long n, long tile) {
    long row = blocks_of(n) * tile / tiles_of(n) * 8;
    return row < n ? row : n;
}
/* Rows of the largest tile, and those that a block of any height adds to them. */
static inline long most_rows(long n) { return padded((blocks_of(n) + tiles_of(n) - 1) / tiles_of(n) * 8, 24); }

/* What lies between rows of a buffer: whole blocks, and an odd number of cache lines, so that the rows of a panel do not
 * share a few sets of the cache. */
static inline long leading(long n) { return padded(n, PAD) + 16; }

/* Whether backward needs what goes into the activation; otherwise what comes out of it is kept. */
static inline int keeps_argument(const Network *net) { return net->activation == SILU; }

static inline int slots(const Network *net) { return net->hidden + 1 + net->gates; }

/* Floats of the sums of a map's gradients: weights [out, and a block more][in, padded], then bias. */
static inline long sum_rows(const Linear *map) { return padded(map->out + 8, PAD); }
static inline long sum_size(const Linear *map) { return sum_rows(map) * (padded(map->in, PAD) + 1); }

/* Floats that a thread needs for a linear map alone: the last rows of its two sides, and copies. */
static inline long linear_scratch(const Linear *map, int bf16) {
    long most = leading(bf16 ? (map->in > map->out ? map->in : map->out) : 0);
    return padded(TILE * (map->in + map->out + (most > leading(GROUP) ? most : leading(GROUP))) + 4 * PAD, 16);
}

/* Bytes of a packed matrix; fill it in; work on the rows from tile `first` to before tile `last`. */
typedef struct {
    long (*pack_bytes)(const Linear *map, int transposed);
    void (*pack)(const Linear *map, int transposed, int bf16, Packed *to);
    void (*linear)(const Linear *map, const Packed *packed, long n, const float *x, float *out, long first, long last,
                   float *scratch, int bf16);
    void (*linear_back)(const Linear *map, const Packed *back, long n, const float *x, const float *grad, float *grad_x,
                        long first, long last, float *scratch, int bf16, float *sums);
    void (*forward)(const Pass *pass, long first, long last, float *scratch);
    void (*backward)(const Pass *pass, long first, long last, float *scratch, float *sums);
} Kernels;

#endif
