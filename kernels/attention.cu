// Self-attention within each sequence, without storing the probabilities: an online softmax (Dao, arXiv 2307.08691); the
// backward pass recomputes them from lse (the maths is in src/ops.rs). A block holds some rows of one head and streams the
// sequence's rows past them: keys past queries (fwd, bwd_q) or queries past keys (bwd_kv), so nothing is summed across blocks.
// Two paths: f32 from shared memory for any head_dim <= 128, and tensor cores for 16-bit heads of 32 and 64. Traffic: q, y once;
// k and v once per tile of queries (64; tensor cores, forward: 128; f32 heads of more than 64: 32), from L2.
#include "mma.cuh"

template <class T> struct AttnFwd {
    const T* q;             // (tokens, heads * head_dim) with q_stride
    const T* k;             // (tokens, heads * head_dim) with kv_stride
    const T* v;             // (tokens, heads * head_dim) with kv_stride
    T* y;                   // (tokens, heads * head_dim)
    float* lse;             // (tokens, heads)
    const int* cu_seqlens;  // (seqs + 1)
    const int2* tiles;      // sequence, first row: 64 rows each
    int q_stride;
    int kv_stride;
    int heads;
    int head_dim;
    float scale;            // of the scores
    Drop drop;
};

template <class T> struct AttnBwd {
    const T* q;             // as in AttnFwd
    const T* k;
    const T* v;
    const T* y;
    const T* dy;            // (tokens, heads * head_dim)
    const float* lse;
    float* delta;           // (tokens, heads): rowsum(dy * y), from bwd_q to bwd_kv
    T* dq;                  // with the strides of q, k, v
    T* dk;
    T* dv;
    float* sums;            // column sums of each block's rows, or null: (blocks, heads * head_dim) of dq, from bwd_q; (2, blocks,
                            // heads * head_dim) of dk and dv, from bwd_kv
    const int* cu_seqlens;
    const int2* tiles;
    int q_stride;
    int kv_stride;
    int heads;
    int head_dim;
    float scale;
    Drop drop;
};

// Threads per block of every kernel here.
constexpr int THREADS = 128;

// Rows of a tile. The host lists the tiles of a batch; on tensor cores it is also the number of rows streamed at a time.
constexpr int TILE = 64;  // host

// The sequence of a block. Blocks are (head, tile, part of a tile), so that the longest sequences of all heads come first: with
// tiles changing fastest, attention would take a quarter longer on a batch of reviews.
struct Sequence {
    int start;   // packed row of its first token
    int tokens;
    int tile;    // the block's first row, within the sequence
};

template <class Args> __device__ __forceinline__ Sequence sequence(const Args& a) {
    const int2 tile = a.tiles[blockIdx.y];
    const int start = a.cu_seqlens[tile.x];
    return {start, a.cu_seqlens[tile.x + 1] - start, tile.y};
}

// ---- dropout: one call of Philox has the draws of eight keys of one query, which belong to several lanes. Each lane makes its
// share of the calls and stores the draws as bits "kept"; the lanes then exchange bits, until each has those of its elements.

// Pushes the bits of a call's draws, which are at least the threshold or not: each word enters at bits 15 and 31 and moves the words
// before it down. Word w of call c of four is at bits 4 * c + w, for its low half, and 16 + 4 * c + w.
__device__ __forceinline__ void push_kept(unsigned& bits, const Drop& drop, unsigned block, unsigned row) {
    const uint4 words = philox(drop, block, row);
    // A draw is kept if adding this to it carries. Both halves of a word are added at once, up to their highest bits.
    const unsigned addend = (0x10000u - drop.threshold) * 0x10001u;
    const auto push = [&](unsigned word) {
        const unsigned sum = (word & 0x7fff7fffu) + (addend & 0x7fff7fffu);
        const unsigned carries = (word & addend) | (sum & (word | addend));
        bits = bits >> 1 | (carries & 0x80008000u);
    };
    push(words.x);
    push(words.y);
    push(words.z);
    push(words.w);
}

// Whether element i of a lane is kept, after the exchange.
__device__ __forceinline__ bool is_kept(unsigned bits, int i) { return bits >> (i / 2 + i % 2 * 16) & 1; }

// Transposes between lanes that differ in bit `step` of their number and bits that are SHIFT apart.
template <int SHIFT> __device__ __forceinline__ unsigned exchange(unsigned bits, int step) {
    constexpr unsigned LOW = SHIFT == 1 ? 0x55555555u : SHIFT == 2 ? 0x33333333u : 0x0000ffffu;
    const unsigned other = __shfl_xor_sync(ALL_LANES, bits, step);
    return lane() & step ? (bits & ~LOW) | (other & ~LOW) >> SHIFT : (bits & LOW) | (other & LOW) << SHIFT;
}

// ---- any head size, in f32: 128 threads multiply tiles in shared memory. A warp has a quarter of the block's rows and all
// columns of the streamed tile, so that softmax needs no other warp. Lane (l / 8, l % 8) has every fourth of these rows and
// every eighth column: the rows read at one time are 4 banks apart (STRIDE = 4 mod 32, P_STRIDE = 8 or 24) and do not conflict.

template <int D> constexpr int ROWS = D <= 64 ? 64 : 32;         // rows that a block holds
template <int D> constexpr int COLUMNS = D <= 64 ? 32 : 16;      // rows streamed at a time
template <int D> constexpr int STRIDE = D + 4;
template <int D> constexpr int P_STRIDE = COLUMNS<D> + 8;
template <int D> constexpr int R = ROWS<D> / 16;                 // rows and columns per thread
template <int D> constexpr int N = COLUMNS<D> / 8;

template <int D> __device__ __forceinline__ int row_of(int i) { return warp() * (ROWS<D> / 4) + lane() / 8 + 4 * i; }
__device__ __forceinline__ int column_of(int j) { return lane() % 8 + 8 * j; }

// Loads ROWS rows into shared memory; zero from row `valid` and column `head_dim` on. Element by element, whatever the
// alignment: each is loaded once for 32 or 64 products.
template <int D, int ROWS, class T>
__device__ __forceinline__ void load_rows(float* to, const T* from, int stride, int valid, int head_dim) {
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * D; i += THREADS) {
        const int r = i / D, c = i % D;
        to[r * STRIDE<D> + c] = r < valid && c < head_dim ? to_float(from[size_t(r) * stride + c]) : 0.0f;
    }
}

