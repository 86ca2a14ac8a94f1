//! The backend and its precision: the values of `--device` and `--precision`. The only module that names the backends.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use crate::cpu::{Cpu, Instructions};
use crate::cuda::{self, Cuda, NVCC};
use crate::error::{Error, Result};
use crate::ops::{Arithmetic, Backend};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU that opens, else the CPU.
    Auto,
    Cpu,
    /// The GPU with this index, or an error.
    Cuda(usize),
}

/// Precision of activations and products. Weights, sums, statistics and the optimizer are f32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    /// Products round their operands to 10 bits of fraction.
    Tf32,
    /// Activations and products in bfloat16; on the CPU only the products.
    Bf16,
}

/// A backend and its arithmetic.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    pub arithmetic: Arithmetic,
    /// Notes for the user: the device, why `auto` did not take a GPU, and warnings of slow settings.
    pub notes: Vec<String>,
}

impl Device {
    /// # Errors
    /// The requested device is missing or does not support `precision`; or the requested instructions are missing.
    pub fn open(self, precision: Precision) -> Result<Opened> {
        Instructions::chosen()?;
        let (mut opened, why) = match self {
            Device::Cpu => (cpu(precision)?, String::new()),
            Device::Cuda(index) => (gpu(Cuda::open(index)?, precision), String::new()),
            Device::Auto => match Cuda::open(0) {
                Ok(backend) => (gpu(backend, precision), String::new()),
                Err(e) => (cpu(precision)?, format!("; {}", e.fact())),
            },
        };
        opened.notes.insert(0, format!("device: {}{why}", opened.backend.name()));
        Ok(opened)
    }
}

/// The GPU code in this build: "GPU code for sm_80, sm_90a by nvcc 13.0", or "no GPU code".
pub fn gpu_code() -> String {
    match NVCC {
        Some((major, minor)) => format!("GPU code for {} by nvcc {major}.{minor}", cuda::architectures()),
        None => "no GPU code".to_string(),
    }
}

fn gpu(backend: Cuda, precision: Precision) -> Opened {
    let arithmetic = match precision {
        Precision::Fp32 => Arithmetic::F32,
        Precision::Tf32 => Arithmetic::Tf32,
        Precision::Bf16 => Arithmetic::Bf16,
    };
    Opened { backend: Box::new(backend), arithmetic, notes: Vec::new() }
}

fn cpu(precision: Precision) -> Result<Opened> {
    let arithmetic = match precision {
        Precision::Fp32 => Arithmetic::F32,
        Precision::Bf16 => Arithmetic::Bf16Products,
        Precision::Tf32 => {
            let remedy = "pass one of these, or --device cuda on a machine with a GPU";
            return Err(Error::user("--precision tf32", "the CPU computes in fp32 or bf16", remedy));
        }
    };
    let slow = precision == Precision::Bf16 && Instructions::in_use() != Instructions::Avx512Bf16;
    let note = "--precision bf16: without AVX512-BF16, which this CPU does not have or may not use, it is no faster than fp32"
        .to_string();
    Ok(Opened { backend: Box::new(Cpu::<f32>::new()), arithmetic, notes: slow.then_some(note).into_iter().collect() })
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Device> {
        let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
        match (name, index) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            (_, Some(index)) => Ok(Device::Cuda(index)),
            _ => Err(Error::user(format!("--device {name}"), "no such device", "use auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(0) => f.write_str("cuda"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
