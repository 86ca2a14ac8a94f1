//! Which column holds the texts, which the labels, which the ids.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;

use super::{Options, brief, ending, list};
use crate::error::{Error, Result};

/// Recognized column names, compared without regard to case, spaces, underscores and hyphens.
pub(super) struct Names {
    /// Best first.
    usual: &'static [&'static str],
    /// Taken if a file has none of the usual names, and one of these.
    common: &'static [&'static str],
}

pub(super) const TEXT: Names = Names {
    usual: &[
        "text",
        "sentence",
        "content",
        "review",
        "comment",
        "document",
        "utterance",
        "tweet",
        "phrase",
        "comment text",
        "review text",
        "review body",
        "tweet text",
        "question text",
        "headline",
    ],
    common: &[
        "description",
        "message",
        "body",
        "post",
        "title",
        "article",
        "abstract",
        "statement",
        "question",
        "query",
        "prompt",
        "input",
        "sms",
        "utt",
        "clean text",
        "cleaned text",
        "clean comment",
        "original tweet",
        "full text",
        "input text",
        "verse text",
        "resume str",
    ],
};

pub(super) const LABEL: Names = Names {
    usual: &["label", "label name", "labels", "target", "sentiment", "emotion", "class", "category", "intent"],
    common: &[
        "rating",
        "star rating",
        "stars",
        "star",
        "score",
        "polarity",
        "sentiment label",
        "airline sentiment",
        "gold label",
        "class label",
        "label text",
        "class index",
        "topic",
        "tag",
        "choice",
        "spam",
        "is spam",
        "is sarcastic",
    ],
};

impl Names {
    /// Whether a column of this name is recognized without a look at the others.
    pub fn is_usual(&self, name: &str) -> bool {
        self.usual.iter().any(|usual| is_same(usual, name))
    }

    pub fn has(&self, name: &str) -> bool {
        self.is_usual(name) || self.common.iter().any(|common| is_same(common, name))
    }

    /// The column that was asked for with `flag`, else the one with a recognized name that the user did not name for another use.
    fn find(&self, place: &dyn Display, columns: &[String], asked: [&Option<String>; 2], flag: &str) -> Result<Option<usize>> {
        let only = |name: &str| {
            let mut found = (0..columns.len()).filter(|&i| is_same(&columns[i], name));
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => {
                    Err(Error::user(place, format!("two columns are named {}", brief(name)), "rename one of them"))
                }
                (column, _) => Ok(column),
            }
        };
        let [own, other] = asked;
        if let Some(name) = own {
            let mut exact = (0..columns.len()).filter(|&i| columns[i] == *name);
            let column = match (exact.next(), exact.next()) {
                (Some(column), None) => Some(column),
                _ => only(name)?,
            };
            return column.map(Some).ok_or_else(|| {
                let remedy = format!("the columns are {}; correct {flag}", list(columns));
                Error::user(place, format!("no column is named {}", brief(name)), remedy)
            });
        }
        if let Some(column) = self.usual.iter().find_map(|name| only(name).transpose()).transpose()? {
            return Ok(Some(column));
        }
        let is_free = |&i: &usize| other.as_ref().is_none_or(|other| !is_same(other, &columns[i]));
        let mut common = (0..columns.len()).filter(is_free).filter(|&i| self.has(&columns[i]));
        Ok(common.next().filter(|_| common.next().is_none()))
    }
}

/// Whether two names of columns differ only in case, spaces, underscores and hyphens.
fn is_same(a: &str, b: &str) -> bool {
    let letters = |name| str::chars(name).filter(|c| !c.is_whitespace() && !"_-".contains(*c)).flat_map(char::to_lowercase);
    letters(a).eq(letters(b))
}

/// The column of the texts, by its name.
pub(crate) fn text_column(place: &dyn Display, columns: &[String], options: &Options) -> Result<Option<usize>> {
    TEXT.find(place, columns, [&options.text_column, &options.label_column], "--text-column")
}

/// The columns of the texts and of the labels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub text: usize,
    pub label: Option<usize>,
    pub id: Option<usize>,
    pub guessed: Guess,
}

