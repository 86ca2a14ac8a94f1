//! The renderings of a description of labelled texts: lines of at most 80 characters for a terminal, and a page.

use super::log::{Count, table};
use super::plot::shortened;
use crate::data::description::{ClassSummary, Description, Lengths, SplitSummary, Unit};

/// Columns of a terminal.
const WIDTH: usize = 80;
/// With more classes, only the first text of each is an example in the terminal.
const MANY_CLASSES: usize = 6;
/// A class is rare if the largest has this many times its texts.
const RARE: usize = 10;

impl Description {
    pub fn text(&self) -> String {
        let mut text = format!("Lengths are in {}.\n", self.unit.in_words());
        for split in &self.splits {
            text += &format!("\n{}\n\n{}", split.heading(), split.table());
        }
        let findings = self.findings();
        if !findings.is_empty() {
            text += "\nto look at\n\n";
            findings.iter().for_each(|finding| text += &wrapped(finding, "- ", "  "));
        }
        text + "\n" + &self.examples()
    }

    /// What may be wrong with the data, one sentence each.
    pub fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for split in &self.splits {
            let SplitSummary { name, texts, empty, duplicates, .. } = *split;
            let of = |part: usize| format!("{name}: {} of {} texts ({})", count(part), count(texts), percent(part, texts));
            if empty > 0 {
                findings.push(format!("{} have no words; they are kept, as [CLS] [SEP].", of(empty)));
            }
            if duplicates > 0 {
                findings.push(format!("{} repeat an earlier one.", of(duplicates)));
            }
            if let (Some(truncated @ 1..), Some(most)) = (split.truncated, self.max_length) {
                findings.push(format!("{} would be truncated to {most} tokens.", of(truncated)));
            }
            findings.extend(split.unbalanced());
        }
        for shared in &self.shared {
            let [texts, verb] = if shared.texts == 1 { ["text is", "it"] } else { ["texts are", "them"] };
            let (with, of) = (shared.with, shared.of);
            findings.push(format!(
                "{} {of} {texts} in the {with} data too: a model is not measured fairly on {verb}.",
                count(shared.texts)
            ));
        }
        let found = &self.contradictions;
        if let Some(example) = &found.example {
            let rows: Vec<String> =
                example.rows.iter().map(|at| format!("{} in {} row {}", name(&at.label), at.split, at.row)).collect();
            let what = if found.texts == 1 { "1 text has" } else { &format!("{} texts have", count(found.texts)) };
            let (rows, all) = (rows.join(", "), count(found.rows));
            findings
                .push(format!("{what} different labels ({all} rows), such as \"{}\": {rows}.", shortened(&example.text, WIDTH)));
        }
        findings
    }

    fn examples(&self) -> String {
        let split = &self.splits[0];
        let only_first = self.labels.len() > MANY_CLASSES;
        let unit = match self.unit {
            Unit::Words => "words",
            Unit::Tokens => "tokens",
        };
        let mut text = format!("{} examples, with their length in {unit}\n", split.name);
        for class in split.classes.iter().filter(|class| class.texts > 0) {
            text += &format!("\n{}\n", name(&class.label));
            for example in class.examples.iter().filter(|example| !only_first || example.which == "first") {
                let start = format!("  {:<8}  {:>7}  ", example.which, count(example.length));
                text += &format!("{start}{}\n", shortened(example.text.trim(), WIDTH - start.len()));
            }
        }
        text
    }
}

impl Unit {
    pub fn in_words(self) -> &'static str {
        match self {
            Unit::Words => "words, separated by spaces; --model counts a model's tokens instead",
            Unit::Tokens => "tokens of the model, [CLS] and [SEP] included",
        }
    }
}

impl SplitSummary {
    /// "training: 25,000 texts, 2 classes"
    pub fn heading(&self) -> String {
        let plural = |n: usize, one: &str, many: &str| format!("{} {}", count(n), if n == 1 { one } else { many });
        let (texts, classes) = (plural(self.texts, "text", "texts"), plural(self.classes.len(), "class", "classes"));
        format!("{}: {texts}, {classes}", self.name)
    }

    /// A line for each class, and one for all.
    fn table(&self) -> String {
        let head = ["class", "texts", "share", "min", "25 %", "median", "75 %", "95 %", "max"].map(String::from);
        let line = |label: &str, texts: usize, lengths: Option<&Lengths>| {
            let start = [label.to_string(), count(texts), percent(texts, self.texts)];
            start.into_iter().chain(figures(lengths)).collect::<Vec<String>>()
        };
        let mut rows = vec![head.to_vec()];
        rows.extend(self.classes.iter().map(|class| line(&name(&class.label), class.texts, class.lengths.as_ref())));
        rows.push(line("all", self.texts, Some(&self.lengths)));
        // The names have the room that the figures leave.
        let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let room = WIDTH.saturating_sub((1..head.len()).map(|column| 2 + widest(column)).sum()).max(8);
        rows.iter_mut().for_each(|row| row[0] = shortened(&row[0], room));
        table(&rows)
    }

    /// Classes without texts, or with few.
    fn unbalanced(&self) -> Vec<String> {
        let most = self.classes.iter().max_by_key(|class| class.texts).expect("there is a class");
        let few = self.classes.iter().filter(|class| class.texts * RARE <= most.texts);
        let (none, rare): (Vec<_>, Vec<_>) = few.partition(|class| class.texts == 0);
        let names = |classes: &[&ClassSummary]| {
            let names: Vec<String> = classes.iter().take(5).map(|class| name(&class.label)).collect();
            names.join(", ") + if classes.len() > 5 { ", ..." } else { "" }
        };
        let mut findings = Vec::new();
        if !none.is_empty() {
            findings.push(format!("{}: no text has the label {}.", self.name, names(&none)));
        }
        if !rare.is_empty() {
            let (large, names) = (name(&most.label), names(&rare));
            findings.push(format!(
                "{}: {large} has at least {RARE} times as many texts as {names}; --class-weights balanced counts all classes the same.",
                self.name
            ));
        }
        findings
    }
}

/// The lengths of a class in whole numbers.
pub fn figures(lengths: Option<&Lengths>) -> [String; 6] {
    let Some(of) = lengths else { return std::array::from_fn(|_| "-".to_string()) };
    let round = |value: f64| count(value.round() as usize);
    let [quartile_1, median, quartile_3, most] = [of.quartile_1, of.median, of.quartile_3, of.percentile_95].map(round);
    [count(of.min), quartile_1, median, quartile_3, most, count(of.max)]
}

fn count(n: usize) -> String {
    Count(n as u64).to_string()
}

pub fn percent(part: usize, of: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / of as f64)
}

fn name(label: &str) -> String {
    shortened(label, 40)
}

/// Lines of at most `WIDTH` characters, broken between words.
fn wrapped(text: &str, first: &str, others: &str) -> String {
    let (mut lines, mut line, mut start) = (String::new(), first.to_string(), true);
    for word in text.split_whitespace() {
        if !start && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &(line + "\n");
            (line, start) = (others.to_string(), true);
        }
        line += if start { "" } else { " " };
        line += word;
        start = false;
    }
    lines + &line + "\n"
}
