//! Self-contained HTML pages, with styles, script and plots inside. They are complete without the script, which sorts and
//! filters the table.

use std::path::Path;

use super::evaluated::Evaluated;
use super::plot::escape;
use crate::error::Result;
use crate::files::{create_dir, write_file};
use crate::metrics::{Metric, Metrics, Scores};
use crate::report::log::{Count, counted, shortened};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Rows shown with the highest losses, and as many with the lowest.
const ROWS: usize = 100;
/// Characters of a text shown on its line, and when unfolded.
const LINE: usize = 160;
const TEXT: usize = 4000;

/// How a result was made, as names and values.
pub type Origin = Vec<(&'static str, String)>;

/// A plot on a page.
pub struct Figure {
    /// Of its file in plots/, without .svg.
    pub name: &'static str,
    pub svg: String,
    /// A sentence on how to read it.
    pub caption: String,
}

impl Figure {
    pub fn new(name: &'static str, svg: String, caption: impl Into<String>) -> Figure {
        Figure { name, svg, caption: caption.into() }
    }
}

/// The HTML page of an evaluation.
pub fn evaluation(title: &str, origin: &Origin, all: &Evaluated, plots: &[Figure]) -> String {
    let mut body = metric_cards(&all.metrics);
    body += &plots_section(plots);
    body += &format!(
        "<section><h2>Classes</h2><div class=\"wide\">{}</div></section>\n<section><h2>Highest and lowest loss</h2>\n{}</section>\n",
        classes(&all.metrics, &all.scored.names),
        errors(all)
    );
    let row = |(name, value): &(&str, String)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(value));
    let origin: String = origin.iter().map(row).collect();
    body += &format!("<section><h2>How this was made</h2>\n<div class=\"wide\"><table>{origin}</table></div></section>\n");
    let about = format!("{}, {}", counted(all.rows(), "text"), counted(all.scored.names.len(), "class"));
    page(title, &about, &body)
}

/// A whole page with this `body`.
pub fn page(title: &str, about: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n<p>{1}</p>\n{body}\
         <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title),
        escape(about)
    )
}

/// The plots side by side.
pub fn plots_section(plots: &[Figure]) -> String {
    let figure =
        |Figure { svg, caption, .. }: &Figure| format!("<figure>{svg}<figcaption>{}</figcaption></figure>\n", escape(caption));
    format!("<section class=\"plots\">\n{}</section>\n", plots.iter().map(figure).collect::<String>())
}

/// Writes each plot to a file of its own in the folder `plots`.
pub fn write_plots(folder: &Path, plots: &[Figure]) -> Result<()> {
    let folder = folder.join("plots");
    create_dir(&folder)?;
    plots.iter().try_for_each(|Figure { name, svg, .. }| write_file(&folder.join(format!("{name}.svg")), svg.as_bytes()))
}

/// Figures by name, side by side.
pub fn cards(figures: &[(&str, String)]) -> String {
    let card = |(name, value): &(&str, String)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    format!("<dl>\n{}</dl>\n", figures.iter().map(card).collect::<String>())
}

fn metric_cards(metrics: &Metrics) -> String {
    let value = |metric: Metric| metrics.get(metric).map_or("-".to_string(), |value| format!("{value:.4}"));
    let names = Metric::ALL.map(|metric| metric.name().replace('_', " "));
    cards(&names.iter().zip(Metric::ALL).map(|(name, metric)| (name.as_str(), value(metric))).collect::<Vec<_>>())
}

/// The classification report.
fn classes(metrics: &Metrics, names: &[String]) -> String {
    let line = |name: &str, of: Scores, support: u64| {
        let figures = [of.precision, of.recall, of.f1].map(|value| format!("<td>{value:.4}</td>")).concat();
        format!("<tr><th>{}</th>{figures}<td>{}</td></tr>\n", escape(name), Count(support))
    };
    let class = &metrics.per_class;
    let mut rows = String::new();
    for (i, name) in names.iter().enumerate() {
        let of = Scores { precision: class.precision[i], recall: class.recall[i], f1: class.f1[i] };
        rows += &line(name, of, class.support[i]);
    }
    let all = class.support.iter().sum();
    rows += &line("macro mean", metrics.macro_mean, all);
    rows += &line("weighted mean", metrics.weighted, all);
    format!(
        "<table class=\"figures\"><thead><tr><th></th><th>precision</th><th>recall</th><th>F1</th><th>texts</th></tr></thead>\n\
         <tbody>{rows}</tbody></table>"
    )
}

/// The table of rows.
fn errors(all: &Evaluated) -> String {
    let by_loss = all.by_loss();
    let shown: Vec<usize> = match by_loss.len() > 2 * ROWS {
        true => by_loss[..ROWS].iter().chain(&by_loss[by_loss.len() - ROWS..]).copied().collect(),
        false => by_loss,
    };
    let modelled = !all.texts.is_empty();
    let columns = ["label", "predicted", "loss", "score", "tokens", if modelled { "text" } else { "id" }];
    let columns = columns.into_iter().filter(|&column| modelled || column != "tokens");
    let head = |name| match name {
        "loss" => "<th class=\"number\" aria-sort=\"descending\">loss</th>".to_string(),
        "score" | "tokens" => format!("<th class=\"number\" aria-sort=\"none\">{name}</th>"),
        _ => format!("<th aria-sort=\"none\">{name}</th>"),
    };
    let head: String = columns.map(head).collect();
    let mut rows = String::new();
    for &row in &shown {
        let [label, predicted] = all.classes(row).map(escape);
        let scores: Vec<String> =
            all.scored.names.iter().zip(all.scores(row)).map(|(name, score)| format!("{name} {score:.4}")).collect();
        let kind = if all.is_right(row) { "right" } else { "wrong" };
        rows += &format!(
            "<tr class=\"{kind}\"><td>{label}</td><td>{predicted}</td><td class=\"number\">{:.4}</td>\
             <td class=\"number\" title=\"{}\">{:.4}</td>",
            all.losses[row],
            escape(&scores.join("\n")),
            all.scores(row)[all.metrics.pred[row]],
        );
        rows += &match modelled {
            true => {
                format!("<td class=\"number\">{}</td><td>{}</td></tr>\n", all.tokens[row], text(&all.texts[row], "errors.csv"))
            }
            false => format!("<td>{}</td></tr>\n", escape(&all.scored.ids[row].to_string())),
        };
    }
    let shown = match all.rows() > shown.len() {
        true => format!("The {ROWS} texts with the highest loss and the {ROWS} with the lowest; errors.csv has all."),
        false => "All texts, by descending loss.".to_string(),
    };
    format!(
        "<p>{shown} The score is that of the predicted class.</p>\n\
         <p class=\"tools\" hidden><label>Only rows with <input type=\"search\"></label> \
         <label><input type=\"checkbox\"> only wrong ones</label> <output></output></p>\n\
         <div class=\"wide\"><table id=\"errors\"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

/// A text on one line, which unfolds if it is longer; `file` has those that are longer still.
pub fn text(text: &str, file: &str) -> String {
    let line = shortened(text, LINE);
    if line == text {
        return escape(text);
    }
    let more = text.char_indices().nth(TEXT).map_or(text.to_string(), |(end, _)| format!("{}… ({file} has all)", &text[..end]));
    format!("<details><summary>{}</summary>{}</details>", escape(&line), escape(&more))
}
