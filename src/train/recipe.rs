//! Flags from four sources, in order of precedence: the command line, `--config FILE`, `--recipe NAME`, the run that is resumed.
//! A recipe is such a file, bundled with the program. The settings of a file or a run become words of the command line, inserted
//! before those of the user and without those that the user overrides, so that clap validates all of them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use toml::de::{DeTable, DeValue};

use super::args::{Args, GivenFlags, NEVER, NEWEST};
use super::hugging_face;
use super::resume::Checkpoint;
use crate::checkpoint::run_dir::RunDir;
use crate::error::{Error, Result};
use crate::files::same_file;
use crate::flags;

const RECIPES: [(&str, &str); 7] = [
    ("imdb", include_str!("recipes/imdb.toml")),
    ("imdb-40k", include_str!("recipes/imdb-40k.toml")),
    ("imdb-bert", include_str!("recipes/imdb-bert.toml")),
    ("imdb-pt", include_str!("recipes/imdb-pt.toml")),
    ("sentiment-ru", include_str!("recipes/sentiment-ru.toml")),
    ("emotion", include_str!("recipes/emotion.toml")),
    (SAMPLE, include_str!("recipes/sample.toml")),
];

/// The recipe of the bundled model and reviews.
pub const SAMPLE: &str = "sample";

pub fn names() -> [&'static str; RECIPES.len()] {
    RECIPES.map(|(name, _)| name)
}

/// Flags that belong to one process of a run, and not to the run; and the precision and the algorithms, which are part of a checkpoint's state.
const OF_PROCESS: [&str; 10] = [
    "algorithms",
    "config",
    "dry_run",
    "output_dir",
    "overwrite_output_dir",
    "precision",
    "profile",
    "quiet",
    "resume_from_checkpoint",
    "tune",
];

/// Flags that override another one from a source of lower precedence.
const OVERRIDES: [(&str, &str); 3] = [("epochs", "max_steps"), ("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")];

/// The flags of a run; `None` if help was requested and printed. Without a model and data the recipe is `sample`.
///
/// # Errors
/// An invalid flag; a file that cannot be read; an invalid setting in it, with its line.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Option<Args>> {
    let command = flags::command::<Args>();
    let words: Vec<OsString> = words.into_iter().collect();
    let Some(matches) = flags::matches(&command, words.clone())? else { return Ok(None) };
    let mut typed = Flags { command, words, matches };
    typed.check_encoding()?;
    if let Some(file) = typed.matches.get_one::<PathBuf>("config").cloned() {
        let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::user(file.display(), "not UTF-8", "save the file as UTF-8"))?;
        typed.put_under(&file.display().to_string(), &text)?;
    }
    let own = ["model", "dataset", "data_dir", "train_file", "validation_file"].into_iter().find(|id| typed.has(id));
    if own.is_none() && !typed.has("recipe") && typed.resumes().is_none() {
        typed.put_under("flags", &format!("recipe = '{SAMPLE}'"))?;
    }
    if let Some(recipe) = typed.matches.get_one::<String>("recipe") {
        // Half of it beside a model or texts of the user's would be neither's.
        if let (SAMPLE, Some(flag), None) = (recipe.as_str(), own, typed.resumes()) {
            let flag = format!("--{}", flag.replace('_', "-"));
            return Err(Error::user(flag, "the recipe sample has a model and texts of its own", "leave out one of them"));
        }
        let (name, text) = RECIPES.iter().find(|(name, _)| name == recipe).expect("clap knows their names");
        typed.put_under(name, text)?;
    }
    let resumed = typed.resumed()?;
    let checkpoint = resumed.map(|(asked, folder)| typed.put_run_under(&asked, &folder)).transpose()?;
    let args = Args::from_arg_matches(&typed.matches).expect("clap has checked the values");
    let output_dir = checkpoint.as_ref().map(|checkpoint| checkpoint.run.path.clone()).or(args.output_dir);
    Ok(Some(Args { output_dir, resume_from_checkpoint: typed.resumes(), given: typed.given(), checkpoint, ..args }))
}

struct Flags {
    command: Command,
    /// The name of the program, then its flags.
    words: Vec<OsString>,
    matches: ArgMatches,
}