/// What was found by something else than a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Guess {
    Nothing,
    /// The text is the other one of two columns.
    Text,
    /// The label is the other one of two columns.
    Label,
    /// Two columns of unknown names, to be told apart by their contents.
    Both,
    /// Two columns of unknown names, of which one holds strings.
    Type,
}

impl Columns {
    pub fn choose(path: &Path, columns: &[String], options: &Options) -> Result<Columns> {
        if let (None, Some([a, b])) = (&options.text_column, text_pair(columns)) {
            let fact = format!("{} and {} are two texts per row, and pairs of texts are not supported", brief(a), brief(b));
            return Err(Error::user(path.display(), fact, "name one of them with --text-column, or join them in one column"));
        }
        let text = text_column(&path.display(), columns, options)?;
        let asked = [&options.label_column, &options.text_column];
        let label = LABEL.find(&path.display(), columns, asked, "--label-column")?;
        let id = columns
            .iter()
            .position(|name| ["id", "idx", "index"].iter().any(|id| is_same(name, id)))
            .filter(|&id| Some(id) != text && Some(id) != label);
        let chosen = |text, label, guessed| Ok(Columns { text, label, id, guessed });
        // An index without a name is neither text nor label, nor is an id of two columns.
        let named: Vec<usize> = (0..columns.len()).filter(|&i| !is_nameless(&columns[i])).collect();
        let others: Vec<usize> = named.iter().copied().filter(|&i| named.len() > 2 || Some(i) != id).collect();
        match (text, label, &others[..]) {
            (Some(text), Some(label), _) if text == label => Err(Error::user(
                path.display(),
                format!("the column {} cannot be both text and label", brief(&columns[text])),
                "correct --text-column or --label-column",
            )),
            (Some(text), Some(label), _) => chosen(text, Some(label), Guess::Nothing),
            (Some(text), None, &[a, b]) => chosen(text, Some(if a == text { b } else { a }), Guess::Label),
            (Some(text), None, _) => chosen(text, None, Guess::Nothing),
            (None, Some(label), &[a, b]) => chosen(if a == label { b } else { a }, Some(label), Guess::Text),
            (None, None, &[a, b]) => chosen(a, Some(b), Guess::Both),
            (None, None, &[a]) => chosen(a, None, if columns.len() == 1 { Guess::Nothing } else { Guess::Text }),
            _ => {
                let fact = format!("no text column among {}", list(columns));
                let mut remedy = "name it with --text-column, and the label column with --label-column".to_string();
                if is_delimited(path) && columns[0] != "1" {
                    remedy += "; if these are a row, pass --no-header";
                }
                Err(Error::user(path.display(), fact, remedy))
            }
        }
    }
}

/// The two columns of a task on pairs of texts, beside others; `None` if a third column has the usual name of a text.
fn text_pair(columns: &[String]) -> Option<[&String; 2]> {
    const PAIRS: [[&str; 2]; 11] = [
        ["premise", "hypothesis"],
        ["question", "sentence"],
        ["question", "passage"],
        ["question", "context"],
        ["question", "answer"],
        ["query", "document"],
        ["query", "passage"],
        ["query", "text"],
        ["text", "text_pair"],
        ["sentence", "sentence_pair"],
        ["claim", "evidence"],
    ];
    const NUMBERED: [&str; 6] = ["sentence", "text", "question", "premise", "seq", "document"];
    let find = |name: &str| columns.iter().find(|column| column.eq_ignore_ascii_case(name));
    let endings = [["1", "2"], ["_1", "_2"], ["a", "b"], ["_a", "_b"], ["0", "1"]];
    let numbered = NUMBERED.iter().flat_map(|word| endings.map(|ends| ends.map(|end| format!("{word}{end}"))));
    let pairs = PAIRS.iter().map(|pair| pair.map(String::from)).chain(numbered);
    let pair = pairs.into_iter().find_map(|[a, b]| Some([find(&a)?, find(&b)?]))?;
    let is_third = |name: &&str| columns.iter().any(|column| is_same(column, name) && !pair.contains(&column));
    (columns.len() > 2 && !TEXT.usual.iter().any(is_third)).then_some(pair)
}

