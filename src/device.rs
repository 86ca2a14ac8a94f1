//! Which backend computes: what `--device` means. The one place that knows the backends by name.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::cpu::Cpu;
use crate::error::{Error, Kind, Result};
use crate::ops::Backend;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The best there is.
    Auto,
    Cpu,
    /// A GPU by its index; never anything else instead.
    Cuda(usize),
}

impl Device {
    /// The backend.
    ///
    /// # Errors
    /// The device asked for is not there.
    pub fn open(self) -> Result<Box<dyn Backend>> {
        match self {
            Device::Auto | Device::Cpu => Ok(Box::new(Cpu::<f32>::new())),
            Device::Cuda(_) => {
                let fact = "this build has no CUDA backend";
                Err(Error::new(Kind::Device, format!("--device {self}"), fact, "pass --device cpu"))
            }
        }
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
