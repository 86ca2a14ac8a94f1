//! How lines for people look: on a terminal they are wrapped between words, and their labels are coloured unless NO_COLOR or
//! TERM=dumb is set; elsewhere they are plain.

use std::io;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use terminal_size::{Height, Width, terminal_size_of};
use textwrap::{Options, WordSplitter};

use crate::error::is_control;

/// Labels of lines, and their styles. Those without a colon fill [`LABEL`] columns.
const LABELS: [(&str, Style); 10] = [
    ("error:", AnsiColor::Red.on_default().bold()),
    ("stopped:", AnsiColor::Yellow.on_default().bold()),
    ("warning:", AnsiColor::Yellow.on_default().bold()),
    ("note:", AnsiColor::Cyan.on_default()),
    ("trained ", Style::new().bold()),
    ("validation ", Style::new().bold()),
    ("test ", Style::new().bold()),
    ("saved ", Style::new().bold()),
    ("published ", Style::new().bold()),
    ("next ", AnsiColor::Green.on_default().bold()),
];
pub(super) const LABEL: usize = 12;

/// How a stream shows lines for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// The width of the terminal, if there is one.
    pub columns: Option<usize>,
    pub colour: bool,
}

impl Look {
    pub fn of_stdout() -> Look {
        Look::new(terminal_size_of(io::stdout()), AutoStream::choice(&io::stdout()))
    }

    pub fn of_stderr() -> Look {
        Look::new(terminal_size_of(io::stderr()), AutoStream::choice(&io::stderr()))
    }

    fn new(size: Option<(Width, Height)>, choice: ColorChoice) -> Look {
        Look { columns: size.map(|(Width(columns), _)| columns.into()), colour: choice != ColorChoice::Never }
    }

    pub fn painted(self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    /// Lines without control characters, wrapped between words, or between fields where two spaces divide them, with their labels in
    /// colour.
    pub fn dressed(self, text: &str) -> String {
        let dressed = |line: &str| self.with_label(&self.wrapped(&line.replace(is_control, " ")));
        text.split('\n').map(dressed).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn with_label(self, line: &str) -> String {
        match LABELS.iter().find(|(label, _)| line.starts_with(label)) {
            Some((label, style)) => self.painted(*style, label) + &line[label.len()..],
            None => line.to_string(),
        }
    }

    fn wrapped(self, line: &str) -> String {
        let Some(columns) = self.columns.filter(|&columns| columns > 2 * LABEL && line.chars().count() > columns) else {
            return line.to_string();
        };
        let label = LABELS.iter().map(|(label, _)| label).find(|label| line.starts_with(**label));
        let fields = line.split("  ").filter(|field| !field.is_empty()).count();
        let hanging = match label {
            Some(label) if !label.ends_with(':') => LABEL,
            Some(_) => 2,
            // Short fields before a sentence, or its subject.
            None if !line.starts_with(' ') && line.find(": ").is_some_and(|end| !line[..end].contains(' ')) => 2,
            None if fields == 3 => line.rfind("  ").map_or(0, |end| end + 2).min(columns / 2),
            None => line.len() - line.trim_start().len(),
        };
        // A label stays beside its first word, and the words of a field together.
        let mut glued: Vec<char> = line.chars().collect();
        // What is in quotation marks may be part of a command to copy.
        let quoted = quoted(&glued);
        for at in 1..glued.len() - 1 {
            let is_between_words = glued[at - 1] != ' ' && glued[at + 1] != ' ';
            if glued[at] == ' ' && (quoted[at] || at < LABEL && hanging == LABEL || fields > 3 && is_between_words) {
                glued[at] = '\u{a0}';
            }
        }
        fill(&String::from_iter(glued), columns, "", &" ".repeat(hanging)).replace('\u{a0}', " ")
    }

    /// A command that is wider than the terminal, with one flag per line.
    pub fn command(self, command: &str) -> String {
        let fits = self.columns.is_none_or(|columns| LABEL + command.chars().count() <= columns);
        if fits || command.contains('\n') {
            return command.to_string();
        }
        let line: Vec<char> = command.chars().collect();
        let (quoted, mut flags, mut lines) = (quoted(&line), 0, String::new());
        for (at, &c) in line.iter().enumerate() {
            let begins_flag = c == ' ' && !quoted[at] && line[at + 1..].starts_with(&['-', '-']);
            flags += usize::from(begins_flag);
            match begins_flag && flags > 1 {
                true => lines += &format!(" \\\n{:1$}", "", LABEL + 4),
                false => lines.push(c),
            }
        }
        lines
    }
}

/// For each character whether it is between quotation marks, which begin and end words.
fn quoted(line: &[char]) -> Vec<bool> {
    let mut quoted = vec![false; line.len()];
    let mut at = 0;
    while at < line.len() {
        let ends = |end: &usize| line[*end] == line[at] && line.get(end + 1).is_none_or(|next| " ,;.)".contains(*next));
        if "'\"".contains(line[at])
            && (at == 0 || line[at - 1] == ' ')
            && let Some(end) = (at + 1..line.len()).find(ends)
        {
            quoted[at..end].fill(true);
            at = end;
        }
        at += 1;
    }
    quoted
}

/// Lines of so many columns, broken between words; a longer word is not broken.
pub fn fill(text: &str, columns: usize, first: &str, others: &str) -> String {
    let options = Options::new(columns).break_words(false).word_splitter(WordSplitter::NoHyphenation);
    textwrap::fill(text, options.initial_indent(first).subsequent_indent(others))
}