__device__ __forceinline__ float4 read4(const float* p) { return *reinterpret_cast<const float4*>(p); }

// s = x y^T: the thread's rows of x by its columns, which are rows of y.
template <int D> __device__ __forceinline__ void multiply(float (&s)[R<D>][N<D>], const float* x, const float* y) {
#pragma unroll
    for (int i = 0; i < R<D>; i++)
#pragma unroll
        for (int j = 0; j < N<D>; j++) s[i][j] = 0.0f;
#pragma unroll 1
    for (int c = 0; c < D; c += 4) {
        float4 b[N<D>];
#pragma unroll
        for (int j = 0; j < N<D>; j++) b[j] = read4(y + column_of(j) * STRIDE<D> + c);
#pragma unroll
        for (int i = 0; i < R<D>; i++) {
            const float4 a = read4(x + row_of<D>(i) * STRIDE<D> + c);
#pragma unroll
            for (int j = 0; j < N<D>; j++) s[i][j] += a.x * b[j].x + a.y * b[j].y + a.z * b[j].z + a.w * b[j].w;
        }
    }
}

// out += p y through shared memory: the warp's rows of p, all columns, which are rows of y. The thread has columns 32 * b + 4 *
// (lane % 8) .. + 3 of out.
template <int D>
__device__ __forceinline__ void accumulate(float (&out)[R<D>][D / 32][4], const float (&p)[R<D>][N<D>], float* buffer,
                                           const float* y) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < R<D>; i++)
#pragma unroll
        for (int j = 0; j < N<D>; j++) buffer[row_of<D>(i) * P_STRIDE<D> + column_of(j)] = p[i][j];
    __syncwarp();
#pragma unroll 2
    for (int j = 0; j < COLUMNS<D>; j += 4) {
        float a[R<D>][4];
#pragma unroll
        for (int i = 0; i < R<D>; i++) load(a[i], buffer + row_of<D>(i) * P_STRIDE<D> + j);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int b = 0; b < D / 32; b++) {
                const float4 x = read4(y + (j + e) * STRIDE<D> + 32 * b + 4 * (lane() % 8));
#pragma unroll
                for (int i = 0; i < R<D>; i++) {
                    out[i][b][0] += a[i][e] * x.x;
                    out[i][b][1] += a[i][e] * x.y;
                    out[i][b][2] += a[i][e] * x.z;
                    out[i][b][3] += a[i][e] * x.w;
                }
            }
    }
}

// Stores the thread's elements of factor * out, except rows from `valid` on.
template <int D, class T>
__device__ __forceinline__ void store_rows(T* to, int stride, int valid, int head_dim, const float (&out)[R<D>][D / 32][4],
                                           float factor) {
#pragma unroll
    for (int i = 0; i < R<D>; i++)
#pragma unroll
        for (int b = 0; b < D / 32; b++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int r = row_of<D>(i), c = 32 * b + 4 * (lane() % 8) + e;
                if (r < valid && c < head_dim) to[size_t(r) * stride + c] = from_float<T>(out[i][b][e] * factor);
            }
}

// The block's row of column sums, its head's columns; null without sums.
template <class Args> __device__ __forceinline__ float* own_sums(const Args& a, int which) {
    const size_t blocks = size_t(gridDim.y) * gridDim.z, block = size_t(blockIdx.y) * gridDim.z + blockIdx.z;
    return a.sums ? a.sums + ((which * blocks + block) * a.heads + blockIdx.x) * a.head_dim : nullptr;
}

__device__ __forceinline__ void zero_sums(float* sums, int head_dim) {
    if (sums && threadIdx.x < head_dim) sums[threadIdx.x] = 0.0f;
}

// Sums the columns of what store_rows stores; `buffer` is not in use by this warp.
template <int D>
__device__ __forceinline__ void sum_columns(float* sums, float* buffer, int valid, int head_dim,
                                            const float (&out)[R<D>][D / 32][4], float factor) {
    if (!sums) return;
    __syncthreads();
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
        float sum[4] = {};
#pragma unroll
        for (int e = 0; e < 4; e++) {
#pragma unroll
            for (int i = 0; i < R<D>; i++)
                if (row_of<D>(i) < valid) sum[e] += out[i][b][e] * factor;
            sum[e] += __shfl_xor_sync(ALL_LANES, sum[e], 8);
            sum[e] += __shfl_xor_sync(ALL_LANES, sum[e], 16);
        }
        if (lane() < 8) store(buffer + warp() * D + 32 * b + 4 * lane(), sum);
    }
    __syncthreads();
    const int c = threadIdx.x;
    if (c < head_dim) sums[c] = buffer[c] + buffer[D + c] + buffer[2 * D + c] + buffer[3 * D + c];
}

// Which elements 4 * i + j of the thread are kept, where the rows are queries (their dropout rows start at `row`, `heads` apart)
// and the columns keys, from 8 * block on. The eight lanes of a row have the eight keys of a call.
template <int D> __device__ __forceinline__ unsigned kept_elements(const Drop& drop, unsigned block, unsigned row, int heads) {
    unsigned bits = 0;
#pragma unroll 1
    for (int i = lane() % 8 / 4; i < R<D>; i += 2) push_kept(bits, drop, block + lane() % 4, row + row_of<D>(i) * heads);
    return exchange<2>(exchange<1>(exchange<16>(bits >> (16 - 2 * R<D>), 1), 2), 4);
}

// The same where the rows are keys and the columns queries. A call's keys are in four lanes, two rows each.
template <int D>
__device__ __forceinline__ unsigned kept_elements_transposed(const Drop& drop, unsigned block, unsigned row, int heads) {
    unsigned bits = 0;
#pragma unroll 1
    for (int i = 0; i < R<D>; i += 2)
        push_kept(bits, drop, block + row_of<D>(i) / 8, row + column_of(lane() / 8) * heads);
    return exchange<1>(exchange<16>(bits >> (16 - 2 * R<D>), 8), 16);
}

