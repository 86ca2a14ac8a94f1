//! How things are timed, and what the hardware can do at the most.
//!
//! A sample is the wall-clock time of so many calls that 4 ms pass, and of the wait for them: a GPU works through them without a
//! gap, and the wait, some 20 us, is lost among them. So one way of timing serves every backend.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use warpfit::cuda::{Cuda, NVCC};
use warpfit::device::{Device, Opened, Precision};
use warpfit::error::Result;
use warpfit::ops::*;

use crate::Args;
use crate::cases::Case;

/// Shortest sample.
const SAMPLE: Duration = Duration::from_millis(4);

/// Microseconds a call.
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

/// Until all work given to a backend is done.
pub fn wait(backend: &mut dyn Backend) -> Result<()> {
    backend.download(View { offset: 0, len: 1, dtype: DType::I32 }, &mut [0; 4])
}

/// What the memory and the products reach, with nothing of ours in the way.
#[derive(Clone, Debug, Serialize)]
pub struct Ceilings {
    /// Read and written by a copy, GB/s.
    copy: f64,
    /// TFLOP/s of a large square product, by precision.
    products: Vec<(Precision, f64)>,
}

impl Ceilings {
    pub fn measure(args: &Args) -> Result<Ceilings> {
        let (bytes, edge) = match args.device {
            _ if args.small => (16 << 20, 256),
            Device::Cpu => (512 << 20, 2048),
            _ => (512 << 20, 8192),
        };
        let product = |precision: Precision| Ok((precision, product(args, precision, edge)?));
        let products = args.precisions().into_iter().map(product).collect::<Result<_>>()?;
        Ok(Ceilings { copy: copy(args, bytes)?, products })
    }

    /// The least microseconds that moving and computing so much takes.
    pub fn floor(&self, bytes: usize, flops: usize, precision: Precision) -> f64 {
        let product = self.products.iter().find(|(other, _)| *other == precision).map_or(f64::INFINITY, |&(_, speed)| speed);
        (bytes as f64 / self.copy * 1e-3).max(flops as f64 / product * 1e-6)
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "copy {:.0} GB/s", self.copy)?;
        self.products.iter().try_for_each(|(precision, speed)| write!(f, ", product {} {speed:.3} TFLOP/s", name(*precision)))
    }
}

/// As `--precision` has it.
pub fn name(precision: Precision) -> String {
    json!(precision).as_str().expect("a word").to_string()
}

fn copy(args: &Args, bytes: usize) -> Result<f64> {
    let timing = match args.device {
        Device::Cuda(index) => {
            let mut gpu = Cuda::open(index)?;
            let one = View { offset: 0, len: 1, dtype: DType::I32 };
            let inputs = Inputs {
                ids: one,
                positions: one,
                types: one,
                cu_seqlens: one,
                labels: one,
                rows_by_token: one,
                token_starts: one,
            };
            gpu.reserve(&Layout { bytes: 2 * bytes, arithmetic: Arithmetic::F32, inputs, longest: 1, params: 1 })?;
            let from = View { offset: 0, len: bytes / 4, dtype: DType::F32 };
            let to = View { offset: bytes, ..from };
            gpu.upload(from, &noise(bytes))?;
            time(args.samples, |n| (0..n).try_for_each(|_| gpu.copy(to, from)).and_then(|()| wait(&mut gpu)))?
        }
        _ => {
            let (from, mut to) = (noise(bytes), vec![0; bytes]);
            let mut pass = || {
                let chunks = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
                chunks.for_each(|(to, from)| to.copy_from_slice(from));
            };
            time(args.samples, |n| {
                (0..n).for_each(|_| pass());
                Ok(())
            })?
        }
    };
    Ok(2.0 * bytes as f64 / timing.median * 1e-3)
}

/// Some bytes that are not all the same.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3f).collect()
}

/// TFLOP/s of a product of two square matrices.
fn product(args: &Args, precision: Precision, edge: usize) -> Result<f64> {
    let ids = vec![1; edge];
    let batch = warpfit::data::pack::PackedBatch::new([(&ids[..], &[][..], 0)]);
    let case = Case::new("product".into(), &batch, move |b| {
        crate::cases::Op::Linear(Linear {
            x: b.random("x", Rows::Tokens, edge),
            w: b.random("w", edge, edge),
            b: b.random("b", 1, edge),
            y: b.empty("y", Rows::Tokens, edge),
            dy: View::NONE,
            dx: View::NONE,
            dw: View::NONE,
            db: View::NONE,
            add: false,
            k: edge,
            n: edge,
            rows: Rows::Tokens,
        })
    });
    let Opened { backend, arithmetic, .. } = args.device.open(precision)?;
    let (mut run, _) = case.copies(1, arithmetic, backend);
    let timing = time(args.samples, |n| {
        (0..n).for_each(|_| run.forward());
        wait(run.backend.as_mut())
    })?;
    Ok(2.0 * (edge as f64).powi(3) / timing.median * 1e-6)
}

/// Where and when this runs, and what was built with.
pub fn hardware(device: &str) -> Value {
    json!({
        "device": device,
        "driver": output("nvidia-smi", &["--query-gpu=driver_version", "--format=csv,noheader"]),
        "nvcc": NVCC.map(|(major, minor)| format!("{major}.{minor}")),
        "warpfit": env!("CARGO_PKG_VERSION"),
        "date": output("date", &["-u", "+%FT%TZ"]),
    })
}

/// The first line that a program prints.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_string)
}

/// [`hardware`] for people.
pub fn line(hardware: &Value) -> String {
    let part = |key: &str| hardware[key].as_str().unwrap_or("none").to_string();
    format!("{}, driver {}, nvcc {}, {}", part("device"), part("driver"), part("nvcc"), part("date"))
}
