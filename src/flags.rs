//! Command-line flags: parsing, value types, and the groups shared by several commands.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, Parser, ValueEnum};
use encoding_rs::Encoding;
use serde::Serialize;

use crate::console::{Look, print};
use crate::data::dataset::{self, Options, Split, Splits};
use crate::device::{Device, Precision, gpu_code};
use crate::error::{Error, Result};
use crate::hub;

/// Parses the words of a command line, starting with the name of the program. `None` if help or the version was requested and
/// printed.
pub fn parse<A: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<Option<A>> {
    Ok(matches(&command::<A>(), words)?.map(|matches| A::from_arg_matches(&matches).expect("clap has checked the values")))
}

/// The release, and the GPU code in this build: "0.1.0 (no GPU code)".
pub fn version() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), gpu_code())
}

/// The flags of a command. Every name of a flag is known in `--kebab-case` and in Hugging Face's `--snake_case`.
pub fn command<A: Parser>() -> Command {
    A::command().version(version()).mut_args(|arg| {
        // Otherwise -1 would be an unknown flag, and not a value out of range.
        let takes_values = arg.get_action().takes_values();
        let is_truth = takes_values && arg.get_value_parser().type_id() == TypeId::of::<bool>();
        let arg = arg.allow_negative_numbers(takes_values);
        let arg = if is_truth { arg.value_parser(truth).hide_possible_values(true) } else { arg };
        let names = arg.get_long_and_visible_aliases().into_iter().flatten().chain(arg.get_aliases().into_iter().flatten());
        let names: Vec<String> = names.map(String::from).collect();
        let spellings = names.iter().flat_map(|name| [name.replace('-', "_"), name.replace('_', "-")]);
        let others: BTreeSet<String> = spellings.filter(|spelling| !names.contains(spelling)).collect();
        arg.aliases(others)
    })
}

/// The flag with this name, or with another spelling of it.
pub fn named<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let aliases = |flag: &'a Arg| flag.get_all_aliases().unwrap_or_default();
    command.get_arguments().find(|flag| flag.get_long().into_iter().chain(aliases(flag)).any(|known| known == name))
}

/// The values by flag; `None` as in [`parse`].
pub fn matches(command: &Command, words: impl IntoIterator<Item = OsString>) -> Result<Option<ArgMatches>> {
    let words: Vec<OsString> = words.into_iter().collect();
    let name = words.first().and_then(|word| Path::new(word).file_name()).unwrap_or_default().display().to_string();
    match command.clone().try_get_matches_from(&words) {
        Ok(matches) => Ok(Some(matches)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let help = error.render();
            let help = if Look::of_stdout().colour { help.ansi().to_string() } else { help.to_string() };
            print(help.trim_end())?;
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Error::user(&name, "no command is given", format!("see {name} --help")))
        }
        Err(error) => {
            // The first paragraph is the fact, and a tip may follow; the usage is also in --help.
            let text = error.render().to_string();
            let mut paragraphs = text.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
            let mut fact = paragraphs.next().unwrap_or_default().trim_start_matches("error: ").to_string();
            if let Some((flag, variable)) = variable(command, &error, &words) {
                fact = fact.replace(&format!("'{flag}'"), &format!("'{variable}', which is {flag}"));
            }
            let unknown = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => nearest(command, flag),
                _ => None,
            };
            let tip = unknown.map(|flag| format!("a similar argument exists: '--{flag}'"));
            // Names are shown as in --help.
            let tip = tip.or_else(|| paragraphs.find_map(|text| text.strip_prefix("tip: ").map(|tip| tip.replace('_', "-"))));
            let tip = tip.map(|tip| format!("{tip}; ")).unwrap_or_default();
            Err(Error::user(&name, fact, format!("{tip}see {name} --help")))
        }
    }
}