// Over the eight lanes of a row.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int step = 4; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int step = 4; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

template <class T, int D> __device__ void attn_fwd(const AttnFwd<T>& a) {
    DYNAMIC_SHARED(float, q);                   // (ROWS, STRIDE)
    float* k = q + ROWS<D> * STRIDE<D>;         // (COLUMNS, STRIDE)
    float* v = k + COLUMNS<D> * STRIDE<D>;      // (COLUMNS, STRIDE)
    float* buffer = v + COLUMNS<D> * STRIDE<D>; // (ROWS, P_STRIDE)
    const Sequence seq = sequence(a);
    const int head = blockIdx.x, first = seq.tile + blockIdx.z * ROWS<D>;
    if (first >= seq.tokens) return;
    const int dim = a.heads * a.head_dim, column = head * a.head_dim, valid = seq.tokens - first;
    const T* keys = a.k + size_t(seq.start) * a.kv_stride + column;
    const T* values = a.v + size_t(seq.start) * a.kv_stride + column;
    load_rows<D, ROWS<D>>(q, a.q + size_t(seq.start + first) * a.q_stride + column, a.q_stride, valid, a.head_dim);

    float out[R<D>][D / 32][4] = {}, largest[R<D>], total[R<D>] = {};
#pragma unroll
    for (int i = 0; i < R<D>; i++) largest[i] = -INFINITY;
    for (int key = 0; key < seq.tokens; key += COLUMNS<D>) {
        __syncthreads();
        load_rows<D, COLUMNS<D>>(k, keys + size_t(key) * a.kv_stride, a.kv_stride, seq.tokens - key, a.head_dim);
        load_rows<D, COLUMNS<D>>(v, values + size_t(key) * a.kv_stride, a.kv_stride, seq.tokens - key, a.head_dim);
        __syncthreads();
        float p[R<D>][N<D>];
        multiply<D>(p, q, k);
#pragma unroll
        for (int i = 0; i < R<D>; i++) {
            float next = largest[i];
#pragma unroll
            for (int j = 0; j < N<D>; j++) {
                p[i][j] = key + column_of(j) < seq.tokens ? p[i][j] * a.scale : -INFINITY;
                next = fmaxf(next, p[i][j]);
            }
            next = row_max(next);
            const float shrink = __expf(largest[i] - next);
            largest[i] = next;
            total[i] *= shrink;
#pragma unroll
            for (int j = 0; j < N<D>; j++) {
                p[i][j] = __expf(p[i][j] - next);
                total[i] += p[i][j];
            }
#pragma unroll
            for (int b = 0; b < D / 32; b++)
#pragma unroll
                for (int e = 0; e < 4; e++) out[i][b][e] *= shrink;
        }
        if (a.drop.threshold) {
            const unsigned kept = kept_elements<D>(a.drop, key / 8, unsigned(seq.start + first) * a.heads + head, a.heads);
#pragma unroll
            for (int i = 0; i < R<D>; i++)
#pragma unroll
                for (int j = 0; j < N<D>; j++)
                    if (!is_kept(kept, 4 * i + j)) p[i][j] = 0.0f;
        }
        accumulate<D>(out, p, buffer, v);
    }

#pragma unroll
    for (int i = 0; i < R<D>; i++) {
        total[i] = row_sum(total[i]);
        const int r = row_of<D>(i);
        if (lane() % 8 == 0 && r < valid) a.lse[size_t(seq.start + first + r) * a.heads + head] = largest[i] + logf(total[i]);
#pragma unroll
        for (int b = 0; b < D / 32; b++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[i][b][e] /= total[i];
    }
    store_rows<D>(a.y + size_t(seq.start + first) * dim + column, dim, valid, a.head_dim, out, a.drop.scale);
}

// dq, and delta for bwd_kv.
template <class T, int D> __device__ void attn_bwd_q(const AttnBwd<T>& a) {
    DYNAMIC_SHARED(float, q);                   // (ROWS, STRIDE)
    float* dy = q + ROWS<D> * STRIDE<D>;        // (ROWS, STRIDE)
    float* k = dy + ROWS<D> * STRIDE<D>;        // (COLUMNS, STRIDE)
    float* v = k + COLUMNS<D> * STRIDE<D>;      // (COLUMNS, STRIDE)
    float* buffer = v + COLUMNS<D> * STRIDE<D>; // (ROWS, P_STRIDE)
    const Sequence seq = sequence(a);
    const int head = blockIdx.x, first = seq.tile + blockIdx.z * ROWS<D>;
    if (first >= seq.tokens) return zero_sums(own_sums(a, 0), a.head_dim);
    const int dim = a.heads * a.head_dim, column = head * a.head_dim, valid = seq.tokens - first;
    const T* keys = a.k + size_t(seq.start) * a.kv_stride + column;
    const T* values = a.v + size_t(seq.start) * a.kv_stride + column;
    const size_t row = seq.start + first;
    load_rows<D, ROWS<D>>(q, a.q + row * a.q_stride + column, a.q_stride, valid, a.head_dim);
    load_rows<D, ROWS<D>>(dy, a.dy + row * dim + column, dim, valid, a.head_dim);
    __syncthreads();

    float out[R<D>][D / 32][4] = {}, lse[R<D>], delta[R<D>];
#pragma unroll
    for (int i = 0; i < R<D>; i++) {
        const int r = row_of<D>(i);
        const T* y = a.y + (row + r) * dim + column;
        lse[i] = delta[i] = 0.0f;
        if (r < valid) {
            lse[i] = a.lse[(row + r) * a.heads + head];
            for (int c = lane() % 8; c < a.head_dim; c += 8) delta[i] += dy[r * STRIDE<D> + c] * to_float(y[c]);
        }
        delta[i] = row_sum(delta[i]);
        if (lane() % 8 == 0 && r < valid) a.delta[(row + r) * a.heads + head] = delta[i];
    }
    for (int key = 0; key < seq.tokens; key += COLUMNS<D>) {
        __syncthreads();
        load_rows<D, COLUMNS<D>>(k, keys + size_t(key) * a.kv_stride, a.kv_stride, seq.tokens - key, a.head_dim);
        load_rows<D, COLUMNS<D>>(v, values + size_t(key) * a.kv_stride, a.kv_stride, seq.tokens - key, a.head_dim);
        __syncthreads();
        float p[R<D>][N<D>], ds[R<D>][N<D>];
        multiply<D>(p, q, k);
        multiply<D>(ds, dy, v);
        unsigned kept = ~0u;
        if (a.drop.threshold) kept = kept_elements<D>(a.drop, key / 8, unsigned(seq.start + first) * a.heads + head, a.heads);
#pragma unroll
        for (int i = 0; i < R<D>; i++)
#pragma unroll
            for (int j = 0; j < N<D>; j++) {
                p[i][j] = key + column_of(j) < seq.tokens ? __expf(p[i][j] * a.scale - lse[i]) : 0.0f;
                const float factor = is_kept(kept, 4 * i + j) ? a.drop.scale : 0.0f;
                ds[i][j] = p[i][j] * (ds[i][j] * factor - delta[i]);
            }
        accumulate<D>(out, ds, buffer, k);
    }
    store_rows<D>(a.dq + row * a.q_stride + column, a.q_stride, valid, a.head_dim, out, a.scale);
    sum_columns<D>(own_sums(a, 0), buffer, valid, a.head_dim, out, a.scale);
}

// dk and dv. The rows of a thread are keys, its columns queries.
template <class T, int D> __device__ void attn_bwd_kv(const AttnBwd<T>& a) {
    DYNAMIC_SHARED(float, k);                    // (ROWS, STRIDE)
    float* v = k + ROWS<D> * STRIDE<D>;          // (ROWS, STRIDE)
    float* q = v + ROWS<D> * STRIDE<D>;          // (COLUMNS, STRIDE)
    float* dy = q + COLUMNS<D> * STRIDE<D>;      // (COLUMNS, STRIDE)
    float* buffer = dy + COLUMNS<D> * STRIDE<D>; // (ROWS, P_STRIDE)
    const Sequence seq = sequence(a);
    const int head = blockIdx.x, first = seq.tile + blockIdx.z * ROWS<D>;
    if (first >= seq.tokens) {
        zero_sums(own_sums(a, 0), a.head_dim);
        return zero_sums(own_sums(a, 1), a.head_dim);
    }
    const int dim = a.heads * a.head_dim, column = head * a.head_dim, valid = seq.tokens - first;
    const size_t key = size_t(seq.start + first) * a.kv_stride + column;
    load_rows<D, ROWS<D>>(k, a.k + key, a.kv_stride, valid, a.head_dim);
    load_rows<D, ROWS<D>>(v, a.v + key, a.kv_stride, valid, a.head_dim);

    float dk[R<D>][D / 32][4] = {}, dv[R<D>][D / 32][4] = {};
    for (int query = 0; query < seq.tokens; query += COLUMNS<D>) {
        const size_t row = seq.start + query;
        __syncthreads();
        load_rows<D, COLUMNS<D>>(q, a.q + row * a.q_stride + column, a.q_stride, seq.tokens - query, a.head_dim);
        load_rows<D, COLUMNS<D>>(dy, a.dy + row * dim + column, dim, seq.tokens - query, a.head_dim);
        __syncthreads();
        float p[R<D>][N<D>], ds[R<D>][N<D>];
        multiply<D>(p, k, q);
        multiply<D>(ds, v, dy);
        unsigned kept = ~0u;
        if (a.drop.threshold)
            kept = kept_elements_transposed<D>(a.drop, first / 8, unsigned(seq.start + query) * a.heads + head, a.heads);
#pragma unroll
        for (int j = 0; j < N<D>; j++) {
            const int c = column_of(j);
            const bool there = query + c < seq.tokens;
            const float lse = there ? a.lse[(row + c) * a.heads + head] : INFINITY;
            const float delta = there ? a.delta[(row + c) * a.heads + head] : 0.0f;
#pragma unroll
            for (int i = 0; i < R<D>; i++) {
                const float prob = __expf(p[i][j] * a.scale - lse);
                const float factor = is_kept(kept, 4 * i + j) ? a.drop.scale : 0.0f;
                ds[i][j] = prob * (ds[i][j] * factor - delta);
                p[i][j] = prob * factor;
            }
        }
        accumulate<D>(dv, p, buffer, dy);
        accumulate<D>(dk, ds, buffer, q);
    }
    store_rows<D>(a.dk + key, a.kv_stride, valid, a.head_dim, dk, a.scale);
    store_rows<D>(a.dv + key, a.kv_stride, valid, a.head_dim, dv, 1.0f);
    sum_columns<D>(own_sums(a, 0), buffer, valid, a.head_dim, dk, a.scale);
    sum_columns<D>(own_sums(a, 1), buffer, valid, a.head_dim, dv, 1.0f);
}

// Shared memory of these kernels: STATIONARY tiles stay, two are streamed, and P passes through a buffer.
template <int D, int STATIONARY>
constexpr int SHARED = int(sizeof(float)) * ((STATIONARY * ROWS<D> + 2 * COLUMNS<D>) * STRIDE<D> + ROWS<D> * P_STRIDE<D>);
static_assert(SHARED<32, 1> == 28672 && SHARED<64, 1> == 45056 && SHARED<128, 1> == 36864, "forward");
static_assert(SHARED<32, 2> == 37888 && SHARED<64, 2> == 62464 && SHARED<128, 2> == 53760, "backward");

KERNEL(attn_fwd_d32_f32, (attn_fwd<float, 32>), AttnFwd<float>, 128, 28672)
KERNEL(attn_fwd_d32_bf16, (attn_fwd<bf16, 32>), AttnFwd<bf16>, 128, 28672)
KERNEL(attn_fwd_d32_f16, (attn_fwd<f16, 32>), AttnFwd<f16>, 128, 28672)
KERNEL(attn_fwd_d64_f32, (attn_fwd<float, 64>), AttnFwd<float>, 128, 45056)
KERNEL(attn_fwd_d64_bf16, (attn_fwd<bf16, 64>), AttnFwd<bf16>, 128, 45056)
KERNEL(attn_fwd_d64_f16, (attn_fwd<f16, 64>), AttnFwd<f16>, 128, 45056)
KERNEL(attn_fwd_d128_f32, (attn_fwd<float, 128>), AttnFwd<float>, 128, 36864)
KERNEL(attn_fwd_d128_bf16, (attn_fwd<bf16, 128>), AttnFwd<bf16>, 128, 36864)
KERNEL(attn_fwd_d128_f16, (attn_fwd<f16, 128>), AttnFwd<f16>, 128, 36864)
KERNEL(attn_bwd_q_d32_f32, (attn_bwd_q<float, 32>), AttnBwd<float>, 128, 37888)
KERNEL(attn_bwd_q_d32_bf16, (attn_bwd_q<bf16, 32>), AttnBwd<bf16>, 128, 37888)
KERNEL(attn_bwd_q_d32_f16, (attn_bwd_q<f16, 32>), AttnBwd<f16>, 128, 37888)
KERNEL(attn_bwd_q_d64_f32, (attn_bwd_q<float, 64>), AttnBwd<float>, 128, 62464)
KERNEL(attn_bwd_q_d64_bf16, (attn_bwd_q<bf16, 64>), AttnBwd<bf16>, 128, 62464)
KERNEL(attn_bwd_q_d64_f16, (attn_bwd_q<f16, 64>), AttnBwd<f16>, 128, 62464)
KERNEL(attn_bwd_q_d128_f32, (attn_bwd_q<float, 128>), AttnBwd<float>, 128, 53760, 4)
KERNEL(attn_bwd_q_d128_bf16, (attn_bwd_q<bf16, 128>), AttnBwd<bf16>, 128, 53760, 4)
KERNEL(attn_bwd_q_d128_f16, (attn_bwd_q<f16, 128>), AttnBwd<f16>, 128, 53760, 4)
KERNEL(attn_bwd_kv_d32_f32, (attn_bwd_kv<float, 32>), AttnBwd<float>, 128, 37888)
KERNEL(attn_bwd_kv_d32_bf16, (attn_bwd_kv<bf16, 32>), AttnBwd<bf16>, 128, 37888)
KERNEL(attn_bwd_kv_d32_f16, (attn_bwd_kv<f16, 32>), AttnBwd<f16>, 128, 37888)
KERNEL(attn_bwd_kv_d64_f32, (attn_bwd_kv<float, 64>), AttnBwd<float>, 128, 62464)
KERNEL(attn_bwd_kv_d64_bf16, (attn_bwd_kv<bf16, 64>), AttnBwd<bf16>, 128, 62464)
KERNEL(attn_bwd_kv_d64_f16, (attn_bwd_kv<f16, 64>), AttnBwd<f16>, 128, 62464)
KERNEL(attn_bwd_kv_d128_f32, (attn_bwd_kv<float, 128>), AttnBwd<float>, 128, 53760)
KERNEL(attn_bwd_kv_d128_bf16, (attn_bwd_kv<bf16, 128>), AttnBwd<bf16>, 128, 53760)
KERNEL(attn_bwd_kv_d128_f16, (attn_bwd_kv<f16, 128>), AttnBwd<f16>, 128, 53760)

// ---- heads of 32 and 64 in bf16 or f16 on tensor cores: 4 warps of 16 or 32 rows each, which stay in registers as first operands
// (fragments of mma m16n8k16); the rows streamed past them are second operands, read from shared memory by ldmatrix. The result
// of one product has the register layout of the next product's first operand, so scores and probabilities never leave their
// registers. With lane l = 4 * g + t, element e of fragment n is in row g + 8 * (e / 2), column 8 * n + 2 * t + e % 2. Rows in
// shared memory are 16 bytes longer than D: the 8 rows that ldmatrix reads at a time are in different banks. Two stages of
// streamed rows: one is read while cp.async fills the other, which was read before the last barrier.

// This thread's warp, known to the compiler as uniform: code that depends on it needs no handling of divergence.
__device__ __forceinline__ int uniform_warp() { return __shfl_sync(ALL_LANES, warp(), 0); }

constexpr float LOG2E = 1.4426950408889634f;
template <int D> constexpr int PITCH = D + 8;        // of a row in shared memory
template <int D> constexpr int STAGE = 2 * TILE * PITCH<D>;

// Starts the copies of ROWS rows of a head; zero from row `valid` on.
template <int D, int ROWS, class T> __device__ __forceinline__ void copy_rows(T* to, const T* from, int stride, int valid) {
    constexpr int AT_ONCE = THREADS / (D / 8);
    const int row = threadIdx.x / (D / 8), column = threadIdx.x % (D / 8) * 8;
#pragma unroll
    for (int r = row; r < row + ROWS; r += AT_ONCE)
        cp_async16(to + r * PITCH<D> + column, from + size_t(r < valid ? r : 0) * stride + column, r < valid);
}

// Starts the copies of rows `first` .. `first + 63` of two heads of `rows` rows each: a stage.
template <int D, class T>
__device__ __forceinline__ void copy_stage(T* to, const T* x, int x_stride, const T* y, int y_stride, int first, int rows) {
    copy_rows<D, TILE>(to, x + size_t(first) * x_stride, x_stride, rows - first);
    copy_rows<D, TILE>(to + TILE * PITCH<D>, y + size_t(first) * y_stride, y_stride, rows - first);
    cp_async_commit();
}

// Rows `row` .. `row + 15` of shared memory as first operands, 16 columns each.
template <int D, class T> __device__ __forceinline__ void load_fragments(unsigned (&x)[D / 16][4], const T* rows, int row) {
#pragma unroll
    for (int c = 0; c < D / 16; c++) ldmatrix4(x[c], rows + (row + lane() % 16) * PITCH<D> + 16 * c + lane() / 16 * 8);
}

// s = x y^T: M times 16 rows of x by 8 N rows of y.
template <int D, int M, int N, class T>
__device__ __forceinline__ void multiply(float (&s)[M][N][4], const unsigned (&x)[M][D / 16][4], const T* y) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[m][n][e] = 0.0f;
    const T* mine = y + (lane() % 8 + lane() / 16 * 8) * PITCH<D> + lane() / 8 % 2 * 8;
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned both[4];
            ldmatrix4(both, mine + 8 * n * PITCH<D> + 16 * c);
            const unsigned low[2] = {both[0], both[1]}, high[2] = {both[2], both[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma<T>(s[m][n], x[m][c], low);
                mma<T>(s[m][n + 1], x[m][c], high);
            }
        }
}

