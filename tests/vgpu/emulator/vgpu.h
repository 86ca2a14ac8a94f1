// CUDA C++ for a host compiler: the keywords and functions that the kernels use, and the calls into the scheduler
// (scheduler.cpp). Every call passes its source location, so that faults can name it and divergence can be detected.
#pragma once
#define VGPU 1

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "numbers.h"

using std::isfinite;

// ---- vector types

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- the scheduler's side, in libcuda.so

#pragma GCC visibility push(default)
namespace vgpu {

struct Block {
    uint3 index;
    dim3 threads, blocks;
    void* dynamic_shared;
    uint64_t errors;  // chooses the errors of inexact instructions in this launch; 0: none
};

// The CUDA thread that this host thread is running.
struct Thread {
    uint3 index;
    unsigned lane;
    const Block* block;
};
extern __thread Thread* current_thread __attribute__((tls_model("initial-exec")));

struct Site {
    const char* file;
    int line;
};

void barrier(Site site);

// A lane's input to an operation of its warp, and its result.
struct Slot { uint32_t words[10]; };
// Waits for all lanes of the mask; the last one to arrive runs `combine` over the slots; each gets its own slot back.
void meet(unsigned mask, Slot& mine, void (*combine)(Slot (&slots)[32], Site site), const char* operation, Site site);
void sync_warp(unsigned mask, Site site);
uint64_t shuffle(unsigned mask, uint64_t value, unsigned from, const char* operation, Site site);

struct Copy {
    void* to;
    const void* from;
    bool valid;
    unsigned group;
    Site site;
};
void start_copy(const Copy& copy);
void commit_copies();
// The next copy to complete if at most `groups` committed groups may stay pending; null if all are complete.
const Copy* next_landing(unsigned groups);

// ldmatrix and cp.async work on shared memory only.
void check_shared(const void* address, const char* operation, Site site);

// 9.0 is 90.
extern int capability;

// Ends the launch with an error of the driver.
[[noreturn]] void fault(int code, const char* what, Site site);

using Body = void (*)(const void* arguments);
bool add_kernel(const char* name, const char* file, size_t argument_bytes, unsigned threads, Body body);

}  // namespace vgpu
#pragma GCC visibility pop

// ---- keywords

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))

// One block runs on one host thread, so a block's shared memory is thread-local. The sanitizers know the bounds of static
// arrays only; under them launches run one at a time.
#ifdef VGPU_STATIC_SHARED
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(vgpu::current_thread->block->dynamic_shared)

// The function is never called: it makes the host compiler reject what nvcc rejects.
#define KERNEL(name, body, Args, threads, ...)                                          \
    [[maybe_unused]] static void name(const Args a) { body(a); }                        \
    [[maybe_unused]] static const bool kernel_##name = vgpu::add_kernel(                \
        #name, __FILE__, sizeof(Args), threads, [](const void* arguments) { body(*static_cast<const Args*>(arguments)); });

#define threadIdx (vgpu::current_thread->index)
#define blockIdx (vgpu::current_thread->block->index)
#define blockDim (vgpu::current_thread->block->threads)
#define gridDim (vgpu::current_thread->block->blocks)

// A default argument captures the source location of the call.
#define VGPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- synchronisation and warp operations

inline void __syncthreads(VGPU_SITE) { vgpu::barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, VGPU_SITE) { vgpu::sync_warp(mask, {file, line}); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class T> T __ldcg(const T* p) { return *p; }

// Atomic, and ordered as if a __threadfence came before and after.
inline unsigned atomicInc(unsigned* p, unsigned last) {
    unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, old >= last ? 0 : old + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {}
    return old;
}

namespace vgpu {
template <class T> T shuffle_as(unsigned mask, T value, unsigned from, const char* operation, Site site) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = shuffle(mask, bits, from, operation, site);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
}  // namespace vgpu

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, VGPU_SITE) {
    unsigned segment = vgpu::current_thread->lane & ~(width - 1);
    return vgpu::shuffle_as(mask, value, segment + (source & (width - 1)), "__shfl_sync", {file, line});
}

