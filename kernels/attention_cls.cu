// Attention of one query per sequence, [CLS], forward and backward; the maths is in src/ops.rs. A block has one head of one
// sequence. A key belongs to eight lanes, which hold its elements; a group of eight lanes takes eight keys at a time, whose
// draws of dropout come from one call of Philox. The groups' results are merged at the end, in order. Traffic: k and v once, and
// backward dk and dv once.
#include "gpu.cuh"

template <class T> struct AttnClsFwd {
    const T* q;             // (seqs, heads * head_dim) with q_stride
    const T* k;             // (tokens, heads * head_dim) with kv_stride
    const T* v;             // (tokens, heads * head_dim) with kv_stride
    T* y;                   // (seqs, heads * head_dim)
    float* lse;             // (seqs, heads)
    const int* cu_seqlens;  // (seqs + 1)
    int q_stride;
    int kv_stride;
    int heads;
    int head_dim;
    float scale;            // of the scores
    Drop drop;
};

template <class T> struct AttnClsBwd {
    const T* q;             // as in AttnClsFwd
    const T* k;
    const T* v;
    const T* y;
    const T* dy;            // (seqs, heads * head_dim)
    const float* lse;
    T* dq;                  // with the strides of q, k, v
    T* dk;
    T* dv;
    float* sums;            // (3, seqs, heads * head_dim): column sums of dq, dk and dv over the sequence's rows; or null
    const int* cu_seqlens;
    int q_stride;
    int kv_stride;
    int heads;
    int head_dim;
    float scale;
    Drop drop;
};

constexpr int THREADS = 128;
constexpr int GROUPS = THREADS / 8;
constexpr int WIDEST = 128;

__device__ __forceinline__ int group() { return threadIdx.x / 8; }

// The packs of a head's row that a lane may have, 8 apart.
template <class T> constexpr int PACKS = WIDEST / (8 * PACK<T>);
template <class T> __device__ __forceinline__ int column_of(int pack) { return (pack * 8 + lane() % 8) * PACK<T>; }

// Rows in flight.
template <class T> constexpr int BATCH = 8 / PACKS<T>;

// The lane's part of a head's row; 0 beyond head_dim, and if the row does not exist.
template <bool WHOLE, class T>
__device__ __forceinline__ void load_row(uint4 (&raws)[PACKS<T>], const T* row, int head_dim, bool exists) {
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = column_of<T>(pack);
        raws[pack] = uint4{};
        if (exists && c < head_dim) raws[pack] = load_raw<WHOLE>(row + c, head_dim - c);
    }
}

template <class T> __device__ __forceinline__ void unpack_row(float (&x)[PACKS<T>][PACK<T>], const uint4 (&raws)[PACKS<T>]) {
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) unpack<T>(x[pack], raws[pack]);
}

// x += factor * the row.
template <class T>
__device__ __forceinline__ void add_row(float (&x)[PACKS<T>][PACK<T>], float factor, const uint4 (&raws)[PACKS<T>]) {
    float row[PACKS<T>][PACK<T>];
    unpack_row<T>(row, raws);
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++)
#pragma unroll
        for (int i = 0; i < PACK<T>; i++) x[pack][i] += factor * row[pack][i];
}

// Stores factor * x as a row.
template <bool WHOLE, class T>
__device__ __forceinline__ void store_row(T* row, float factor, const float (&x)[PACKS<T>][PACK<T>], int head_dim) {
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) {
        const int c = column_of<T>(pack);
        float scaled[PACK<T>];
#pragma unroll
        for (int i = 0; i < PACK<T>; i++) scaled[i] = factor * x[pack][i];
        if (c < head_dim) store<WHOLE>(row + c, scaled, head_dim - c);
    }
}

// x times a row, summed over the eight lanes of the key.
template <class T>
__device__ __forceinline__ float dot(const float (&x)[PACKS<T>][PACK<T>], const uint4 (&raws)[PACKS<T>]) {
    float row[PACKS<T>][PACK<T>], sum = 0.0f;
    unpack_row<T>(row, raws);
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++)
#pragma unroll
        for (int i = 0; i < PACK<T>; i++) sum += x[pack][i] * row[pack][i];
#pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    return sum;
}

template <class T> __device__ __forceinline__ void share(float* parts, const float (&x)[PACKS<T>][PACK<T>]) {
#pragma unroll
    for (int pack = 0; pack < PACKS<T>; pack++) store(parts + group() * WIDEST + column_of<T>(pack), x[pack]);
}

