// Included by every kernel: types, 16-byte packs, warp and block reductions, dropout. CUDA under nvcc; under a host compiler
// the virtual GPU's header replaces it, and the same sources run without a GPU. A kernel has one parameter, a struct of
// arguments. KERNEL(name, body, arguments, threads per block) defines it; two more numbers may follow: bytes of dynamic shared
// memory, and blocks that a multiprocessor must be able to hold, for which the compiler saves registers.
// build.rs reads these lines, the structs that they name, Drop and Status, and constants of the form `constexpr int NAME = 64;
// // host`, and writes them all as Rust.
#pragma once
#ifdef __CUDACC__
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DYNAMIC_SHARED(T, name)                          \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    T* name = reinterpret_cast<T*>(name##_bytes)
#define KERNEL(name, body, Args, threads, ...)                                                              \
    extern "C" __global__ void __launch_bounds__(threads, least_blocks(__VA_ARGS__)) name(const __grid_constant__ Args a) { \
        wait_for_the_kernel_before();                                                                       \
        body(a);                                                                                            \
    }

// As many of these blocks as the shared memory of a multiprocessor has room for; a block takes 1 KiB more of it.
constexpr int least_blocks(int shared = 0, int blocks = 0) {
#if __CUDA_ARCH__ == 750
    constexpr int CAPACITY = 64 << 10;
#elif __CUDA_ARCH__ == 800
    constexpr int CAPACITY = 164 << 10;
#elif __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
    constexpr int CAPACITY = 228 << 10;
#else
    constexpr int CAPACITY = 100 << 10;
#endif
    const int room = CAPACITY / (shared + 1024);
    return blocks < room ? blocks : room;
}

// From compute capability 9.0 on, a kernel is launched while the one before it in the stream still runs (programmatic dependent
// launch). It waits here for that one's end, with all that it has written, and then lets the next one be launched.
__device__ __forceinline__ void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#else
#include "vgpu.h"
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int lane() { return threadIdx.x & 31; }
__device__ __forceinline__ int warp() { return threadIdx.x >> 5; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half(x); }

// Two neighbours in a register, the lower one low.
template <class T> __device__ __forceinline__ unsigned pack(float low, float high);
template <> __device__ __forceinline__ unsigned pack<bf16>(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}
template <> __device__ __forceinline__ unsigned pack<f16>(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

template <class T> __device__ __forceinline__ float2 unpack(unsigned pair);
template <> __device__ __forceinline__ float2 unpack<bf16>(unsigned pair) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}
template <> __device__ __forceinline__ float2 unpack<f16>(unsigned pair) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// ---- packs: neighbouring elements moved by one load or store

// Elements in 16 bytes, the widest access.
template <class T> constexpr int PACK = 16 / sizeof(T);

template <int BYTES> struct Word;
template <> struct Word<16> { using type = uint4; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<4> { using type = unsigned; };
template <> struct Word<2> { using type = unsigned short; };

// N elements as floats, by the widest accesses; p is aligned to them.
template <int N, class T> __device__ __forceinline__ void load(float (&x)[N], const T* p) {
    constexpr int STEP = N < PACK<T> ? N : PACK<T>;
#pragma unroll
    for (int at = 0; at < N; at += STEP) {
        union { typename Word<STEP * sizeof(T)>::type word; T elements[STEP]; } u;
        u.word = *reinterpret_cast<const typename Word<STEP * sizeof(T)>::type*>(p + at);
#pragma unroll
        for (int i = 0; i < STEP; i++) x[at + i] = to_float(u.elements[i]);
    }
}

template <int N, class T> __device__ __forceinline__ void store(T* p, const float (&x)[N]) {
    constexpr int STEP = N < PACK<T> ? N : PACK<T>;
#pragma unroll
    for (int at = 0; at < N; at += STEP) {
        union { typename Word<STEP * sizeof(T)>::type word; T elements[STEP]; } u;
#pragma unroll
        for (int i = 0; i < STEP; i++) u.elements[i] = from_float<T>(x[at + i]);
        *reinterpret_cast<typename Word<STEP * sizeof(T)>::type*>(p + at) = u.word;
    }
}

// The same for rows that may not be whole packs: unless WHOLE is set, one by one, and only the first `count` of the N.
template <bool WHOLE, int N, class T> __device__ __forceinline__ void load(float (&x)[N], const T* p, long long count) {
    if constexpr (WHOLE) {
        load(x, p);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = i < count ? to_float(p[i]) : 0.0f;
    }
}

template <bool WHOLE, int N, class T> __device__ __forceinline__ void store(T* p, const float (&x)[N], long long count) {
    if constexpr (WHOLE) {
        store(p, x);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < count) p[i] = from_float<T>(x[i]);
    }
}

// A pack in its stored type, which in 16 bits needs half the registers of its floats. 0 beyond `count`.
template <bool WHOLE, class T> __device__ __forceinline__ uint4 load_raw(const T* p, long long count) {
    if constexpr (WHOLE) return *reinterpret_cast<const uint4*>(p);
    union { uint4 word; T elements[PACK<T>]; } u = {};
#pragma unroll
    for (int i = 0; i < PACK<T>; i++)
        if (i < count) u.elements[i] = p[i];
    return u.word;
}

template <class T> __device__ __forceinline__ uint4 pack(const float (&x)[PACK<T>]) {
    union { uint4 word; T elements[PACK<T>]; } u;
#pragma unroll
    for (int i = 0; i < PACK<T>; i++) u.elements[i] = from_float<T>(x[i]);
    return u.word;
}

template <class T> __device__ __forceinline__ void unpack(float (&x)[PACK<T>], uint4 raw) {
    union { uint4 word; T elements[PACK<T>]; } u;
    u.word = raw;
#pragma unroll
    for (int i = 0; i < PACK<T>; i++) x[i] = to_float(u.elements[i]);
}

// ---- reductions, in a fixed order; every thread gets the result

template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// Over a block of THREADS; may be called again without a barrier in between.
template <int THREADS, class T> __device__ __forceinline__ T block_sum(T x) {
    __shared__ T parts[THREADS / 32];
    x = warp_sum(x);
    __syncthreads();
    if (lane() == 0) parts[warp()] = x;
    __syncthreads();
    return warp_sum(lane() < THREADS / 32 ? parts[lane()] : T(0));
}

// sum += rows row(first), row(first + step), ... of x from column c on, in this order, with four reads in flight. A negative
// row is skipped.
template <bool WHOLE, class T, class F>
__device__ __forceinline__ void add_rows(float (&sum)[PACK<T>], const T* x, int dim, int c, int first, int end, int step, F row) {
    constexpr int BATCH = 4;
    for (int start = first; start < end; start += BATCH * step) {
        uint4 raws[BATCH] = {};
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int at = start + i * step, r = at < end ? row(at) : -1;
            if (r >= 0) raws[i] = load_raw<WHOLE>(x + size_t(r) * dim + c, dim - c);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            float values[PACK<T>];
            unpack<T>(values, raws[i]);
#pragma unroll
            for (int j = 0; j < PACK<T>; j++) sum[j] += values[j];
        }
    }
}

