// Wrong kernels, each with one mistake, that the virtual GPU must catch or reveal; tests/vgpu.rs runs them.
#include "mma.cuh"

struct Buffer {
    float* x;  // (n)
    int n;
};

__device__ void past_the_end(const Buffer& a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= a.n) a.x[i] = 1.0f;
}
KERNEL(past_the_end_f32, past_the_end, Buffer, 64)

__device__ void divergent_barrier(const Buffer& a) {
    if (threadIdx.x < 32) {
        __syncthreads();
        a.x[0] = 1.0f;
    } else {
        a.x[1] = 1.0f;
        __syncthreads();
    }
}
KERNEL(divergent_barrier_f32, divergent_barrier, Buffer, 64)

__device__ void barrier_after_exit(const Buffer& a) {
    if (threadIdx.x == 7) return;
    __syncthreads();
    a.x[threadIdx.x] = 1.0f;
}
KERNEL(barrier_after_exit_f32, barrier_after_exit, Buffer, 64)

__device__ void divergent_shuffle(const Buffer& a) {
    float x = float(threadIdx.x);
    if (threadIdx.x % 32 < 16) x = __shfl_xor_sync(ALL_LANES, x, 1);
    else x = __shfl_xor_sync(ALL_LANES, x, 2);
    a.x[threadIdx.x] = x;
}
KERNEL(divergent_shuffle_f32, divergent_shuffle, Buffer, 32)

__device__ void exit_before_shuffle(const Buffer& a) {
    if (threadIdx.x == 31) return;
    a.x[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
}
KERNEL(exit_before_shuffle_f32, exit_before_shuffle, Buffer, 32)

// One warp waits at the barrier, one for lanes that wait there.
__device__ void deadlock(const Buffer& a) {
    if (threadIdx.x == 40) a.x[0] = __shfl_sync(ALL_LANES, 1.0f, 0);
    __syncthreads();
}
KERNEL(deadlock_f32, deadlock, Buffer, 64)

__device__ void misaligned_ldmatrix(const Buffer& a) {
    DYNAMIC_SHARED(bf16, tile);  // (33 * 8)
    for (int i = threadIdx.x; i < 33 * 8; i += 32) tile[i] = __float2bfloat16(0.0f);
    __syncwarp();
    uint32_t r[4];
    ldmatrix4(r, tile + threadIdx.x * 8 + 1);
    a.x[threadIdx.x] = float(r[0]);
}
KERNEL(misaligned_ldmatrix_f32, misaligned_ldmatrix, Buffer, 32)

// Rows of n elements: with 64 all eight of a matrix begin in the same bank, with 72 in different banks.
__device__ void ldmatrix_of_rows(const Buffer& a) {
    DYNAMIC_SHARED(bf16, tile);  // (32, n)
    for (int i = threadIdx.x; i < 32 * a.n; i += 32) tile[i] = __float2bfloat16(0.0f);
    __syncwarp();
    uint32_t r[4];
    ldmatrix4(r, tile + threadIdx.x * a.n);
    a.x[threadIdx.x] = float(r[0]);
}
KERNEL(ldmatrix_of_rows_f32, ldmatrix_of_rows, Buffer, 32)

// Wrong below compute capability 8.0.
__device__ void mma_alone(const Buffer& a) {
    float d[4] = {};
    const uint32_t x[4] = {}, y[2] = {};
    mma<bf16>(d, x, y);
    a.x[threadIdx.x] = d[0];
}
KERNEL(mma_alone_f32, mma_alone, Buffer, 32)

__device__ void misaligned_vector(const Buffer& a) { *reinterpret_cast<float4*>(a.x + 1) = make_float4(1, 2, 3, 4); }
KERNEL(misaligned_vector_f32, misaligned_vector, Buffer, 32)

// x[4 t ..] are copied to where 100 is added to them, without the wait if n is 0.
__device__ void copy_without_wait(const Buffer& a) {
    DYNAMIC_SHARED(float, tile);  // (4 * 32)
    float* mine = tile + 4 * threadIdx.x;
    cp_async16(mine, a.x + 4 * threadIdx.x, true);
    cp_async_commit();
    if (a.n) cp_async_wait<0>();
    for (int i = 0; i < 4; i++) a.x[4 * threadIdx.x + i] = mine[i] + 100.0f;
    cp_async_wait<0>();
}
KERNEL(copy_without_wait_f32, copy_without_wait, Buffer, 32)

__device__ void uninitialised_shared(const Buffer& a) {
    __shared__ float fixed[32];
    DYNAMIC_SHARED(float, dynamic);  // (32)
    if (a.n < 0) fixed[threadIdx.x] = 0.0f;
    a.x[threadIdx.x] = fixed[threadIdx.x];
    a.x[32 + threadIdx.x] = dynamic[threadIdx.x];
}
KERNEL(uninitialised_shared_f32, uninitialised_shared, Buffer, 32)

__device__ void past_dynamic_shared(const Buffer& a) {
    DYNAMIC_SHARED(float, tile);  // (32), where n - 1 is read
    tile[threadIdx.x] = 1.0f;
    __syncwarp();
    a.x[threadIdx.x] = tile[a.n - 1];
}
KERNEL(past_dynamic_shared_f32, past_dynamic_shared, Buffer, 32)

__device__ void past_fixed_shared(const Buffer& a) {
    __shared__ float tile[32];
    tile[threadIdx.x] = 1.0f;
    __syncwarp();
    a.x[threadIdx.x] = tile[a.n];
}
KERNEL(past_fixed_shared_f32, past_fixed_shared, Buffer, 32)

// Every thread reads what its left neighbour has just written, without a barrier in between.
__device__ void race(const Buffer& a) {
    __shared__ float tile[64];
    tile[threadIdx.x] = float(threadIdx.x);
    a.x[threadIdx.x] = tile[(threadIdx.x + 63) % 64];
}
KERNEL(race_f32, race, Buffer, 64)

// The last block to run stores its number.
__device__ void race_of_blocks(const Buffer& a) { a.x[threadIdx.x] = float(blockIdx.x); }
KERNEL(race_of_blocks_f32, race_of_blocks, Buffer, 32)