/// The names of an index: pandas writes none, and reads that as `Unnamed: 0`.
fn is_nameless(name: &str) -> bool {
    name.is_empty() || name.starts_with("Unnamed: ") || name.starts_with("__index_level_")
}

/// Whether a file has columns in lines, so that its first one may be their names.
pub(super) fn is_delimited(path: &Path) -> bool {
    ["csv", "tsv", "txt"].contains(&&*ending(path))
}

/// Whether a value is the usual name of a column, or one that was asked for. Common names are values too: spam, title.
pub(super) fn is_known(name: &str, options: &Options) -> bool {
    is_text_or_label(name, options) || is_same(name, "id")
}

pub(super) fn is_text_or_label(name: &str, options: &Options) -> bool {
    is_text_name(name, options) || is_label_name(name, options)
}

fn is_text_name(name: &str, options: &Options) -> bool {
    TEXT.is_usual(name) || options.text_column.as_ref().is_some_and(|asked| is_same(asked, name))
}

fn is_label_name(name: &str, options: &Options) -> bool {
    LABEL.is_usual(name) || options.label_column.as_ref().is_some_and(|asked| is_same(asked, name))
}

/// Whether these are the names of a text and of a label column.
pub(super) fn are_text_and_label(names: [&str; 2], options: &Options) -> bool {
    is_text_name(names[0], options) && is_label_name(names[1], options)
}

/// How much the values of a column look like texts: numbers least, then by the number of distinct values, then by that of
/// letters.
pub(super) fn likeness_to_text<'a>(values: impl Iterator<Item = &'a str> + Clone) -> (bool, usize, usize) {
    let is_empty = |value: &&str| value.trim().is_empty();
    let words = !values.clone().filter(|value| !is_empty(value)).all(is_number);
    let distinct: HashSet<&str> = values.clone().map(str::trim).collect();
    (words, distinct.len(), values.flat_map(str::chars).filter(|c| c.is_alphabetic()).count())
}

/// Among three or more columns without names, the one of the texts, which have the most letters, and those that may be labels:
/// every row has a value, and there are two or more distinct ones, but few; numbers of a few rows may all differ. `None` without
/// a column of words.
pub(super) fn by_content(rows: &[csv::StringRecord], columns: usize) -> Option<(usize, Vec<usize>)> {
    const MOST_CLASSES: usize = 200;
    let values = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let likeness: Vec<_> = (0..columns).map(|column| likeness_to_text(values(column))).collect();
    let is_filled = |column: usize| values(column).all(|value| !value.trim().is_empty());
    let is_fractional = |value: &str| is_number(value) && value.trim().parse::<f64>().is_ok_and(|n| n.fract() != 0.0);
    let may_be_label = |column: &usize| {
        let (words, distinct, _) = likeness[*column];
        is_filled(*column) && (2..=MOST_CLASSES).contains(&distinct) && (words || !values(*column).any(is_fractional))
    };
    let possible = || (0..columns).filter(may_be_label);
    let mut labels: Vec<usize> = possible().filter(|&column| are_few(likeness[column].1, rows.len())).collect();
    if labels.is_empty() && rows.len() < 6 {
        labels = possible().filter(|&column| !likeness[column].0).collect();
    }
    let letters = |&column: &usize| (!labels.contains(&column), likeness[column].2);
    let text = (0..columns).filter(|&column| likeness[column].0).max_by_key(letters)?;
    Some((text, labels.into_iter().filter(|&label| label != text).collect()))
}

/// Whether distinct labels are few for a number of rows: at most half of it; of five rows or fewer, some label recurs.
pub(super) fn are_few(labels: usize, rows: usize) -> bool {
    labels * 2 <= rows || labels < rows && rows < 6
}

pub(super) fn is_number(value: &str) -> bool {
    let value = value.trim();
    value.bytes().any(|b| b.is_ascii_digit()) && value.parse::<f64>().is_ok()
}