impl Flags {
    fn has(&self, id: &str) -> bool {
        self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// # Errors
    /// A value that is not UTF-8, which the files of a run could not hold.
    fn check_encoding(&self) -> Result<()> {
        for (id, long) in self.command.get_arguments().filter_map(|flag| Some((flag.get_id().as_str(), flag.get_long()?))) {
            let mut values = self.matches.try_get_raw(id).ok().flatten().into_iter().flatten();
            if let Some(value) = values.find(|value| value.to_str().is_none()) {
                let fact = format!("{} is not UTF-8, as the files of a run must be", value.display());
                return Err(Error::user(format!("--{long}"), fact, "give it another name"));
            }
        }
        Ok(())
    }

    /// Whether no present flag overrides this one: the flag itself, or one that it conflicts with.
    fn leaves_room_for(&self, flag: &Arg) -> bool {
        let excludes = |a: &Arg, b: &Arg| self.command.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
        let overrides = |a: &Arg, b: &Arg| OVERRIDES.iter().any(|&(over, under)| *a.get_id() == over && *b.get_id() == under);
        let over = |other: &Arg| {
            other.get_id() == flag.get_id() || overrides(other, flag) || excludes(other, flag) || excludes(flag, other)
        };
        !self.command.get_arguments().any(|other| self.has(other.get_id().as_str()) && over(other))
    }

    /// Adds the settings of a file that are not overridden.
    fn put_under(&mut self, place: &str, text: &str) -> Result<()> {
        self.insert(settings(&self.command, place, text)?)
    }

    /// What is resumed: a folder, or [`NEWEST`].
    fn resumes(&self) -> Option<PathBuf> {
        self.matches.get_one::<PathBuf>("resume_from_checkpoint").filter(|path| path.as_os_str() != NEVER).cloned()
    }

    /// The checkpoint to resume, if one is asked for, and the output folder: that of the run, if only a checkpoint or the folder
    /// of the run is named.
    fn resumed(&self) -> Result<Option<(PathBuf, PathBuf)>> {
        let path = |id: &str| self.matches.get_one::<PathBuf>(id).cloned();
        let Some(named) = self.resumes() else { return Ok(None) };
        let is_newest = named.as_os_str() == NEWEST;
        let containing = || if is_newest { None } else { RunDir::containing(&named) };
        let Some(folder) = path("output_dir").or_else(containing) else {
            let (place, fact, remedy) = match () {
                () if is_newest => {
                    ("--output-dir".into(), "is missing", "name the folder of the run: --resume-from-checkpoint DIR")
                }
                () if named.exists() => (named, "is neither the folder of a run nor in one", "name the folder of the run"),
                () => (named, "no such folder", "name the folder of the run"),
            };
            return Err(Error::user(place.display(), fact, remedy));
        };
        let is_folder = !is_newest && same_file(&folder, &named);
        Ok(Some((if is_folder { NEWEST.into() } else { named }, folder)))
    }

    /// Chooses the checkpoint that is resumed, and adds the flags of its run that are not overridden.
    ///
    /// # Errors
    /// There is no sound checkpoint; or it has no flags, and those that are typed are not enough.
    fn put_run_under(&mut self, asked: &Path, folder: &Path) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::choose(asked, folder)?;
        let flags = checkpoint.flags().unwrap_or_default();
        if flags.is_empty() && !self.has("model") {
            return Err(Error::user(
                checkpoint.path.display(),
                "does not have the settings of its run",
                "pass the flags of the run",
            ));
        }
        let word = |(name, value): (String, String)| {
            let flag = flags::named(&self.command, &name)?;
            Some((flag.clone(), word(flag, &value)?))
        };
        self.insert(flags.into_iter().filter_map(word).collect())?;
        Ok(checkpoint)
    }

    /// Adds settings that are not overridden.
    fn insert(&mut self, settings: Vec<(Arg, OsString)>) -> Result<()> {
        let words = settings.into_iter().filter(|(flag, _)| self.leaves_room_for(flag)).map(|(_, word)| word);
        let words: Vec<OsString> = words.collect();
        self.words.splice(1..1, words);
        self.matches = flags::matches(&self.command, self.words.clone())?.expect("a file cannot request help");
        Ok(())
    }

