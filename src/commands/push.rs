//! Publishes a trained model on the Hugging Face hub: what `train --push-to-hub` does at its end, for a run of before.

use std::path::PathBuf;

use crate::console::print;
use crate::error::Result;
use crate::hub::push::Target;
use clap::Parser;

/// Publish a trained model on the Hugging Face hub.
///
/// The token that may write is that of HF_TOKEN, or of `hf auth login`.
#[derive(Parser)]
#[command(name = "push", version)]
pub struct Args {
    /// Folder of a trained model, as train leaves it; its checkpoints stay here
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Where to: owner/name, or name in the space of the token's account; a public repository is made if need be
    id: String,
}

pub fn run(args: Args) -> Result<()> {
    print(format!("published   {}", Target::check(&args.id)?.push(&args.folder)?))
}
