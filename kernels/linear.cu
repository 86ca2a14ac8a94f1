// Beside the products of cuBLASLt: activations (forward reads and writes an element, backward reads two and writes one), and our
// own product for matrices that cuBLASLt does not support. Those are tiny (a classifier of 2 classes) or odd (rows not 16-byte aligned).
#include "gpu.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// Cumulative distribution function and density of the normal distribution at x: gelu(x) = x cdf, gelu'(x) = cdf + x density.
// The lower tail is exp(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.21 |x|), as in src/cpu/real.rs.
__device__ __forceinline__ float normal(float x, float& density) {
    const float t = __fdividef(1.0f, 1.0f + 0.21f * fabsf(x));
    float sum = -0.0716569f;
    sum = sum * t + 0.28359155f;
    sum = sum * t - 0.33025977f;
    sum = sum * t + 0.3494085f;
    sum = sum * t - 0.0939305f;
    sum = sum * t + 0.12487503f;
    sum = sum * t + 0.06919157f;
    sum = sum * t + 0.08506894f;
    sum = sum * t + 0.08371157f;
    const float e = __expf(-0.5f * x * x);
    const float tail = sum * t * e;
    density = e * 0.3989423f;
    return x > 0.0f ? 1.0f - tail : tail;
}

struct Gelu {
    static __device__ __forceinline__ float value(float x) {
        float density;
        return x * normal(x, density);
    }
    static __device__ __forceinline__ float backward(float x, float dy) {
        float density;
        const float cdf = normal(x, density);
        return dy * (cdf + x * density);
    }
};

// NaN stays NaN; backward, as in PyTorch, dy passes where x is NaN.
struct Relu {
    static __device__ __forceinline__ float value(float x) { return x < 0.0f ? 0.0f : x; }
    static __device__ __forceinline__ float backward(float x, float dy) { return x <= 0.0f ? 0.0f : dy; }
};

struct Tanh {
    static __device__ __forceinline__ float value(float x) { return tanhf(x); }
    static __device__ __forceinline__ float backward(float x, float dy) {
        const float y = tanhf(x);
        return dy * (1.0f - y * y);
    }
};

template <class T> struct ActFwd {
    const T* x;            // (rows, width)
    T* y;                  // (rows, width), may be x
    const int* token_rows; // (rows): the rows whose masks these use, or null if they are the same
    int rows;
    int width;
    int kind;              // ActivationKind in src/ops.rs
    Drop drop;
};

// Packs per thread, all read before the first is written.
constexpr int ACT_PACKS = 2;  // host

template <bool WHOLE, class F, class T> __device__ __forceinline__ void act_packs(const ActFwd<T>& a, size_t start, size_t len) {
    constexpr int P = PACK<T>;
    float x[ACT_PACKS][P];
#pragma unroll
    for (int pack = 0; pack < ACT_PACKS; pack++) {
        const size_t at = start + (pack * THREADS + threadIdx.x) * P;
        load<WHOLE>(x[pack], a.x + at, (long long)(len - at));
    }
#pragma unroll
    for (int pack = 0; pack < ACT_PACKS; pack++) {
        const size_t at = start + (pack * THREADS + threadIdx.x) * P;
        float y[P];
#pragma unroll
        for (int i = 0; i < P; i++) y[i] = F::value(x[pack][i]);
        store<WHOLE>(a.y + at, y, (long long)(len - at));
    }
}

template <class F, class T> __device__ __forceinline__ void act_fwd_by(const ActFwd<T>& a) {
    constexpr int BLOCK = ACT_PACKS * THREADS * PACK<T>;
    const size_t start = size_t(blockIdx.x) * BLOCK, len = size_t(a.rows) * a.width;
    start + BLOCK <= len ? act_packs<true, F>(a, start, len) : act_packs<false, F>(a, start, len);
}

template <class T> __device__ void act_fwd(const ActFwd<T>& a) {
    switch (a.kind) {
        case 0: return act_fwd_by<Gelu>(a);
        case 1: return act_fwd_by<Relu>(a);
        default: return act_fwd_by<Tanh>(a);
    }
}
KERNEL(act_fwd_f32, act_fwd<float>, ActFwd<float>, 256)
KERNEL(act_fwd_bf16, act_fwd<bf16>, ActFwd<bf16>, 256)
KERNEL(act_fwd_f16, act_fwd<f16>, ActFwd<f16>, 256)

template <bool WHOLE, class F, class T> __device__ __forceinline__ void act_row(const ActFwd<T>& a, int row) {
    constexpr int P = PACK<T>;
    const unsigned token_row = a.token_rows ? a.token_rows[row] : row;
    for (int c = lane() * P; c < a.width; c += 32 * P) {
        const size_t at = size_t(row) * a.width + c;
        float y[P];
        load<WHOLE>(y, a.x + at, a.width - c);
#pragma unroll
        for (int i = 0; i < P; i++) y[i] = F::value(y[i]);
        drop_columns(y, a.drop, c, token_row);
        store<WHOLE>(a.y + at, y, a.width - c);
    }
}

template <class F, class T> __device__ __forceinline__ void act_drop_fwd_by(const ActFwd<T>& a) {
    const int row = blockIdx.x * WARPS + warp();
    if (row >= a.rows) return;
    a.width % PACK<T> == 0 ? act_row<true, F>(a, row) : act_row<false, F>(a, row);
}

// With dropout; one warp per row.
template <class T> __device__ void act_drop_fwd(const ActFwd<T>& a) {
    switch (a.kind) {
        case 0: return act_drop_fwd_by<Gelu>(a);
        case 1: return act_drop_fwd_by<Relu>(a);
        default: return act_drop_fwd_by<Tanh>(a);
    }
}
KERNEL(act_drop_fwd_f32, act_drop_fwd<float>, ActFwd<float>, 256)
KERNEL(act_drop_fwd_bf16, act_drop_fwd<bf16>, ActFwd<bf16>, 256)
KERNEL(act_drop_fwd_f16, act_drop_fwd<f16>, ActFwd<f16>, 256)