template <class T> T __shfl_xor_sync(unsigned mask, T value, unsigned step, int width = 32, VGPU_SITE) {
    unsigned lane = vgpu::current_thread->lane, from = lane ^ step;
    if (from / width > lane / width) from = lane;
    return vgpu::shuffle_as(mask, value, from, "__shfl_xor_sync", {file, line});
}

// ---- inexact arithmetic of a GPU. Seed 0 has no errors; other seeds draw them within their bounds, as functions of seed,
// kernel and operands alone, so that the same seed gives the same bits in any order of the threads.

namespace vgpu {

inline uint64_t errors() { return current_thread->block->errors; }

// A float that is at most `ulps` units in the last place from the exact result.
inline __attribute__((noinline)) float inexact(double exact, int ulps, uint64_t operands) {
    const float nearest = static_cast<float>(exact);
    if (!(fabsf(nearest) >= FLT_MIN && fabsf(nearest) < FLT_MAX)) return nearest;
    uint64_t hash = (errors() ^ operands) * 0x9e3779b97f4a7c15;
    hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9;
    const double bound = ulps * ldexp(1.0, ilogb(exact) - 23);
    for (int steps = static_cast<int>((hash >> 32) % (2 * ulps + 1)) - ulps; steps; steps += steps < 0 ? 1 : -1) {
        const float moved = bits<float>(bits<int>(nearest) + steps);
        if (fabs(moved - exact) <= bound) return moved;
    }
    return nearest;
}

// ex2.approx.ftz.f32: 2 ulp, like exp2f, which uses it, according to the CUDA C++ Programming Guide, "Mathematical Functions";
// results below the normal numbers are 0.
inline float exp2_approx(float x) {
    const float y = errors() ? inexact(exp2(static_cast<double>(x)), 2, bits<uint32_t>(x)) : exp2f(x);
    return y < FLT_MIN ? 0.0f : y;
}

}  // namespace vgpu

// The bounds are those of the Guide's table of intrinsics.

// 2 + floor(|1.173 x|) ulp. glibc declares the name and does not define it.
inline float vgpu_expf(float x) {
    if (!vgpu::errors() || !(fabsf(x) < 128.0f)) return expf(x);
    return vgpu::inexact(exp(static_cast<double>(x)), 2 + static_cast<int>(fabsf(1.173f * x)), vgpu::bits<uint32_t>(x));
}
#define __expf vgpu_expf

// 2 ulp if 2^-126 <= |b| <= 2^126; 0 beyond.
inline float __fdividef(float a, float b) {
    if (fabsf(b) > 0x1p126f && fabsf(b) <= FLT_MAX) return a * 0.0f;
    if (!vgpu::errors()) return a / b;
    return vgpu::inexact(static_cast<double>(a) / b, 2, static_cast<uint64_t>(vgpu::bits<uint32_t>(a)) << 32 | vgpu::bits<uint32_t>(b));
}

// ---- floats of 16 bits: storage only

struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 x) { return vgpu::from_bf16(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return {vgpu::to_bf16(x)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }

struct __half { uint16_t bits; };
struct alignas(4) __half2 { __half x, y; };
inline float __half2float(__half x) { return vgpu::from_f16(x.bits); }
inline __half __float2half(float x) { return {vgpu::to_f16(x)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }

// ---- tensor cores and asynchronous copies; described in mma.cuh

namespace vgpu {

inline float widened(__nv_bfloat16 x) { return from_bf16(x.bits); }
inline float widened(__half x) { return from_f16(x.bits); }
template <class T> float low(uint32_t pair) { return widened(T{static_cast<uint16_t>(pair)}); }
template <class T> float high(uint32_t pair) { return widened(T{static_cast<uint16_t>(pair >> 16)}); }

// A row of 8 columns, in vectors that the compiler maps to those of the processor.
using Floats = float __attribute__((vector_size(32)));
using Doubles = double __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(32)));

// For a normal number; smaller ones count as the smallest.
inline int exponent(float x) {
    const int biased = bits<uint32_t>(x) >> 23 & 255;
    return (biased ? biased : 1) - 127;
}

// The same of a factor; that of 0 is below any other, also in a product.
inline int factor_exponent(float x) { return x != 0 ? exponent(x) : -1000; }

// d += a b, with the additions measured on tensor cores (Fasi et al., doi.org/10.7717/peerj-cs.330, on V100, T4 and A100; Khattak
// and Mikaitis, arXiv 2512.07004, on H100 and B200 too): 8 or 16 products and the sum so far are aligned to the largest exponent
// among them and truncated one or two bits below the last place of an f32, and their sum is truncated to an f32.
inline void add_truncated(float (&d)[16][8], const float (&a)[16][16], const Floats (&b)[16]) {
    const int terms = errors() & 2 ? 8 : 16, extra = errors() & 4 ? 1 : 2;
    Doubles factors[16];
    Ints exponents[16];
    for (int k = 0; k < 16; k++) {
        factors[k] = __builtin_convertvector(b[k], Doubles);
        for (int column = 0; column < 8; column++) exponents[k][column] = factor_exponent(b[k][column]);
    }
    for (int row = 0; row < 16; row++) {
        for (int first = 0; first < 16; first += terms) {
            Ints largest;
            Doubles products[16], per_unit, plain, units;
            for (int column = 0; column < 8; column++) {
                largest[column] = exponent(d[row][column]);
                plain[column] = d[row][column];
            }
            for (int k = first; k < first + terms; k++) {
                products[k] = factors[k] * static_cast<double>(a[row][k]);
                plain += products[k];
                const Ints exponent = exponents[k] + factor_exponent(a[row][k]);
                largest = exponent > largest ? exponent : largest;
            }
            for (int column = 0; column < 8; column++) {
                per_unit[column] = bits<double>(static_cast<uint64_t>(1023 + 23 + extra - largest[column]) << 52);
                units[column] = static_cast<int32_t>(d[row][column] * per_unit[column]);
            }
            // Below 2^27 units each, where all is finite.
            for (int k = first; k < first + terms; k++) {
                units += __builtin_convertvector(__builtin_convertvector(products[k] * per_unit, Ints), Doubles);
            }
            for (int column = 0; column < 8; column++) {
                const double total = std::isfinite(plain[column]) ? units[column] / per_unit[column] : plain[column];
                float sum = static_cast<float>(total);
                const bool is_above = fabs(static_cast<double>(sum)) > fabs(total) && fabsf(sum) <= FLT_MAX;
                d[row][column] = is_above && std::isfinite(plain[column]) ? bits<float>(bits<uint32_t>(sum) - 1) : sum;
            }
        }
    }
}

// d += a b, each sum of products in the order of their terms.
inline void add_products(float (&d)[16][8], const float (&a)[16][16], const Floats (&b)[16]) {
    for (int row = 0; row < 16; row++) {
        Floats sum = {};
        for (int k = 0; k < 16; k++) sum += b[k] * a[row][k];
        for (int column = 0; column < 8; column++) d[row][column] += sum[column];
    }
}

// Slots hold the fragments a (4 words), b (2 words) and d (4 floats) of each lane, and afterwards its d + a b.
template <class T> void multiply_tiles(Slot (&slots)[32], Site) {
    float a[16][16], d[16][8];
    Floats b[16];
    for (int lane = 0; lane < 32; lane++) {
        const uint32_t* words = slots[lane].words;
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[group + i % 2 * 8][pair + i / 2 * 8] = low<T>(words[i]);
            a[group + i % 2 * 8][pair + i / 2 * 8 + 1] = high<T>(words[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[pair + i * 8][group] = low<T>(words[4 + i]);
            b[pair + i * 8 + 1][group] = high<T>(words[4 + i]);
            memcpy(&d[group + i * 8][pair], words + 6 + 2 * i, 8);
        }
    }
    errors() ? add_truncated(d, a, b) : add_products(d, a, b);
    for (int lane = 0; lane < 32; lane++) {
        int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 2; i++) memcpy(slots[lane].words + 2 * i, &d[group + i * 8][pair], 8);
    }
}

template <class T> void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
    if (std::is_same_v<T, __nv_bfloat16> && capability < 80) fault(719, "mma of bf16, which needs compute capability 8.0", site);
    Slot slot;
    memcpy(slot.words, a, 16);
    memcpy(slot.words + 4, b, 8);
    memcpy(slot.words + 6, d, 16);
    meet(0xffffffffu, slot, multiply_tiles<T>, "mma", site);
    memcpy(d, slot.words, 16);
}

// The 8 rows of a matrix are read at once if they lie in different banks: 16 bytes of 128 each, or the same bytes.
inline void check_banks(const uint16_t* const* rows, Site site) {
    const uint16_t* in_bank[8] = {};
    for (int i = 0; i < 8; i++) {
        const uint16_t* row = rows[i];
        const uint16_t*& other = in_bank[reinterpret_cast<uintptr_t>(row) / 16 % 8];
        if (other && other != row) fault(719, "ldmatrix of rows that share banks of shared memory", site);
        other = row;
    }
}

// Slots hold the address of a row each, lanes 8 i .. 8 i + 7 those of matrix i, and afterwards one word of each matrix.
template <bool TRANSPOSED> void load_matrices(Slot (&slots)[32], Site site) {
    const uint16_t* rows[32];
    for (int lane = 0; lane < 32; lane++) memcpy(&rows[lane], slots[lane].words, sizeof rows[lane]);
    for (int matrix = 0; matrix < 4; matrix++) check_banks(rows + 8 * matrix, site);
    for (int lane = 0; lane < 32; lane++) {
        int group = lane / 4, pair = lane % 4 * 2;
        for (int matrix = 0; matrix < 4; matrix++) {
            const uint16_t* const* row = rows + 8 * matrix;
            uint32_t low = TRANSPOSED ? row[pair][group] : row[group][pair];
            uint32_t high = TRANSPOSED ? row[pair + 1][group] : row[group][pair + 1];
            slots[lane].words[matrix] = low | high << 16;
        }
    }
}

template <bool TRANSPOSED> void load_fragments(uint32_t (&r)[4], const void* row, Site site) {
    check_shared(row, "ldmatrix", site);
    Slot slot;
    memcpy(slot.words, &row, sizeof row);
    meet(0xffffffffu, slot, load_matrices<TRANSPOSED>, "ldmatrix", site);
    memcpy(r, slot.words, 16);
}

// The destination is NaN until the copy completes. Older GPUs have no such copies, and mma.cuh uses plain ones there.
inline void copy_async(void* to, const void* from, bool valid, Site site) {
    check_shared(to, "cp.async", site);
    if (valid && reinterpret_cast<uintptr_t>(from) % 16) fault(716, "cp.async from an address that is not 16-byte aligned", site);
    if (capability < 80) {
        *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
        return;
    }
    *static_cast<uint4*>(to) = {~0u, ~0u, ~0u, ~0u};
    start_copy({to, from, valid, 0, site});
}

inline void wait_copies(unsigned groups) {
    while (const Copy* copy = next_landing(groups))
        *static_cast<uint4*>(copy->to) = copy->valid ? *static_cast<const uint4*>(copy->from) : uint4{0, 0, 0, 0};
}

}  // namespace vgpu

// ---- arithmetic

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
inline size_t max(size_t a, size_t b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

namespace vgpu {
// Keeps the compiler from fusing an operation with another.
inline float alone(float x) {
    asm("" : "+x"(x));
    return x;
}
}  // namespace vgpu
inline float __fadd_rn(float a, float b) { return vgpu::alone(a + b); }
inline float __fsub_rn(float a, float b) { return vgpu::alone(a - b); }
inline float __fmul_rn(float a, float b) { return vgpu::alone(a * b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
