//! The backend and its precision: the values of `--device` and `--precision`. The only module that opens a backend.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize, Serializer};

use crate::cpu::{Cpu, Instructions};
use crate::cuda::{self, COMPILER, Cuda};
use crate::error::{Error, Kind, Result};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// On a GPU bf16, or fp16 if it has no bf16; on the CPU fp32.
    Auto,
    Fp32,
    /// Products round their operands to 10 bits of fraction.
    Tf32,
    /// Activations and products in bfloat16; on the CPU only the products.
    Bf16,
    /// Activations and products in half precision, with a loss scale. On a GPU.
    Fp16,
}

/// A backend and its precision.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    /// Never `Auto`.
    pub device: Device,
    pub arithmetic: Arithmetic,
    /// Never `Auto`.
    pub precision: Precision,
    /// A faster precision that `auto` leaves to the user.
    pub faster: Option<Precision>,
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
            Device::Cuda(index) => (gpu(Cuda::open(index)?, index, precision)?, String::new()),
            Device::Auto => match Cuda::open(0) {
                Ok(backend) => (gpu(backend, 0, precision)?, String::new()),
                Err(e) => (cpu(precision)?, format!("; {}", e.fact())),
            },
        };
        opened.notes.insert(0, format!("device: {}, precision {}{why}", opened.backend.name(), opened.precision));
        Ok(opened)
    }

    /// Tokens of a batch with which the device is at its fastest; with more, texts wait longer for nothing.
    pub fn batch_tokens(self) -> usize {
        if self == Device::Cpu { 2048 } else { 16_384 }
    }
}

/// The GPU code in this build: "GPU code for sm_80, sm_90a by nvcc 13.0", or "no GPU code".
pub fn gpu_code() -> String {
    match COMPILER {
        Some((by, (major, minor))) => format!("GPU code for {} by {by} {major}.{minor}", cuda::architectures()),
        None => "no GPU code".to_string(),
    }
}

fn gpu(backend: Cuda, index: usize, precision: Precision) -> Result<Opened> {
    let (major, minor) = backend.capability();
    let (precision, arithmetic) = match precision {
        Precision::Fp32 => (precision, Arithmetic::F32),
        Precision::Auto | Precision::Fp16 if major < 8 => (Precision::Fp16, Arithmetic::F16),
        Precision::Bf16 | Precision::Tf32 if major < 8 => {
            let fact = format!("compute capability {major}.{minor}: products of {precision} need 8.0");
            return Err(Error::new(Kind::Device, backend.name(), fact, "pass --precision fp16 or fp32"));
        }
        Precision::Tf32 => (precision, Arithmetic::Tf32),
        Precision::Auto | Precision::Bf16 => (Precision::Bf16, Arithmetic::Bf16),
        Precision::Fp16 => (precision, Arithmetic::F16),
    };
    Ok(Opened { backend: Box::new(backend), device: Device::Cuda(index), arithmetic, precision, faster: None, notes: Vec::new() })
}

fn cpu(asked: Precision) -> Result<Opened> {
    let (precision, arithmetic) = match asked {
        Precision::Auto | Precision::Fp32 => (Precision::Fp32, Arithmetic::F32),
        Precision::Bf16 => (asked, Arithmetic::Bf16Products),
        Precision::Tf32 | Precision::Fp16 => {
            let remedy = "pass one of these, or --device cuda on a machine with a GPU";
            return Err(Error::user(format!("--precision {asked}"), "the CPU computes in fp32 or bf16", remedy));
        }
    };
    let instructions = Instructions::in_use();
    let fast = instructions.multiply_bf16_faster();
    let faster = (asked == Precision::Auto && fast).then_some(Precision::Bf16);
    let note = format!("note: --precision bf16 is no faster than fp32 on this CPU with its instructions {instructions}");
    let notes = if precision == Precision::Bf16 && !fast { vec![note] } else { Vec::new() };
    Ok(Opened { backend: Box::new(Cpu::<f32>::new()), device: Device::Cpu, arithmetic, precision, faster, notes })
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Precision::Auto => "auto",
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
        })
    }
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