/// The flag with an invalid value, and the environment variable that has it: no word does.
fn variable(command: &Command, error: &clap::Error, words: &[OsString]) -> Option<(String, String)> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg)?;
    let long = flag.trim_start_matches("--").split(' ').next();
    let arg = command.get_arguments().find(|arg| arg.get_long() == long)?;
    let names = arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default());
    let names: Vec<String> = names.map(|name| format!("--{name}")).collect();
    let is_typed = words.iter().any(|word| names.iter().any(|name| Some(&**name) == word.to_string_lossy().split('=').next()));
    Some((flag, arg.get_env().filter(|_| !is_typed)?.display().to_string()))
}

/// The flags of a group that were typed, each with its values as a shell reads them.
pub fn typed<A: Args>(matches: &ArgMatches) -> Vec<String> {
    let group = A::augment_args(Command::new("group"));
    let typed = group.get_arguments().filter(|arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine));
    let words = typed.map(|arg| {
        let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten().map(|value| quoted(&value.to_string_lossy()));
        let flag = format!("--{}", arg.get_long().expect("every flag is long"));
        [flag].into_iter().chain(values).collect::<Vec<_>>().join(" ")
    });
    words.collect()
}

/// The file of a flag; `None` for `-`, which is standard input or output.
pub fn unless_dash(file: Option<PathBuf>) -> Option<PathBuf> {
    file.filter(|file| file.as_os_str() != "-")
}

/// A path as a shell reads it, and no program takes for a flag.
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with('-') && text != "-" { quoted(&format!("./{text}")) } else { quoted(&text) }
}

/// The flags that have a value, each after a space, for a command that is proposed.
pub fn given<'a>(values: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let flag = |(name, value): (&str, Option<String>)| {
        let value = value?;
        let between = if value.starts_with('-') { '=' } else { ' ' };
        Some(format!(" --{name}{between}{}", quoted(&value)))
    };
    values.into_iter().filter_map(flag).collect()
}

/// A word as a shell reads it.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@,=+%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The flag probably meant by an unknown one: that with these initials (`--lr`, `--bs`), or else the shortest with a word for
/// each of its words, which may be cut short (`--num-epochs`, `--max-len`).
fn nearest(command: &Command, unknown: &str) -> Option<String> {
    let unknown = unknown.trim_start_matches('-').to_lowercase().replace('_', "-");
    let mut matching = Vec::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(long) = arg.get_long() else { continue };
        let aliases = arg.get_all_aliases().unwrap_or_default();
        for name in [long].into_iter().chain(aliases).filter(|name| !name.contains('_')) {
            let initials: String = name.split('-').filter_map(|word| word.chars().next()).collect();
            let has = |word: &str| name.split('-').any(|other| other.starts_with(word));
            if initials == unknown {
                matching.push((0, long));
            } else if unknown.len() > 2 && unknown.split('-').all(has) {
                matching.push((name.len(), long));
            }
        }
    }
    matching.into_iter().min().map(|(_, long)| long.to_string())
}

/// How a trained model runs.
#[derive(Args)]
pub struct RunArgs {
    /// Truncate texts to this many tokens [default: the smallest of the tokenizer's limit, the model's positions and 512]
    #[arg(long, value_name = "N", visible_alias = "max-seq-length", value_parser = count)]
    pub max_length: Option<usize>,
    /// Device: auto (the first GPU that opens, else the CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Precision of activations and matrix products: auto (on a GPU bf16, or fp16 before Ampere; on the CPU fp32), fp32, tf32,
    /// bf16 or fp16; the CPU has fp32 and bf16
    #[arg(long, default_value = "auto", hide_possible_values = true)]
    pub precision: Precision,
}

impl RunArgs {
    pub fn device(&self) -> Result<Device> {
        self.device.parse()
    }
}