    /// All flags that have a value and belong to the run.
    fn given(&self) -> GivenFlags {
        let flags = self.command.get_arguments().filter_map(|flag| Some((flag.get_id().as_str(), flag.get_long()?)));
        let flags = flags.filter(|(id, _)| self.has(id) && !OF_PROCESS.contains(id));
        let value = |id| self.matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        flags.map(|(id, long)| (long.to_string(), value(id).collect::<Vec<_>>().join(","))).collect()
    }
}

/// A setting as one word of the command line: 16 for `batch-size` as `--batch-size=16`; `None` for a switch that is off.
fn word(flag: &Arg, value: &str) -> Option<OsString> {
    let long = flag.get_long().expect("every flag is long");
    let is_switch = matches!(flag.get_action(), ArgAction::SetTrue);
    // As on the command line.
    let resumes = *flag.get_id() == "resume_from_checkpoint";
    match value.to_lowercase().as_str() {
        "false" if is_switch => None,
        "false" if resumes => Some(format!("--{long}={NEVER}").into()),
        "true" if is_switch || resumes => Some(format!("--{long}").into()),
        _ => Some(format!("--{long}={value}").into()),
    }
}

/// The settings of a file in order, each as one word: `batch-size = 16` as `--batch-size=16`.
fn settings(command: &Command, file: &str, text: &str) -> Result<Vec<(Arg, OsString)>> {
    let bad = |at: usize, fact: String| {
        let place = format!("{file}:{}", 1 + text[..at].matches('\n').count());
        Error::user(place, fact, format!("see {} --help", command.get_name()))
    };
    let table =
        DeTable::parse(text).map_err(|e| bad(e.span().map_or(0, |span| span.start), format!("not TOML: {}", e.message())))?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut found = Vec::new();
    let mut words = vec![OsString::from(command.get_name())];
    for (key, value) in entries {
        let (at, key) = (key.span().start, key.get_ref());
        let flag = flags::named(command, key).filter(|flag| *flag.get_id() != "config");
        let text = scalar(value.get_ref());
        let flag = flag.ok_or_else(|| bad(at, format!("unknown setting {key}{}", name_here(key, text.as_deref()))))?;
        let text = text.ok_or_else(|| bad(at, format!("{key} cannot be of type {}", value.get_ref().type_str())))?;
        let Some(word) = word(flag, &text) else { continue };
        words.push(word.clone());
        // Parsed alone, so that its errors have the line of the file and are not mistaken for those of the command line.
        flags::matches(command, words.clone()).map_err(|error| bad(at, error.fact().to_string()))?;
        found.push((flag.clone(), word));
    }
    Ok(found)
}

/// For a setting that is Hugging Face's alone, what the command line makes of it, in words.
fn name_here(key: &str, value: Option<&str>) -> String {
    let typed = format!("--{key}={}", value.unwrap_or_default());
    let words = hugging_face::translate(["train".into(), typed.clone().into()]).map_or(Vec::new(), |(words, _)| words);
    let others = words.iter().skip(1).filter(|word| **word != *typed).map(|word| word.display().to_string());
    let is_literal = |value: &str| value.parse::<f64>().is_ok() || ["true", "false"].contains(&value);
    let setting = |word: String| match word.trim_start_matches('-').split_once('=') {
        Some((name, value)) if is_literal(value) => format!("{name} = {value}"),
        Some((name, value)) => format!("{name} = \"{value}\""),
        None => format!("{} = true", word.trim_start_matches('-')),
    };
    let others: Vec<String> = others.map(setting).collect();
    if others.is_empty() { String::new() } else { format!(", which is {} here", others.join(" and ")) }
}

/// A value as on the command line; lists are separated by commas.
fn scalar(value: &DeValue) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Array(values) => {
            values.iter().map(|value| scalar(value.get_ref())).collect::<Option<Vec<_>>>().map(|v| v.join(","))
        }
        DeValue::Table(_) | DeValue::Datetime(_) => None,
    }
}
