//! Writes the hidden states of texts as vectors, or measures what a linear classifier makes of them.

use std::io::{BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use warpfit::checkpoint::run_dir::{PartialFile, write_json};
use warpfit::checkpoint::weights;
use warpfit::cli::{note, print};
use warpfit::data::dataset::{Options, Table, class_names};
use warpfit::data::inputs::{self, LineFormat};
use warpfit::data::tokenize::Encoded;
use warpfit::device::{Device, Precision};
use warpfit::embed::probe::Probe;
use warpfit::embed::{Embedder, Features, Pooling, npy};
use warpfit::error::{Error, Result};
use warpfit::hub;
use warpfit::metrics::Metrics;
use warpfit::report::log::{Count, Progress, table};
use warpfit::train::args::{count, delimiter, same_file};
use warpfit::train::data::encode;

/// Turn texts into vectors: the hidden states of any layer, of [CLS] or averaged.
///
/// With --probe instead: fit a logistic regression to the vectors of one labelled file and measure it on another, beside
/// the majority class. That is what the model knows without fine-tuning.
#[derive(Parser)]
#[command(name = "embed", version)]
struct Args {
    /// Folder of a model, trained or not, or its id on the Hugging Face hub: owner/name, or owner/name@revision
    #[arg(long, value_name = "DIR_OR_ID", alias = "model_name_or_path")]
    model: PathBuf,
    /// Texts, in any format that predict reads [default: a text a line on standard input]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// What the lines of standard input or of --input are [default: by the file's ending; text for standard input]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<LineFormat>,
    /// Write to this file, which is there once it is complete, instead of to standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to write the vectors [default: by the ending of --output, else jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// 0 for the embeddings, 1 for the first layer, and so on; -1 for the last, counted from the end
    #[arg(long, value_name = "N", default_value_t = -1)]
    layer: i64,
    /// Which states of a text
    #[arg(long, value_enum, default_value_t = Pooling::Cls)]
    pooling: Pooling,
    /// Scale every vector to length 1
    #[arg(long)]
    normalize: bool,
    /// Fit a logistic regression to the vectors of --train-file and measure it on --test-file
    #[arg(long, requires_all = ["train_file", "test_file"], conflicts_with_all = ["input", "input_format", "output", "format"])]
    probe: bool,
    /// Labelled texts to fit, in any format that train reads
    #[arg(long, value_name = "FILE", requires = "probe")]
    train_file: Option<PathBuf>,
    /// Labelled texts to measure on
    #[arg(long, value_name = "FILE", requires = "probe")]
    test_file: Option<PathBuf>,
    /// Folder for probe.json, the figures of --probe
    #[arg(long, value_name = "DIR", requires = "probe")]
    output_dir: Option<PathBuf>,
    /// Column or JSON key of the texts, where its name does not say it
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column of the labels, where its name does not say it
    #[arg(long, value_name = "NAME", requires = "probe")]
    label_column: Option<String>,
    /// Between the fields of a CSV file
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    delimiter: Option<u8>,
    /// Cut texts to this many tokens [default: the least of the tokenizer's limit, the model's positions and 512]
    #[arg(long, value_name = "N", alias = "max_seq_length", value_parser = count)]
    max_length: Option<usize>,
    /// The most tokens of a batch
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 8192)]
    max_batch_tokens: usize,
    /// What computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Of activations and products; all but fp32 need a GPU
    #[arg(long, default_value = "fp32")]
    precision: Precision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// NumPy's array file, (rows, dim), f32
    Npy,
    /// One tensor, `embeddings`, (rows, dim), f32
    Safetensors,
    /// An object a line: id and embedding
    Jsonl,
}

fn main() -> ExitCode {
    warpfit::cli::run(warpfit::cli::parse, run)
}

fn run(args: Args) -> Result<()> {
    let device: Device = args.device.parse()?;
    let ending = args.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str()).unwrap_or_default();
    let format = args.format.or(Format::from_str(ending, true).ok()).unwrap_or(Format::Jsonl);
    if format != Format::Jsonl && args.output.is_none() {
        return Err(Error::user("--format", "only jsonl goes to standard output", "pass --output FILE"));
    }
    if let (Some(input), Some(output)) = (&args.input, &args.output)
        && same_file(input, output)
    {
        return Err(Error::user("--output", "is the file of --input", "give another one"));
    }
    let features = Features { layer: args.layer, pooling: args.pooling, normalize: args.normalize };
    let mut embedder = Embedder::open(&hub::model(&args.model)?, device, args.precision, args.max_batch_tokens, features)?;
    if args.probe { probe(&args, &mut embedder) } else { embed(&args, format, &mut embedder) }
}

fn columns(args: &Args) -> Options {
    Options { delimiter: args.delimiter, text_column: args.text_column.clone(), label_column: args.label_column.clone() }
}

