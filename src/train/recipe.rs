//! Flags from three sources, in order of precedence: the command line, `--config FILE`, `--recipe NAME`. A recipe is such a
//! file, bundled with the program. The settings of a file become words of the command line, inserted before those of the user
//! and without those that the user overrides, so that clap validates all of them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Parser};
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};
use crate::flags;

const RECIPES: [(&str, &str); 7] = [
    ("imdb", include_str!("recipes/imdb.toml")),
    ("imdb-40k", include_str!("recipes/imdb-40k.toml")),
    ("imdb-bert", include_str!("recipes/imdb-bert.toml")),
    ("imdb-pt", include_str!("recipes/imdb-pt.toml")),
    ("sentiment-ru", include_str!("recipes/sentiment-ru.toml")),
    ("emotion", include_str!("recipes/emotion.toml")),
    ("sample", include_str!("recipes/sample.toml")),
];

pub fn names() -> [&'static str; RECIPES.len()] {
    RECIPES.map(|(name, _)| name)
}

/// The flags of a run; `None` if help was requested and printed. Without a model and data the recipe is `sample`.
///
/// # Errors
/// An invalid flag; a file that cannot be read; an invalid setting in it, with its line.
pub fn parse<A: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<Option<A>> {
    let command = flags::command::<A>();
    let words: Vec<OsString> = words.into_iter().collect();
    let Some(matches) = flags::matches(&command, words.clone())? else { return Ok(None) };
    let mut typed = Flags { command, words, matches };
    if let Some(file) = typed.matches.get_one::<PathBuf>("config").cloned() {
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        typed.put_under(&file.display().to_string(), &text)?;
    }
    if !["recipe", "model", "dataset", "data_dir", "train_file", "validation_file"].iter().any(|id| typed.has(id)) {
        typed.put_under("flags", "recipe = 'sample'")?;
    }
    if let Some(recipe) = typed.matches.get_one::<String>("recipe") {
        let (name, text) = RECIPES.iter().find(|(name, _)| name == recipe).expect("clap knows their names");
        typed.put_under(name, text)?;
    }
    Ok(Some(A::from_arg_matches(&typed.matches).expect("clap has checked the values")))
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

    /// Whether no present flag overrides this one: the flag itself, or one that it conflicts with.
    fn leaves_room_for(&self, flag: &Arg) -> bool {
        let excludes = |a: &Arg, b: &Arg| self.command.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
        let over = |other: &Arg| other.get_id() == flag.get_id() || excludes(other, flag) || excludes(flag, other);
        !self.command.get_arguments().any(|other| self.has(other.get_id().as_str()) && over(other))
    }

    /// Adds the settings of a file that are not overridden.
    fn put_under(&mut self, place: &str, text: &str) -> Result<()> {
        let settings = settings(&self.command, place, text)?;
        let words = settings.into_iter().filter(|(flag, _)| self.leaves_room_for(flag)).map(|(_, word)| word);
        let words: Vec<OsString> = words.collect();
        self.words.splice(1..1, words);
        self.matches = flags::matches(&self.command, self.words.clone())?.expect("a file cannot request help");
        Ok(())
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
        let is_called = |flag: &Arg| {
            let aliases = flag.get_all_aliases().unwrap_or_default();
            flag.get_long().into_iter().chain(aliases).any(|name| name == key)
        };
        let flag = command.get_arguments().find(|flag| is_called(flag) && *flag.get_id() != "config");
        let flag = flag.ok_or_else(|| bad(at, format!("unknown setting {key}")))?;
        let long = flag.get_long().expect("every flag is long");
        let word = match (scalar(value.get_ref()), flag.get_action()) {
            (Some(text), ArgAction::SetTrue) if text == "false" => continue,
            (Some(text), ArgAction::SetTrue) if text == "true" => format!("--{long}"),
            (Some(text), _) => format!("--{long}={text}"),
            (None, _) => return Err(bad(at, format!("{key} cannot be of type {}", value.get_ref().type_str()))),
        };
        words.push(word.clone().into());
        // Parsed alone, so that its errors have the line of the file and are not mistaken for those of the command line.
        flags::matches(command, words.clone()).map_err(|error| bad(at, error.fact().to_string()))?;
        found.push((flag.clone(), word.into()));
    }
    Ok(found)
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
