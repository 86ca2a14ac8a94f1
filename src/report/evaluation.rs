//! The report of an evaluation, as a folder: metrics.json, classification_report.txt, predictions.jsonl, errors.csv (every row,
//! by descending loss), plots/*.svg, and report.html, which shows all of it.

use std::path::Path;

use serde_json::{Value, json};

use super::evaluated::Evaluated;
use super::log::shortened;
use super::page::{self, Figure, Origin};
use super::plot::{Axis, Plot, RIGHT, Series, Shape, WRONG, bars, matrix};
use crate::error::Result;
use crate::files::{PartialFile, write_file, write_json};
use crate::metrics::{Tenth, calibration};

/// Number of classes whose curves can be told apart.
const MOST_CURVES: usize = 8;

pub const ROC_CAPTION: &str = "The nearer a curve is to the upper left corner, the better the scores separate the class from the others; the dashed diagonal \
     is guessing.";
pub const PRECISION_RECALL_CAPTION: &str = "From left to right the model finds more texts of the class: the longer a curve stays high, the fewer wrong ones are among them.";

impl Evaluated {
    /// Writes the report into `folder`, which is created if missing. `title` is the heading of the page.
    pub fn write(&self, folder: &Path, title: &str, origin: &Origin) -> Result<()> {
        let plots = self.plots();
        page::write_plots(folder, &plots)?;
        self.write_predictions(&folder.join("predictions.jsonl"))?;
        self.write_errors(&folder.join("errors.csv"))?;
        let mut metrics = json!(self.metrics);
        metrics["labels"] = json!(self.scored.names);
        metrics["calibration"] = json!(self.calibration());
        write_json(&folder.join("metrics.json"), &metrics)?;
        let report = self.metrics.classification_report(&self.scored.names, 4);
        write_file(&folder.join("classification_report.txt"), report.as_bytes())?;
        write_file(&folder.join("report.html"), page::evaluation(title, origin, self, &plots).as_bytes())
    }

    /// One line per row, in the order of the file; `--predictions` reads this format.
    fn write_predictions(&self, path: &Path) -> Result<()> {
        let mut file = PartialFile::create(path)?;
        for row in 0..self.rows() {
            let [label, predicted] = self.classes(row);
            let scores = self.scored.names.iter().zip(self.scores(row));
            let scores: Vec<Value> = scores.map(|(name, score)| json!({"label": name, "score": score})).collect();
            let (id, loss) = (&self.scored.ids[row], self.losses[row]);
            let line = json!({"id": id, "label": label, "predicted": predicted, "loss": loss, "scores": scores});
            file.write(format!("{line}\n").as_bytes())?;
        }
        file.finish()
    }

    /// Every row by descending loss, with one column per class for its score.
    fn write_errors(&self, path: &Path) -> Result<()> {
        let mut file = PartialFile::create(path)?;
        let mut csv = csv::Writer::from_writer(Vec::new());
        let modelled = !self.texts.is_empty();
        let mut record: Vec<String> = ["id", "label", "predicted", "loss"].map(String::from).into();
        record.extend(self.scored.names.iter().map(|name| format!("score {name}")));
        record.extend(["tokens", "text"].map(String::from).into_iter().filter(|_| modelled));
        csv.write_record(&record).expect("writing to memory succeeds");
        for row in self.by_loss() {
            let id = &self.scored.ids[row];
            let [label, predicted] = self.classes(row).map(inert);
            record = vec![id.as_str().map_or_else(|| id.to_string(), inert), label, predicted, self.losses[row].to_string()];
            record.extend(self.scores(row).iter().map(f64::to_string));
            if modelled {
                record.extend([self.tokens[row].to_string(), inert(&self.texts[row])]);
            }
            csv.write_record(&record).expect("writing to memory succeeds");
        }
        file.write(&csv.into_inner().expect("writing to memory succeeds"))?;
        file.finish()
    }

    /// Calibration: for two classes of the score of the positive one; for more, of the score of the predicted class.
    fn calibration(&self) -> Vec<Tenth> {
        let (two, positive) = (self.scored.names.len() == 2, self.metrics.positive);
        calibration((0..self.rows()).map(|row| match two {
            true => (self.scores(row)[positive], self.scored.labels[row] as usize == positive),
            false => (self.scores(row)[self.metrics.pred[row]], self.is_right(row)),
        }))
    }