impl FileArgs {
    /// Each flag, that of a column of labels among them, with its value if it is given.
    pub fn values(&self, label_column: Option<&str>) -> [(&'static str, Option<String>); 6] {
        let on = |on: bool| if on { "on" } else { "off" }.to_string();
        let delimiter = |byte: u8| if byte == b'\t' { "tab".to_string() } else { char::from(byte).to_string() };
        [
            ("delimiter", self.delimiter.map(delimiter)),
            ("quoting", self.quoting.map(on)),
            ("no-header", self.no_header.map(on)),
            ("encoding", self.encoding.map(|encoding| encoding.name().to_lowercase())),
            ("text-column", self.text_column.clone()),
            ("label-column", label_column.map(str::to_string)),
        ]
    }

    /// These flags, each after a space, for a command that is proposed.
    pub fn flags(&self, label_column: Option<&str>) -> String {
        given(self.values(label_column))
    }
}

/// How files of texts are written, where their content does not tell.
#[derive(Args, Clone, Debug, Default)]
pub struct FileArgs {
    /// Field delimiter [default: found in the file; a comma in .csv, a tab in .tsv, a semicolon in labelled .txt]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Whether quotes enclose fields, or are literal characters: on or off [default: off in .tsv and labelled .txt, otherwise
    /// on]
    #[arg(long, value_name = "ON_OR_OFF")]
    pub quoting: Option<bool>,
    /// The first line of .csv, .tsv and labelled .txt is a row, and names no columns, which are then numbered from 1
    /// [default: found in the file]
    #[arg(long, value_name = "TRUE_OR_FALSE", num_args = 0..=1, default_missing_value = "true")]
    pub no_header: Option<bool>,
    /// Encoding of text files, such as cp1252, cp1251, latin-1 or utf-16le; a byte order mark overrides it [default: UTF-8]
    #[arg(long, value_name = "NAME", value_parser = dataset::encoding)]
    pub encoding: Option<&'static Encoding>,
    /// Column or JSON key of the texts [default: found by its name]
    #[arg(long, value_name = "NAME", visible_alias = "text-column-name")]
    pub text_column: Option<String>,
}

impl FileArgs {
    /// Options for reading labelled texts.
    pub fn labelled(&self, label_column: Option<&str>) -> Options {
        Options { label_column: label_column.map(String::from), texts_only: false, ..self.texts() }
    }

    /// Options for reading texts alone.
    pub fn texts(&self) -> Options {
        Options {
            delimiter: self.delimiter,
            quoting: self.quoting,
            no_header: self.no_header,
            encoding: self.encoding,
            text_column: self.text_column.clone(),
            label_column: None,
            texts_only: true,
            keep_columns: false,
        }
    }
}

/// How texts are read from files.
#[derive(Args)]
pub struct InputArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// Tokens of a batch, at most
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 8192)]
    pub max_batch_tokens: usize,
}

impl InputArgs {
    pub fn columns(&self, label_column: Option<&str>) -> Options {
        self.file.labelled(label_column)
    }
}

/// The data of a run: the files of its splits, and how they are read.
#[derive(Args, Clone, Debug, Default)]
pub struct DataArgs {
    /// Folder with the splits of a data set: train.csv, val.csv, test.csv (in any format), train-00000-of-00001.parquet like the
    /// hub's, or train/ and test/ with reviews in neg/ and pos/ [default: none]
    #[arg(long, help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// Data set of the Hugging Face hub, such as stanfordnlp/imdb, instead of --data-dir [default: none]
    #[arg(long, visible_alias = "dataset-name", conflicts_with_all = ["data_dir", "train_file"], value_name = "DIR_OR_ID")]
    #[arg(help_heading = "Data")]
    pub dataset: Option<PathBuf>,
    /// Configuration of --dataset [default: its only one]
    #[arg(long, visible_alias = "dataset-config-name", conflicts_with_all = ["data_dir", "train_file"], value_name = "NAME")]
    #[arg(help_heading = "Data")]
    pub dataset_config: Option<String>,
    /// Split of --data-dir or --dataset to evaluate on during training; test for data sets without a validation split
    /// [default: validation]
    #[arg(long, conflicts_with_all = ["train_file", "validation_file"], help_heading = "Data")]
    pub validation_split_name: Option<SplitName>,
    /// Training data, instead of that in --data-dir: .csv, .tsv, .json, .jsonl, .parquet, .txt with one text;label or one
    /// __label__name text per line, or a folder with reviews in neg/ and pos/ [default: none]
    #[arg(long, alias = "file", help_heading = "Data")]
    pub train_file: Option<PathBuf>,
    /// Data to evaluate on during training [default: that of --data-dir or --dataset, if any]
    #[arg(long, help_heading = "Data")]
    pub validation_file: Option<PathBuf>,
    /// Data to evaluate on once, at the end [default: that of --data-dir or --dataset, if any]
    #[arg(long, help_heading = "Data")]
    pub test_file: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Data")]
    pub reading: FileArgs,
    /// Column of the labels [default: found by its name]
    #[arg(long, visible_alias = "label-column-name", help_heading = "Data")]
    pub label_column: Option<String>,
    /// Names of the classes whose labels are bare numbers or booleans, separated by commas, in order: from 0, of 1 and 2, or of
    /// false and true [default: those of the file or the model, else LABEL_0, LABEL_1, ...]
    #[arg(long, value_name = "NAME,NAME,...", value_parser = label_names, help_heading = "Data")]
    pub label_names: Option<LabelNames>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitName {
    Validation,
    Test,
}

impl DataArgs {
    /// The splits that are of --data-dir or --dataset, not files with a flag of their own.
    pub fn of_dataset(&self) -> Vec<Split> {
        let given =
            [(Split::Train, &self.train_file), (Split::Validation, &self.validation_file), (Split::Test, &self.test_file)];
        let has_dataset = self.dataset.is_some() || self.data_dir.is_some();
        given.into_iter().filter(|(_, file)| has_dataset && file.is_none()).map(|(split, _)| split).collect()
    }