// The numbers that the training loop reads back; see Status in src/ops.rs.
struct Status {
    double loss;
    double loss_sum;
    double grad_norm;
    double skipped;
    double scale;
    double good;
};

// 2 to the power of scale, an integer.
__device__ __forceinline__ double loss_scale(const Status& status) { return ldexp(1.0, int(status.scale)); }

// ---- dropout: Philox4x32-7 (Salmon et al., SC 2011), as in src/random.rs

// A dropout site in this step; see DropSite in src/ops.rs. A threshold of 0 drops nothing; scale is then 1.
struct Drop {
    unsigned key_low;
    unsigned key_high;
    unsigned site;
    unsigned threshold;
    float scale;
};

// The four words with the draws of columns 8 * block .. 8 * block + 7 of a row: two per word, the low 16 bits first.
__device__ __forceinline__ uint4 philox(const Drop& drop, unsigned block, unsigned row) {
    uint4 c = make_uint4(block, row, drop.site, 0);
    unsigned k0 = drop.key_low, k1 = drop.key_high;
#pragma unroll
    for (int round = 0; round < 7; round++) {
        const uint64_t a = uint64_t(0xD2511F53u) * c.x, b = uint64_t(0xCD9E8D57u) * c.z;
        c = make_uint4(unsigned(b >> 32) ^ c.y ^ k0, unsigned(b), unsigned(a >> 32) ^ c.w ^ k1, unsigned(a));
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// x, columns `column` .. column + N - 1 of a row, becomes dropout(x); `column` is a multiple of N.
template <int N> __device__ __forceinline__ void drop_columns(float (&x)[N], const Drop& drop, unsigned column, unsigned row) {
    static_assert(N == 4 || N == 8, "half of a block's draws, or all");
    if (drop.threshold == 0) return;
    const uint4 words = philox(drop, column / 8, row);
    const bool second = N == 4 && column % 8 != 0;
    const unsigned pairs[4] = {second ? words.z : words.x, second ? words.w : words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < N; i++) {
        const unsigned draw = i % 2 ? pairs[i / 2] >> 16 : pairs[i / 2] & 0xffff;
        x[i] *= draw < drop.threshold ? 0.0f : drop.scale;
    }
}
