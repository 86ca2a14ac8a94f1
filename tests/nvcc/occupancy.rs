//! The number of blocks and warps of each kernel that a multiprocessor can hold, as limited by registers, threads and shared
//! memory. occupancy.txt has the table; fewer warps than there are a failure. After an intended change, RENEW=1 rewrites the
//! file; check its diff.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::built;
use super::ptxas::{Usage, usages};
use super::source::Kernel;

/// Limits of a multiprocessor, from the technical specifications per compute capability in the CUDA C++ Programming Guide. All
/// have 64 Ki registers in four parts, allocated to warps in units of 256.
struct Multiprocessor {
    arch: &'static str,
    warps: u32,
    blocks: u32,
    shared: u32,
    /// Bytes of shared memory per block reserved by the system.
    reserved: u32,
    /// Allocation unit of shared memory.
    unit: u32,
}

const MULTIPROCESSORS: [Multiprocessor; 3] = [
    Multiprocessor { arch: "sm_75", warps: 32, blocks: 16, shared: 64 << 10, reserved: 0, unit: 256 },
    Multiprocessor { arch: "sm_80", warps: 64, blocks: 32, shared: 164 << 10, reserved: 1 << 10, unit: 128 },
    Multiprocessor { arch: "sm_90a", warps: 64, blocks: 32, shared: 228 << 10, reserved: 1 << 10, unit: 128 },
];

impl Multiprocessor {
    /// Blocks that can run at a time.
    fn blocks(&self, usage: &Usage, threads: u32, dynamic: u32) -> u32 {
        let warps = threads.div_ceil(32);
        let of_a_warp = (32 * usage.registers).next_multiple_of(256);
        let by_registers = 4 * ((64 << 10) / 4 / of_a_warp) / warps.next_multiple_of(4);
        let by_shared = match usage.shared + dynamic {
            0 => u32::MAX,
            shared => self.shared / (shared + self.reserved).next_multiple_of(self.unit),
        };
        by_registers.min(by_shared).min(self.warps / warps).min(self.blocks)
    }
}

/// The line of a kernel: threads, dynamic shared memory; then, per multiprocessor, registers, static shared memory, blocks,
/// warps.
fn line(kernel: &Kernel, mut usage: impl FnMut(&str) -> Usage) -> String {
    let Kernel { name, threads, shared: dynamic, .. } = kernel;
    let mut line = format!("{name:<27}{threads:>5}{dynamic:>7}");
    for multiprocessor in &MULTIPROCESSORS {
        // It has no tensor cores for bf16.
        if multiprocessor.arch == "sm_75" && name.contains("_mma_") && name.ends_with("_bf16") {
            line.push_str("  |   -     -   -   -");
            continue;
        }
        let usage = usage(multiprocessor.arch);
        let blocks = multiprocessor.blocks(&usage, *threads, *dynamic);
        let _ = write!(line, "  | {:>3} {:>5} {blocks:>3} {:>3}", usage.registers, usage.shared, blocks * threads.div_ceil(32));
    }
    line
}

/// The warps in a line.
fn warps(line: &str) -> Vec<Option<u32>> {
    line.split('|').skip(1).map(|part| part.split_whitespace().last().and_then(|warps| warps.parse().ok())).collect()
}

#[test]
fn blocks_are_limited_by_the_scarcest_resource() {
    let usage = |registers, shared| Usage { registers, shared, stack: 0, stores: 0, loads: 0 };
    let [t4, a100, h100] = &MULTIPROCESSORS;
    // Registers; shared memory; warps; blocks.
    assert_eq!(h100.blocks(&usage(248, 0), 128, 36_864), 2);
    assert_eq!(h100.blocks(&usage(40, 0), 512, 0), 3);
    assert_eq!(h100.blocks(&usage(128, 1024), 128, 50 << 10), 4);
    assert_eq!(t4.blocks(&usage(64, 0), 128, 33 << 10), 1);
    assert_eq!((t4.blocks(&usage(32, 0), 256, 0), a100.blocks(&usage(32, 0), 256, 0)), (4, 8));
    assert_eq!((t4.blocks(&usage(16, 0), 32, 0), a100.blocks(&usage(16, 0), 32, 0)), (16, 32));
}

#[test]
#[ignore = "needs a build with nvcc for sm_75, sm_80 and sm_90a"]
fn occupancy_is_as_expected() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvcc/occupancy.txt");
    let archs = MULTIPROCESSORS.map(|multiprocessor| format!("  | {:<17}", multiprocessor.arch)).concat();
    let columns = "  | reg stati blk wrp".repeat(MULTIPROCESSORS.len());
    let mut found = format!("{:<39}{archs}\n{:<27}thrds dynam {columns}\n", "", "kernel");
    for (source, report) in built() {
        let mut usages = usages(&report).unwrap();
        for kernel in &source.kernels {
            let usage = |arch: &str| {
                let usage = usages.remove(&(kernel.name.clone(), arch.to_string()));
                usage.unwrap_or_else(|| panic!("{}: not built for {arch}", kernel.name))
            };
            let _ = writeln!(found, "{}", line(kernel, usage));
        }
    }
    print!("{found}");
    if std::env::var_os("RENEW").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    let name = |line: &str| line.split_whitespace().next().map(str::to_string);
    let fewer = |line: &&str| {
        let expected = golden.lines().find(|expected| name(expected) == name(line));
        let expected = expected.unwrap_or_else(|| panic!("{line}\nis not in {}; RENEW=1 writes it", path.display()));
        warps(line).iter().zip(warps(expected)).any(|(found, expected)| *found < expected)
    };
    let fewer: Vec<&str> = found.lines().skip(2).filter(fewer).collect();
    assert!(fewer.is_empty(), "fewer warps than {} has:\n{}", path.display(), fewer.join("\n"));
}