// out += p y: p rounded to T, M times 16 rows; 8 N rows of y.
template <int D, int M, int N, class T>
__device__ __forceinline__ void accumulate(float (&out)[M][D / 8][4], const float (&p)[M][N][4], const T* y) {
    const T* mine = y + lane() % 16 * PITCH<D> + lane() / 16 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) a[m][i] = pack<T>(p[m][n + i / 2][i % 2 * 2], p[m][n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int c = 0; c < D / 8; c += 2) {
            unsigned both[4];
            ldmatrix4_trans(both, mine + 8 * n * PITCH<D> + 8 * c);
            const unsigned low[2] = {both[0], both[1]}, high[2] = {both[2], both[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma<T>(out[m][c], a[m], low);
                mma<T>(out[m][c + 1], a[m], high);
            }
        }
    }
}

// Stores the lane's elements of factor[e / 2] * out, except rows from `valid` on.
template <int D, class T>
__device__ __forceinline__ void store_fragments(T* to, int stride, int valid, const float (&out)[D / 8][4],
                                                const float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = lane() / 4 + 8 * h;
        if (r >= valid) continue;
        T* mine = to + size_t(r) * stride + lane() % 4 * 2;
#pragma unroll
        for (int c = 0; c < D / 8; c++) store<2>(mine + 8 * c, {out[c][2 * h] * factor[h], out[c][2 * h + 1] * factor[h]});
    }
}

