// The forward pass of a layer norm, for the ops that end with one. A row is in registers if it fits. Statistics are those of the
// stored, rounded z, so that the backward pass, which reads z, has the same.
#pragma once
#include "gpu.cuh"

// The widest row that is held in registers.
constexpr int WIDEST = 1024;

template <class T> __device__ __forceinline__ bool fits(int dim) { return dim <= WIDEST && dim % PACK<T> == 0; }

// Packs per lane, where a warp has one row.
template <class T> constexpr int PACKS = WIDEST / (32 * PACK<T>);

// Below, `a` are the arguments of a kernel: gamma, beta, y, stats, dim and eps. `row` gives the rest of its row, by packs of
// columns: `fetch` begins to read x, `make_z` makes z of it and stores that, `finish` changes y before it is stored.

template <class A> __device__ __forceinline__ float keep_stats(const A& a, size_t row, float mean, float squares) {
    const float rstd = 1.0f / sqrtf(warp_sum(squares) * (1.0f / a.dim) + a.eps);
    if (lane() == 0) store(a.stats + 2 * row, {mean, rstd});
    return rstd;
}

// y of z from column c on.
template <bool WHOLE, class A, class Row, int P>
__device__ __forceinline__ void make_y(const A& a, const Row& row, int c, const float (&z)[P], float mean, float rstd) {
    float gamma[P], beta[P], y[P];
    load<WHOLE>(gamma, a.gamma + c, a.dim - c);
    load<WHOLE>(beta, a.beta + c, a.dim - c);
#pragma unroll
    for (int i = 0; i < P; i++) y[i] = (z[i] - mean) * rstd * gamma[i] + beta[i];
    row.finish(y, c);
    store<WHOLE>(a.y + row.row * a.dim + c, y, a.dim - c);
}

template <class T, class A, class Row> __device__ __forceinline__ void norm_in_registers(const A& a, Row& row) {
    constexpr int P = PACK<T>;
    float z[PACKS<T>][P], sum = 0.0f, squares = 0.0f;
    // All reads are issued before the first is waited for.
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = (pack * 32 + lane()) * P;
        if (c < a.dim) row.template fetch<true>(z[pack], pack, c);
    }
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = (pack * 32 + lane()) * P;
        if (c >= a.dim) continue;
        row.template make_z<true>(z[pack], pack, c);
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
    const float rstd = keep_stats(a, row.row, mean, squares);
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = (pack * 32 + lane()) * P;
        if (c < a.dim) make_y<true>(a, row, c, z[pack], mean, rstd);
    }
}

// For any width: a lane reads back the z that it wrote to `stored`.
template <class T, class A, class Row> __device__ __forceinline__ void norm_in_memory(const A& a, Row& row, const T* stored) {
    constexpr int P = PACK<T>;
    float sum = 0.0f, squares = 0.0f, z[P];
    for (int c = lane() * P; c < a.dim; c += 32 * P) {
        row.template fetch<false>(z, 0, c);
        row.template make_z<false>(z, 0, c);
        for (int i = 0; i < P; i++) sum += z[i]; // 0 beyond the row
    }
    const float mean = warp_sum(sum) * (1.0f / a.dim);
    for (int c = lane() * P; c < a.dim; c += 32 * P)
        for (int i = c; i < min(c + P, a.dim); i++) squares += (to_float(stored[i]) - mean) * (to_float(stored[i]) - mean);
    const float rstd = keep_stats(a, row.row, mean, squares);
    for (int c = lane() * P; c < a.dim; c += 32 * P) {
        load<false>(z, stored + c, a.dim - c);
        make_y<false>(a, row, c, z, mean, rstd);
    }
}

// A warp's row; z is stored in `x`.
template <class T, class A, class Row> __device__ __forceinline__ void norm(const A& a, Row row) {
    fits<T>(a.dim) ? norm_in_registers<T>(a, row) : norm_in_memory(a, row, a.x + row.row * a.dim);
}