    /// The files of each split: those of --data-dir or --dataset, and those given in their place.
    pub fn files(&self) -> Result<Splits> {
        let mut files = match (&self.dataset, &self.data_dir) {
            (Some(name), _) => {
                hub::dataset(name, self.dataset_config.as_deref(), &[Split::Train, Split::Validation, Split::Test])?
            }
            (None, Some(dir)) => dataset::splits(dir)?,
            (None, None) => Splits::default(),
        };
        let whole = self.dataset.as_ref().or(self.data_dir.as_ref());
        needs("--dataset-config", self.dataset_config.is_some(), "--dataset", self.dataset.is_some())?;
        needs("--validation-split-name", self.validation_split_name.is_some(), "--dataset or --data-dir", whole.is_some())?;
        if self.validation_split_name == Some(SplitName::Test) {
            files.validation = std::mem::take(&mut files.test);
        }
        for (typed, found) in [
            (&self.train_file, &mut files.train),
            (&self.validation_file, &mut files.validation),
            (&self.test_file, &mut files.test),
        ] {
            if let Some(file) = typed {
                *found = vec![file.clone()];
            }
        }
        match whole {
            Some(name) if self.validation_split_name.is_some() && files.validation.is_empty() => {
                Err(Error::user("--validation-split-name", format!("{} has no such split", name.display()), "choose another"))
            }
            Some(name) if files.train.is_empty() => {
                Err(Error::user(name.display(), "has no training data", "name it with --train-file"))
            }
            None if files.train.is_empty() => {
                Err(missing("--train-file", "a file of texts and labels, or --data-dir, or --dataset"))
            }
            _ => Ok(files),
        }
    }
}

/// The error for a flag that is given without the one that it needs.
fn needs(flag: &str, given: bool, needed: &str, has: bool) -> Result<()> {
    match given && !has {
        true => Err(Error::user(flag, format!("has no effect without {needed}"), format!("leave it out, or pass {needed}"))),
        false => Ok(()),
    }
}

/// A flag without which a run lacks its model or its data.
pub fn missing(flag: &str, what: &str) -> Error {
    Error::user(flag, "is missing", format!("name {what}, or leave out all files of the run"))
}

/// A split of a data set, in place of a file.
#[derive(Args)]
pub struct SplitArgs {
    /// Data set of the Hugging Face hub, such as stanfordnlp/imdb, or a folder with splits, instead of a file [default: none]
    #[arg(long, visible_alias = "dataset-name", value_name = "DIR_OR_ID")]
    pub dataset: Option<PathBuf>,
    /// Configuration of --dataset [default: its only one]
    #[arg(long, visible_alias = "dataset-config-name", value_name = "NAME")]
    pub dataset_config: Option<String>,
    /// Split of --dataset [default: test]
    #[arg(long, value_enum)]
    pub split: Option<Split>,
}

impl SplitArgs {
    /// The flags that are given, each after a space, for a command that is proposed.
    pub fn flags(&self) -> String {
        let split = self.split.and_then(|split| Some(split.to_possible_value()?.get_name().to_string()));
        let values = [
            ("dataset", self.dataset.as_ref().map(|name| name.display().to_string())),
            ("dataset-config", self.dataset_config.clone()),
            ("split", split),
        ];
        given(values)
    }