template <bool WHOLE, class T> __device__ __forceinline__ void attn_cls_fwd_of(const AttnClsFwd<T>& a) {
    __shared__ __align__(16) float parts[GROUPS * WIDEST];
    __shared__ float2 statistics[GROUPS];  // the largest score; the sum of exp(score - largest)
    const int head = blockIdx.x, seq = blockIdx.y, column = head * a.head_dim;
    const int start = a.cu_seqlens[seq], keys = a.cu_seqlens[seq + 1] - start;
    uint4 raw[PACKS<T>];
    float q[PACKS<T>][PACK<T>], out[PACKS<T>][PACK<T>] = {}, largest = -INFINITY, total = 0.0f;
    load_row<WHOLE>(raw, a.q + size_t(seq) * a.q_stride + column, a.head_dim, true);
    unpack_row<T>(q, raw);
    for (int key = 8 * group(); key - 8 * group() < keys; key += 8 * GROUPS) {
        const T* k = a.k + size_t(start + key) * a.kv_stride + column;
        const T* v = a.v + size_t(start + key) * a.kv_stride + column;
        uint4 rows[BATCH<T>][PACKS<T>];
        float p[8], next = largest;
#pragma unroll
        for (int i = 0; i < 8; i += BATCH<T>) {
#pragma unroll
            for (int j = 0; j < BATCH<T>; j++) load_row<WHOLE>(rows[j], k + size_t(i + j) * a.kv_stride, a.head_dim, key + i + j < keys);
#pragma unroll
            for (int j = 0; j < BATCH<T>; j++) {
                const float score = dot<T>(q, rows[j]) * a.scale;
                p[i + j] = key + i + j < keys ? score : -INFINITY;
                next = fmaxf(next, p[i + j]);
            }
        }
        // While a group has no key, or none but those with a score of -inf, its sum is 0.
        const float shift = next == -INFINITY ? 0.0f : next, shrink = __expf(largest - shift);
        largest = next;
        total *= shrink;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            p[i] = __expf(p[i] - shift);
            total += p[i];
        }
        drop_columns(p, a.drop, key, unsigned(start) * a.heads + head);
#pragma unroll
        for (int pack = 0; pack < PACKS<T>; pack++)
#pragma unroll
            for (int i = 0; i < PACK<T>; i++) out[pack][i] *= shrink;
#pragma unroll
        for (int i = 0; i < 8; i += BATCH<T>) {
#pragma unroll
            for (int j = 0; j < BATCH<T>; j++) load_row<WHOLE>(rows[j], v + size_t(i + j) * a.kv_stride, a.head_dim, key + i + j < keys);
#pragma unroll
            for (int j = 0; j < BATCH<T>; j++) add_row<T>(out, p[i + j], rows[j]);
        }
    }
    share<T>(parts, out);
    if (lane() % 8 == 0) statistics[group()] = {largest, total};
    __syncthreads();

    largest = -INFINITY;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) largest = fmaxf(largest, statistics[g].x);
    const float shift = largest == -INFINITY ? 0.0f : largest;
    float y = 0.0f;
    total = 0.0f;
    const int c = threadIdx.x;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const float shrink = __expf(statistics[g].x - shift);
        total += statistics[g].y * shrink;
        y += parts[g * WIDEST + c] * shrink;
    }
    if (c < a.head_dim) a.y[size_t(seq) * a.heads * a.head_dim + column + c] = from_float<T>(y / total);
    if (c == 0) a.lse[size_t(seq) * a.heads + head] = largest + logf(total);
}

template <class T> __device__ void attn_cls_fwd(const AttnClsFwd<T>& a) {
    a.head_dim % PACK<T> == 0 ? attn_cls_fwd_of<true>(a) : attn_cls_fwd_of<false>(a);
}
KERNEL(attn_cls_fwd_f32, attn_cls_fwd<float>, AttnClsFwd<float>, 128)
KERNEL(attn_cls_fwd_bf16, attn_cls_fwd<bf16>, AttnClsFwd<bf16>, 128)
KERNEL(attn_cls_fwd_f16, attn_cls_fwd<f16>, AttnClsFwd<f16>, 128)

