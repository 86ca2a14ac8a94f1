// Sums over rows, column by column: chunks of rows first, then the chunks, in a fixed order. For the gradients of biases, token
// types, gamma and beta. Reads each row once. The sums over chunks are added for many outputs at a time.
#include "gpu.cuh"

template <class T> struct ColumnSums {
    const T* x;       // (rows, width)
    const int* types; // (rows); only rows of type `only` count. Null: all rows count
    float* sums;      // (chunks, width)
    int rows;
    int width;
    int chunk;        // rows per chunk
    int only;
};

// A block handles 32 packs of columns of a chunk; each of its warps every eighth row.
template <bool WHOLE, class T> __device__ __forceinline__ void sum_chunk(const ColumnSums<T>& a) {
    constexpr int P = PACK<T>, THREADS = 256, WARPS = THREADS / 32;
    __shared__ __align__(16) float parts[WARPS][32 * P];
    const int first = blockIdx.x * 32 * P, column = first + lane() * P;
    const int end = min(int(blockIdx.y + 1) * a.chunk, a.rows);
    float sum[P] = {};
    if (column < a.width) {
        auto counts = [&](int row) { return a.types && a.types[row] != a.only ? -1 : row; };
        add_rows<WHOLE>(sum, a.x, a.width, column, blockIdx.y * a.chunk + warp(), end, WARPS, counts);
    }
    store(parts[warp()] + lane() * P, sum);
    __syncthreads();
    for (int c = threadIdx.x; c < 32 * P && first + c < a.width; c += THREADS) {
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++) total += parts[w][c];
        a.sums[size_t(blockIdx.y) * a.width + first + c] = total;
    }
}

template <class T> __device__ void column_sums(const ColumnSums<T>& a) {
    a.width % PACK<T> == 0 ? sum_chunk<true>(a) : sum_chunk<false>(a);
}
KERNEL(column_sums_f32, column_sums<float>, ColumnSums<float>, 256)
KERNEL(column_sums_bf16, column_sums<bf16>, ColumnSums<bf16>, 256)
KERNEL(column_sums_f16, column_sums<f16>, ColumnSums<f16>, 256)

constexpr int MOST_OUTS = 64;  // host

// Each array has an element per output.
struct ColumnsAdd {
    const float* partials[MOST_OUTS]; // (chunks, width)
    float* outs[MOST_OUTS];           // (width)
    int chunks[MOST_OUTS];
    int widths[MOST_OUTS];
    int adds[MOST_OUTS];              // whether to add to the output
    int ends[MOST_OUTS];              // the block after its last one; beyond the outputs, more than any block
};

// A block handles 32 columns of an output; each of its warps every 32nd chunk.
__device__ void add_columns(const ColumnsAdd& a) {
    constexpr int WARPS = 32;
    __shared__ float parts[WARPS][32];
    const int block = blockIdx.x;
    int i = 0;
#pragma unroll
    for (int step = MOST_OUTS / 2; step > 0; step /= 2)
        if (block >= a.ends[i + step - 1]) i += step;
    const int column = (block - (i ? a.ends[i - 1] : 0)) * 32 + lane(), width = a.widths[i];
    const float* partials = a.partials[i];
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 4
        for (int chunk = warp(); chunk < a.chunks[i]; chunk += WARPS) sum += partials[size_t(chunk) * width + column];
    }
    parts[warp()][lane()] = sum;
    __syncthreads();
    if (warp() == 0 && column < width) {
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++) total += parts[w][lane()];
        float* out = a.outs[i];
        out[column] = a.adds[i] ? out[column] + total : total;
    }
}
KERNEL(columns_add, add_columns, ColumnsAdd, 1024)
