//! Which column holds the texts, which the labels, which the ids.

use std::collections::HashSet;
use std::path::Path;

use super::{Options, brief, ending, list};
use crate::error::{Error, Result};

/// Recognised column names, best first; case is ignored.
pub(crate) const TEXT_COLUMNS: [&str; 15] = [
    "text",
    "sentence",
    "content",
    "review",
    "comment",
    "document",
    "utterance",
    "tweet",
    "phrase",
    "comment_text",
    "review_text",
    "review_body",
    "tweet_text",
    "question_text",
    "headline",
];
pub(super) const LABEL_COLUMNS: [&str; 9] =
    ["label", "label_name", "labels", "target", "sentiment", "emotion", "class", "category", "intent"];

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
        let find = |name: &str| {
            let mut found = (0..columns.len()).filter(|&i| columns[i].eq_ignore_ascii_case(name));
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => {
                    Err(Error::user(path.display(), format!("two columns are named {}", brief(name)), "rename one of them"))
                }
                (column, _) => Ok(column),
            }
        };
        let pick = |asked: &Option<String>, flag: &str, known: &[&str]| match asked {
            None => known.iter().find_map(|name| find(name).transpose()).transpose(),
            Some(name) => find(name)?.map(Some).ok_or_else(|| {
                let remedy = format!("the columns are {}; correct {flag}", list(columns));
                Error::user(path.display(), format!("no column is named {}", brief(name)), remedy)
            }),
        };
        if let (None, Some([a, b])) = (&options.text_column, text_pair(columns)) {
            let fact = format!("{} and {} are two texts per row, and pairs of texts are not supported", brief(a), brief(b));
            return Err(Error::user(path.display(), fact, "name one of them with --text-column, or join them in one column"));
        }
        let text = pick(&options.text_column, "--text-column", &TEXT_COLUMNS)?;
        let label = pick(&options.label_column, "--label-column", &LABEL_COLUMNS)?;
        let id = find("id").ok().flatten().filter(|&id| Some(id) != text && Some(id) != label);
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
            (None, None, &[a]) => chosen(a, None, Guess::Nothing),
            _ => {
                let fact = format!("no text column among {}", list(columns));
                let mut remedy = "name it with --text-column, and the label column with --label-column".to_string();
                if ["csv", "tsv", "txt"].contains(&&*ending(path)) {
                    remedy += "; if these are a row, pass --no-header";
                }
                if columns.len() > 3 {
                    remedy += "; several label columns (multi-label classification) are not supported";
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
    let is_third = |name: &&str| find(name).is_some_and(|column| !pair.contains(&column));
    (columns.len() > 2 && !TEXT_COLUMNS.iter().any(is_third)).then_some(pair)
}

/// The names of an index: pandas writes none, and reads that as `Unnamed: 0`.
fn is_nameless(name: &str) -> bool {
    name.is_empty() || name.starts_with("Unnamed: ") || name.starts_with("__index_level_")
}

/// Whether a column of this name would be found by it.
pub(super) fn is_known(name: &str, options: &Options) -> bool {
    let asked = [&options.text_column, &options.label_column].into_iter().flatten().map(String::as_str);
    let mut known = TEXT_COLUMNS.into_iter().chain(LABEL_COLUMNS).chain(["id"]).chain(asked);
    known.any(|known| known.eq_ignore_ascii_case(name.trim()))
}

/// Whether these are the names of a text and of a label column.
pub(super) fn are_text_and_label(names: [&str; 2], options: &Options) -> bool {
    let is = |name: &str, asked: &Option<String>, known: &[&str]| {
        known.iter().copied().chain(asked.as_deref()).any(|known| known.eq_ignore_ascii_case(name.trim()))
    };
    is(names[0], &options.text_column, &TEXT_COLUMNS) && is(names[1], &options.label_column, &LABEL_COLUMNS)
}

/// How much the values of a column look like texts: numbers least, then by the number of distinct values, then by length.
pub(super) fn likeness_to_text<'a>(values: impl Iterator<Item = &'a str> + Clone) -> (bool, usize, usize) {
    let is_empty = |value: &&str| value.trim().is_empty();
    let words = !values.clone().filter(|value| !is_empty(value)).all(is_number);
    let distinct: HashSet<&str> = values.clone().map(str::trim).collect();
    (words, distinct.len(), values.map(str::len).sum())
}

/// The columns of the texts and of the labels among three or more without names: few distinct labels, the longest texts. `None`
/// if no column looks like labels.
pub(super) fn by_content(rows: &[csv::StringRecord], columns: usize) -> Option<(usize, usize)> {
    let values = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let likeness: Vec<_> = (0..columns).map(|column| likeness_to_text(values(column))).collect();
    let filled = (0..columns).filter(|&column| likeness[column].2 > 0);
    let as_label = |&column: &usize| {
        let (words, distinct, size) = likeness[column];
        (distinct < 2, distinct, words, size)
    };
    let label = filled.clone().min_by_key(as_label)?;
    let text = filled.filter(|&column| column != label).max_by_key(|&column| (likeness[column].0, likeness[column].2))?;
    let (words, distinct, _) = likeness[label];
    (likeness[text].0 && (!words || are_few(distinct, rows.len()))).then_some((text, label))
}

/// Whether distinct labels are few for a number of rows: at most half of it; of five rows or fewer, some label recurs.
pub(super) fn are_few(labels: usize, rows: usize) -> bool {
    labels * 2 <= rows || labels < rows && rows < 6
}

pub(super) fn is_number(value: &str) -> bool {
    let value = value.trim();
    value.bytes().any(|b| b.is_ascii_digit()) && value.parse::<f64>().is_ok()
}
