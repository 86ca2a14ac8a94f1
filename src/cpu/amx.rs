//! Multiplies blocks of bf16 pairs by AMX: a tile, a register of 1 KiB, holds a block or its sums. Intel 64 and IA-32
//! Architectures Software Developer's Manual, volume 1, "Programming with Intel Advanced Matrix Extensions".

use std::arch::asm;
use std::arch::x86_64::{__m512, _mm512_setzero_ps};

use super::avx512::{self, finish};
use super::panels::{Block, Kernels, Region, SIDE, depth};

/// Only for machines with AMX-BF16.
pub const KERNELS: Kernels<f32> = Kernels {
    pack: avx512::KERNELS.pack,
    // SAFETY: the machine has the instructions.
    multiply: |a, b, terms, region| unsafe { multiply(a, b, depth(terms), region) },
};

/// Asks the system to let this process use tiles; false if the processor or the system has none.
pub fn available() -> bool {
    #[cfg(target_os = "linux")]
    {
        use raw_cpuid::CpuId;

        // From the kernel's asm/prctl.h, and the state that holds tiles.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        let features = CpuId::new().get_extended_feature_info();
        features.is_some_and(|features| features.has_amx_tile() && features.has_amx_bf16())
            // SAFETY: the call reads no memory.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// How tiles are used: palette 1, then the bytes of a row and the rows of each.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight whole tiles.
const CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The sums of two panels of rows and two of columns.
type Sums = [[__m512; 2]; 2 * SIDE];

#[target_feature(enable = "avx512f")]
fn multiply(a: &[Block], b: &[Block], depth: usize, region: Region<f32>) {
    // SAFETY: until their release, only `sums_of` uses tiles on this thread.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
    let mut sums = [[_mm512_setzero_ps(); 2]; 2 * SIDE];
    for i in (0..region.rows).step_by(2 * SIDE) {
        for j in (0..region.columns).step_by(2 * SIDE) {
            let panels = |left: usize| if left > SIDE { 2 } else { 1 };
            let a = &a[i / SIDE * depth..][..panels(region.rows - i) * depth];
            let b = &b[j / SIDE * depth..][..panels(region.columns - j) * depth];
            sums_of(a, b, depth, &mut sums);
            finish(&region, (i, j), &sums);
        }
    }
    // SAFETY: nothing is in a tile that is needed.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// The products of one or two panels of `a` with one or two of `b`. Where there is one panel, the products of a second are of no
/// use.
fn sums_of(a: &[Block], b: &[Block], depth: usize, sums: &mut Sums) {
    let second = |panels: &[Block]| panels[panels.len() - depth..].as_ptr();
    assert!(depth > 0 && a.len() >= depth && b.len() >= depth, "a product of empty panels");
    // Loads of `b` with the hint T1 leave the first-level cache to `a`, which is needed for all columns.
    // SAFETY: the loop reads `depth` blocks from each of the four pointers; then all sums are written, in rows of 128 bytes.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloaddt1 tmm6, [{b0} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloaddt1 tmm7, [{b1} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {depth}",
            "jnz 2b",
            "tilestored [{sums} + 2 * {row}], tmm0",
            "tilestored [{sums} + 2 * {row} + 64], tmm1",
            "tilestored [{sums} + 2 * {row} + 2048], tmm2",
            "tilestored [{sums} + 2 * {row} + 2112], tmm3",
            a0 = inout(reg) a.as_ptr() => _,
            a1 = inout(reg) second(a) => _,
            b0 = inout(reg) b.as_ptr() => _,
            b1 = inout(reg) second(b) => _,
            depth = inout(reg) depth => _,
            sums = in(reg) sums.as_mut_ptr(),
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
