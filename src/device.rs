//! Which backend computes, and in which precision: what `--device` and `--precision` mean. The one place that knows the
//! backends by name.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::error::{Error, Result};
use crate::ops::{Backend, DType};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The best there is.
    Auto,
    Cpu,
    /// A GPU by its index; never anything else instead.
    Cuda(usize),
}

/// Of activations and products. Weights, sums, statistics and the optimizer are f32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    /// Products round their operands to 10 bits of fraction.
    Tf32,
    /// Activations and products in bfloat16.
    Bf16,
}

impl Precision {
    /// Of activations.
    pub fn dtype(self) -> DType {
        if self == Precision::Bf16 { DType::Bf16 } else { DType::F32 }
    }
}

impl Device {
    /// The backend; for `auto` also a line that says which it is and why, for the caller to note.
    ///
    /// # Errors
    /// The device asked for is not there, or does not compute in `precision`.
    pub fn open(self, precision: Precision) -> Result<(Box<dyn Backend>, Option<String>)> {
        match self {
            Device::Cpu => Ok((cpu(precision)?, None)),
            Device::Cuda(index) => Ok((Box::new(Cuda::open(index)?), None)),
            Device::Auto => match Cuda::open(0) {
                Ok(gpu) => {
                    let line = format!("device: {}", gpu.name());
                    Ok((Box::new(gpu), Some(line)))
                }
                Err(e) => {
                    let cpu = cpu(precision)?;
                    let line = format!("device: {}; {}", cpu.name(), e.fact());
                    Ok((cpu, Some(line)))
                }
            },
        }
    }
}

fn cpu(precision: Precision) -> Result<Box<dyn Backend>> {
    if precision == Precision::Fp32 {
        return Ok(Box::new(Cpu::<f32>::new()));
    }
    let name = precision.to_possible_value().expect("no value is hidden");
    let place = format!("--precision {}", name.get_name());
    Err(Error::user(place, "the CPU computes in fp32", "pass --precision fp32, or --device cuda on a machine with a GPU"))
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
            _ => Err(Error::user(format!("--device {name}"), "no such device", "give auto, cpu, cuda or cuda:N")),
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
