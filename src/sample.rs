//! The bundled sample: what `train` without arguments trains on. `sample/README.md` says where it comes from.

use std::path::{Path, PathBuf};

use crate::checkpoint::run_dir::{RunDir, write_file};
use crate::error::{Error, Result};
use crate::train::args::{Args, Strategy};

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

/// Where runs on the sample go, below the current folder.
pub const RUNS: &str = "runs";

/// Sentences to show what a model trained on it says.
pub const SENTENCES: [&str; 5] = [
    "One of the best films I have seen in years: funny, moving and beautifully acted.",
    "A dull, badly written mess. I wanted my two hours back.",
    "The plot is thin, but the performances are wonderful and I loved the ending.",
    "I expected a lot more. It is boring, the acting is terrible and the jokes fall flat.",
    "A great story, perfectly told. Highly recommended!",
];

/// Writes the sample's files into `folder`, leaving those that are there already as they should be.
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

/// The flags of a run on the sample, unpacked into ./runs/sample, with what was typed on top.
pub fn args(typed: Args) -> Result<Args> {
    let runs = Path::new(RUNS);
    let sample = runs.join("sample");
    unpack(&sample)?;
    let output_dir = typed.output_dir.clone().map_or_else(|| RunDir::numbered(runs), Ok::<PathBuf, Error>)?;
    Ok(Args {
        model: Some(sample.clone()),
        train_file: Some(sample.join("train.parquet")),
        validation_file: Some(sample.join("validation.parquet")),
        output_dir: Some(output_dir),
        from_scratch: typed.from_scratch.or(Some(true)),
        epochs: typed.epochs.or(Some(3.0)),
        batch_size: typed.batch_size.or(Some(16)),
        eval_batch_size: typed.eval_batch_size.or(Some(16)),
        learning_rate: typed.learning_rate.or(Some(5e-4)),
        weight_decay: typed.weight_decay.or(Some(0.01)),
        warmup_steps: typed.warmup_steps.or(Some(0.1)),
        metric_for_best_model: typed.metric_for_best_model.clone().or(Some("accuracy".to_string())),
        save_strategy: typed.save_strategy.or(Some(Strategy::No)),
        ..typed
    })
}
