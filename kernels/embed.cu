// Embedding tables and their norm: gather forward; backward, after that of the norm (norm.cu), a sum over the rows of each token,
// position and token type in a fixed order. Also the [CLS] rows. Forward reads 4 bytes per element of each table and writes x
// and y; backward reads dx once per table.
#include "norm.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

template <int N> __device__ __forceinline__ void add(float (&sum)[N], const float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += x[i];
}

template <class T> struct EmbedFwd {
    const int* ids;          // (rows)
    const int* positions;    // (rows)
    const int* types;        // (rows)
    const float* word;       // (vocab, dim)
    const float* position;   // (positions, dim)
    const float* type_table; // (types, dim) or null
    const float* gamma;      // (dim)
    const float* beta;       // (dim)
    T* x;                    // (rows, dim): the sum of the tables' rows
    T* y;                    // (rows, dim)
    float* stats;            // (rows, 2): mean, 1 / standard deviation
    int rows;
    int dim;
    float eps;
    Drop drop;
};

// z = x, the sum of the tables' rows; y is dropped.
template <class T> struct TokenRow {
    static constexpr int P = PACK<T>;
    const EmbedFwd<T>& a;
    size_t row;
    const float* word = a.word + size_t(a.ids[row]) * a.dim;
    const float* position = a.position + size_t(a.positions[row]) * a.dim;
    const float* type = a.type_table ? a.type_table + size_t(a.types[row]) * a.dim : nullptr;

    template <bool WHOLE> __device__ __forceinline__ void fetch(float (&sum)[P], int, int c) const {
        float x[P];
        load<WHOLE>(sum, word + c, a.dim - c);
        load<WHOLE>(x, position + c, a.dim - c);
        add(sum, x);
        if (!type) return;
        load<WHOLE>(x, type + c, a.dim - c);
        add(sum, x);
    }
    template <bool WHOLE> __device__ __forceinline__ void make_z(float (&x)[P], int, int c) const {
        unpack<T>(x, pack<T>(x));
        store<WHOLE>(a.x + row * a.dim + c, x, a.dim - c);
    }
    __device__ __forceinline__ void finish(float (&y)[P], int c) const { drop_columns(y, a.drop, c, row); }
};

// One warp per row.
template <class T> __device__ void embed_fwd(const EmbedFwd<T>& a) {
    const int row = blockIdx.x * WARPS + warp();
    if (row < a.rows) norm<T>(a, TokenRow<T>{a, size_t(row)});
}
KERNEL(embed_fwd_f32, embed_fwd<float>, EmbedFwd<float>, 256)
KERNEL(embed_fwd_bf16, embed_fwd<bf16>, EmbedFwd<bf16>, 256)
KERNEL(embed_fwd_f16, embed_fwd<f16>, EmbedFwd<f16>, 256)

template <class T> struct EmbedBwdWord {
    const T* dx;              // (rows, dim)
    const int* ids;           // (rows)
    const int* rows_by_token; // (rows)
    const int* token_starts;  // (distinct + 1)
    float* dword;             // (vocab, dim)
    int* tags;                // (vocab, tiles), or null: all rows have a gradient to add to
    int dim;
    int tag;                  // of rows with a gradient to add to, for each of a row's tiles
    int pad;                  // a token whose row gets no gradient, or -1
};

// A block handles 32 packs of columns of a distinct token; each of its warps every eighth of the token's rows.
template <bool WHOLE, class T> __device__ __forceinline__ void sum_token(const EmbedBwdWord<T>& a) {
    constexpr int P = PACK<T>;
    __shared__ __align__(16) float parts[WARPS][32 * P];
    const int start = a.token_starts[blockIdx.x], end = a.token_starts[blockIdx.x + 1];
    const int token = a.ids[a.rows_by_token[start]];
    if (token == a.pad) return;
    int* const tag = a.tags ? a.tags + size_t(token) * gridDim.y + blockIdx.y : nullptr;
    const bool adds = !tag || *tag == a.tag;
    const int first = blockIdx.y * 32 * P, column = first + lane() * P;
    float sum[P] = {};
    if (column < a.dim)
        add_rows<WHOLE>(sum, a.dx, a.dim, column, start + warp(), end, WARPS, [&](int i) { return a.rows_by_token[i]; });
    store(parts[warp()] + lane() * P, sum);
    __syncthreads();
    // The other warps had no rows.
    const int warps = min(end - start, WARPS);
    for (int c = threadIdx.x; c < 32 * P && first + c < a.dim; c += THREADS) {
        float total = 0.0f;
        for (int w = 0; w < warps; w++) total += parts[w][c];
        float& out = a.dword[size_t(token) * a.dim + first + c];
        out = (adds ? out : 0.0f) + total;
    }
    if (tag && threadIdx.x == 0) *tag = a.tag;
}

template <class T> __device__ void embed_bwd_word(const EmbedBwdWord<T>& a) {
    a.dim % PACK<T> == 0 ? sum_token<true>(a) : sum_token<false>(a);
}
KERNEL(embed_bwd_word_f32, embed_bwd_word<float>, EmbedBwdWord<float>, 256)
KERNEL(embed_bwd_word_bf16, embed_bwd_word<bf16>, EmbedBwdWord<bf16>, 256)
KERNEL(embed_bwd_word_f16, embed_bwd_word<f16>, EmbedBwdWord<f16>, 256)

template <class T> struct EmbedBwdPosition {
    const T* dx;           // (rows, dim)
    const int* cu_seqlens; // (seqs + 1)
    float* dposition;      // (positions, dim)
    int seqs;
    int max_seqlen;
    int dim;
};

