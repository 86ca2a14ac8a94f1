// Residual, dropout and layer norm; see AddNorm in src/ops.rs. A row is in registers if it fits: forward reads x and skip and
// writes z and y, backward reads dy and z and writes dz and dx, each once.
#include "norm.cuh"

template <class T> struct NormFwd {
    T* x;                  // (rows, dim), becomes z
    const T* skip;         // (rows, dim) or null
    const float* gamma;    // (dim)
    const float* beta;     // (dim)
    T* y;                  // (rows, dim)
    float* stats;          // (rows, 2): mean, 1 / standard deviation
    const int* token_rows; // (rows): the rows whose masks these use, or null if they are the same
    int rows;
    int dim;
    float eps;
    Drop drop;
};

// z = dropout(x) + skip.
template <class T> struct SumRow {
    static constexpr int P = PACK<T>;
    const NormFwd<T>& a;
    size_t row;
    unsigned token_row;
    uint4 skips[PACKS<T>] = {};

    template <bool WHOLE> __device__ __forceinline__ void fetch(float (&x)[P], int at, int c) {
        load<WHOLE>(x, a.x + row * a.dim + c, a.dim - c);
        if (a.skip) skips[at] = load_raw<WHOLE>(a.skip + row * a.dim + c, a.dim - c);
    }
    template <bool WHOLE> __device__ __forceinline__ void make_z(float (&x)[P], int at, int c) const {
        float skip[P];
        unpack<T>(skip, skips[at]);
        drop_columns(x, a.drop, c, token_row);
#pragma unroll
        for (int i = 0; i < P; i++) x[i] += skip[i];
        unpack<T>(x, pack<T>(x));
        if (a.skip || a.drop.threshold) store<WHOLE>(a.x + row * a.dim + c, x, a.dim - c);
    }
    __device__ __forceinline__ void finish(float (&)[P], int) const {}
};

constexpr int FWD_THREADS = 128;

// One warp per row.
template <class T> __device__ void norm_fwd(const NormFwd<T>& a) {
    const int row = blockIdx.x * (FWD_THREADS / 32) + warp();
    if (row >= a.rows) return;
    norm<T>(a, SumRow<T>{a, size_t(row), unsigned(a.token_rows ? a.token_rows[row] : row)});
}
KERNEL(norm_fwd_f32, norm_fwd<float>, NormFwd<float>, 128)
KERNEL(norm_fwd_bf16, norm_fwd<bf16>, NormFwd<bf16>, 128, 0, 6)
KERNEL(norm_fwd_f16, norm_fwd<f16>, NormFwd<f16>, 128, 0, 6)

template <class T> struct NormBwd {
    const T* z;            // (rows, dim)
    const float* gamma;    // (dim)
    const float* stats;    // (rows, 2)
    T* dy;                 // (rows, dim), becomes dz
    T* dx;                 // (rows, dim), or null if only dz is needed
    float* partials;       // (3, chunks, dim): dgamma, dbeta and, with `bias`, the column sums of dx
    const int* token_rows; // (rows) or null
    int rows;
    int dim;
    int chunk;             // rows per block
    int bias;
    Drop drop;
};

// Where dropout follows the norm (DROPS_Y), dy is dropped as it is read; else dx is.

// Stores dz = rstd * (g - mean(g) - n * mean(g n)) from column c of a row on, and dx, which dz becomes.
template <bool WHOLE, class T>
__device__ __forceinline__ void store_dz(const NormBwd<T>& a, size_t row, int c, float (&dz)[PACK<T>]) {
    const size_t at = row * a.dim + c;
    store<WHOLE>(a.dy + at, dz, a.dim - c);
    if (a.dx) {
        drop_columns(dz, a.drop, c, a.token_rows ? a.token_rows[row] : row);
        store<WHOLE>(a.dx + at, dz, a.dim - c);
    }
}