    /// The files of the split; `None` without --dataset.
    ///
    /// # Errors
    /// A flag that needs --dataset, without it: clap does not require what another flag excludes.
    pub fn files(&self) -> Result<Option<Vec<PathBuf>>> {
        needs("--dataset-config", self.dataset_config.is_some(), "--dataset", self.dataset.is_some())?;
        needs("--split", self.split.is_some(), "--dataset", self.dataset.is_some())?;
        let Some(name) = &self.dataset else { return Ok(None) };
        let split = self.split.unwrap_or(Split::Test);
        let files = hub::dataset(name, self.dataset_config.as_deref(), &[split])?.files(split);
        match files.is_empty() {
            true => Err(Error::user("--split", format!("{} has no such split", name.display()), "choose another")),
            false => Ok(Some(files)),
        }
    }
}

/// A truth value in any of the ways that Hugging Face's scripts accept: true, True, yes, 1, ..., and on.
pub fn truth(text: &str) -> std::result::Result<bool, String> {
    match text.to_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" | "on" => Ok(true),
        "false" | "f" | "no" | "n" | "0" | "off" => Ok(false),
        _ => Err("use true or false".to_string()),
    }
}

fn number(text: &str, holds: fn(f64) -> bool, what: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x.is_finite() && holds(x)).ok_or_else(|| format!("use {what}"))
}

pub fn positive(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

pub fn not_negative(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x >= 0.0, "a number, 0 or above")
}

pub fn unit(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| (0.0..1.0).contains(&x), "a number from 0 to below 1")
}

pub fn open_unit(text: &str) -> std::result::Result<f64, String> {
    number(text, |x| x > 0.0 && x < 1.0, "a number between 0 and 1")
}

/// An integer of at least 1.
pub fn count(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n| n > 0 && n <= u32::MAX as usize)
        .ok_or_else(|| format!("use a whole number from 1 to {}", u32::MAX))
}

/// A seed.
pub fn seed(text: &str) -> std::result::Result<u64, String> {
    text.parse().map_err(|_| format!("use a whole number from 0 to {}", u64::MAX))
}

/// An integer of at least 0.
pub fn whole(text: &str) -> std::result::Result<usize, String> {
    text.parse().map_err(|_| "use a whole number, 0 or above".to_string())
}

/// A port of TCP, or 0.
pub fn port(text: &str) -> std::result::Result<u16, String> {
    text.parse().map_err(|_| format!("use a whole number from 0 to {}", u16::MAX))
}

/// Names of classes, in order of their index.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LabelNames(pub Vec<String>);

/// At least two different names, separated by commas.
pub fn label_names(text: &str) -> std::result::Result<LabelNames, String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_string()).collect();
    match names.iter().collect::<BTreeSet<_>>().len() == names.len()
        && names.len() > 1
        && names.iter().all(|name| !name.is_empty())
    {
        true => Ok(LabelNames(names)),
        false => Err("use two or more different names, separated by commas".to_string()),
    }
}

/// One ASCII character, or `\t`.
pub fn delimiter(text: &str) -> std::result::Result<u8, String> {
    match text.as_bytes() {
        b"\\t" | b"tab" => Ok(b'\t'),
        &[byte] if byte.is_ascii() && byte != b'"' => Ok(byte),
        _ => Err("use one character, or tab".to_string()),
    }
}
