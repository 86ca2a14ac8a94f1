// Gradient norm and AdamW over the flat parameters; see src/ops.rs. The norm reads 4 bytes per parameter; AdamW reads 16 and
// writes 12, and 2 more if products read a copy in 16 bits. Rows of the word table without a gradient are passed over, and catch up
// on the updates before they are read; see src/cuda/words.rs.
#include "gpu.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// The updates by which a row may lag behind: a power of two. A missed update is a dependency chain of more than 200 cycles, and most
// batches of reviews have a word that missed nearly all since all rows caught up. When all rows catch up, 1.4 GB of DistilBERT-base
// are moved. With 64, either cost is a few microseconds per step.
constexpr int RING = 64; // host

struct GradNorm {
    const float* grads;        // (len)
    double* parts;             // (blocks)
    unsigned* arrived;         // blocks that have written their part: 0 before and after
    Status* status;
    const int* tags;           // (rows, tiles) of the word table
    int tag;                   // of rows with a gradient
    int tiles;
    int dim;
    int table;                 // elements of the word table, the first ones; 0 if all of its rows have a gradient
    int len;
    int chunk;                 // elements per block, a multiple of 4
};

// The last block to arrive adds the parts, in their order.
__device__ void sum_squares(const GradNorm& a) {
    const int start = blockIdx.x * a.chunk, end = min(start + a.chunk, a.len);
    const int whole = start + (end - start) / 4 * 4;
    double sum = 0.0;
#pragma unroll 4
    for (int at = start + 4 * threadIdx.x; at < whole; at += 4 * THREADS) {
        if (at < a.table && a.tags[at / a.dim * a.tiles] != a.tag) continue;
        float g[4];
        load(g, a.grads + at);
#pragma unroll
        for (int i = 0; i < 4; i++) sum += double(g[i]) * g[i];
    }
    const int rest = whole + threadIdx.x;
    if (rest < end) sum += double(a.grads[rest]) * a.grads[rest];
    sum = block_sum<THREADS>(sum);

    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        a.parts[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicInc(a.arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    sum = 0.0;
    // Many reads in flight: all other blocks have ended.
    constexpr int READS = 16;
    for (unsigned start = threadIdx.x; start < gridDim.x; start += READS * THREADS) {
        double parts[READS];
#pragma unroll
        for (int i = 0; i < READS; i++) parts[i] = start + i * THREADS < gridDim.x ? __ldcg(a.parts + start + i * THREADS) : 0.0;
#pragma unroll
        for (int i = 0; i < READS; i++) sum += parts[i];
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) a.status->grad_norm = sqrt(sum) / loss_scale(*a.status);
}
KERNEL(grad_norm, sum_squares, GradNorm, 256)

// What an update needs of the status block, decided once, and its weight decay.
struct __align__(16) Factors {
    float grad;                   // of the gradients; below 0 if this update is skipped
    float rate;                   // learning rate / (1 - beta1^t)
    float sqrt_bias_correction2;  // sqrt(1 - beta2^t)
    float decay;                  // 1 - learning rate * weight decay
};

struct AdamWDecide {
    Status* status;
    Factors* factors;
    double max_norm;
    double learning_rate;
    double beta1;
    double beta2;
    double number;  // of this update, from 1
    float decay;    // 1 - learning rate * weight decay
    int growth;     // updates after which the loss scale doubles, or 0
};

// One warp, of which two lanes compute a power each.
__device__ void decide(const AdamWDecide& a) {
    Status s = *a.status;
    const double loss = s.loss, scale = loss_scale(s);
    const bool usable = fabs(loss) < INFINITY && fabs(s.grad_norm) < INFINITY && s.scale >= 0.0;
    s.loss = 0.0;
    if (usable) {
        s.loss_sum += loss;
    } else {
        s.skipped += 1.0;
    }
    if (a.growth > 0) {
        s.good = usable ? s.good + 1.0 : 0.0;
        if (!usable) {
            s.scale = fmax(s.scale - 1.0, -1.0);
        } else if (s.good == a.growth) {
            s.scale += 1.0;
            s.good = 0.0;
        }
    }
    const double power = pow(lane() == 0 ? a.beta1 : a.beta2, a.number - s.skipped);
    const double power_of_beta2 = __shfl_sync(ALL_LANES, power, 1);
    // All lanes have read the status block.
    __syncwarp();
    if (lane() != 0) return;
    *a.status = s;
    const double clip = a.max_norm > 0.0 ? fmin(a.max_norm / (s.grad_norm + 1e-6), 1.0) : 1.0;
    a.factors->grad = usable ? float(clip / scale) : -1.0f;
    a.factors->rate = float(a.learning_rate / (1.0 - power));
    a.factors->sqrt_bias_correction2 = float(sqrt(1.0 - power_of_beta2));
    a.factors->decay = a.decay;
}
KERNEL(adamw_decide, decide, AdamWDecide, 32)

// One update of an element, with a gradient that is clipped and not scaled. Each operation is named, so that no kernel fuses two of
// them that another does not.
template <class A>
__device__ __forceinline__ void step(const A& a, const Factors& factors, float decay, float grad, float& p, float& m, float& v) {
    m = __fadd_rn(__fmul_rn(a.beta1, m), __fmul_rn(a.one_minus_beta1, grad));
    v = __fadd_rn(__fmul_rn(a.beta2, v), __fmul_rn(__fmul_rn(a.one_minus_beta2, grad), grad));
    const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), factors.sqrt_bias_correction2), a.eps);
    p = __fsub_rn(__fmul_rn(p, decay), __fdiv_rn(__fmul_rn(factors.rate, m), root));
}

