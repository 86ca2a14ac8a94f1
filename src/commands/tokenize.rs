//! Shows the tokens of texts.

use std::path::PathBuf;

use clap::Parser;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::{print, tell};
use crate::error::Result;
use crate::flags::count;
use crate::hub;
use crate::report::log::table;

/// Show the tokens of texts: their ids, the characters they stand for, and where a text would be truncated.
#[derive(Parser)]
#[command(name = "tokenize")]
pub struct Args {
    /// Model: a folder, or a Hugging Face hub id: owner/name, or owner/name@revision
    #[arg(long, visible_alias = "model-name-or-path", value_name = "DIR_OR_ID")]
    model: PathBuf,
    /// Text to tokenize
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<String>,
    /// Truncate texts to this many tokens [default: the smallest of the tokenizer's limit, the model's positions and 512]
    #[arg(long, visible_alias = "max-seq-length", value_name = "N", value_parser = count)]
    max_length: Option<usize>,
}

pub fn run(args: Args) -> Result<()> {
    let source = ModelDir::read(&hub::model(&args.model)?)?;
    let (tokenizer, max_length) = (source.tokenizer()?, source.max_length(args.max_length)?);
    for text in &args.texts {
        let pieces = tokenizer.pieces(text, true)?;
        let (cut, all) = (tokenizer.cut(&pieces, max_length)?, pieces.len());
        let mut rows = vec![["token", "id", "characters", ""].map(String::from)];
        for (i, piece) in pieces.iter().enumerate() {
            let characters = if piece.special { String::new() } else { piece.text.clone() };
            let note = if cut.contains(&i) { "truncated" } else { "" };
            rows.push([tokenizer.token(piece.id), piece.id.to_string(), characters, note.to_string()]);
        }
        print(table(&rows))?;
        tell(format!("{all} tokens, of which the model reads {} (at most {max_length})\n", all - cut.len()))?;
    }
    Ok(())
}
