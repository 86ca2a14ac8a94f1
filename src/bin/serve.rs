//! Serves a trained model over HTTP, with a page to try it on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use warpfit::cli::{check_interrupt, notice_interrupts, print};
use warpfit::device::{Device, Precision};
use warpfit::embed::Pooling;
use warpfit::error::Result;
use warpfit::hub;
use warpfit::serve::engine::Engine;
use warpfit::serve::{Options, Served, listen, serve};
use warpfit::train::args::count;

/// Serve a trained model over HTTP: a page at /, and the interface of text-embeddings-inference.
///
/// POST /predict {"inputs": "a text" or ["several", "texts"], "truncate": true, "raw_scores": false} gives the labels with
/// their scores, highest first; a list of texts, a list of these. POST /embed {"inputs": ..., "normalize": true} gives a
/// list of vectors, the last layer's states, from the same pass of the same model: it takes no memory of its own. A model
/// without a trained head serves /embed alone. POST /tokenize, GET /info, /health, /metrics.
///
/// SIGINT and SIGTERM end it once what has been asked is answered, with exit code 0; a second one ends it at once.
#[derive(Parser)]
#[command(name = "serve", version)]
struct Args {
    /// Folder of a trained model, or its id on the Hugging Face hub: owner/name, or owner/name@revision
    #[arg(long, value_name = "DIR_OR_ID", alias = "model_name_or_path")]
    model: PathBuf,
    /// Address to listen on; 0.0.0.0 for all of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    hostname: String,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 3000)]
    port: u16,
    #[command(flatten)]
    options: Options,
    /// States of a text that /embed takes; for mean the last layer runs on all tokens, for /predict too
    #[arg(long, value_enum, default_value_t = Pooling::Cls)]
    pooling: Pooling,
    /// Cut texts to this many tokens [default: the least of the tokenizer's limit, the model's positions and 512]
    #[arg(long, value_name = "N", alias = "max_seq_length", value_parser = count)]
    max_length: Option<usize>,
    /// What computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Of activations and products; the CPU has fp32 and bf16
    #[arg(long, default_value = "fp32")]
    precision: Precision,
}

fn main() -> ExitCode {
    warpfit::cli::run(warpfit::cli::parse, run)
}

fn run(args: Args) -> Result<()> {
    let device: Device = args.device.parse()?;
    // Before the model, which takes longer.
    let listener = listen(&args.hostname, args.port)?;
    let mut engine =
        Engine::open(&hub::model(&args.model)?, device, args.precision, args.options.max_batch_tokens, args.pooling)?;
    let max_length = engine.source.max_length(args.max_length)?;
    engine.source.tokenizer()?.encode(&[""], max_length, &|_| ())?;
    let served = Served {
        name: args.model.display().to_string(),
        source: engine.source.clone(),
        max_length,
        dtype: if args.precision == Precision::Bf16 { "bfloat16" } else { "float32" },
        pooling: args.pooling,
        classifies: engine.classifies,
    };
    notice_interrupts()?;
    if let Ok(address) = listener.local_addr() {
        print(format!("listening on http://{address}"))?;
    }
    let stop = async {
        while check_interrupt().is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    serve(listener, served, &args.options, stop, &mut |rows, wanted| engine.compute(rows, wanted))
}
