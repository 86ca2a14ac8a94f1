// The last stage of sums over rows, column by column: the sums over chunks of rows, which other kernels made, are added in a fixed
// order, for many outputs at a time. For the gradients of biases, token types, gamma and beta.
#include "gpu.cuh"

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
