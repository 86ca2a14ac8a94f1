// Gradient norm and AdamW over the flat parameters; see src/ops.rs. The norm reads 4 bytes per parameter; AdamW reads 16 and
// writes 12, and 2 more if products read a copy in 16 bits.
#include "gpu.cuh"

constexpr int THREADS = 256;

struct GradNormParts {
    const float* grads; // (len)
    double* parts;      // (blocks)
    int len;
    int chunk;          // elements per block, a multiple of 4
};

__device__ void sum_squares(const GradNormParts& a) {
    const int start = blockIdx.x * a.chunk, end = min(start + a.chunk, a.len);
    const int whole = start + (end - start) / 4 * 4;
    double sum = 0.0;
#pragma unroll 4
    for (int at = start + 4 * threadIdx.x; at < whole; at += 4 * THREADS) {
        float g[4];
        load(g, a.grads + at);
#pragma unroll
        for (int i = 0; i < 4; i++) sum += double(g[i]) * g[i];
    }
    const int rest = whole + threadIdx.x;
    if (rest < end) sum += double(a.grads[rest]) * a.grads[rest];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) a.parts[blockIdx.x] = sum;
}
KERNEL(grad_norm_parts, sum_squares, GradNormParts, 256)

struct GradNorm {
    const double* parts; // (count)
    Status* status;
    int count;
};

// One block.
__device__ void root_of_sum(const GradNorm& a) {
    constexpr int THREADS = 512;
    double sum = 0.0;
#pragma unroll 4
    for (int i = threadIdx.x; i < a.count; i += THREADS) sum += a.parts[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) a.status->grad_norm = sqrt(sum) / loss_scale(*a.status);
}
KERNEL(grad_norm, root_of_sum, GradNorm, 512)

// What an update needs of the status block, decided once.
struct Factors {
    float grad;                   // of the gradients; below 0 if this update is skipped
    float rate;                   // learning rate / (1 - beta1^t)
    float sqrt_bias_correction2;  // sqrt(1 - beta2^t)
};

struct AdamWDecide {
    Status* status;
    Factors* factors;
    double max_norm;
    double learning_rate;
    double beta1;
    double beta2;
    double number;  // of this update, from 1
    int growth;     // updates after which the loss scale doubles, or 0
};

// One thread.
__device__ void decide(const AdamWDecide& a) {
    if (threadIdx.x != 0) return;
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
    *a.status = s;
    const double t = a.number - s.skipped;
    const double clip = a.max_norm > 0.0 ? fmin(a.max_norm / (s.grad_norm + 1e-6), 1.0) : 1.0;
    a.factors->grad = usable ? float(clip / scale) : -1.0f;
    a.factors->rate = float(a.learning_rate / (1.0 - pow(a.beta1, t)));
    a.factors->sqrt_bias_correction2 = float(sqrt(1.0 - pow(a.beta2, t)));
}
KERNEL(adamw_decide, decide, AdamWDecide, 32)

template <class T> struct AdamW {
    float* params;          // (len)
    T* copy;                // (len), params rounded, or null
    const float* grads;     // (len)
    float* m;               // (len)
    float* v;               // (len)
    const Factors* factors; // written by adamw_decide
    int len;
    int decayed;            // the first `decayed` elements have weight decay
    float decay;            // 1 - learning rate * weight decay
    float beta1;
    float one_minus_beta1;  // 1 - beta1
    float beta2;
    float one_minus_beta2;
    float eps;
};

template <bool WHOLE, class T> __device__ __forceinline__ void adamw_pack(const AdamW<T>& a, int at, const Factors& factors) {
    const int count = a.len - at;
    float p[4], g[4], m[4], v[4];
    load<WHOLE>(p, a.params + at, count);
    load<WHOLE>(g, a.grads + at, count);
    load<WHOLE>(m, a.m + at, count);
    load<WHOLE>(v, a.v + at, count);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float grad = g[i] * factors.grad;
        m[i] = a.beta1 * m[i] + a.one_minus_beta1 * grad;
        v[i] = a.beta2 * v[i] + a.one_minus_beta2 * grad * grad;
        const float decay = at + i < a.decayed ? a.decay : 1.0f;
        p[i] = p[i] * decay - factors.rate * m[i] / (sqrtf(v[i]) / factors.sqrt_bias_correction2 + a.eps);
    }
    store<WHOLE>(a.params + at, p, count);
    store<WHOLE>(a.m + at, m, count);
    store<WHOLE>(a.v + at, v, count);
    if (a.copy) store<WHOLE>(a.copy + at, p, count);
}

// One thread per 4 neighbours.
template <class T> __device__ void update(const AdamW<T>& a) {
    const Factors factors = *a.factors;
    if (factors.grad < 0.0f) return;
    const int at = (blockIdx.x * THREADS + threadIdx.x) * 4;
    if (at + 4 <= a.len) {
        adamw_pack<true>(a, at, factors);
    } else if (at < a.len) {
        adamw_pack<false>(a, at, factors);
    }
}
KERNEL(adamw_f32, update<float>, AdamW<float>, 256)
KERNEL(adamw_bf16, update<bf16>, AdamW<bf16>, 256)
KERNEL(adamw_f16, update<f16>, AdamW<f16>, 256)

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
