//! Publishes a trained model on the Hugging Face hub: what `train --push-to-hub` does at its end, for a run of before.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use warpfit::cli::{self, print};
use warpfit::error::Result;
use warpfit::hub::push::Target;

/// Publish a trained model on the Hugging Face hub.
///
/// The token that may write is that of HF_TOKEN, or of `hf auth login`.
#[derive(Parser)]
#[command(name = "push", version)]
struct Args {
    /// Folder of a trained model, as train leaves it; its checkpoints stay here
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Where to: owner/name, or name in the space of the token's account; a public repository is made if need be
    id: String,
}

fn main() -> ExitCode {
    cli::run(cli::parse, run)
}

fn run(args: Args) -> Result<()> {
    print(format!("published   {}", Target::check(&args.id)?.push(&args.folder)?))
}