// Threads per block in the backward pass: each has a pack of columns, and so their complete sums over rows.
template <class T> constexpr int COLUMN_THREADS = WIDEST / PACK<T>;

template <class T, bool DROPS_Y> __device__ __forceinline__ void norm_bwd_in_registers(const NormBwd<T>& a, int first, int end) {
    // GROUP rows are in flight at once, while those before them are computed.
    constexpr int P = PACK<T>, WARPS = COLUMN_THREADS<T> / 32, GROUP = 2;
    // Double-buffered, so that one barrier per group suffices.
    __shared__ float2 parts[2][GROUP][WARPS];
    const int c = threadIdx.x * P;
    const bool mine = c < a.dim;
    float gamma[P] = {}, dgamma[P] = {}, dbeta[P] = {}, dbias[P] = {};
    if (mine) load(gamma, a.gamma + c);
    uint4 dys[GROUP], zs[GROUP];
    float2 stats[GROUP];
    const auto fetch = [&](int start) {
#pragma unroll
        for (int r = 0; r < GROUP; r++) {
            dys[r] = zs[r] = uint4{};
            stats[r] = float2{};
            if (start + r >= end || !mine) continue;
            const size_t row = start + r;
            dys[r] = load_raw<true>(a.dy + row * a.dim + c, P);
            zs[r] = load_raw<true>(a.z + row * a.dim + c, P);
            stats[r] = reinterpret_cast<const float2*>(a.stats)[row];
        }
    };
    fetch(first);
    for (int start = first, turn = 0; start < end; start += GROUP, turn ^= 1) {
        // g = dy * gamma and n of each row.
        float g[GROUP][P], n[GROUP][P], rstd[GROUP];
#pragma unroll
        for (int r = 0; r < GROUP; r++) {
            float2 sums = {0.0f, 0.0f};
            rstd[r] = stats[r].y;
            unpack<T>(g[r], dys[r]);
            if (DROPS_Y) drop_columns(g[r], a.drop, c, start + r);
            unpack<T>(n[r], zs[r]);
#pragma unroll
            for (int i = 0; i < P; i++) {
                n[r][i] = (n[r][i] - stats[r].x) * stats[r].y;
                dgamma[i] += g[r][i] * n[r][i];
                dbeta[i] += g[r][i];
                g[r][i] *= gamma[i];
                sums.x += g[r][i];
                sums.y += g[r][i] * n[r][i];
            }
            sums = {warp_sum(sums.x), warp_sum(sums.y)};
            if (lane() == 0) parts[turn][r][warp()] = sums;
        }
        fetch(start + GROUP);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < GROUP; r++) {
            if (start + r >= end || !mine) continue;
            const size_t row = start + r;
            float2 sums = {0.0f, 0.0f};
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                sums.x += parts[turn][r][w].x;
                sums.y += parts[turn][r][w].y;
            }
            const float mean_g = sums.x * (1.0f / a.dim), mean_gn = sums.y * (1.0f / a.dim);
#pragma unroll
            for (int i = 0; i < P; i++) g[r][i] = rstd[r] * (g[r][i] - mean_g - n[r][i] * mean_gn);
            store_dz<true>(a, row, c, g[r]);
#pragma unroll
            for (int i = 0; i < P; i++) dbias[i] += g[r][i];
        }
    }
    if (mine) {
        store(a.partials + size_t(blockIdx.x) * a.dim + c, dgamma);
        store(a.partials + size_t(gridDim.x + blockIdx.x) * a.dim + c, dbeta);
        if (a.bias) store(a.partials + size_t(2 * gridDim.x + blockIdx.x) * a.dim + c, dbias);
    }
}

