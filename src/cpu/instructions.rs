//! The instructions that the backend uses: the best of the machine, or those that `WARPFIT_CPU` names. The only module that
//! detects them, but for tiles, which `amx` asks the system for. The C library alone chooses for itself: `tanh` in f32, and `exp` and `tanh` in f64.

use std::fmt;
use std::sync::OnceLock;

use clap::ValueEnum;
use pulp::Arch;

use crate::error::{Error, Result};

const VARIABLE: &str = "WARPFIT_CPU";

/// In ascending order; a machine has all of its architecture up to its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Instructions {
    /// The baseline of the architecture.
    Plain,
    Neon,
    /// With FMA.
    Avx2,
    Avx512,
    /// AVX-512 with bf16 dot products.
    Avx512Bf16,
    /// The same, with AMX tiles of bf16.
    Amx,
}

impl Instructions {
    /// The instructions of this machine, in ascending order.
    pub fn available() -> Vec<Instructions> {
        Self::value_variants().iter().copied().filter(|instructions| instructions.arch().is_some()).collect()
    }

    /// The fastest of this machine: the last of the available ones, except that Intel's dot products of bf16 are slower than
    /// products of f32.
    pub fn best() -> Instructions {
        let slow = |instructions| instructions == Instructions::Avx512Bf16 && intel();
        let mut all = Self::available().into_iter().rev();
        all.find(|&instructions| !slow(instructions)).expect("at least the plain ones")
    }

    /// Those that decide the bits of products in f32.
    pub fn for_f32(self) -> Instructions {
        match self {
            Instructions::Avx512Bf16 | Instructions::Amx => Instructions::Avx512,
            other => other,
        }
    }

    /// The instructions that this process uses.
    ///
    /// # Errors
    /// `WARPFIT_CPU` names instructions that this machine does not have.
    pub fn chosen() -> Result<Instructions> {
        let available = Self::available();
        let Some(name) = std::env::var_os(VARIABLE) else {
            return Ok(Self::best());
        };
        let name = name.to_string_lossy();
        let refused = |fact: &str| {
            let names = available.iter().map(|instructions| instructions.to_string()).collect::<Vec<_>>().join(", ");
            Error::user(format!("{VARIABLE}={name}"), fact, format!("this machine has {names}"))
        };
        match Self::from_str(&name, false) {
            Ok(instructions) if available.contains(&instructions) => Ok(instructions),
            Ok(_) => Err(refused("these instructions are missing here")),
            Err(_) => Err(refused("no such instructions")),
        }
    }

    /// [`chosen`](Self::chosen), read once. Panics on its error, which `Device::open` reports before anything is computed.
    pub fn in_use() -> Instructions {
        in_use().0
    }

    /// Whether these are faster than products in f32.
    pub fn multiply_bf16_faster(self) -> bool {
        self == Instructions::Amx || self == Instructions::Avx512Bf16 && !intel()
    }

    /// The compiler target for loops; `None` if the machine lacks the instructions.
    fn arch(self) -> Option<Arch> {
        #[cfg(target_arch = "aarch64")]
        use pulp::aarch64::Neon;
        #[cfg(target_arch = "x86_64")]
        use pulp::x86::{V3, V4};
        match self {
            Instructions::Plain => Some(Arch::Scalar),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon => Neon::try_new().map(Arch::Neon),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => V3::try_new().map(Arch::V3),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => V4::try_new().map(Arch::V4),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Bf16 => V4::try_new().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Arch::V4),
            #[cfg(target_arch = "x86_64")]
            Instructions::Amx => Instructions::Avx512Bf16.arch().filter(|_| super::amx::available()),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }
}

/// The values of `WARPFIT_CPU`.
impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("all have a name").get_name())
    }
}

/// The name of this machine's CPU, or of its architecture.
pub fn cpu() -> String {
    #[cfg(target_arch = "x86_64")]
    if let Some(brand) = raw_cpuid::CpuId::new().get_processor_brand_string() {
        return brand.as_str().trim().to_string();
    }
    format!("CPU of {}", std::env::consts::ARCH)
}

fn intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        raw_cpuid::CpuId::new().get_vendor_info().is_some_and(|vendor| vendor.as_str() == "GenuineIntel")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[inline]
fn in_use() -> (Instructions, Arch) {
    static IN_USE: OnceLock<(Instructions, Arch)> = OnceLock::new();
    *IN_USE.get_or_init(|| {
        let instructions = Instructions::chosen().unwrap_or_else(|error| panic!("{error}"));
        (instructions, instructions.arch().expect("the machine has them"))
    })
}

/// The compiler target for loops, for the instructions in use.
#[inline]
pub fn arch() -> Arch {
    in_use().1
}
