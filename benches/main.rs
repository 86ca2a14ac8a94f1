//! Times every op alone, forward and backward, and the whole model, at the sizes of DistilBERT-base on film reviews. Prints one
//! table; `--json` writes all of it. docs/benchmarks.md describes how to run it and what it measures.

#[allow(dead_code)] // the tests use more of it
#[path = "../tests/ops/cases.rs"]
mod cases;
mod measure;
mod model;
mod ops;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rand_mt::Mt64;
use serde_json::{Value, json};
use warpfit::console::print;
use warpfit::data::pack::PackedBatch;
use warpfit::device::{Device, Precision};
use warpfit::error::{Error, Result};
use warpfit::files::write_json;

use measure::Ceilings;

/// Time the ops and the model, by default on a GPU
#[derive(Parser)]
#[command(name = "bench", version)]
struct Args {
    /// Only those with one of these in their name: attn, "linear up bwd", adamw, train, infer, ...
    filters: Vec<String>,
    /// cuda, cuda:N or cpu
    #[arg(long, value_parser = device, default_value = "cuda")]
    device: Device,
    /// Precisions, separated by commas [default: all that the device supports]
    #[arg(long, value_delimiter = ',')]
    precision: Option<Vec<Precision>>,
    /// Reviews per batch, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "16,64")]
    batch: Vec<usize>,
    /// Number of samples of each timing
    #[arg(long, default_value_t = 50)]
    samples: usize,
    /// Number of runs of an op that must give the same bits
    #[arg(long, default_value_t = 100)]
    repeats: usize,
    /// Leave out the errors, for which the CPU computes in f64
    #[arg(long)]
    no_errors: bool,
    /// A smoke test: the sizes of the tests, a small model, small ceilings
    #[arg(long)]
    small: bool,
    /// Also write the results to this file, as they come
    #[arg(long)]
    json: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn device(name: &str) -> Result<Device> {
    match name.parse()? {
        Device::Auto => Err(Error::user("--device auto", "is not one device", "use cuda, cuda:N or cpu")),
        device => Ok(device),
    }
}

/// The results, printed and written as they come.
struct Report {
    json: Option<PathBuf>,
    content: Value,
}

impl Report {
    fn set(&mut self, key: &str, value: Value) -> Result<()> {
        self.content[key] = value;
        self.json.as_deref().map_or(Ok(()), |path| write_json(path, &self.content))
    }

    fn add(&mut self, row: Value) -> Result<()> {
        let mut rows = self.content["rows"].take();
        rows.as_array_mut().expect("a list from the start").push(row);
        self.set("rows", rows)
    }
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }

    fn precisions(&self) -> Vec<Precision> {
        let all = if self.device == Device::Cpu {
            vec![Precision::Fp32, Precision::Bf16]
        } else {
            vec![Precision::Fp32, Precision::Tf32, Precision::Bf16, Precision::Fp16]
        };
        self.precision.clone().unwrap_or(all)
    }
}

/// Tokens of sixteen reviews: quantiles of IMDb's, truncated at 512 by BERT's tokenizer, with a mean of 275.
const LENGTHS: [usize; 16] = [74, 105, 128, 149, 170, 193, 212, 235, 260, 288, 321, 360, 409, 477, 512, 512];

/// This many reviews, with words as rare as in a language: about 1,400 distinct ones in sixteen, among them the last word of
/// `vocab`.
fn reviews(count: usize, vocab: usize, shorter: usize) -> PackedBatch {
    let mut random = Mt64::new(count as u64);
    let mut word = || {
        let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        (vocab as f64).powf(uniform.powf(1.8)) as i32
    };
    let mut texts: Vec<Vec<i32>> =
        (0..count).map(|i| (0..LENGTHS[i % LENGTHS.len()].div_ceil(shorter)).map(|_| word()).collect()).collect();
    texts[0][1] = vocab as i32 - 1;
    PackedBatch::new(texts.iter().enumerate().map(|(i, ids)| (&ids[..], &[][..], i as u32 % 2)))
}

fn main() -> ExitCode {
    warpfit::commands::exit(|| match warpfit::flags::parse(std::env::args_os())? {
        Some(args) => run(args),
        None => Ok(()),
    })
}

fn run(args: Args) -> Result<()> {
    let name = match args.device.open(Precision::Fp32) {
        Ok(opened) => opened.backend.name(),
        Err(e) => {
            let place = format!("--device {}", args.device);
            return Err(Error::new(e.kind, place, e.fact(), "time the CPU backend with: cargo bench -- --device cpu"));
        }
    };
    let mut report = Report { json: args.json.clone(), content: json!({ "rows": [] }) };
    let hardware = measure::hardware(&name);
    print(measure::line(&hardware))?;
    report.set("hardware", hardware)?;

    let ceilings = Ceilings::measure(&args)?;
    print(format!("ceilings before: {ceilings}"))?;
    report.set("ceilings", json!({ "before": ceilings }))?;
    ops::bench(&args, &ceilings, &mut report)?;
    model::bench(&args, &mut report)?;
    let after = Ceilings::measure(&args)?;
    print(format!("ceilings after: {after}"))?;
    report.set("ceilings", json!({ "before": ceilings, "after": after }))
}
