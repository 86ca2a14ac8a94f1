//! Describes labelled texts before training.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgMatches, FromArgMatches, Parser, ValueEnum};
use rayon::prelude::*;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::{Look, leave_on_interrupt, next, note, notice_interrupts, print};
use crate::data::dataset::{Labelled, ModelClasses, is_reviews, stratified_split};
use crate::data::description::{Description, Unit};
use crate::error::Result;
use crate::files::{check_folder, free_folder, remove_partial_files};
use crate::flags::{self, DataArgs, count, quoted};
use crate::hub;
use crate::report::log::{Progress, WIDTH};

/// Describe labelled texts before training: classes, lengths, repeated texts, examples.
///
/// Reads the files as train does, and ends with the command to train on them.
#[derive(Parser)]
#[command(name = "describe")]
pub struct Args {
    /// Labelled texts, in any format that train reads
    #[arg(value_name = "FILE", conflicts_with_all = ["train_file", "data_dir", "dataset"])]
    #[arg(required_unless_present_any = ["train_file", "data_dir", "dataset"])]
    only_file: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// Model whose tokens are counted: a folder, or a Hugging Face hub id [default: none; words are counted]
    #[arg(long, visible_alias = "model-name-or-path", value_name = "DIR_OR_ID")]
    model: Option<PathBuf>,
    /// Report how many texts would be truncated to this many tokens [default: the smallest of the tokenizer's limit, the model's
    /// positions and 512]
    #[arg(long, visible_alias = "max-seq-length", value_name = "N", value_parser = count, requires = "model")]
    max_length: Option<usize>,
    /// Folder for describe.html, a page with plots, and describe.json [default: none is written]
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Format of the description on standard output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// The share of the training data that is proposed for validation.
const SHARE: f64 = 0.1;

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// All figures
    Json,
}

pub fn run(words: Vec<OsString>) -> Result<()> {
    let Some(matches) = flags::matches(&flags::command::<Args>(), words)? else { return Ok(()) };
    let args = Args::from_arg_matches(&matches).expect("clap has checked the values");
    if let Some(folder) = &args.output_dir {
        check_folder(folder)?;
        leave_on_interrupt(format!("{} is not complete", folder.display()), remove_partial_files)?;
    }
    let mut data = args.data.clone();
    let folder = args.only_file.clone().filter(|path| path.is_dir() && !is_reviews(path));
    match folder.is_some() {
        true => data.data_dir = folder,
        false => data.train_file = data.train_file.or(args.only_file.clone()),
    }
    let files = data.files()?;
    let source = args.model.as_ref().map(|model| ModelDir::read(&hub::model(model)?)).transpose()?;
    let counted = source.as_ref().map(|source| Ok((source.tokenizer()?, source.max_length(args.max_length)?))).transpose()?;
    let of_model = source.as_ref().filter(|source| source.config.labels_named).map(|source| &source.config.labels[..]);
    let (options, given) =
        (data.reading.labelled(data.label_column.as_deref()), data.label_names.as_ref().map(|names| &names.0[..]));
    let model = ModelClasses::Replaceable(of_model);
    let read = Labelled::read(&files, &options, data.test_file.is_none(), model, given)?;
    read.notes.iter().for_each(note);
    let words = |_: &str, texts: &[String]| Ok(texts.par_iter().map(|text| text.split_whitespace().count()).collect());
    let description = match counted {
        None => Description::of(read, Unit::Words, None, words)?,
        Some((tokenizer, max_length)) => Description::of(read, Unit::Tokens, Some(max_length), |split, texts| {
            let progress = Progress::new(&format!("tokenizing {split}"), texts.len() as u64, &["texts"]);
            let encoded = tokenizer.encode(texts, usize::MAX, &|done| progress.add(&[done as u64]))?;
            progress.done("");
            Ok(encoded.offsets.windows(2).map(|row| row[1] - row[0]).collect())
        })?,
    };
    if let Some(folder) = &args.output_dir {
        description.write(folder, &title(&data))?;
        notice_interrupts()?;
        note(format!("saved       {}", folder.join("describe.html").display()));
    }
    match args.format {
        Format::Text => {
            let columns = Look::of_stdout().columns.unwrap_or(WIDTH).min(WIDTH);
            print(description.text(columns).trim_end())?;
        }
        Format::Json => print(format!("{:#}", serde_json::json!(description)))?,
    }
    let can_be_trained = description.splits[0].classes.iter().filter(|class| class.texts > 0).count() > 1;
    let splits = files.validation.is_empty() && can_be_split(&description);
    let other_head = source.is_some_and(|source| source.needs_other_head(description.labels.clone()).unwrap_or(false));
    let proposed = can_be_trained.then(|| training(&args, &data, &matches, splits, other_head));
    next(&Vec::from_iter(proposed));
    Ok(())
}

fn title(data: &DataArgs) -> String {
    let named = [&data.train_file, &data.data_dir, &data.dataset].into_iter().flatten().next();
    named.map(|path| path.display().to_string()).unwrap_or_default()
}

/// Whether `--validation-split` of the share that is proposed finds texts: none where every class has one.
fn can_be_split(description: &Description) -> bool {
    let classes = description.splits[0].classes.iter().zip(0..);
    let labels: Vec<u32> = classes.flat_map(|(class, label)| std::iter::repeat_n(label, class.texts)).collect();
    !stratified_split(&labels, SHARE, 0).1.is_empty()
}

/// The command that trains on this data, one flag per line; `splits` if it splits off validation data, and `other_head` if the
/// model's classifier is for another number of classes.
fn training(args: &Args, data: &DataArgs, matches: &ArgMatches, splits: bool, other_head: bool) -> String {
    let flag = |name: &str, value: String| format!("--{name} {}", quoted(&value));
    let shown = |path: &PathBuf| path.display().to_string();
    let mut flags = vec![flag("model", args.model.as_ref().map_or("distilbert/distilbert-base-uncased".to_string(), shown))];
    let name = if data.train_file == args.only_file { "train-file" } else { "data-dir" };
    flags.extend(args.only_file.as_ref().map(|file| flag(name, shown(file))));
    flags.extend(flags::typed::<DataArgs>(matches));
    flags.extend(splits.then(|| flag("validation-split", SHARE.to_string())));
    flags.extend(args.max_length.map(|length| flag("max-length", length.to_string())));
    flags.extend(other_head.then(|| "--ignore-mismatched-sizes".to_string()));
    flags.push(flag("output-dir", free_folder("out")));
    format!("warpfit train {}", flags.join(" \\\n                "))
}
