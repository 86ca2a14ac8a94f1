//! Timing, and ceilings of the hardware.
//!
//! A sample is the wall-clock time of as many calls as take 4 ms, including the wait for them: a GPU runs them without a gap,
//! and the wait, about 20 us, is negligible. So every backend is timed in the same way.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use warpfit::cost::Cost;
use warpfit::cuda::COMPILER;
use warpfit::device::{Opened, Precision};
use warpfit::error::Result;
use warpfit::profile;

use crate::Args;

/// Shortest sample.
const SAMPLE: Duration = Duration::from_millis(4);

/// Microseconds per call.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let digits = if self.median < 100.0 { 1 } else { 0 };
        write!(f, "{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.p10, self.p90)
    }
}

/// Times `calls(n)`, which makes n calls and waits until they are done.
pub fn time(samples: usize, mut calls: impl FnMut(usize) -> Result<()>) -> Result<Timing> {
    let mut clock = |n: usize| {
        let start = Instant::now();
        calls(n).map(|()| start.elapsed())
    };
    for _ in 0..3 {
        clock(1)?;
    }
    let mut n = 1;
    while clock(n)? < SAMPLE {
        n *= 2;
    }
    let mut times = (0..samples).map(|_| Ok(clock(n)?.as_secs_f64() * 1e6 / n as f64)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| times[((samples - 1) as f64 * q).round() as usize];
    Ok(Timing { median: quantile(0.5), p10: quantile(0.1), p90: quantile(0.9) })
}

/// Ceilings of the hardware, by precision.
#[derive(Clone, Debug, Serialize)]
pub struct Ceilings(Vec<(Precision, profile::Ceilings)>);

impl Ceilings {
    pub fn measure(args: &Args) -> Result<Ceilings> {
        let measure = |precision: Precision| {
            let Opened { mut backend, arithmetic, .. } = args.device.open(precision)?;
            let ceilings = match args.small {
                true => profile::Ceilings::at(backend.as_mut(), arithmetic, 16 << 20, 256),
                false => profile::Ceilings::measure(backend.as_mut(), arithmetic),
            };
            Ok((precision, ceilings?))
        };
        Ok(Ceilings(args.precisions().into_iter().map(measure).collect::<Result<_>>()?))
    }

    /// A lower bound on the microseconds of this cost.
    pub fn floor(&self, cost: Cost, precision: Precision) -> f64 {
        let of = self.0.iter().find(|(other, _)| *other == precision);
        of.map_or(0.0, |(_, ceilings)| ceilings.floor(cost) * 1e6)
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of = self.0.iter().map(|(precision, ceilings)| format!("{} {ceilings}", name(*precision)));
        f.write_str(&of.collect::<Vec<_>>().join("; "))
    }
}

/// The value of `--precision`.
pub fn name(precision: Precision) -> String {
    json!(precision).as_str().expect("a word").to_string()
}

/// Hardware, date and versions of the build.
pub fn hardware(device: &str) -> Value {
    json!({
        "device": device,
        "driver": output("nvidia-smi", &["--query-gpu=driver_version", "--format=csv,noheader"]),
        "compiler": COMPILER.map(|(name, (major, minor))| format!("{name} {major}.{minor}")),
        "warpfit": env!("CARGO_PKG_VERSION"),
        "date": output("date", &["-u", "+%FT%TZ"]),
    })
}

/// The first line of a program's output.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_string)
}

/// [`hardware`] as one line.
pub fn line(hardware: &Value) -> String {
    let part = |key: &str| hardware[key].as_str().unwrap_or("none").to_string();
    format!("{}, driver {}, {}, {}", part("device"), part("driver"), part("compiler"), part("date"))
}