template <class T> struct AdamW {
    float* params;          // (len)
    T* copy;                // (len), params rounded, or null
    const float* grads;     // (len)
    float* m;               // (len)
    float* v;               // (len)
    const Factors* factors; // written by adamw_decide
    const int* tags;        // (rows, tiles) of the word table
    int* seen;              // (rows): the updates of each row, this one included
    int tag;                // of rows with a gradient
    int tiles;
    int rows;               // of the word table, the first elements; 0 if all of its rows have a gradient
    int dim;
    int number;             // of this update since the table began, from 1
    int begin;              // the elements beside the word table: from `begin` to `gap`, and from `after_gap` to `end`
    int gap;
    int after_gap;
    int end;
    int decayed;            // the first `decayed` elements have weight decay
    float beta1;
    float one_minus_beta1;  // 1 - beta1
    float beta2;
    float one_minus_beta2;
    float eps;
};

template <bool WHOLE, class T> __device__ __forceinline__ void adamw_pack(const AdamW<T>& a, int at, const Factors& factors) {
    const int count = a.end - at;
    float p[4], g[4], m[4], v[4];
    load<WHOLE>(p, a.params + at, count);
    load<WHOLE>(g, a.grads + at, count);
    load<WHOLE>(m, a.m + at, count);
    load<WHOLE>(v, a.v + at, count);
#pragma unroll
    for (int i = 0; i < 4; i++) step(a, factors, at + i < a.decayed ? factors.decay : 1.0f, g[i] * factors.grad, p[i], m[i], v[i]);
    store<WHOLE>(a.params + at, p, count);
    store<WHOLE>(a.m + at, m, count);
    store<WHOLE>(a.v + at, v, count);
    if (a.copy) store<WHOLE>(a.copy + at, p, count);
}

// The first blocks handle the word table, one warp per row; the others the rest, one thread per 4 neighbours.
template <class T> __device__ void update(const AdamW<T>& a) {
    const Factors factors = *a.factors;
    if (factors.grad < 0.0f) return;
    const int table = (a.rows + WARPS - 1) / WARPS, block = blockIdx.x, row = block * WARPS + warp();
    const bool is_word = block < table;
    if (is_word && (row >= a.rows || a.tags[row * a.tiles] != a.tag)) return;
    int at = is_word ? row * a.dim + 4 * lane() : a.begin + 4 * ((block - table) * THREADS + threadIdx.x);
    if (!is_word && at >= a.gap) at += a.after_gap - a.gap;
    const int end = is_word ? (row + 1) * a.dim : min(at + 4, a.end);
    for (; at + 4 <= end; at += 4 * 32) adamw_pack<true>(a, at, factors);
    if (at < end) adamw_pack<false>(a, at, factors);
    if (is_word && lane() == 0) a.seen[row] = a.number;
}
KERNEL(adamw_f32, update<float>, AdamW<float>, 256)
KERNEL(adamw_bf16, update<bf16>, AdamW<bf16>, 256)
KERNEL(adamw_f16, update<f16>, AdamW<f16>, 256)