// Sums the columns of what store_fragments stores, over the block's warps.
template <int D>
__device__ __forceinline__ void sum_columns(float* sums, float* buffer, int valid, const float (&out)[D / 8][4], float factor) {
    if (!sums) return;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        float sum[2] = {};
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (lane() / 4 + e / 2 * 8 < valid) sum[e % 2] += out[c][e] * factor;
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int step = 4; step < 32; step *= 2) sum[e] += __shfl_xor_sync(ALL_LANES, sum[e], step);
        if (lane() < 4) store(buffer + warp() * D + 8 * c + 2 * lane(), sum);
    }
    __syncthreads();
    const int c = threadIdx.x;
    if (c < D) sums[c] = buffer[c] + buffer[D + c] + buffer[2 * D + c] + buffer[3 * D + c];
}

// Which elements 4 * n + e of the lane's fragments are kept; the rows are queries (with dropout rows `heads` apart, starting at
// `row`), the columns keys, from 8 * block on. The four lanes of a row share the calls of two fragments, for rows g and g + 8.
__device__ __forceinline__ unsigned kept_fragments(const Drop& drop, unsigned block, unsigned row, int heads) {
    const int g = lane() / 4, t = lane() % 4;
    unsigned bits = 0;
#pragma unroll 2
    for (int n = 0; n < TILE / 8; n += 2) push_kept(bits, drop, block + n + t / 2, row + (g + t % 2 * 8) * heads);
    return exchange<2>(exchange<1>(bits, 1), 2);
}

