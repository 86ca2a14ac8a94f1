//! Classifies texts with a trained model: from arguments, from the lines of standard input, or from a file.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use crate::checkpoint::model_dir::ModelDir;
use crate::console::{Look, leave_on_interrupt, next, note, notice_interrupts, print};
use crate::data::dataset::{self, ENDINGS, Options};
use crate::data::inputs::{self, LineFormat};
use crate::error::{Error, Result, is_control};
use crate::files::{PartialFile, free_folder, keep_inputs, remove_partial_files};
use crate::flags::{InputArgs, RunArgs, SplitArgs, count, shown, unless_dash, whole};
use crate::hub;
use crate::infer::Session;
use crate::infer::predictions::{Format, Lines, star_weights};
use crate::report::log::{Progress, truncated};
use clap::Parser;

/// Classify texts: given as arguments, one per line on standard input, or in a file.
///
/// Prints one line per text, in order: its id (its own, otherwise its number from 0), the label and its score.
#[derive(Parser)]
#[command(name = "predict")]
pub struct Args {
    /// Trained model: a folder, or a Hugging Face hub id: owner/name, or owner/name@revision
    #[arg(long, value_name = "DIR_OR_ID", alias = "model_name_or_path")]
    model: PathBuf,
    /// Text to classify, or a file of texts, or - for standard input
    #[arg(value_name = "TEXT_OR_FILE", conflicts_with_all = ["text", "input", "dataset"])]
    texts: Vec<String>,
    /// Text to classify; may be repeated
    #[arg(long, conflicts_with_all = ["input", "dataset"])]
    text: Vec<String>,
    /// Texts to classify: .txt (one per line), .csv, .tsv, .json, .parquet, .fasttext, or .jsonl with "text", or with
    /// "input_ids" and "token_type_ids", which are used unchanged [default: -, one text per line on standard input]
    #[arg(long, visible_alias = "file", value_name = "FILE", conflicts_with = "dataset")]
    input: Option<PathBuf>,
    #[command(flatten)]
    split: SplitArgs,
    /// Format of the lines of standard input or --input [default: by the file's extension; text for standard input]
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["text", "dataset"])]
    input_format: Option<LineFormat>,
    /// Write to this file, atomically [default: -, standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Format of the predictions [default: by the extension of --output: .csv, .txt (text), .jsonl, .json or .ndjson (jsonl)]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Number of labels per text, highest score first; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole)]
    top_k: usize,
    /// Print logits instead of probabilities
    #[arg(long)]
    raw_scores: bool,
    /// Add 1 to 10 stars for how positive the text is; for names other than positive, negative or numbers of stars,
    /// --positive-label names the good class
    #[arg(long)]
    stars: bool,
    /// The good one of two classes, for --stars [default: by its name]
    #[arg(long, value_name = "NAME", requires = "stars")]
    positive_label: Option<String>,
    /// Write the text of each row, or all columns of its file, beside the prediction: in JSON as "input", in CSV as columns
    #[arg(long)]
    keep_columns: bool,
    /// Texts per batch, at most
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 256)]
    batch_size: usize,
    #[command(flatten)]
    reading: InputArgs,
    #[command(flatten)]
    run: RunArgs,
}

fn no_stars(labels: &[String]) -> Error {
    let fact = format!("the names of the {} classes do not tell which one is good", labels.len());
    let remedy = if labels.len() == 2 { "name it with --positive-label, or leave out the flag" } else { "leave out the flag" };
    Error::user("--stars", fact, remedy)
}

/// The file that the only argument names, if it is one.
///
/// # Errors
/// An argument that looks like the name of a file, where there is none; a file among several arguments.
fn named_file(texts: &[String]) -> Result<Option<PathBuf>> {
    let is_like_a_file =
        |text: &str| !text.contains(char::is_whitespace) && ENDINGS.contains(&dataset::ending(Path::new(text)).as_str());
    let [text] = texts else {
        return match texts.iter().find(|text| *text == "-" || is_like_a_file(text) || Path::new(text).exists()) {
            Some(file) => {
                let remedy = "name one file, or mark each text with --text; a text of several words needs quotes";
                Err(Error::user(file, "is one of several files or texts", remedy))
            }
            None => Ok(None),
        };
    };
    let path = PathBuf::from(text);
    if text == "-" {
        return Ok(Some(path));
    }
    if path.exists() {
        let what = if path.is_dir() { "folder" } else { "file" };
        note(format!("note: {text} is read as a {what}; --text classifies these words"));
        return Ok(Some(path));
    }
    if is_like_a_file(text) {
        return Err(Error::user(text, "no such file or folder", "check the path, or classify these words with --text"));
    }
    Ok(None)
}

