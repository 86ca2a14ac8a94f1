//! The renderings of a description of labelled texts: lines for a terminal, and a page.

use std::path::Path;

use serde_json::json;

use super::log::{Count, WIDTH, beginning, shortened, table};
use super::page::{self, Figure};
use super::plot::{Axis, Plot, Series, Shape, bars, boxes, escape};
use crate::console::fill;
use crate::data::description::{ClassSummary, Description, Example, Lengths, Shared, SplitSummary, Unit};
use crate::error::Result;
use crate::files::{create_dir, write_file, write_json};

/// With more classes, only the first text of each is an example in the terminal.
const MANY_CLASSES: usize = 6;
/// A class is rare if the largest has this many times its texts.
const RARE: usize = 10;

impl Description {
    /// Writes describe.html and describe.json into `folder`, which is created if missing. `title` is the heading of the page.
    pub fn write(&self, folder: &Path, title: &str) -> Result<()> {
        create_dir(folder)?;
        write_json(&folder.join("describe.json"), &json!(self))?;
        write_file(&folder.join("describe.html"), self.page(title).as_bytes())
    }

    /// Lines of at most this many columns, but for words that are longer.
    pub fn text(&self, columns: usize) -> String {
        let wrapped = |text: &str, first: &str, others: &str| fill(text, columns, first, others) + "\n";
        let mut text = wrapped(&self.about_lengths(), "", "");
        for split in &self.splits {
            text += &format!("\n{}\n\n{}", split.heading(), split.table(columns));
        }
        let findings = self.findings();
        if !findings.is_empty() {
            text += "\nto look at\n\n";
            findings.iter().for_each(|finding| text += &wrapped(finding, "- ", "  "));
        }
        text + "\n" + &self.examples(columns)
    }