// The same with keys as rows and queries as columns: the eight lanes of a column share the calls of two fragments' elements.
__device__ __forceinline__ unsigned kept_fragments_transposed(const Drop& drop, unsigned block, unsigned row, int heads) {
    const int g = lane() / 4, t = lane() % 4;
    unsigned bits = 0;
#pragma unroll
    for (int n = 0; n < TILE / 8; n += 2)
        push_kept(bits, drop, block + g % 4 / 2, row + (8 * (n + g / 4) + 2 * t + g % 2) * heads);
    return exchange<2>(exchange<1>(exchange<16>(bits, 4), 8), 16);
}

// A block handles two tiles, 128 queries: a key is read from shared memory once per 32 of them.
template <class T, int D> __device__ void attn_fwd_mma(const AttnFwd<T>& a) {
    constexpr int M = 2, N = TILE / 8;
    DYNAMIC_SHARED(T, shared);  // two stages of k, v: (TILE, PITCH) each
    const Sequence seq = sequence(a);
    if (seq.tile % (2 * TILE) != 0) return;
    const int head = blockIdx.x, column = head * D, dim = a.heads * D, row = uniform_warp() * 16 * M;
    const int valid = seq.tokens - seq.tile - row;  // the warp's queries
    const T* q = a.q + size_t(seq.start) * a.q_stride + column;
    const T* k = a.k + size_t(seq.start) * a.kv_stride + column;
    const T* v = a.v + size_t(seq.start) * a.kv_stride + column;

    // The queries pass through the second stage.
    copy_rows<D, 2 * TILE>(shared + STAGE<D>, q + size_t(seq.tile) * a.q_stride, a.q_stride, seq.tokens - seq.tile);
    copy_stage<D>(shared, k, a.kv_stride, v, a.kv_stride, 0, seq.tokens);
    cp_async_wait<0>();
    __syncthreads();
    unsigned own_q[M][D / 16][4];
#pragma unroll
    for (int m = 0; m < M; m++) load_fragments<D>(own_q[m], shared + STAGE<D>, row + 16 * m);

    const float scale = a.scale * LOG2E;  // exp(x) = 2^(x log2 e)
    float out[M][D / 8][4] = {}, largest[M][2], total[M][2] = {};
#pragma unroll
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INFINITY;
    for (int key = 0, stage = 0; key < seq.tokens; key += TILE) {
        cp_async_wait<0>();
        __syncthreads();
        const T* tile = shared + stage * STAGE<D>;
        stage ^= 1;
        if (key + TILE < seq.tokens) copy_stage<D>(shared + stage * STAGE<D>, k, a.kv_stride, v, a.kv_stride, key + TILE, seq.tokens);
        if (valid <= 0) continue;
        float p[M][N][4];
        multiply<D>(p, own_q, tile);
        if (seq.tokens - key < TILE) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (key + 8 * n + lane() % 4 * 2 + e % 2 >= seq.tokens) p[m][n][e] = -INFINITY;
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float next = largest[m][h];
#pragma unroll
                for (int n = 0; n < N; n++) next = fmaxf(next, fmaxf(p[m][n][2 * h], p[m][n][2 * h + 1]));
                next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, 1));
                next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, 2));
                const float shrink = exp2_approx((largest[m][h] - next) * scale), shift = next * scale;
                largest[m][h] = next;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; e++) {
                        p[m][n][e] = exp2_approx(p[m][n][e] * scale - shift);
                        sum += p[m][n][e];
                    }
                total[m][h] = total[m][h] * shrink + sum;