/// JSON lines go out as they come; the other formats begin with the number of rows and are written at the end.
fn embed(args: &Args, format: Format, embedder: &mut Embedder) -> Result<()> {
    let max_length = embedder.source.max_length(args.max_length)?;
    let batches = match &args.input {
        Some(file) => inputs::open(file, args.input_format, &columns(args), embedder.limits())?,
        None => {
            if std::io::stdin().is_terminal() {
                note("type a text a line; Ctrl-D ends");
            }
            let line_format = args.input_format.unwrap_or(LineFormat::Text);
            let reader = BufReader::new(std::io::stdin());
            inputs::lines(reader, "standard input", line_format, args.text_column.clone(), embedder.limits())
        }
    };
    let streamed = args.output.as_deref().filter(|_| format == Format::Jsonl);
    let mut lines = streamed.map(PartialFile::create).transpose()?;
    let progress = args.output.is_some().then(|| Progress::new("embedding", None, &["texts", "tokens"]));
    let dim = embedder.dim();
    let (mut rows, mut cut, mut vectors) = (0, 0, Vec::new());
    for batch in batches {
        let batch = batch?;
        let encoded = embedder.source.encode(&batch, max_length)?;
        let embedded = embedder.embed(&encoded, |texts, tokens| {
            progress.iter().for_each(|progress| progress.add(&[texts as u64, tokens as u64]));
        })?;
        rows += batch.len();
        cut += encoded.truncated();
        if format != Format::Jsonl {
            vectors.extend(embedded);
            continue;
        }
        for (input, vector) in batch.iter().zip(embedded.chunks_exact(dim)) {
            let line = json!({"id": input.id, "embedding": vector});
            match &mut lines {
                Some(file) => file.write(format!("{line}\n").as_bytes())?,
                None => print(line)?,
            }
        }
    }
    if let (0, Some(file)) = (rows, &args.input) {
        return Err(Error::user(file.display(), "no rows", "give at least one"));
    }
    match (format, &args.output) {
        (Format::Npy, Some(path)) => npy::write(path, &vectors, dim)?,
        (Format::Safetensors, Some(path)) => weights::write(path, &[("embeddings", [rows, dim])], |_, out| {
            out.copy_from_slice(&vectors);
            Ok(())
        })?,
        _ => lines.map_or(Ok(()), PartialFile::finish)?,
    }
    if let Some(progress) = progress {
        let cut = if cut > 0 { format!("{} texts cut to {max_length} tokens", Count(cut as u64)) } else { String::new() };
        progress.finish(&cut);
    }
    Ok(())
}

fn probe(args: &Args, embedder: &mut Embedder) -> Result<()> {
    let files = args.train_file.as_deref().zip(args.test_file.as_deref()).expect("clap asks for both");
    let columns = columns(args);
    let (train, test) = (Table::read(files.0, &columns)?, Table::read(files.1, &columns)?);
    let config = &embedder.source.config;
    let names = class_names(&[&train, &test], config.labels_named.then_some(&config.labels))?;
    let max_length = embedder.source.max_length(args.max_length)?;
    let [train, test] = [("training", train), ("test", test)].map(|(what, table)| -> Result<(Vec<f32>, Vec<u32>)> {
        let encoded: Encoded = encode(what, table.into_dataset(&names)?, embedder.source.tokenizer()?, max_length)?;
        let progress = Progress::new(&format!("embedding {what}"), encoded.rows() as u64, &["texts", "tokens"]);
        let vectors = embedder.embed(&encoded, |texts, tokens| progress.add(&[texts as u64, tokens as u64]))?;
        progress.finish("");
        Ok((vectors, encoded.labels))
    });
    let ((train, train_labels), (test, labels)) = (train?, test?);

    let progress = Progress::new("fitting", None, &["steps"]);
    let probe = Probe::fit(&train, &train_labels, names.len(), |gradient| {
        progress.note(format!("gradient {gradient:.1e}"));
        progress.add(&[1]);
    })?;
    progress.finish(if probe.converged() { "" } else { "warning: the fit has not converged" });

    let metrics = Metrics::from_scores(&labels, &probe.scores(&test), names.len())?;
    let count = |class: usize| train_labels.iter().filter(|&&label| label as usize == class).count();
    let majority = (0..names.len()).rev().max_by_key(|&class| count(class)).expect("there are classes");
    let constant: Vec<f64> = labels.iter().flat_map(|_| (0..names.len()).map(|c| f64::from(c == majority))).collect();
    let baseline = Metrics::from_scores(&labels, &constant, names.len())?;

    let row = |what: String, metrics: &Metrics| [what, format!("{:.4}", metrics.accuracy), format!("{:.4}", metrics.weighted.f1)];
    let head = ["", "accuracy", "weighted F1"].map(String::from);
    let always = format!("always {}", names[majority]);
    print(table(&[head, row(always, &baseline), row("logistic regression".into(), &metrics)]))?;
    print(metrics.classification_report(&names, 4))?;
    print(confusion(&names, &metrics.confusion_matrix).trim_end())?;
    if let Some(folder) = &args.output_dir {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let about = json!({
            "layer": args.layer,
            "pooling": args.pooling.to_possible_value().expect("none is hidden").get_name(),
            "normalize": args.normalize,
            "classes": names,
            "iterations": probe.iterations,
            "gradient": probe.gradient,
            "converged": probe.converged(),
            "weights": probe.weights.chunks_exact(probe.dim + 1).map(Value::from).collect::<Vec<Value>>(),
            "majority": {"class": names[majority], "metrics": baseline},
            "probe": metrics,
        });
        write_json(&folder.join("probe.json"), &about)?;
    }
    Ok(())
}

/// True classes down, predicted ones across.
fn confusion(names: &[String], matrix: &[Vec<u64>]) -> String {
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(6);
    let line = |name: &str, cells: Vec<String>| {
        cells.into_iter().fold(format!("{name:<width$}"), |line, cell| line + &format!("  {cell:>width$}")) + "\n"
    };
    let head = line("true \\ predicted", names.to_vec());
    let rows = names.iter().zip(matrix).map(|(name, row)| line(name, row.iter().map(u64::to_string).collect()));
    head + &rows.collect::<String>()
}
