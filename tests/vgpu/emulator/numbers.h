// Floats of 16 bits: to and from f32, to nearest, ties to even. NaN becomes 0x7fff, as on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vgpu {

template <class To, class From> To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline float from_bf16(uint16_t x) { return bits<float>(uint32_t(x) << 16); }

inline uint16_t to_bf16(float x) {
    const uint32_t word = bits<uint32_t>(x);
    return x != x ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

inline float from_f16(uint16_t x) {
    const uint32_t sign = (x & 0x8000u) << 16, size = (x & 0x7fffu) << 13;
    if ((x & 0x7c00) == 0x7c00) return bits<float>(sign | size | 0x7f800000u);
    // f32 has 112 more exponents below 1; subnormal numbers become normal.
    return bits<float>(sign | bits<uint32_t>(bits<float>(size) * 0x1p112f));
}

inline uint16_t to_f16(float x) {
    const uint32_t sign = bits<uint32_t>(x) >> 16 & 0x8000, size = bits<uint32_t>(fabsf(x));
    if (x != x) return 0x7fff;
    if (fabsf(x) >= 65520.0f) return sign | 0x7c00;
    // The last place of floats from 0.5 on is that of subnormal numbers.
    if (fabsf(x) < 0x1p-14f) return sign | (bits<uint32_t>(fabsf(x) + 0.5f) - bits<uint32_t>(0.5f));
    return sign | ((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10);
}

}  // namespace vgpu