template <bool WHOLE, class T> __device__ __forceinline__ void attn_cls_bwd_of(const AttnClsBwd<T>& a) {
    __shared__ __align__(16) float parts[GROUPS * WIDEST];
    __shared__ float2 factors[GROUPS];  // of q in the column sum of dk; of dy in that of dv
    const int head = blockIdx.x, seq = blockIdx.y, dim = a.heads * a.head_dim, column = head * a.head_dim;
    const int start = a.cu_seqlens[seq], keys = a.cu_seqlens[seq + 1] - start;
    const float lse = a.lse[size_t(seq) * a.heads + head];
    uint4 raw[PACKS<T>];
    float q[PACKS<T>][PACK<T>], dy[PACKS<T>][PACK<T>], dq[PACKS<T>][PACK<T>] = {};
    load_row<WHOLE>(raw, a.q + size_t(seq) * a.q_stride + column, a.head_dim, true);
    unpack_row<T>(q, raw);
    load_row<WHOLE>(raw, a.dy + size_t(seq) * dim + column, a.head_dim, true);
    unpack_row<T>(dy, raw);
    load_row<WHOLE>(raw, a.y + size_t(seq) * dim + column, a.head_dim, true);
    const float delta = dot<T>(dy, raw);
    float2 sum = {0.0f, 0.0f};
    for (int key = 8 * group(); key - 8 * group() < keys; key += 8 * GROUPS) {
        const size_t first = size_t(start + key) * a.kv_stride + column;
        float kept[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
        drop_columns(kept, a.drop, key, unsigned(start) * a.heads + head);
#pragma unroll
        for (int i = 0; i < 8; i += BATCH<T>) {
            uint4 k[BATCH<T>][PACKS<T>], v[BATCH<T>][PACKS<T>];
#pragma unroll
            for (int j = 0; j < BATCH<T>; j++) {
                const size_t at = first + size_t(i + j) * a.kv_stride;
                load_row<WHOLE>(k[j], a.k + at, a.head_dim, key + i + j < keys);
                load_row<WHOLE>(v[j], a.v + at, a.head_dim, key + i + j < keys);
            }
#pragma unroll
            for (int j = 0; j < BATCH<T>; j++) {
                const size_t at = first + size_t(i + j) * a.kv_stride;
                const float score = dot<T>(q, k[j]) * a.scale, dp = dot<T>(dy, v[j]);
                const bool exists = key + i + j < keys;
                const float p = exists ? __expf(score - lse) : 0.0f;
                const float of_dy = p * kept[i + j], of_q = exists ? p * (dp * kept[i + j] - delta) * a.scale : 0.0f;
                add_row<T>(dq, of_q, k[j]);
                sum.x += of_q;
                sum.y += of_dy;
                if (!exists) continue;
                store_row<WHOLE>(a.dk + at, of_q, q, a.head_dim);
                store_row<WHOLE>(a.dv + at, of_dy, dy, a.head_dim);
            }
        }
    }
    share<T>(parts, dq);
    if (lane() % 8 == 0) factors[group()] = sum;
    __syncthreads();

    const int c = threadIdx.x;
    if (c >= a.head_dim) return;
    float of_dq = 0.0f;
    sum = {0.0f, 0.0f};
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        of_dq += parts[g * WIDEST + c];
        sum.x += factors[g].x;
        sum.y += factors[g].y;
    }
    const size_t at = size_t(seq) * a.q_stride + column + c, row = size_t(seq) * dim + column + c;
    a.dq[at] = from_float<T>(of_dq);
    if (!a.sums) return;
    const size_t matrix = size_t(gridDim.y) * dim;
    a.sums[row] = of_dq;
    a.sums[matrix + row] = sum.x * to_float(a.q[at]);
    a.sums[2 * matrix + row] = sum.y * to_float(a.dy[row]);
}

template <class T> __device__ void attn_cls_bwd(const AttnClsBwd<T>& a) {
    a.head_dim % PACK<T> == 0 ? attn_cls_bwd_of<true>(a) : attn_cls_bwd_of<false>(a);
}
KERNEL(attn_cls_bwd_f32, attn_cls_bwd<float>, AttnClsBwd<float>, 128)
KERNEL(attn_cls_bwd_bf16, attn_cls_bwd<bf16>, AttnClsBwd<bf16>, 128)
KERNEL(attn_cls_bwd_f16, attn_cls_bwd<f16>, AttnClsBwd<f16>, 128)