    /// What may be wrong with the data, one sentence each.
    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for split in &self.splits {
            let SplitSummary { name, texts, empty, duplicates, .. } = *split;
            let of = |part: usize| format!("{} of {} texts ({})", count(part), count(texts), percent(part, texts));
            if empty > 0 {
                findings.push(format!("{name}: empty, and kept as [CLS] [SEP]: {}.", of(empty)));
            }
            if duplicates > 0 {
                findings.push(format!("{name}: repeated from an earlier row: {}.", of(duplicates)));
            }
            if let (Some(truncated @ 1..), Some(most)) = (split.truncated, self.max_length) {
                findings.push(format!("{name}: truncated by a --max-length of {most}: {}.", of(truncated)));
            }
            findings.extend(split.unbalanced());
        }
        for &Shared { texts, of, with } in &self.shared {
            let all = self.splits.iter().find(|split| split.name == of).map_or(texts, |split| split.texts);
            let of_all = format!("{} of {} texts ({})", count(texts), count(all), percent(texts, all));
            findings.push(format!("{of}: in the {with} data too: {of_all}."));
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

    /// What lengths count.
    fn about_lengths(&self) -> String {
        match self.unit {
            Unit::Words => "Lengths are in words, separated by spaces; --model counts the tokens of a model.".to_string(),
            Unit::Tokens => "Lengths are in tokens of the model, [CLS] and [SEP] included.".to_string(),
        }
    }

    fn page(&self, title: &str) -> String {
        let list = |lines: &[String]| {
            let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
            format!("<ul>\n{items}</ul>\n")
        };
        let findings = self.findings();
        let mut body = format!(
            "<section><h2>To look at</h2>\n{}</section>\n",
            match findings.is_empty() {
                true => "<p>No empty, repeated, shared, truncated or contradictory texts, and no rare classes.</p>\n".to_string(),
                false => list(&findings),
            }
        );
        for split in &self.splits {
            body += &format!("<section><h2>{}</h2>\n", escape(&split.heading()));
            let part = |n: usize| format!("{} ({})", count(n), percent(n, split.texts));
            let mut figures = vec![
                ("texts", count(split.texts)),
                ("repeated", part(split.duplicates)),
                ("empty", part(split.empty)),
                ("mean length", format!("{:.1}", split.lengths.mean)),
            ];
            if let (Some(truncated), Some(most)) = (split.truncated, self.max_length) {
                figures.extend([("--max-length", count(most)), ("would be truncated", part(truncated))]);
            }
            body += &page::cards(&figures);
            body += &format!("<div class=\"wide\">{}</div></section>\n", split.html_table());
            body += &page::plots_section(&self.plots(split));
            body += &format!("<section><h3>Examples</h3>\n{}</section>\n", split.html_examples());
        }
        body += &format!("<section><h2>How the files were read</h2>\n{}</section>\n", list(&self.notes));
        page::page(title, &self.about_lengths(), &body)
    }

    /// The plots of a split, each with a sentence on how to read it.
    fn plots(&self, split: &SplitSummary) -> [Figure; 3] {
        let rows: Vec<Option<[f64; 6]>> = split.classes.iter().map(|class| class.lengths.map(|of| of.six())).collect();
        let counts = split.classes.iter().map(|class| class.texts as u64).collect();
        let unit = self.unit.plural();
        let mut caption =
            format!("Each bar spans {} {unit}, and its height is the number of texts.", count(split.histogram.width));
        if split.histogram.width == 1 {
            caption = "The height of a bar is the number of texts of that length.".to_string();
        }
        if let Some(most) = self.max_length {
            caption += &format!(" Texts to the right of the dashed line would be truncated to {most} tokens.");
        }
        if split.histogram.longer > 0 {
            caption += &format!(" Longer texts, which are not shown: {}.", count(split.histogram.longer));
        }
        [
            Figure::new(
                "classes",
                bars("Classes", "texts", &self.labels, &[("texts", counts)]),
                "The longer a bar, the more texts have that label; very unequal bars let a model neglect the small classes.",
            ),
            Figure::new(
                "lengths_by_class",
                boxes("Lengths by class", unit, &self.labels, &rows),
                "The box holds the middle half of the texts of a class, with the median as a mark; the line reaches from the \
                 shortest text to the length that 95 % do not exceed.",
            ),
            Figure::new("lengths", self.histogram(split).svg(), caption),
        ]
    }

    fn histogram(&self, split: &SplitSummary) -> Plot {
        let histogram = &split.histogram;
        let left = |bin: usize| (bin * histogram.width) as f64;
        let points = histogram.counts.iter().enumerate().map(|(bin, &count)| [left(bin), count as f64]).collect();
        let mut series = vec![Series::new("texts", Shape::Bars(histogram.width as f64 * 0.92), points)];
        if let Some(most) = self.max_length {
            let high = histogram.counts.iter().copied().max().unwrap_or(0) as f64;
            let cut = vec![[most as f64, 0.0], [most as f64, high]];
            series.push(Series::new(format!("{most} tokens"), Shape::Guide, cut));
        }
        let title = "Lengths of all texts".to_string();
        Plot { title, x: Axis::from_zero(self.unit.plural()), y: Axis::from_zero("texts"), series }
    }

    fn examples(&self, columns: usize) -> String {
        let split = &self.splits[0];
        let only_first = self.labels.len() > MANY_CLASSES;
        let mut text = format!("{} examples, with their length in {}\n", split.name, self.unit.plural());
        for class in split.classes.iter().filter(|class| class.texts > 0) {
            text += &format!("\n{}\n", name(&class.label));
            for example in class.examples.iter().filter(|example| !only_first || example.which == "first") {
                let start = format!("  {:<8}  {:>7}  ", example.which, count(example.length));
                let line = start.clone() + &beginning(example.text.trim(), columns.saturating_sub(start.len()).max(8));
                text += &format!("{}\n", line.trim_end());
            }
        }
        text
    }
}

impl Unit {
    fn plural(self) -> &'static str {
        match self {
            Unit::Words => "words",
            Unit::Tokens => "tokens",
        }
    }
}

