// Beside the products of cuBLASLt: GELU (forward reads and writes an element, backward reads two and writes one), and our own
// product for matrices that cuBLASLt does not support, those with rows that are not 16-byte aligned.
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

template <class T> struct GeluFwd {
    const T* x; // (rows, width)
    T* y;       // (rows, width), may be x
    int rows;
    int width;
};

// Packs per thread, all read before the first is written.
constexpr int GELU_PACKS = 2;  // host

template <bool WHOLE, class T> __device__ __forceinline__ void gelu_packs(const GeluFwd<T>& a, size_t start, size_t len) {
    constexpr int P = PACK<T>;
    float x[GELU_PACKS][P];
#pragma unroll
    for (int pack = 0; pack < GELU_PACKS; pack++) {
        const size_t at = start + (pack * THREADS + threadIdx.x) * P;
        load<WHOLE>(x[pack], a.x + at, (long long)(len - at));
    }
#pragma unroll
    for (int pack = 0; pack < GELU_PACKS; pack++) {
        const size_t at = start + (pack * THREADS + threadIdx.x) * P;
        float y[P], density;
#pragma unroll
        for (int i = 0; i < P; i++) y[i] = x[pack][i] * normal(x[pack][i], density);
        store<WHOLE>(a.y + at, y, (long long)(len - at));
    }
}

template <class T> __device__ void gelu_fwd(const GeluFwd<T>& a) {
    constexpr int BLOCK = GELU_PACKS * THREADS * PACK<T>;
    const size_t start = size_t(blockIdx.x) * BLOCK, len = size_t(a.rows) * a.width;
    start + BLOCK <= len ? gelu_packs<true>(a, start, len) : gelu_packs<false>(a, start, len);
}
KERNEL(gelu_fwd_f32, gelu_fwd<float>, GeluFwd<float>, 256)
KERNEL(gelu_fwd_bf16, gelu_fwd<bf16>, GeluFwd<bf16>, 256)
KERNEL(gelu_fwd_f16, gelu_fwd<f16>, GeluFwd<f16>, 256)

template <class T> struct GeluBwd {
    const T* x;  // (rows, width)
    T* dy;       // (rows, width), becomes dx
    float* sums; // (chunks, width): column sums of dx, or null
    int rows;
    int width;
    int chunk;   // rows per block
};

// Rows that a thread reads before it writes the first.
constexpr int GELU_ROWS = 2;  // host

// A thread handles a pack of columns of the block's rows, and so has their complete sums.
template <bool WHOLE, class T> __device__ __forceinline__ void gelu_columns(const GeluBwd<T>& a, int column) {
    constexpr int P = PACK<T>;
    const int first = blockIdx.y * a.chunk, end = min(first + a.chunk, a.rows), count = a.width - column;
    float sum[P] = {};
    for (int start = first; start < end; start += GELU_ROWS) {
        uint4 xs[GELU_ROWS] = {}, dys[GELU_ROWS] = {};
#pragma unroll
        for (int r = 0; r < GELU_ROWS; r++) {
            const size_t at = size_t(start + r) * a.width + column;
            if (start + r >= end) continue;
            xs[r] = load_raw<WHOLE>(a.x + at, count);
            dys[r] = load_raw<WHOLE>(a.dy + at, count);
        }
#pragma unroll
        for (int r = 0; r < GELU_ROWS; r++) {
            if (start + r >= end) continue;
            float x[P], dx[P];
            unpack<T>(x, xs[r]);
            unpack<T>(dx, dys[r]);
#pragma unroll
            for (int i = 0; i < P; i++) {
                float density;
                const float cdf = normal(x[i], density);
                dx[i] *= cdf + x[i] * density;
                sum[i] += dx[i];
            }
            store<WHOLE>(a.dy + size_t(start + r) * a.width + column, dx, count);
        }
    }
    if (a.sums) store<WHOLE>(a.sums + size_t(blockIdx.y) * a.width + column, sum, count);
}

template <class T> __device__ void gelu_bwd(const GeluBwd<T>& a) {
    const int column = (blockIdx.x * 128 + threadIdx.x) * PACK<T>;
    if (column >= a.width) return;
    a.width % PACK<T> == 0 ? gelu_columns<true>(a, column) : gelu_columns<false>(a, column);
}
KERNEL(gelu_bwd_f32, gelu_bwd<float>, GeluBwd<float>, 128)
KERNEL(gelu_bwd_bf16, gelu_bwd<bf16>, GeluBwd<bf16>, 128)
KERNEL(gelu_bwd_f16, gelu_bwd<f16>, GeluBwd<f16>, 128)

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
