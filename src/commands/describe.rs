//! Describes labelled texts before training.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use rayon::prelude::*;

use crate::checkpoint::model_dir::ModelDir;
use crate::console::{note, print};
use crate::data::dataset::{Labelled, ModelClasses, Splits};
use crate::data::description::{Description, Unit};
use crate::error::Result;
use crate::flags::{FileArgs, LabelNames, count, label_names};
use crate::hub;
use crate::report::log::Progress;
use crate::train::args;

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
    /// The same as FILE
    #[arg(long, value_name = "FILE", visible_alias = "file")]
    train_file: Option<PathBuf>,
    /// Validation data
    #[arg(long, value_name = "FILE")]
    validation_file: Option<PathBuf>,
    /// Test data
    #[arg(long, value_name = "FILE")]
    test_file: Option<PathBuf>,
    /// Folder with the splits of a data set, such as train.csv, val.csv and test.csv
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Data set of the Hugging Face hub, such as stanfordnlp/imdb, or a folder with splits
    #[arg(long, visible_alias = "dataset-name", conflicts_with_all = ["data_dir", "train_file"], value_name = "DIR_OR_ID")]
    dataset: Option<PathBuf>,
    /// Configuration of --dataset [default: its only one]
    #[arg(long, visible_alias = "dataset-config-name", requires = "dataset", value_name = "NAME")]
    dataset_config: Option<String>,
    #[command(flatten)]
    reading: FileArgs,
    /// Column of the labels [default: found by its name]
    #[arg(long, visible_alias = "label-column-name", value_name = "NAME")]
    label_column: Option<String>,
    /// Names of the classes whose labels are bare numbers or booleans, separated by commas, in order: from 0, of 1 and 2, or of
    /// false and true [default: those of the file or the model, else LABEL_0, LABEL_1, ...]
    #[arg(long, value_name = "NAME,NAME,...", value_parser = label_names)]
    label_names: Option<LabelNames>,
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

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// All figures
    Json,
}

pub fn run(args: Args) -> Result<()> {
    let files = args.files()?;
    let source = args.model.as_ref().map(|model| ModelDir::read(&hub::model(model)?)).transpose()?;
    let counted = source.as_ref().map(|source| Ok((source.tokenizer()?, source.max_length(args.max_length)?))).transpose()?;
    let of_model = source.as_ref().filter(|source| source.config.labels_named).map(|source| &source.config.labels[..]);
    let (options, given) =
        (args.reading.labelled(args.label_column.as_deref()), args.label_names.as_ref().map(|names| &names.0[..]));
    let model = ModelClasses::Replaceable(of_model);
    let data = Labelled::read(&files, &options, args.test_file.is_none(), model, given)?;
    data.notes.iter().for_each(note);
    let words = |_: &str, texts: &[String]| Ok(texts.par_iter().map(|text| text.split_whitespace().count()).collect());
    let description = match counted {
        None => Description::of(data, Unit::Words, None, words)?,
        Some((tokenizer, max_length)) => Description::of(data, Unit::Tokens, Some(max_length), |split, texts| {
            let progress = Progress::new(&format!("tokenizing {split}"), texts.len() as u64, &["texts"]);
            let encoded = tokenizer.encode(texts, usize::MAX, &|done| progress.add(&[done as u64]))?;
            progress.finish("");
            Ok(encoded.offsets.windows(2).map(|row| row[1] - row[0]).collect())
        })?,
    };
    if let Some(folder) = &args.output_dir {
        description.write(folder, &args.title())?;
        note(format!("saved       {}", folder.join("describe.html").display()));
    }
    match args.format {
        Format::Text => print(description.text().trim_end())?,
        Format::Json => print(format!("{:#}", serde_json::json!(description)))?,
    }
    note(format!("\nnext        {}", args.next(!files.validation.is_empty())));
    Ok(())
}

impl Args {
    fn title(&self) -> String {
        let named = [&self.only_file, &self.train_file, &self.data_dir, &self.dataset].into_iter().flatten().next();
        named.map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The command that trains on these files, over several lines.
    fn next(&self, validates: bool) -> String {
        let shown = |path: &PathBuf| path.display().to_string();
        let reading = &self.reading;
        let model = self.model.as_ref().map_or("distilbert/distilbert-base-uncased".to_string(), shown);
        let flags = [
            ("--model", Some(model)),
            ("--train-file", self.train_file.as_ref().or(self.only_file.as_ref()).map(shown)),
            ("--data-dir", self.data_dir.as_ref().map(shown)),
            ("--dataset", self.dataset.as_ref().map(shown)),
            ("--dataset-config", self.dataset_config.clone()),
            ("--validation-file", self.validation_file.as_ref().map(shown)),
            ("--validation-split", (!validates).then(|| "0.1".to_string())),
            ("--test-file", self.test_file.as_ref().map(shown)),
            ("--delimiter", reading.delimiter.map(|byte| char::from(byte).to_string())),
            ("--quoting", reading.quoting.map(|value| value.to_string())),
            ("--no-header", reading.no_header.map(|value| value.to_string())),
            ("--encoding", reading.encoding.map(|encoding| encoding.name().to_string())),
            ("--text-column", reading.text_column.clone()),
            ("--label-column", self.label_column.clone()),
            ("--label-names", self.label_names.as_ref().map(|names| names.0.join(","))),
            ("--max-length", self.max_length.map(|length| length.to_string())),
            ("--output-dir", Some("out".to_string())),
        ];
        let flags = flags.into_iter().filter_map(|(flag, value)| Some(format!("{flag} {}", quoted(&value?))));
        format!("warpfit train {}", flags.collect::<Vec<_>>().join(" \\\n                "))
    }

    /// The files of each split, as train finds them.
    fn files(&self) -> Result<Splits> {
        let train_file = self.train_file.clone().or(self.only_file.clone());
        let (validation_file, test_file) = (self.validation_file.clone(), self.test_file.clone());
        let (data_dir, dataset, dataset_config) = (self.data_dir.clone(), self.dataset.clone(), self.dataset_config.clone());
        args::Args { train_file, validation_file, test_file, data_dir, dataset, dataset_config, ..args::Args::default() }.files()
    }
}

/// A word of a shell.
fn quoted(word: &str) -> String {
    match !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./,:@=+".contains(c)) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