impl Lengths {
    /// Those of a box plot.
    fn six(&self) -> [f64; 6] {
        [self.min as f64, self.quartile_1, self.median, self.quartile_3, self.percentile_95, self.max as f64]
    }
}

impl SplitSummary {
    /// "training: 25,000 texts, 2 classes"
    fn heading(&self) -> String {
        let plural = |n: usize, one: &str, many: &str| format!("{} {}", count(n), if n == 1 { one } else { many });
        let (texts, classes) = (plural(self.texts, "text", "texts"), plural(self.classes.len(), "class", "classes"));
        format!("{}: {texts}, {classes}", self.name)
    }

    /// A row for each class, and one for all, below the names of the columns.
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["class", "texts", "share", "min", "25 %", "median", "75 %", "95 %", "max"].map(String::from);
        let line = |label: &str, texts: usize, lengths: Option<&Lengths>| {
            let start = [label.to_string(), count(texts), percent(texts, self.texts)];
            start.into_iter().chain(figures(lengths)).collect::<Vec<String>>()
        };
        let mut rows = vec![head.to_vec()];
        rows.extend(self.classes.iter().map(|class| line(&name(&class.label), class.texts, class.lengths.as_ref())));
        rows.push(line("all", self.texts, Some(&self.lengths)));
        rows
    }

    fn table(&self, columns: usize) -> String {
        const LEAST: usize = 8;
        // The names have the room that the figures leave.
        let room = |rows: &[Vec<String>]| {
            let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            columns.saturating_sub((1..rows[0].len()).map(|column| 2 + widest(column)).sum())
        };
        let mut rows = self.rows();
        if room(&rows) < LEAST {
            // The quartiles are left out.
            rows.iter_mut().for_each(|row| drop((row.remove(6), row.remove(4))));
        }
        let room = room(&rows).max(LEAST);
        rows.iter_mut().for_each(|row| row[0] = shortened(&row[0], room));
        table(&rows)
    }

    fn html_table(&self) -> String {
        let cells =
            |row: &[String], tag: &str| row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>();
        let rows = self.rows();
        let body: String =
            rows[1..].iter().map(|row| format!("<tr>{}{}</tr>\n", cells(&row[..1], "th"), cells(&row[1..], "td"))).collect();
        let head = cells(&rows[0], "th").replace(' ', "&nbsp;");
        format!("<table class=\"figures\"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")
    }

    fn html_examples(&self) -> String {
        let examples = self.classes.iter().flat_map(|class| class.examples.iter().map(move |example| (class, example)));
        let row = |(class, example): (&ClassSummary, &Example)| {
            let [length, row] = [example.length, example.row].map(count);
            format!(
                "<tr><td>{}</td><td>{}</td><td class=\"number\">{row}</td><td class=\"number\">{length}</td><td>{}</td></tr>\n",
                escape(&shortened(&class.label, 24)),
                example.which,
                page::text(&example.text, "describe.json")
            )
        };
        let head = "<th>class</th><th></th><th class=\"number\">row</th><th class=\"number\">length</th><th>text</th>";
        let rows: String = examples.map(row).collect();
        format!(
            "<div class=\"wide\"><table class=\"texts\"><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        )
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
        if most.texts == self.texts {
            let large = name(&most.label);
            findings.push(format!("{}: every text has the label {large}; training needs at least two classes.", self.name));
        }
        if !none.is_empty() {
            let label = if none.len() == 1 { "label" } else { "labels" };
            findings.push(format!("{}: no text has the {label} {}.", self.name, names(&none)));
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
fn figures(lengths: Option<&Lengths>) -> [String; 6] {
    match lengths {
        Some(lengths) => lengths.six().map(|length| count(length.round() as usize)),
        None => std::array::from_fn(|_| "-".to_string()),
    }
}

fn count(n: usize) -> String {
    Count(n as u64).to_string()
}

fn percent(part: usize, of: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / of as f64)
}

fn name(label: &str) -> String {
    shortened(label, 40)
}
