//! The bundled sample: the data of `train` without arguments, with the recipe `sample`. `sample/README.md` documents its
//! origin.

use std::path::Path;

use crate::error::{Error, Result};
use crate::files::write_file;

const FILES: [(&str, &[u8]); 8] = [
    ("README.md", include_bytes!("sample/README.md")),
    ("config.json", include_bytes!("sample/config.json")),
    ("special_tokens_map.json", include_bytes!("sample/special_tokens_map.json")),
    ("tokenizer.json", include_bytes!("sample/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("sample/tokenizer_config.json")),
    ("train.parquet", include_bytes!("sample/train.parquet")),
    ("validation.parquet", include_bytes!("sample/validation.parquet")),
    ("vocab.txt", include_bytes!("sample/vocab.txt")),
];

/// Default parent of run folders, relative to the current folder.
pub const RUNS: &str = "runs";
/// Folder of the model and data of the recipe `sample`.
pub const FOLDER: &str = "runs/sample";

/// Sentences that demonstrate a model trained on it.
pub const SENTENCES: [&str; 5] = [
    "One of the best films I have seen in years: funny, moving and beautifully acted.",
    "A dull, badly written mess. I wanted my two hours back.",
    "The plot is thin, but the performances are wonderful and I loved the ending.",
    "I expected a lot more. It is boring, the acting is terrible and the jokes fall flat.",
    "A great story, perfectly told. Highly recommended!",
];

/// Writes the sample's files into `folder`, except those that are there already and correct.
pub fn unpack(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    for (name, content) in FILES {
        let path = folder.join(name);
        if std::fs::read(&path).ok().as_deref() != Some(content) {
            write_file(&path, content)?;
        }
    }
    Ok(())
}
