//! Flags from three places, one over the other: what is typed, over `--config FILE`, over `--recipe NAME`. A recipe is such
//! a file that comes with the program. The settings of a file become words of the command line, before those that were
//! typed and less what these stand over, so that clap has the last word on all of them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Parser};
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};
use crate::flags;

const RECIPES: [(&str, &str); 5] = [
    ("imdb", include_str!("recipes/imdb.toml")),
    ("imdb-40k", include_str!("recipes/imdb-40k.toml")),
    ("imdb-bert", include_str!("recipes/imdb-bert.toml")),
    ("emotion", include_str!("recipes/emotion.toml")),
    ("sample", include_str!("recipes/sample.toml")),
];

pub fn names() -> [&'static str; RECIPES.len()] {
    RECIPES.map(|(name, _)| name)
}

/// The flags of a run; `None` where help was asked for, and printed. Without a model and without data it is the recipe
/// `sample`.
///
/// # Errors
/// A flag that is wrong; a file that cannot be read; a setting in it that is wrong, with its line.
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

    /// Whether nothing that is there stands over a flag: itself, or what it cannot be used with.
    fn leaves_room_for(&self, flag: &Arg) -> bool {
        let excludes = |a: &Arg, b: &Arg| self.command.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
        let over = |other: &Arg| other.get_id() == flag.get_id() || excludes(other, flag) || excludes(flag, other);
        !self.command.get_arguments().any(|other| self.has(other.get_id().as_str()) && over(other))
    }

    /// Adds the settings of a file for which there is room.
    fn put_under(&mut self, place: &str, text: &str) -> Result<()> {
        let settings = settings(&self.command, place, text)?;
        let words = settings.into_iter().filter(|(flag, _)| self.leaves_room_for(flag)).map(|(_, word)| word);
        let words: Vec<OsString> = words.collect();
        self.words.splice(1..1, words);
        self.matches = flags::matches(&self.command, self.words.clone())?.expect("a file asks for no help");
        Ok(())
    }
}

/// The settings of a file in their order, each as one word: `batch-size = 16` as `--batch-size=16`.
fn settings(command: &Command, file: &str, text: &str) -> Result<Vec<(Arg, OsString)>> {
    let bad = |at: usize, fact: String| {
        let place = format!("{file}:{}", 1 + text[..at].matches('\n').count());
        Error::user(place, fact, format!("see {} --help", command.get_name()))
    };
    let table =
        DeTable::parse(text).map_err(|e| bad(e.span().map_or(0, |span| span.start), format!("no TOML: {}", e.message())))?;
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
        let flag = flag.ok_or_else(|| bad(at, format!("there is no setting {key}")))?;
        let long = flag.get_long().expect("every flag is long");
        let word = match (scalar(value.get_ref()), flag.get_action()) {
            (Some(text), ArgAction::SetTrue) if text == "false" => continue,
            (Some(text), ArgAction::SetTrue) if text == "true" => format!("--{long}"),
            (Some(text), _) => format!("--{long}={text}"),
            (None, _) => return Err(bad(at, format!("{key} can be no {}", value.get_ref().type_str()))),
        };
        words.push(word.clone().into());
        // Alone, so that an error is told from one in what was typed, and has its line.
        flags::matches(command, words.clone()).map_err(|error| bad(at, error.fact().to_string()))?;
        found.push((flag.clone(), word.into()));
    }
    Ok(found)
}

/// A value as it is typed; a list has commas.
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