template <class T> struct CatchUp {
    float* params;           // (rows, dim): the word table
    T* copy;                 // (rows, dim), params rounded, or null
    float* grads;            // (rows, dim)
    float* m;                // (rows, dim)
    float* v;                // (rows, dim)
    const Factors* ring;     // (RING): those of update u, from 0, at u % RING
    int* tags;               // (rows, tiles)
    int* seen;               // (rows): the updates of each row
    const int* ids;          // of the batch, whose rows catch up; null: all rows do, and those without a gradient get zeros
    const int* rows_by_token;
    const int* token_starts; // (distinct + 1)
    int tag;                 // of rows with a gradient
    int tiles;
    int dim;
    int updates;             // until now
    int decays;              // whether the table has weight decay
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float eps;
};

// An element, from update `seen` on, without a gradient.
template <class T> __device__ __forceinline__ void catch_up_element(const CatchUp<T>& a, size_t at, int seen) {
    float p = a.params[at], m = a.m[at], v = a.v[at];
    // Words that never had a gradient do not move but for weight decay.
    const bool rests = a.eps > 0.0f && m == 0.0f && v == 0.0f;
    for (int update = seen; update < a.updates; update++) {
        const Factors factors = a.ring[update % RING];
        if (factors.grad < 0.0f) continue;
        const float decay = a.decays ? factors.decay : 1.0f;
        if (rests) {
            p = __fmul_rn(p, decay);
        } else {
            step(a, factors, decay, 0.0f, p, m, v);
        }
    }
    a.params[at] = p;
    a.m[at] = m;
    a.v[at] = v;
    if (a.copy) a.copy[at] = from_float<T>(p);
}

// One block per row, one thread per element: the slow paths of a thread's divisions would come one after the other.
template <class T> __device__ void catch_up(const CatchUp<T>& a) {
    const int row = a.ids ? a.ids[a.rows_by_token[a.token_starts[blockIdx.x]]] : blockIdx.x;
    const int seen = a.seen[row];
    const bool has_gradient = a.ids || a.tags[row * a.tiles] == a.tag;
    if (seen == a.updates && has_gradient) return;
    __syncthreads();
    for (int c = threadIdx.x; c < a.dim; c += blockDim.x) {
        const size_t at = size_t(row) * a.dim + c;
        if (seen < a.updates) catch_up_element(a, at, seen);
        if (!has_gradient) a.grads[at] = 0.0f;
    }
    if (threadIdx.x == 0) a.seen[row] = a.updates;
    if (!has_gradient && threadIdx.x < a.tiles) a.tags[row * a.tiles + threadIdx.x] = a.tag;
}
KERNEL(catch_up_f32, catch_up<float>, CatchUp<float>, 768)
KERNEL(catch_up_bf16, catch_up<bf16>, CatchUp<bf16>, 768)
KERNEL(catch_up_f16, catch_up<f16>, CatchUp<f16>, 768)

template <class T> struct Cast {
    const float* x; // (len)
    T* y;           // (len)
    int len;
};

// One thread per 8 neighbours.
template <class T> __device__ void cast(const Cast<T>& a) {
    const int at = (blockIdx.x * THREADS + threadIdx.x) * 8;
    float x[8];
    if (at + 8 <= a.len) {
        load(x, a.x + at);
        store(a.y + at, x);
    } else {
        load<false>(x, a.x + at, a.len - at);
        store<false>(a.y + at, x, a.len - at);
    }
}
KERNEL(cast_bf16, cast<bf16>, Cast<bf16>, 256)
KERNEL(cast_f16, cast<f16>, Cast<f16>, 256)