    fn plots(&self) -> Vec<Figure> {
        let names = &self.scored.names;
        let (counts, support) = (&self.metrics.confusion_matrix, &self.metrics.per_class.support);
        let predicted = (0..names.len()).map(|class| counts.iter().map(|row| row[class]).sum()).collect();
        let classes = [("true", support.clone()), ("predicted", predicted)];
        let apart = match names.len() {
            2 => "The further apart the two classes are, the surer the model is; texts on the wrong side of 0.5 are its errors.",
            _ => "Right predictions should gather at high scores, and wrong ones at low scores.",
        };
        let mut plots = vec![
            Figure::new(
                "confusion_matrix",
                matrix("Confusion matrix", names, counts),
                "Each row is a true class: right predictions are green, on the diagonal, and a strong orange cell is a class that \
                 the model takes for another.",
            ),
            Figure::new("roc", self.roc().svg(), ROC_CAPTION),
            Figure::new("precision_recall", self.precision_recall().svg(), PRECISION_RECALL_CAPTION),
            Figure::new(
                "calibration",
                self.reliability().svg(),
                "On the dashed line scores can be read as probabilities; below it they are too high, and above it too low.",
            ),
            Figure::new("scores", self.score_histogram().svg(), apart),
            Figure::new(
                "classes",
                bars("Class balance", "texts", names, &classes),
                "Where the two bars of a class differ, the model predicts it too often or too rarely.",
            ),
        ];
        if !self.tokens.is_empty() {
            plots.extend([
                Figure::new(
                    "lengths",
                    self.lengths().svg(),
                    "The height of a bar is the number of texts of that length; few texts say little about the model.",
                ),
                Figure::new(
                    "accuracy_by_length",
                    self.accuracy_by_length().svg(),
                    "A point below the dashed line is a range of lengths in which the model is right less often than on all texts.",
                ),
            ]);
        }
        plots
    }

    /// The classes whose curves are drawn: those that have one, and at most the `MOST_CURVES` largest.
    fn drawn_classes(&self) -> Vec<usize> {
        let defined = self.metrics.curves.iter().filter(|(_, curve)| curve.areas.is_some());
        let mut classes: Vec<usize> = defined.map(|(&class, _)| class).collect();
        classes.sort_by_key(|&class| std::cmp::Reverse(self.metrics.per_class.support[class]));
        classes.truncate(MOST_CURVES);
        classes.sort_unstable();
        classes
    }

    fn roc(&self) -> Plot {
        let mut series: Vec<Series> = Vec::new();
        let drawn = self.drawn_classes();
        for &class in &drawn {
            let areas = self.metrics.curves[&class].areas.as_ref().expect("of a drawn class");
            let points = points(&areas.roc_drop_intermediate.fpr, &areas.roc_drop_intermediate.tpr);
            series.push(Series::new(format!("{} {:.4}", self.scored.names[class], areas.roc_auc), Shape::Line, points));
        }
        if let Some(area) = self.metrics.roc_auc.filter(|_| self.scored.names.len() > 2) {
            let all = self.metrics.curves.values().filter_map(|curve| curve.areas.as_ref());
            let curves: Vec<_> = all.map(|areas| points(&areas.roc.fpr, &areas.roc.tpr)).collect();
            let mean = Series::new(format!("macro mean {area:.4}"), Shape::Line, mean_curve(&curves));
            series.push(mean.coloured("currentColor"));
        }
        series.push(Series::new("chance 0.5", Shape::Guide, vec![[0.0, 0.0], [1.0, 1.0]]));
        Plot {
            title: format!("ROC curve, area{}", self.which(drawn.len())),
            x: Axis::unit("false positive rate"),
            y: Axis::unit("true positive rate"),
            series,
        }
    }

    fn precision_recall(&self) -> Plot {
        let drawn = self.drawn_classes();
        let mut series: Vec<Series> = Vec::new();
        for &class in &drawn {
            let areas = self.metrics.curves[&class].areas.as_ref().expect("of a drawn class");
            let name = format!("{} {:.4}", self.scored.names[class], areas.average_precision);
            series.push(Series::new(name, Shape::Line, stairs(&areas.pr.recall, &areas.pr.precision)));
        }
        if let [class] = drawn[..] {
            let share = self.metrics.per_class.support[class] as f64 / self.rows() as f64;
            series.push(Series::new(format!("chance {share:.4}"), Shape::Guide, vec![[0.0, share], [1.0, share]]));
        }
        Plot {
            title: format!("Precision and recall, average precision{}", self.which(drawn.len())),
            x: Axis::unit("recall"),
            y: Axis::unit("precision"),
            series,
        }
    }

    fn which(&self, drawn: usize) -> String {
        match self.metrics.curves.len() {
            all if all > MOST_CURVES => format!(" ({drawn} of {all} classes)"),
            _ => String::new(),
        }
    }

    fn reliability(&self) -> Plot {
        let tenths = self.calibration();
        let points = tenths.iter().map(|tenth| [tenth.mean_score, tenth.share]).collect();
        let mut series = Series::new("this model (number of texts)", Shape::Dots, points);
        series.notes = tenths.iter().map(|tenth| tenth.count.to_string()).collect();
        let (x, y) = match &self.scored.names[..] {
            names @ [_, _] => {
                let positive = shortened(&names[self.metrics.positive], 24);
                (format!("mean score of {positive}"), format!("share that is {positive}"))
            }
            _ => ("mean score of the predicted class".to_string(), "share that is correct".to_string()),
        };
        Plot {
            title: "Calibration".to_string(),
            x: Axis::unit(&x),
            y: Axis::unit(&y),
            series: vec![series, Series::new("calibrated", Shape::Guide, vec![[0.0, 0.0], [1.0, 1.0]])],
        }
    }

