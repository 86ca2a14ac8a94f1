//! Publishes the trained model of an earlier run on the Hugging Face hub, as `train --push-to-hub` does at its end.

use std::path::PathBuf;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::{next, tell};
use crate::error::Result;
use crate::hub::push::Target;
use clap::Parser;

/// Publish a trained model on the Hugging Face hub.
///
/// It needs a token with write access, from HF_TOKEN or from `hf auth login`.
#[derive(Parser)]
#[command(name = "push")]
pub struct Args {
    /// Folder of a trained model, as written by train; its checkpoints are not published
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Repository: owner/name, or name under the token's account; a missing repository is created
    id: String,
    /// Create a private repository, and refuse to push to a public one
    #[arg(long, alias = "hub_private_repo")]
    private: bool,
}

pub fn run(args: Args) -> Result<()> {
    // An error of the folder comes before those of the network.
    ModelDir::read(&args.folder)?;
    let address = Target::check(&args.id, args.private)?.push(&args.folder)?;
    tell(format!("published   {address}"))?;
    // The address ends with owner/name.
    let id = address.rmatch_indices('/').nth(1).map_or(&*args.id, |(slash, _)| &address[slash + 1..]);
    next(&[format!("warpfit predict --model {id} \"A text to classify\"")]);
    Ok(())
}