#pragma unroll
                for (int c = 0; c < D / 8; c++) {
                    out[m][c][2 * h] *= shrink;
                    out[m][c][2 * h + 1] *= shrink;
                }
            }
        if (a.drop.threshold) {
#pragma unroll
            for (int m = 0; m < M; m++) {
                const unsigned first = seq.start + seq.tile + row + 16 * m;
                const unsigned kept = kept_fragments(a.drop, key / 8, first * a.heads + head, a.heads);
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (!is_kept(kept, 4 * n + e)) p[m][n][e] = 0.0f;
            }
        }
        accumulate<D>(out, p, tile + TILE * PITCH<D>);
    }
    if (valid <= 0) return;

#pragma unroll
    for (int m = 0; m < M; m++) {
        float factor[2];
        const int first = seq.start + seq.tile + row + 16 * m;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = total[m][h];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            factor[h] = __fdividef(a.drop.scale, sum);
            const int r = lane() / 4 + 8 * h;
            if (lane() % 4 == 0 && 16 * m + r < valid)
                a.lse[size_t(first + r) * a.heads + head] = largest[m][h] * a.scale + logf(sum);
        }
        store_fragments<D>(a.y + size_t(first) * dim + column, dim, valid - 16 * m, out[m], factor);
    }
}

// dq, and delta for bwd_kv. 64 queries per block; keys in two halves, to save registers.
template <class T, int D> __device__ void attn_bwd_q_mma(const AttnBwd<T>& a) {
    constexpr int N = 4;
    DYNAMIC_SHARED(T, shared);  // two stages of k, v: (TILE, PITCH) each
    const Sequence seq = sequence(a);
    const int head = blockIdx.x, column = head * D, dim = a.heads * D, row = uniform_warp() * 16;
    const int valid = seq.tokens - seq.tile - row;
    const T* q = a.q + size_t(seq.start) * a.q_stride + column;
    const T* dy = a.dy + size_t(seq.start) * dim + column;
    const T* k = a.k + size_t(seq.start) * a.kv_stride + column;
    const T* v = a.v + size_t(seq.start) * a.kv_stride + column;
    copy_stage<D>(shared + STAGE<D>, q, a.q_stride, dy, dim, seq.tile, seq.tokens);
    copy_stage<D>(shared, k, a.kv_stride, v, a.kv_stride, 0, seq.tokens);
    cp_async_wait<0>();
    __syncthreads();
    unsigned own_q[1][D / 16][4], own_dy[1][D / 16][4];
    load_fragments<D>(own_q[0], shared + STAGE<D>, row);
    load_fragments<D>(own_dy[0], shared + STAGE<D>, TILE + row);

    const size_t first = seq.start + seq.tile + row;
    float lse[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = lane() / 4 + 8 * h;
        lse[h] = delta[h] = 0.0f;
        if (r < valid) {
            lse[h] = a.lse[(first + r) * a.heads + head] * LOG2E;
            const T* y = a.y + (first + r) * dim + column + lane() % 4 * 2;
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                const float2 d = unpack<T>(own_dy[0][c / 2][h + c % 2 * 2]);
                float pair[2];
                load<2>(pair, y + 8 * c);
                delta[h] += d.x * pair[0] + d.y * pair[1];
            }
        }
        delta[h] += __shfl_xor_sync(ALL_LANES, delta[h], 1);
        delta[h] += __shfl_xor_sync(ALL_LANES, delta[h], 2);
        if (lane() % 4 == 0 && r < valid) a.delta[(first + r) * a.heads + head] = delta[h];
    }

    const float scale = a.scale * LOG2E;
    float dq[1][D / 8][4] = {};
    for (int key = 0, stage = 0; key < seq.tokens; key += TILE) {
        cp_async_wait<0>();
        __syncthreads();
        const T* tile = shared + stage * STAGE<D>;
        stage ^= 1;
        if (key + TILE < seq.tokens) copy_stage<D>(shared + stage * STAGE<D>, k, a.kv_stride, v, a.kv_stride, key + TILE, seq.tokens);
        if (valid <= 0) continue;
        unsigned kept = ~0u;
        if (a.drop.threshold) kept = kept_fragments(a.drop, key / 8, unsigned(seq.start + seq.tile + row) * a.heads + head, a.heads);
#pragma unroll
        for (int half = 0; half < TILE; half += 8 * N) {
            float p[1][N][4], ds[1][N][4];
            multiply<D>(p, own_q, tile + half * PITCH<D>);
            multiply<D>(ds, own_dy, tile + (TILE + half) * PITCH<D>);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int c = key + half + 8 * n + lane() % 4 * 2 + e % 2;
                    const float prob = c < seq.tokens ? exp2_approx(p[0][n][e] * scale - lse[e / 2]) : 0.0f;
                    const float factor = is_kept(kept, half / 2 + 4 * n + e) ? a.drop.scale : 0.0f;
                    ds[0][n][e] = prob * (ds[0][n][e] * factor - delta[e / 2]);
                }
            accumulate<D>(dq, ds, tile + half * PITCH<D>);
        }
    }
    store_fragments<D>(a.dq + first * a.q_stride + column, a.q_stride, valid, dq[0], {a.scale, a.scale});
    sum_columns<D>(own_sums(a, 0), reinterpret_cast<float*>(shared), valid, dq[0], a.scale);
}

