// Residual, dropout and layer norm; see AddNorm in src/ops.rs. A row is in registers if it fits: forward reads x and skip and
// writes z and y, backward reads dy and z and writes dz and dx, each once. Statistics are those of the stored, rounded z, so
// that backward, which reads z, has the same.
#include "gpu.cuh"

// The widest row that is held in registers.
constexpr int WIDEST = 1024;

template <class T> __device__ __forceinline__ bool fits(int dim) { return dim <= WIDEST && dim % PACK<T> == 0; }

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

// x, from column c of a row on, becomes z as stored.
template <bool WHOLE, class T> __device__ __forceinline__
void make_z(const NormFwd<T>& a, size_t row, unsigned token_row, int c, float (&x)[PACK<T>], uint4 skip) {
    float skips[PACK<T>];
    unpack<T>(skips, skip);
    drop_columns(x, a.drop, c, token_row);
#pragma unroll
    for (int i = 0; i < PACK<T>; i++) x[i] += skips[i];
    unpack<T>(x, pack<T>(x));
    if (a.skip || a.drop.threshold) store<WHOLE>(a.x + row * a.dim + c, x, a.dim - c);
}

// y of z from column c on.
template <bool WHOLE, class T> __device__ __forceinline__
void make_y(const NormFwd<T>& a, size_t row, int c, const float (&z)[PACK<T>], float mean, float rstd) {
    float gamma[PACK<T>], beta[PACK<T>], y[PACK<T>];
    load<WHOLE>(gamma, a.gamma + c, a.dim - c);
    load<WHOLE>(beta, a.beta + c, a.dim - c);
#pragma unroll
    for (int i = 0; i < PACK<T>; i++) y[i] = (z[i] - mean) * rstd * gamma[i] + beta[i];
    store<WHOLE>(a.y + row * a.dim + c, y, a.dim - c);
}

template <class T> __device__ __forceinline__ float keep_stats(const NormFwd<T>& a, size_t row, float mean, float squares) {
    const float rstd = 1.0f / sqrtf(warp_sum(squares) * (1.0f / a.dim) + a.eps);
    if (lane() == 0) store(a.stats + 2 * row, {mean, rstd});
    return rstd;
}

// Packs per lane in the forward pass, where a warp has one row.
template <class T> constexpr int PACKS = WIDEST / (32 * PACK<T>);

template <class T> __device__ __forceinline__ void norm_in_registers(const NormFwd<T>& a, size_t row, unsigned token_row) {
    constexpr int P = PACK<T>;
    float z[PACKS<T>][P], sum = 0.0f, squares = 0.0f;
    uint4 skips[PACKS<T>] = {};
    // All reads are issued before the first is waited for.
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = (pack * 32 + lane()) * P;
        if (c < a.dim) load(z[pack], a.x + row * a.dim + c);
        if (c < a.dim && a.skip) skips[pack] = load_raw<true>(a.skip + row * a.dim + c, P);
    }
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = (pack * 32 + lane()) * P;
        if (c >= a.dim) continue;
        make_z<true>(a, row, token_row, c, z[pack], skips[pack]);
#pragma unroll
        for (int i = 0; i < P; i++) sum += z[pack][i];
    }
    const float mean = warp_sum(sum) * (1.0f / a.dim);
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        if ((pack * 32 + lane()) * P >= a.dim) continue;
#pragma unroll
        for (int i = 0; i < P; i++) squares += (z[pack][i] - mean) * (z[pack][i] - mean);
    }
    const float rstd = keep_stats(a, row, mean, squares);
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = (pack * 32 + lane()) * P;
        if (c < a.dim) make_y<true>(a, row, c, z[pack], mean, rstd);
    }
}