template <bool WHOLE, class T>
__device__ __forceinline__ void sum_position(const EmbedBwdPosition<T>& a, int position, int column) {
    float sum[PACK<T>];
    float* out = a.dposition + size_t(position) * a.dim + column;
    load<WHOLE>(sum, out, a.dim - column);
    add_rows<WHOLE>(sum, a.dx, a.dim, column, 0, a.seqs, 1, [&](int seq) {
        const int row = a.cu_seqlens[seq] + position;
        return row < a.cu_seqlens[seq + 1] ? row : -1;
    });
    store<WHOLE>(out, sum, a.dim - column);
}

// A warp handles 32 packs of columns of a position, and the sequences in order.
template <class T> __device__ void embed_bwd_position(const EmbedBwdPosition<T>& a) {
    const int position = blockIdx.x * WARPS + warp(), column = (blockIdx.y * 32 + lane()) * PACK<T>;
    if (position >= a.max_seqlen || column >= a.dim) return;
    a.dim % PACK<T> == 0 ? sum_position<true>(a, position, column) : sum_position<false>(a, position, column);
}
KERNEL(embed_bwd_position_f32, embed_bwd_position<float>, EmbedBwdPosition<float>, 256)
KERNEL(embed_bwd_position_bf16, embed_bwd_position<bf16>, EmbedBwdPosition<bf16>, 256)
KERNEL(embed_bwd_position_f16, embed_bwd_position<f16>, EmbedBwdPosition<f16>, 256)

template <class T> struct EmbedBwdType {
    const T* dx;      // (rows, dim)
    const int* types; // (rows)
    float* sums;      // (types, chunks, dim)
    int rows;
    int dim;
    int chunk;        // rows per chunk
};

// A block handles 32 packs of columns of a chunk and a token type; each of its warps every eighth row.
template <bool WHOLE, class T> __device__ __forceinline__ void sum_type(const EmbedBwdType<T>& a) {
    constexpr int P = PACK<T>;
    __shared__ __align__(16) float parts[WARPS][32 * P];
    const int type = blockIdx.z, first = blockIdx.x * 32 * P, column = first + lane() * P;
    const int end = min(int(blockIdx.y + 1) * a.chunk, a.rows);
    float sum[P] = {};
    if (column < a.dim) {
        auto counts = [&](int row) { return a.types[row] == type ? row : -1; };
        add_rows<WHOLE>(sum, a.dx, a.dim, column, blockIdx.y * a.chunk + warp(), end, WARPS, counts);
    }
    store(parts[warp()] + lane() * P, sum);
    __syncthreads();
    float* const sums = a.sums + (size_t(type) * gridDim.y + blockIdx.y) * a.dim;
    for (int c = threadIdx.x; c < 32 * P && first + c < a.dim; c += THREADS) {
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++) total += parts[w][c];
        sums[first + c] = total;
    }
}

template <class T> __device__ void embed_bwd_type(const EmbedBwdType<T>& a) {
    a.dim % PACK<T> == 0 ? sum_type<true>(a) : sum_type<false>(a);
}
KERNEL(embed_bwd_type_f32, embed_bwd_type<float>, EmbedBwdType<float>, 256)
KERNEL(embed_bwd_type_bf16, embed_bwd_type<bf16>, EmbedBwdType<bf16>, 256)
KERNEL(embed_bwd_type_f16, embed_bwd_type<f16>, EmbedBwdType<f16>, 256)

template <class T> struct FirstRow {
    T* tokens;             // (tokens, dim): x, or dx
    T* firsts;             // (seqs, dim): y, or dy
    const int* cu_seqlens; // (seqs + 1)
    int seqs;
    int dim;
};

template <bool WHOLE, bool BACKWARD, class T> __device__ __forceinline__ void copy_row(const FirstRow<T>& a, int seq) {
    constexpr int P = PACK<T>;
    T* token = a.tokens + size_t(a.cu_seqlens[seq]) * a.dim;
    T* first = a.firsts + size_t(seq) * a.dim;
    for (int c = lane() * P; c < a.dim; c += 32 * P) {
        float x[P], dy[P];
        load<WHOLE>(x, token + c, a.dim - c);
        if (BACKWARD) {
            load<WHOLE>(dy, first + c, a.dim - c);
            add(x, dy);
        }
        store<WHOLE>((BACKWARD ? token : first) + c, x, a.dim - c);
    }
}

// One warp per sequence.
template <class T, bool BACKWARD> __device__ void first_row(const FirstRow<T>& a) {
    const int seq = blockIdx.x * WARPS + warp();
    if (seq >= a.seqs) return;
    a.dim % PACK<T> == 0 ? copy_row<true, BACKWARD>(a, seq) : copy_row<false, BACKWARD>(a, seq);
}
KERNEL(first_row_fwd_f32, (first_row<float, false>), FirstRow<float>, 256)
KERNEL(first_row_fwd_bf16, (first_row<bf16, false>), FirstRow<bf16>, 256)
KERNEL(first_row_fwd_f16, (first_row<f16, false>), FirstRow<f16>, 256)
KERNEL(first_row_bwd_f32, (first_row<float, true>), FirstRow<float>, 256)
KERNEL(first_row_bwd_bf16, (first_row<bf16, true>), FirstRow<bf16>, 256)
KERNEL(first_row_bwd_f16, (first_row<f16, true>), FirstRow<f16>, 256)
