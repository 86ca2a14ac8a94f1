//! Packs and multiplies blocks of bf16 pairs by AVX512-BF16.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::transmute;

use super::matrix::{Accumulate, Mat};
use super::panels::{Block, By, Kernels, Region, SIDE, depth};

/// A tile of the result: of the 32 registers, 24 hold its sums.
const ROWS: usize = 8;
const REGISTERS: usize = 3;

/// Only for machines with AVX512-BF16.
pub const KERNELS: Kernels<f32> = Kernels {
    // A closure would copy the arguments.
    pack,
    // SAFETY: the machine has the instructions.
    multiply: |a, b, terms, region| unsafe {
        let depth = depth(terms);
        for j in (0..region.columns).step_by(REGISTERS * SIDE) {
            let b = &b[j / SIDE * depth..];
            for i in (0..region.rows).step_by(ROWS) {
                let (a, half) = (&a[i / SIDE * depth..][..depth], i % SIDE);
                match (region.columns - j).div_ceil(SIDE) {
                    1 => multiply::<1>((a, half), b, terms, region, (i, j)),
                    2 => multiply::<2>((a, half), b, terms, region, (i, j)),
                    _ => multiply::<REGISTERS>((a, half), b, terms, region, (i, j)),
                }
            }
        }
    },
};

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(block: &mut Block, x: Mat<f32>, terms: usize, columns: usize, by: By) {
    let (terms, columns) = (terms.min(2 * SIDE), columns.min(SIDE));
    assert!(x.holds(terms, columns), "a block is not all there");
    let whole = (terms, columns) == (2 * SIDE, SIDE);
    let start = x.data.as_ptr();
    // SAFETY: as just checked.
    let (pairs, order) = unsafe {
        match (x.row, whole) {
            (1, true) => (of_columns::<true>(start, x.col, terms, columns), By::Row),
            (1, false) => (of_columns::<false>(start, x.col, terms, columns), By::Row),
            (row, true) => (of_rows::<true>(start, row, terms, columns), By::Pair),
            (row, false) => (of_rows::<false>(start, row, terms, columns), By::Pair),
        }
    };
    let pairs = if order == by { pairs } else { transpose(pairs) };
    block.0.iter_mut().zip(pairs).for_each(|(to, pairs)| store(to, pairs));
}

/// The pairs of a block of contiguous rows, by pair.
///
/// # Safety
/// From `x` on there are these terms and columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn of_rows<const WHOLE: bool>(x: *const f32, row: usize, terms: usize, columns: usize) -> [__m512i; SIDE] {
    let mask = lanes(columns);
    // SAFETY: the mask allows only what is there.
    let numbers = |i: usize| unsafe {
        let mask = match i {
            _ if WHOLE => !0,
            _ if i < terms => mask,
            _ => 0,
        };
        _mm512_maskz_loadu_ps(mask, x.wrapping_add(i * row))
    };
    from_fn(|p| interleave(round(numbers(2 * p), numbers(2 * p + 1))))
}

/// The pairs of a block of contiguous columns, by column.
///
/// # Safety
/// The same.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn of_columns<const WHOLE: bool>(x: *const f32, column: usize, terms: usize, columns: usize) -> [__m512i; SIDE] {
    let masks = [lanes(terms), lanes(terms.saturating_sub(SIDE))];
    // SAFETY: the masks allow only what is there.
    let numbers = |j: usize, half: usize| unsafe {
        let mask = match j {
            _ if WHOLE => !0,
            _ if j < columns => masks[half],
            _ => 0,
        };
        _mm512_maskz_loadu_ps(mask, x.wrapping_add(j * column + half * SIDE))
    };
    from_fn(|j| round(numbers(j, 0), numbers(j, 1)))
}

/// A mask of the first `n` lanes.
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

#[target_feature(enable = "avx512f")]
fn store(to: &mut [u32; SIDE], pairs: __m512i) {
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

/// The tile at (i, j) of the region, with N registers of columns of `b`.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply<const N: usize>(
    (a, half): (&[Block], usize),
    b: &[Block],
    terms: usize,
    region: Region<f32>,
    (i, j): (usize, usize),
) {
    // Prefetch: needed after the accumulation.
    let out = region.out.pointer(region.at, 0);
    for r in i..region.rows.min(i + ROWS) {
        for register in 0..N {
            _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(r * region.stride + j + SIDE * register).cast());
        }
    }
    let depth = a.len();
    let b: [&[Block]; N] = from_fn(|register| &b[register * depth..][..depth]);
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    for (k, a) in a.iter().enumerate() {
        let a: &[_; ROWS] = a.0[half..half + ROWS].try_into().expect("as long");
        for p in 0..(terms.div_ceil(2) - SIDE * k).min(SIDE) {
            // SAFETY: the types are of one size, and any bits are pairs of bf16.
            let b: [__m512bh; N] = from_fn(|register| unsafe { transmute(b[register][k].0[p]) });
            for (sums, a) in sums.iter_mut().zip(a) {
                // SAFETY: the same.
                let a: __m512bh = unsafe { transmute(_mm512_set1_epi32(a[p] as i32)) };
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
        }
    }
    finish(&region, (i, j), &sums);
}

/// Stores the sums of a tile at (i, j), as far as the region reaches.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn finish<const N: usize, const ROWS: usize>(region: &Region<f32>, (i, j): (usize, usize), sums: &[[__m512; N]; ROWS]) {
    let (rows, columns) = (ROWS.min(region.rows - i), (N * SIDE).min(region.columns - j));
    let out = region.out.pointer(region.at + i * region.stride + j, (rows - 1) * region.stride + columns);
    let masks: [__mmask16; N] = from_fn(|register| lanes(columns.saturating_sub(SIDE * register)));
    let scale = _mm512_set1_ps(region.scale);
    for (r, sums) in sums.iter().enumerate().take(rows) {
        for (register, (&mask, &sums)) in masks.iter().zip(sums).enumerate() {
            let out = out.wrapping_add(r * region.stride + SIDE * register);
            let sums = _mm512_mul_ps(scale, sums);
            let sums = match region.onto {
                Accumulate::Nothing => sums,
                // SAFETY: the mask allows only elements of the region.
                Accumulate::Itself => _mm512_add_ps(unsafe { _mm512_maskz_loadu_ps(mask, out) }, sums),
                Accumulate::Row(row) => {
                    let row = row[j..][..columns].as_ptr().wrapping_add(SIDE * register);
                    // SAFETY: the same.
                    _mm512_add_ps(unsafe { _mm512_maskz_loadu_ps(mask, row) }, sums)
                }
            };
            // SAFETY: the same.
            unsafe { _mm512_mask_storeu_ps(out, mask, sums) };
        }
    }
}
