//! Serves a trained model over HTTP, with a page to try it.

use std::path::PathBuf;
use std::time::Duration;

use crate::console::{check_interrupt, note, notice_interrupts, print};
use crate::device::Precision;
use crate::error::Result;
use crate::flags::{RunArgs, port};
use crate::hub;
use crate::infer::pooling::Pooling;
use crate::infer::predictions::star_weights;
use crate::infer::{Options, Session};
use crate::serve::{Served, Serving, listen, serve};
use clap::{Arg, Parser};

/// Serve a trained model over HTTP: a page at /, and the protocols of text-embeddings-inference, Hugging Face's Inference API,
/// OpenAI's embeddings and SageMaker.
///
/// POST /predict {"inputs": "a text" or ["several", "texts"]} returns the labels with their scores, highest first, or for a list
/// of texts a list of these. POST /embed {"inputs": ...} returns a list of vectors, the last layer's states, from the same pass
/// of the same model, so it takes no memory of its own. A model without a trained head serves vectors alone. GET /openapi.json
/// describes all routes and the options of a request.
///
/// Each flag can be set by an environment variable, which the flag overrides.
///
/// SIGINT and SIGTERM end it with exit code 0 once all accepted requests are answered; a second signal ends it at once.
#[derive(Parser)]
#[command(name = "serve", mut_args(with_variable))]
pub struct Args {
    /// Trained model: a folder, or a Hugging Face hub id: owner/name, or owner/name@revision
    #[arg(long, value_name = "DIR_OR_ID", alias = "model_name_or_path")]
    model: PathBuf,
    /// Address to listen on; 0.0.0.0 for all addresses of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    hostname: String,
    /// Port to listen on; 0 for any free port
    #[arg(long, value_name = "N", value_parser = port, default_value_t = 3000)]
    port: u16,
    #[command(flatten)]
    serving: Serving,
    /// How /embed makes one vector of a text's states; with mean the last layer runs on all tokens, for /predict too
    #[arg(long, value_enum, default_value_t = Pooling::Cls)]
    pooling: Pooling,
    /// The good one of two classes, for the stars on the page [default: by its name, otherwise no stars]
    #[arg(long, value_name = "NAME")]
    positive_label: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

/// Containers are commonly given their port in `PORT`; the other variables have a prefix.
fn with_variable(arg: Arg) -> Arg {
    let variable = match arg.get_id().as_str() {
        "port" => "PORT".to_string(),
        id => format!("WARPFIT_{}", id.to_uppercase()),
    };
    arg.env(variable)
}

/// Most texts per batch.
const BATCH: usize = 1024;

pub fn run(args: Args) -> Result<()> {
    let device = args.run.device()?;
    // The port is bound before the model is loaded, which takes longer.
    let listener = listen(&args.hostname, args.port)?;
    let options = Options {
        device,
        precision: args.run.precision,
        tokens: args.serving.max_batch_tokens,
        texts: BATCH,
        layer: -1,
        pooling: args.pooling,
    };
    let mut session = Session::open(&hub::model(&args.model)?, &options)?;
    if !session.missing.is_empty() {
        note(format!("{}: lacks {}: it serves /embed, not /predict", args.model.display(), session.missing.join(", ")));
    }
    let max_length = session.source.max_length(args.run.max_length)?;
    session.source.tokenizer()?.encode(&[""], max_length, &|_| ())?;
    let served = Served {
        name: args.model.display().to_string(),
        source: session.source.clone(),
        max_length,
        batch_tokens: session.tokens,
        dtype: match session.precision {
            Precision::Bf16 => "bfloat16",
            Precision::Fp16 => "float16",
            _ => "float32",
        },
        pooling: args.pooling,
        classifies: session.missing.is_empty(),
        stars: star_weights(&session.source.config.labels, args.positive_label.as_deref())?,
        examples: session.source.examples(),
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
    serve(listener, served, &args.serving, stop, &mut |rows, wanted| session.run(rows, wanted, |_, _| ()))
}