// dk and dv. 64 keys per block; the rows of a warp are keys, its columns queries, in two halves.
template <class T, int D> __device__ void attn_bwd_kv_mma(const AttnBwd<T>& a) {
    constexpr int N = 4;
    DYNAMIC_SHARED(T, shared);  // two stages of q, dy: (TILE, PITCH) each
    __shared__ float2 statistics[2][TILE];  // two stages of the queries' lse (to base 2) and delta
    const Sequence seq = sequence(a);
    const int head = blockIdx.x, column = head * D, dim = a.heads * D, row = uniform_warp() * 16;
    const int valid = seq.tokens - seq.tile - row;
    const T* k = a.k + size_t(seq.start) * a.kv_stride + column;
    const T* v = a.v + size_t(seq.start) * a.kv_stride + column;
    const T* q = a.q + size_t(seq.start) * a.q_stride + column;
    const T* dy = a.dy + size_t(seq.start) * dim + column;
    // If there is no query, p = 2^-inf = 0.
    const auto fetch = [&](int query) {
        query += threadIdx.x;
        if (threadIdx.x >= TILE || query >= seq.tokens) return float2{INFINITY, 0.0f};
        const size_t at = size_t(seq.start + query) * a.heads + head;
        return float2{a.lse[at] * LOG2E, a.delta[at]};
    };
    copy_stage<D>(shared + STAGE<D>, k, a.kv_stride, v, a.kv_stride, seq.tile, seq.tokens);
    copy_stage<D>(shared, q, a.q_stride, dy, dim, 0, seq.tokens);
    float2 fetched = fetch(0);
    cp_async_wait<0>();
    __syncthreads();
    unsigned own_k[1][D / 16][4], own_v[1][D / 16][4];
    load_fragments<D>(own_k[0], shared + STAGE<D>, row);
    load_fragments<D>(own_v[0], shared + STAGE<D>, TILE + row);

    const float scale = a.scale * LOG2E;
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    for (int query = 0, stage = 0; query < seq.tokens; query += TILE) {
        const T* tile = shared + stage * STAGE<D>;
        const float2* tile_statistics = statistics[stage];
        if (threadIdx.x < TILE) statistics[stage][threadIdx.x] = fetched;
        cp_async_wait<0>();
        __syncthreads();
        stage ^= 1;
        if (query + TILE < seq.tokens) {
            copy_stage<D>(shared + stage * STAGE<D>, q, a.q_stride, dy, dim, query + TILE, seq.tokens);
            fetched = fetch(query + TILE);
        }
        if (valid <= 0) continue;
        unsigned kept = ~0u;
        if (a.drop.threshold)
            kept = kept_fragments_transposed(a.drop, (seq.tile + row) / 8, unsigned(seq.start + query) * a.heads + head, a.heads);
#pragma unroll
        for (int half = 0; half < TILE; half += 8 * N) {
            const T *tile_q = tile + half * PITCH<D>, *tile_dy = tile_q + TILE * PITCH<D>;
            float p[1][N][4], ds[1][N][4];
            multiply<D>(p, own_k, tile_q);
            multiply<D>(ds, own_v, tile_dy);
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2* of_query = tile_statistics + half + 8 * n + lane() % 4 * 2;
                const float lse[2] = {of_query[0].x, of_query[1].x}, delta[2] = {of_query[0].y, of_query[1].y};
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float prob = exp2_approx(p[0][n][e] * scale - lse[e % 2]);
                    const bool keep = is_kept(kept, half / 2 + 4 * n + e);
                    ds[0][n][e] = prob * (ds[0][n][e] * (keep ? a.drop.scale : 0.0f) - delta[e % 2]);
                    p[0][n][e] = keep ? prob : 0.0f;
                }
            }
            accumulate<D>(dv, p, tile_dy);
            accumulate<D>(dk, ds, tile_q);
        }
    }
    const size_t first = size_t(seq.start + seq.tile + row) * a.kv_stride + column;
    store_fragments<D>(a.dk + first, a.kv_stride, valid, dk[0], {a.scale, a.scale});
    store_fragments<D>(a.dv + first, a.kv_stride, valid, dv[0], {a.drop.scale, a.drop.scale});
    sum_columns<D>(own_sums(a, 0), reinterpret_cast<float*>(shared), valid, dk[0], a.scale);
    sum_columns<D>(own_sums(a, 1), reinterpret_cast<float*>(shared), valid, dv[0], a.drop.scale);
}

// Two stages each, of elements of two bytes.
static_assert(2 * STAGE<32> * sizeof(bf16) == 20480 && 2 * STAGE<64> * sizeof(bf16) == 36864, "two stages");

KERNEL(attn_fwd_mma_d32_bf16, (attn_fwd_mma<bf16, 32>), AttnFwd<bf16>, 128, 20480)
KERNEL(attn_fwd_mma_d32_f16, (attn_fwd_mma<f16, 32>), AttnFwd<f16>, 128, 20480)
KERNEL(attn_fwd_mma_d64_bf16, (attn_fwd_mma<bf16, 64>), AttnFwd<bf16>, 128, 36864)
KERNEL(attn_fwd_mma_d64_f16, (attn_fwd_mma<f16, 64>), AttnFwd<f16>, 128, 36864)
KERNEL(attn_bwd_q_mma_d32_bf16, (attn_bwd_q_mma<bf16, 32>), AttnBwd<bf16>, 128, 20480)
KERNEL(attn_bwd_q_mma_d32_f16, (attn_bwd_q_mma<f16, 32>), AttnBwd<f16>, 128, 20480)
KERNEL(attn_bwd_q_mma_d64_bf16, (attn_bwd_q_mma<bf16, 64>), AttnBwd<bf16>, 128, 36864, 4)
KERNEL(attn_bwd_q_mma_d64_f16, (attn_bwd_q_mma<f16, 64>), AttnBwd<f16>, 128, 36864, 4)
KERNEL(attn_bwd_kv_mma_d32_bf16, (attn_bwd_kv_mma<bf16, 32>), AttnBwd<bf16>, 128, 20480)
KERNEL(attn_bwd_kv_mma_d32_f16, (attn_bwd_kv_mma<f16, 32>), AttnBwd<f16>, 128, 20480)
KERNEL(attn_bwd_kv_mma_d64_bf16, (attn_bwd_kv_mma<bf16, 64>), AttnBwd<bf16>, 128, 36864, 3)
KERNEL(attn_bwd_kv_mma_d64_f16, (attn_bwd_kv_mma<f16, 64>), AttnBwd<f16>, 128, 36864, 3)