    /// In 20 bins: for two classes the score of the positive one by true class, for more the score of the predicted class by
    /// correctness.
    fn score_histogram(&self) -> Plot {
        let names = &self.scored.names;
        let two = names.len() == 2;
        let kinds = if two { [names[0].clone(), names[1].clone()] } else { ["wrong", "right"].map(String::from) };
        let mut counts = [[0u64; 20]; 2];
        for row in 0..self.rows() {
            let kind = if two { self.scored.labels[row] as usize } else { usize::from(self.is_right(row)) };
            let score = self.scores(row)[if two { self.metrics.positive } else { self.metrics.pred[row] }];
            counts[kind][((score * 20.0) as usize).min(19)] += 1;
        }
        let series = kinds.into_iter().zip(counts).enumerate().map(|(kind, (name, counts))| {
            let left = |bin: usize| bin as f64 / 20.0 + 0.004 + kind as f64 * 0.021;
            let points = counts.iter().enumerate().map(|(bin, &count)| [left(bin), count as f64]).collect();
            let series = Series::new(name, Shape::Bars(0.021), points);
            if two { series } else { series.coloured([WRONG, RIGHT][kind]) }
        });
        let (title, x) = match two {
            true => ("Scores by true class", format!("score of {}", shortened(&names[self.metrics.positive], 24))),
            false => ("Scores of the predicted class", "score".to_string()),
        };
        Plot { title: title.to_string(), x: Axis::unit(&x), y: Axis::from_zero("texts"), series: series.collect() }
    }

    fn lengths(&self) -> Plot {
        let most = self.tokens.iter().copied().max().unwrap_or(0);
        let wide = (most / 40 + 1).max(1);
        let mut counts = vec![0u64; most / wide + 1];
        self.tokens.iter().for_each(|&tokens| counts[tokens / wide] += 1);
        let points = counts.iter().enumerate().map(|(bin, &count)| [(bin * wide) as f64, count as f64]).collect();
        Plot {
            title: "Lengths of the texts".to_string(),
            x: Axis::from_zero("tokens read by the model"),
            y: Axis::from_zero("texts"),
            series: vec![Series::new("", Shape::Bars(wide as f64 * 0.92), points)],
        }
    }

    /// In ten bins of about equal size; texts of equal length share a bin.
    fn accuracy_by_length(&self) -> Plot {
        let mut rows: Vec<usize> = (0..self.rows()).collect();
        rows.sort_by_key(|&row| self.tokens[row]);
        let (mut points, mut notes, mut start) = (Vec::new(), Vec::new(), 0);
        while start < rows.len() {
            let end = (start + rows.len().div_ceil(10)).min(rows.len());
            let longest = self.tokens[rows[end - 1]];
            let end = rows.partition_point(|&row| self.tokens[row] <= longest);
            let part = &rows[start..end];
            let mean = |of: fn(&Evaluated, usize) -> f64| part.iter().map(|&row| of(self, row)).sum::<f64>() / part.len() as f64;
            points.push([mean(|all, row| all.tokens[row] as f64), mean(|all, row| f64::from(u8::from(all.is_right(row))))]);
            notes.push(part.len().to_string());
            start = end;
        }
        let mut series = Series::new("accuracy (number of texts)", Shape::Dots, points);
        series.notes = notes;
        let all =
            vec![[0.0, self.metrics.accuracy], [self.tokens.iter().copied().max().unwrap_or(0) as f64, self.metrics.accuracy]];
        Plot {
            title: "Accuracy by length".to_string(),
            x: Axis::from_zero("tokens read by the model"),
            y: Axis::unit("accuracy"),
            series: vec![series, Series::new(format!("of all {:.4}", self.metrics.accuracy), Shape::Guide, all)],
        }
    }
}

/// Keeps spreadsheets from reading a text as a formula.
pub fn inert(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_string(),
    }
}

pub fn points(x: &[f64], y: &[f64]) -> Vec<[f64; 2]> {
    x.iter().zip(y).map(|(&x, &y)| [x, y]).collect()
}

/// The step curve whose area is the average precision: each step of recall has the precision of its own point.
pub fn stairs(recall: &[f64], precision: &[f64]) -> Vec<[f64; 2]> {
    let corners =
        (0..recall.len()).flat_map(|i| [[recall[i], precision[i]], [recall[(i + 1).min(recall.len() - 1)], precision[i]]]);
    corners.collect()
}

/// The mean of rising curves from (0, 0) to (1, 1), at 501 points.
pub fn mean_curve(curves: &[Vec<[f64; 2]>]) -> Vec<[f64; 2]> {
    let at = |curve: &Vec<[f64; 2]>, x: f64| {
        let next = curve.partition_point(|point| point[0] <= x);
        match (curve[next - 1], curve.get(next)) {
            ([x0, y0], Some([x1, y1])) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
            ([_, y], None) => y,
        }
    };
    let mean = |x: f64| curves.iter().map(|curve| at(curve, x)).sum::<f64>() / curves.len() as f64;
    [[0.0, 0.0]].into_iter().chain((0..=500).map(|i| i as f64 / 500.0).map(|x| [x, mean(x)])).collect()
}