pub fn run(mut args: Args) -> Result<()> {
    if let Some(file) = named_file(&args.texts)? {
        args.texts.clear();
        args.input = Some(file);
    }
    (args.input, args.output) = (unless_dash(args.input), unless_dash(args.output));
    let format = args.format.map_or_else(|| Format::of(args.output.as_deref()), Ok)?;
    if args.keep_columns && format == Format::Text {
        return Err(Error::user("--keep-columns", "lines for people have no columns", "pass --format jsonl or csv"));
    }
    let typed = [args.texts, args.text].concat();
    let of_files = args.reading.file.values(None).into_iter().filter_map(|(name, value)| value.map(|_| name));
    let mut of_files = args.input_format.map(|_| "input-format").into_iter().chain(of_files);
    if let (Some(flag), false) = (of_files.next(), typed.is_empty()) {
        return Err(Error::user(format!("--{flag}"), "there is no file to read", "leave it out, or name a file with --input"));
    }
    let device = args.run.device()?;
    if let Some(output) = &args.output {
        keep_inputs(output, &[ModelDir::files(&args.model), Vec::from_iter(args.input.clone())].concat())?;
        leave_on_interrupt(format!("{} is not written", output.display()), remove_partial_files)?;
    }
    let mut output = args.output.as_deref().map(PartialFile::create).transpose()?;
    let reading = &args.reading;
    let (precision, tokens) = (args.run.precision, reading.max_batch_tokens);
    let mut classifier = Session::classifier(&hub::model(&args.model)?, device, precision, tokens, args.batch_size)?;
    let max_length = classifier.source.max_length(args.run.max_length)?;
    let labels = classifier.source.config.labels.clone();
    let stars = match args.stars {
        true => Some(star_weights(&labels, args.positive_label.as_deref())?.ok_or_else(|| no_stars(&labels))?),
        false => None,
    };
    let columns = if args.output.is_some() { None } else { Look::of_stdout().columns };
    let lines = Lines {
        format,
        labels,
        top_k: args.top_k,
        raw: args.raw_scores,
        stars,
        keep_columns: args.keep_columns,
        columns: columns.unwrap_or(200),
    };

    let options = Options { keep_columns: args.keep_columns, ..reading.file.texts() };
    let split = args.split.files()?;
    if let (Some(output), Some(files)) = (&args.output, &split) {
        keep_inputs(output, files)?;
    }
    // Who writes line by line is not at the end with the last one.
    let streamed = args.input.is_none() && split.is_none() && typed.is_empty();
    let batches = match typed.is_empty() {
        true => inputs::given(split.as_deref(), args.input.as_deref(), args.input_format, &options, classifier.limits())?,
        false => inputs::texts(typed),
    };

    let mut write = |lines: &str| match &mut output {
        Some(file) => file.write(lines.as_bytes()),
        None if lines.is_empty() => Ok(()),
        None => print(lines.strip_suffix('\n').unwrap_or(lines)),
    };
    // The columns are known with the first row.
    let mut kept: Option<Vec<String>> = (!args.keep_columns).then(Vec::new);
    if let Some(kept) = &kept {
        write(&lines.header(kept))?;
    }
    // Progress is shown for a file; on a terminal it would mix with the results.
    let visible = (args.input.is_some() || split.is_some()) && (args.output.is_some() || !std::io::stdout().is_terminal());
    let progress = visible.then(|| Progress::new("predicting", None, &["texts", "tokens"]));
    let (mut rows, mut cut) = (0, 0);
    let (keeps_in_csv, mut left_out) = (args.keep_columns && format == Format::Csv, BTreeSet::new());
    classifier.predict_all(batches, max_length, |inputs, predictions| {
        let first = kept.is_none();
        let kept = kept.get_or_insert_with(|| inputs[0].row().into_iter().map(|(name, _)| name).collect());
        let header = if first { lines.header(kept) } else { String::new() };
        let text = inputs.iter().zip(predictions).map(|(input, prediction)| lines.lines(input, kept, prediction));
        write(&(header + &text.collect::<String>()))?;
        if keeps_in_csv {
            let names = inputs.iter().flat_map(|input| input.row()).map(|(name, _)| name);
            left_out.extend(names.filter(|name| !kept.contains(name)));
        }
        rows += inputs.len() as u64;
        cut += predictions.iter().filter(|prediction| prediction.truncated).count();
        if let Some(progress) = &progress {
            progress.add(&[inputs.len() as u64, predictions.iter().map(|p| p.tokens as u64).sum()]);
        }
        Ok(())
    })?;
    if !left_out.is_empty() {
        let names = left_out.into_iter().collect::<Vec<_>>().join(", ").replace(is_control, " ");
        note(format!("warning: columns that the first row does not have are left out: {names}; --format jsonl keeps them"));
    }
    if let (0, Some(file)) = (rows, &args.input) {
        return Err(Error::user(file.display(), "no rows", "give at least one row"));
    }
    if let Some(file) = output {
        // A signal comes too late to undo what follows.
        notice_interrupts()?;
        file.finish()?;
    }
    if let Some(progress) = progress {
        progress.finish(&truncated(cut, max_length));
    }
    if let Some(file) = &args.output {
        note(format!("saved       {}", file.display()));
    }
    if !streamed {
        let (model, report) = (shown(&args.model), free_folder("report"));
        next(&[
            format!("warpfit evaluate --model {model} LABELLED_FILE --output-dir {report}"),
            format!("warpfit serve --model {model}"),
        ]);
    }
    Ok(())
}