template <class T> struct ActBwd {
    const T* x;            // (rows, width)
    T* dy;                 // (rows, width), becomes dx
    float* sums;           // (chunks, width): column sums of dx, or null
    const int* token_rows; // (rows) or null
    int rows;
    int width;
    int chunk;             // rows per block
    int kind;              // ActivationKind in src/ops.rs
    Drop drop;
};

// Rows that a thread reads before it writes the first.
constexpr int ACT_ROWS = 2;  // host

// A thread handles a pack of columns of the block's rows, and so has their complete sums.
template <bool WHOLE, bool DROPS, class F, class T>
__device__ __forceinline__ void act_columns(const ActBwd<T>& a, int column) {
    constexpr int P = PACK<T>;
    const int first = blockIdx.y * a.chunk, end = min(first + a.chunk, a.rows), count = a.width - column;
    float sum[P] = {};
    for (int start = first; start < end; start += ACT_ROWS) {
        uint4 xs[ACT_ROWS] = {}, dys[ACT_ROWS] = {};
#pragma unroll
        for (int r = 0; r < ACT_ROWS; r++) {
            const size_t at = size_t(start + r) * a.width + column;
            if (start + r >= end) continue;
            xs[r] = load_raw<WHOLE>(a.x + at, count);
            dys[r] = load_raw<WHOLE>(a.dy + at, count);
        }
#pragma unroll
        for (int r = 0; r < ACT_ROWS; r++) {
            if (start + r >= end) continue;
            float x[P], dx[P];
            unpack<T>(x, xs[r]);
            unpack<T>(dx, dys[r]);
            if (DROPS) drop_columns(dx, a.drop, column, a.token_rows ? a.token_rows[start + r] : start + r);
#pragma unroll
            for (int i = 0; i < P; i++) {
                dx[i] = F::backward(x[i], dx[i]);
                sum[i] += dx[i];
            }
            store<WHOLE>(a.dy + size_t(start + r) * a.width + column, dx, count);
        }
    }
    if (a.sums) store<WHOLE>(a.sums + size_t(blockIdx.y) * a.width + column, sum, count);
}

template <bool DROPS, class F, class T> __device__ __forceinline__ void act_bwd_by(const ActBwd<T>& a) {
    const int column = (blockIdx.x * 128 + threadIdx.x) * PACK<T>;
    if (column >= a.width) return;
    a.width % PACK<T> == 0 ? act_columns<true, DROPS, F>(a, column) : act_columns<false, DROPS, F>(a, column);
}

template <class T, bool DROPS> __device__ void act_bwd(const ActBwd<T>& a) {
    switch (a.kind) {
        case 0: return act_bwd_by<DROPS, Gelu>(a);
        case 1: return act_bwd_by<DROPS, Relu>(a);
        default: return act_bwd_by<DROPS, Tanh>(a);
    }
}
KERNEL(act_bwd_f32, (act_bwd<float, false>), ActBwd<float>, 128)
KERNEL(act_bwd_bf16, (act_bwd<bf16, false>), ActBwd<bf16>, 128)
KERNEL(act_bwd_f16, (act_bwd<f16, false>), ActBwd<f16>, 128)
KERNEL(act_drop_bwd_f32, (act_bwd<float, true>), ActBwd<float>, 128)
KERNEL(act_drop_bwd_bf16, (act_bwd<bf16, true>), ActBwd<bf16>, 128)
KERNEL(act_drop_bwd_f16, (act_bwd<f16, true>), ActBwd<f16>, 128)

// D = A B + bias (+ D), column-major like cuBLASLt: D is (m, n). Strides of A and B are in elements between neighbours.
struct Matmul {
    const void* a;    // (m, k)
    const void* b;    // (k, n)
    void* d;          // (m, n), columns `ldd` apart
    const void* bias; // (m), of D's type, or null
    int m;
    int n;
    int k;
    int a_m;
    int a_k;
    int b_k;
    int b_n;
    int ldd;
    int add;          // whether to add to D
};

// One warp per element.
template <class In, class Out> __device__ void matmul(const Matmul& s) {
    const size_t element = size_t(blockIdx.x) * WARPS + warp();
    if (element >= size_t(s.m) * s.n) return;
    const int i = int(element % s.m), j = int(element / s.m);
    const In* a = static_cast<const In*>(s.a) + size_t(i) * s.a_m;
    const In* b = static_cast<const In*>(s.b) + size_t(j) * s.b_n;
    float sum = 0.0f;
#pragma unroll 4
    for (int p = lane(); p < s.k; p += 32) sum += to_float(a[size_t(p) * s.a_k]) * to_float(b[size_t(p) * s.b_k]);
    sum = warp_sum(sum);
    if (lane() != 0) return;
    if (s.bias) sum += to_float(static_cast<const Out*>(s.bias)[i]);
    Out& d = static_cast<Out*>(s.d)[size_t(j) * s.ldd + i];
    if (s.add) sum += to_float(d);
    d = from_float<Out>(sum);
}
KERNEL(matmul_f32, (matmul<float, float>), Matmul, 256)
KERNEL(matmul_bf16, (matmul<bf16, bf16>), Matmul, 256)
KERNEL(matmul_f16, (matmul<f16, f16>), Matmul, 256)
KERNEL(matmul_into_f32_bf16, (matmul<bf16, float>), Matmul, 256)
KERNEL(matmul_into_f32_f16, (matmul<f16, float>), Matmul, 256)
