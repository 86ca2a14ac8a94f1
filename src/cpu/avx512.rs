//! Packs and multiplies panels of bf16 pairs by AVX512-BF16.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::matrix::{Accumulate, Mat};
use super::panels::{Kernels, Pairs, ROWS, Tile, WIDTH};

const REGISTERS: usize = WIDTH / 16;

/// Only for machines with AVX512-BF16.
pub const KERNELS: Kernels<f32> = Kernels {
    // SAFETY: the machine has the instructions.
    pack: |panel, x, terms, columns| unsafe { pack(panel, x, terms, columns) },
    // SAFETY: the same.
    multiply: |a, column, b, tile| unsafe {
        match tile.width.div_ceil(16) {
            1 => multiply::<1>(a, column, b, tile),
            2 => multiply::<2>(a, column, b, tile),
            _ => multiply::<REGISTERS>(a, column, b, tile),
        }
    },
};

#[target_feature(enable = "avx512f,avx512bf16")]
fn pack(panel: &mut [Pairs], x: Mat<f32>, terms: usize, columns: usize) {
    if x.row == 1 {
        pack_columns(panel, x, terms, columns);
    } else {
        assert_eq!(x.col, 1, "neither rows nor columns are contiguous");
        pack_rows(panel, x, terms, columns);
    }
}

/// For contiguous rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows(panel: &mut [Pairs], x: Mat<f32>, terms: usize, columns: usize) {
    for (p, pairs) in panel.iter_mut().enumerate() {
        for (block, pairs) in pairs.as_chunks_mut().0.iter_mut().enumerate() {
            let numbers = |row: usize| match columns.checked_sub(16 * block) {
                Some(columns) if row < terms => load(&x.data[row * x.row + 16 * block..], columns),
                _ => _mm512_setzero_ps(),
            };
            store(pairs, interleave(round(numbers(2 * p), numbers(2 * p + 1))));
        }
    }
}

/// For contiguous columns: blocks of 16 columns and 16 pairs, transposed in registers.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pack_columns(panel: &mut [Pairs], x: Mat<f32>, terms: usize, columns: usize) {
    for first in (0..WIDTH).step_by(16) {
        for (block, panel) in panel.chunks_mut(16).enumerate() {
            let mut pairs = [_mm512_setzero_si512(); 16];
            for (j, pairs) in pairs.iter_mut().enumerate() {
                if first + j < columns {
                    let numbers = &x.data[(first + j) * x.col..][32 * block..terms];
                    *pairs = round(load(numbers, 16), numbers.get(16..).map_or(_mm512_setzero_ps(), |rest| load(rest, 16)));
                }
            }
            for (to, pairs) in panel.iter_mut().zip(transpose(pairs)) {
                store((&mut to[first..first + 16]).try_into().expect("as long"), pairs);
            }
        }
    }
}

/// The first `n` of the numbers, at most 16; the rest is 0.
#[target_feature(enable = "avx512f")]
fn load(numbers: &[f32], n: usize) -> __m512 {
    let n = n.min(numbers.len());
    // SAFETY: the mask allows only what the slice has.
    unsafe { _mm512_maskz_loadu_ps(lanes(n), numbers.as_ptr()) }
}

/// A mask of the first `n` lanes.
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

#[target_feature(enable = "avx512f")]
fn store(to: &mut [u32; 16], pairs: __m512i) {
    // SAFETY: as long as a register.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs) }
}

/// Rounds 32 numbers to bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: the types are of one size, and any bits are integers.
    unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Interleaves the lower 16 numbers of 16 bits with the upper 16.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(halves: __m512i) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + 16 * (i % 2)) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: the types are of one size.
    _mm512_permutexvar_epi16(unsafe { transmute::<[u16; 32], __m512i>(ORDER) }, halves)
}

/// Transposes 16 x 16 numbers. Each interleaving of the first and the second half moves the highest bit of an index to the
/// lowest.
#[target_feature(enable = "avx512f")]
fn transpose(mut from: [__m512i; 16]) -> [__m512i; 16] {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for _ in 0..4 {
        let mut to = from;
        for i in 0..8 {
            to[2 * i] = _mm512_permutex2var_epi32(from[i], low, from[8 + i]);
            to[2 * i + 1] = _mm512_permutex2var_epi32(from[i], high, from[8 + i]);
        }
        from = to;
    }
    from
}

/// With N registers of columns of `b`.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply<const N: usize>(a: &[Pairs], column: usize, b: &[Pairs], tile: Tile<f32>) {
    let Tile { rows, width, stride, .. } = tile;
    let out = tile.out.pointer(tile.at, (rows - 1) * stride + width);
    let masks: [__mmask16; N] = std::array::from_fn(|register| lanes(width - 16 * register));
    // Prefetch: needed after the accumulation.
    for r in 0..rows {
        for register in 0..N {
            _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(r * stride + 16 * register).cast());
        }
    }
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    for (a, b) in a.iter().zip(b) {
        // SAFETY: the types are of one size, and any bits are pairs of bf16.
        let b: [__m512bh; REGISTERS] = unsafe { transmute(*b) };
        for (sums, &a) in sums.iter_mut().zip(&a[column..][..ROWS]) {
            // SAFETY: the same.
            let a: __m512bh = unsafe { transmute(_mm512_set1_epi32(a as i32)) };
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
    }
    let scale = _mm512_set1_ps(tile.scale);
    for (r, sums) in sums.iter().enumerate() {
        if r < rows {
            for (register, (&mask, &sum)) in masks.iter().zip(sums).enumerate() {
                let sum = _mm512_mul_ps(scale, sum);
                // SAFETY: the mask allows only elements of the tile.
                unsafe {
                    let out = out.add(r * stride + 16 * register);
                    let sum = match tile.onto {
                        Accumulate::Nothing => sum,
                        Accumulate::Itself => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum),
                        Accumulate::Row(row) => {
                            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, row[..width].as_ptr().add(16 * register)), sum)
                        }
                    };
                    _mm512_mask_storeu_ps(out, mask, sum);
                }
            }
        }
    }
}
