// Correct kernels with the engine's language features, to test the virtual GPU itself; tests/vgpu.rs runs them.
#include "mma.cuh"

struct Scale {
    float* x;  // (n)
    float factor;
    float offset;
    int n;
};

// x = factor x + offset
__device__ void scale(const Scale& a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.x[i] = a.factor * a.x[i] + a.offset;
}
KERNEL(scale_f32, scale, Scale, 64)

struct RowSum {
    const float* x;  // (blocks, columns)
    float* y;        // (blocks)
    int columns;
};

__device__ void row_sum(const RowSum& a) {
    float sum = 0.0f;
    for (int c = threadIdx.x; c < a.columns; c += blockDim.x) sum += a.x[size_t(blockIdx.x) * a.columns + c];
    sum = block_sum<256>(sum);
    if (threadIdx.x == 0) a.y[blockIdx.x] = sum;
}
KERNEL(row_sum_f32, row_sum, RowSum, 256)

template <class T> struct Product {
    const T* a;     // (16 * blocks, k)
    const T* b;     // (k, 16), or its transpose, (16, k)
    float* d;       // (16 * blocks, 16)
    int k;          // a multiple of 16
};

// Pitch of a tile's rows in shared memory: 48 bytes, so that ldmatrix reads 8 of them from different banks.
constexpr int PITCH = 24;

// A warp computes a tile of 16 x 16; its operands come 16 columns at a time, the next ones while the last ones are used.
template <class T, bool B_TRANSPOSED> __device__ void product(const Product<T>& a) {
    DYNAMIC_SHARED(T, tiles);  // (2, 2, 16, PITCH)
    const int row = lane() % 16, half = lane() / 16 * 8;
    const T* rows = a.a + size_t(blockIdx.x) * 16 * a.k;
    auto fetch = [&](int k, int buffer) {
        T* tile = tiles + buffer * 32 * PITCH;
        cp_async16(tile + row * PITCH + half, rows + size_t(row) * a.k + k + half, true);
        const T* b = B_TRANSPOSED ? a.b + size_t(row) * a.k + k : a.b + (k + row) * 16;
        cp_async16(tile + (16 + row) * PITCH + half, b + half, true);
        cp_async_commit();
    };
    float d[2][4] = {};
    fetch(0, 0);
    for (int k = 0; k < a.k; k += 16) {
        int buffer = k / 16 % 2;
        if (k + 16 < a.k) {
            fetch(k + 16, 1 - buffer);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncwarp();
        const T* tile = tiles + buffer * 32 * PITCH;
        uint32_t fragment_a[4], fragment_b[4];
        ldmatrix4(fragment_a, tile + row * PITCH + half);
        if (B_TRANSPOSED) {
            ldmatrix4(fragment_b, tile + (16 + lane() % 8 + lane() / 16 * 8) * PITCH + lane() / 8 % 2 * 8);
        } else {
            ldmatrix4_trans(fragment_b, tile + (16 + row) * PITCH + half);
        }
        uint32_t left[2] = {fragment_b[0], fragment_b[1]}, right[2] = {fragment_b[2], fragment_b[3]};
        mma<T>(d[0], fragment_a, left);
        mma<T>(d[1], fragment_a, right);
        __syncwarp();
    }
    const int group = lane() / 4, pair = lane() % 4 * 2;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < 4; i++)
            a.d[(size_t(blockIdx.x) * 16 + group + i / 2 * 8) * 16 + side * 8 + pair + i % 2] = d[side][i];
}
KERNEL(product_bf16, (product<bf16, false>), Product<bf16>, 32)
KERNEL(product_f16, (product<f16, false>), Product<f16>, 32)
KERNEL(product_transposed_bf16, (product<bf16, true>), Product<bf16>, 32)
KERNEL(product_transposed_f16, (product<f16, true>), Product<f16>, 32)

struct Repeat {
    float* x;  // (blocks * threads)
    int times;
};

__device__ void barriers(const Repeat& a) {
    for (int i = 0; i < a.times; i++) __syncthreads();
}
KERNEL(barriers_f32, barriers, Repeat, 256)

__device__ void shuffles(const Repeat& a) {
    float x = float(threadIdx.x);
    for (int i = 0; i < a.times; i++) x += __shfl_xor_sync(ALL_LANES, x, 1);
    a.x[blockIdx.x * blockDim.x + threadIdx.x] = x;
}
KERNEL(shuffles_f32, shuffles, Repeat, 256)

struct Approximate {
    const float* x;  // (n)
    float* y;        // (3, n): 2^x, e^x, 1 / x
    int n;
};

__device__ void approximate(const Approximate& a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    a.y[i] = exp2_approx(a.x[i]);
    a.y[a.n + i] = __expf(a.x[i]);
    a.y[2 * a.n + i] = __fdividef(1.0f, a.x[i]);
}
KERNEL(approximate_f32, approximate, Approximate, 64)
