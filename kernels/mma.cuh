// Tensor cores, the loads that feed them, and asynchronous copies: all inline PTX is here. bf16 needs sm_80. On
// sm_75, products of bf16 trap (the host never selects them), a product of f16 is two of half the size, and copies are synchronous.
// Fragments (m16n8k16, lane = 4 g + t): a = A[g][2t..], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..]; b = B[2t..][g],
// B[2t+8..][g];
// d = D[g][2t], D[g][2t+1], D[g+8][2t], D[g+8][2t+1]. Each register of a and b holds two neighbours in k, the lower one low.
#pragma once
#include "gpu.cuh"

#ifdef VGPU

template <class T> inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], VGPU_SITE) {
    vgpu::multiply<T>(d, a, b, {file, line});
}
inline void ldmatrix4(uint32_t (&r)[4], const void* p, VGPU_SITE) { vgpu::load_fragments<false>(r, p, {file, line}); }
inline void ldmatrix4_trans(uint32_t (&r)[4], const void* p, VGPU_SITE) { vgpu::load_fragments<true>(r, p, {file, line}); }
inline void cp_async16(void* dst, const void* src, bool valid, VGPU_SITE) { vgpu::copy_async(dst, src, valid, {file, line}); }
inline void cp_async_commit() { vgpu::commit_copies(); }
template <int N> void cp_async_wait() { vgpu::wait_copies(N); }
inline float exp2_approx(float x) { return vgpu::exp2_approx(x); }

#else

__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// d += a b, by the whole warp.
template <class T> __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <> __device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

template <> __device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lanes 8 i .. 8 i + 7 point to the rows of matrix i, 16 bytes each
// and aligned to 16; r[i] of lane 4 g + t is its elements [g][2t] and [g][2t + 1].
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p))
                 : "memory");
}

// The same for the transposed matrices.
__device__ __forceinline__ void ldmatrix4_trans(uint32_t (&r)[4], const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p))
                 : "memory");
}

// Copies 16 bytes from global to shared memory, or 16 zero bytes if not valid; complete after the wait for its group.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
#else
    *static_cast<uint4*>(dst) = valid ? *static_cast<const uint4*>(src) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last N groups of this thread are pending. Other threads see the copied data after a barrier.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// 2^x within 2 ulp in one instruction; 0 below 2^-126, for which exp2f takes three more.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