// For any width: first the columns of the block's rows, then the rows, then the columns of dx, as stored.
template <class T, bool DROPS_Y> __device__ __forceinline__ void norm_bwd_in_memory(const NormBwd<T>& a, int first, int end) {
    constexpr int P = PACK<T>, THREADS = COLUMN_THREADS<T>, WARPS = THREADS / 32;
    const auto load_row = [&](float (&dy)[P], float (&n)[P], size_t row, int c) {
        load<false>(dy, a.dy + row * a.dim + c, a.dim - c);
        if (DROPS_Y) drop_columns(dy, a.drop, c, row);
        load<false>(n, a.z + row * a.dim + c, a.dim - c);
#pragma unroll
        for (int i = 0; i < P; i++) n[i] = (n[i] - a.stats[2 * row]) * a.stats[2 * row + 1];
    };
    for (int c = threadIdx.x * P; c < a.dim; c += THREADS * P) {
        float dgamma[P] = {}, dbeta[P] = {}, dy[P], n[P];
        for (size_t row = first; row < size_t(end); row++) {
            load_row(dy, n, row, c);
#pragma unroll
            for (int i = 0; i < P; i++) {
                dgamma[i] += dy[i] * n[i];
                dbeta[i] += dy[i];
            }
        }
        store<false>(a.partials + size_t(blockIdx.x) * a.dim + c, dgamma, a.dim - c);
        store<false>(a.partials + size_t(gridDim.x + blockIdx.x) * a.dim + c, dbeta, a.dim - c);
    }
    __syncthreads();
    for (size_t row = first + warp(); row < size_t(end); row += WARPS) {
        float sum_g = 0.0f, sum_gn = 0.0f, g[P], n[P], gamma[P];
        for (int c = lane() * P; c < a.dim; c += 32 * P) {
            load_row(g, n, row, c);
            load<false>(gamma, a.gamma + c, a.dim - c);
#pragma unroll
            for (int i = 0; i < P; i++) {
                g[i] *= gamma[i];
                sum_g += g[i];
                sum_gn += g[i] * n[i];
            }
        }
        const float mean_g = warp_sum(sum_g) * (1.0f / a.dim), mean_gn = warp_sum(sum_gn) * (1.0f / a.dim);
        const float rstd = a.stats[2 * row + 1];
        for (int c = lane() * P; c < a.dim; c += 32 * P) {
            load_row(g, n, row, c);
            load<false>(gamma, a.gamma + c, a.dim - c);
#pragma unroll
            for (int i = 0; i < P; i++) g[i] = rstd * (g[i] * gamma[i] - mean_g - n[i] * mean_gn);
            store_dz<false>(a, row, c, g);
        }
    }
    if (!a.bias) return;
    __syncthreads();
    const T* dx = a.dx ? a.dx : a.dy;
    for (int c = threadIdx.x; c < a.dim; c += THREADS) {
        float dbias = 0.0f;
        for (size_t row = first; row < size_t(end); row++) dbias += to_float(dx[row * a.dim + c]);
        a.partials[size_t(2 * gridDim.x + blockIdx.x) * a.dim + c] = dbias;
    }
}

// One block per chunk of rows.
template <class T, bool DROPS_Y> __device__ void norm_bwd(const NormBwd<T>& a) {
    const int first = blockIdx.x * a.chunk, end = min(first + a.chunk, a.rows);
    fits<T>(a.dim) ? norm_bwd_in_registers<T, DROPS_Y>(a, first, end) : norm_bwd_in_memory<T, DROPS_Y>(a, first, end);
}
KERNEL(norm_bwd_f32, (norm_bwd<float, false>), NormBwd<float>, 256)
KERNEL(norm_bwd_bf16, (norm_bwd<bf16, false>), NormBwd<bf16>, 128)
KERNEL(norm_bwd_f16, (norm_bwd<f16, false>), NormBwd<f16>, 128)
KERNEL(norm_drop_bwd_f32, (norm_bwd<float, true>), NormBwd<float>, 256)
KERNEL(norm_drop_bwd_bf16, (norm_bwd<bf16, true>), NormBwd<bf16>, 128)
KERNEL(norm_drop_bwd_f16, (norm_bwd<f16, true>), NormBwd<f16>, 128)