// For any width: a lane reads back what it wrote.
template <class T> __device__ __forceinline__ void norm_in_memory(const NormFwd<T>& a, size_t row, unsigned token_row) {
    constexpr int P = PACK<T>;
    const T* x = a.x + row * a.dim;
    float sum = 0.0f, squares = 0.0f, z[P];
    for (int c = lane() * P; c < a.dim; c += 32 * P) {
        uint4 skip = {};
        load<false>(z, x + c, a.dim - c);
        if (a.skip) skip = load_raw<false>(a.skip + row * a.dim + c, a.dim - c);
        make_z<false>(a, row, token_row, c, z, skip);
        for (int i = 0; i < P; i++) sum += z[i]; // 0 beyond the row
    }
    const float mean = warp_sum(sum) * (1.0f / a.dim);
    for (int c = lane() * P; c < a.dim; c += 32 * P)
        for (int i = c; i < min(c + P, a.dim); i++) squares += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
    const float rstd = keep_stats(a, row, mean, squares);
    for (int c = lane() * P; c < a.dim; c += 32 * P) {
        load<false>(z, x + c, a.dim - c);
        make_y<false>(a, row, c, z, mean, rstd);
    }
}

constexpr int FWD_THREADS = 128;

// One warp per row.
template <class T> __device__ void norm_fwd(const NormFwd<T>& a) {
    const int row = blockIdx.x * (FWD_THREADS / 32) + warp();
    if (row >= a.rows) return;
    const unsigned token_row = a.token_rows ? a.token_rows[row] : row;
    fits<T>(a.dim) ? norm_in_registers(a, row, token_row) : norm_in_memory(a, row, token_row);
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

template <class T> __device__ __forceinline__ void norm_bwd_in_registers(const NormBwd<T>& a, int first, int end) {
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
template <class T> __device__ __forceinline__ void norm_bwd_in_memory(const NormBwd<T>& a, int first, int end) {
    constexpr int P = PACK<T>, THREADS = COLUMN_THREADS<T>, WARPS = THREADS / 32;
    for (int c = threadIdx.x; c < a.dim; c += THREADS) {
        float dgamma = 0.0f, dbeta = 0.0f;
        for (size_t row = first; row < size_t(end); row++) {
            const float dy = to_float(a.dy[row * a.dim + c]), z = to_float(a.z[row * a.dim + c]);
            dgamma += dy * ((z - a.stats[2 * row]) * a.stats[2 * row + 1]);
            dbeta += dy;
        }
        a.partials[size_t(blockIdx.x) * a.dim + c] = dgamma;
        a.partials[size_t(gridDim.x + blockIdx.x) * a.dim + c] = dbeta;
    }
    __syncthreads();
    for (size_t row = first + warp(); row < size_t(end); row += WARPS) {
        const float mean = a.stats[2 * row], rstd = a.stats[2 * row + 1];
        const T *dy = a.dy + row * a.dim, *z = a.z + row * a.dim;
        float sum_g = 0.0f, sum_gn = 0.0f;
        for (int c = lane() * P; c < a.dim; c += 32 * P) {
            for (int i = c; i < min(c + P, a.dim); i++) {
                const float g = to_float(dy[i]) * a.gamma[i];
                sum_g += g;
                sum_gn += g * ((to_float(z[i]) - mean) * rstd);
            }
        }
        const float mean_g = warp_sum(sum_g) * (1.0f / a.dim), mean_gn = warp_sum(sum_gn) * (1.0f / a.dim);
        for (int c = lane() * P; c < a.dim; c += 32 * P) {
            float g[P], n[P], gamma[P];
            load<false>(g, dy + c, a.dim - c);
            load<false>(n, z + c, a.dim - c);
            load<false>(gamma, a.gamma + c, a.dim - c);
#pragma unroll
            for (int i = 0; i < P; i++) {
                n[i] = (n[i] - mean) * rstd;
                g[i] = rstd * (g[i] * gamma[i] - mean_g - n[i] * mean_gn);
            }
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
template <class T> __device__ void norm_bwd(const NormBwd<T>& a) {
    const int first = blockIdx.x * a.chunk, end = min(first + a.chunk, a.rows);
    fits<T>(a.dim) ? norm_bwd_in_registers(a, first, end) : norm_bwd_in_memory(a, first, end);
}
KERNEL(norm_bwd_f32, norm_bwd<float>, NormBwd<float>, 256)
KERNEL(norm_bwd_bf16, norm_bwd<bf16>, NormBwd<bf16>, 128)
KERNEL(norm_bwd_f16, norm_bwd<f16>, NormBwd<f16>, 128)
