//! Classification metrics of labels and scores, equal to scikit-learn's: integer counts, with the division last. O(classes * n
//! log n) for n rows.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::error::{BROKEN, Error, Kind, Result, is_control};

/// The result of an evaluation; serialises to metrics.json. Undefined metrics are `None`, written as null.
///
/// The top-level metrics are those of the positive class for two classes; for more, precision, recall and F1 are weighted by support, and
/// the areas are means over the classes, each against the rest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Mean loss over the rows; `None` until it is set by the code that ran the model.
    pub loss: Option<f64>,
    pub accuracy: f64,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    pub roc_auc: Option<f64>,
    pub average_precision: Option<f64>,
    /// That of `macro`.
    pub macro_f1: f64,
    /// Mean recall of the classes that have rows.
    pub balanced_accuracy: f64,
    /// The correlation of true and predicted classes (Gorodkin, doi.org/10.1016/j.compbiolchem.2004.09.006), from -1 to 1; 0 if
    /// all rows are of one class or are predicted as one.
    pub matthews_correlation: f64,
    /// Rows are true classes, columns predicted ones, (classes, classes).
    pub confusion_matrix: Vec<Vec<u64>>,
    /// Scores of the positive class, for two classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<Scores>,
    /// Plain mean over the classes.
    #[serde(rename = "macro")]
    pub macro_mean: Scores,
    /// Scores of the counts summed over the classes: all three equal the accuracy.
    pub micro: Scores,
    /// Mean over the classes, weighted by support.
    pub weighted: Scores,
    pub per_class: PerClass,
    /// The means over the classes' areas, for more than two classes.
    #[serde(flatten)]
    pub one_vs_rest: Option<OneVsRest>,
    /// Curves of each class against the rest; for two classes of the positive one only.
    pub curves: BTreeMap<usize, Curve>,
    /// The predicted class of each row, (rows).
    pub pred: Vec<usize>,
    /// Of two classes, the one that the metrics are of.
    #[serde(skip)]
    pub positive: usize,
}

/// `precision = tp / (tp + fp)`, `recall = tp / (tp + fn)`, `f1 = 2 tp / (2 tp + fp + fn)`; 0 instead of 0 / 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
}

/// One entry per class; `support` is the number of rows of that class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerClass {
    pub precision: Vec<f64>,
    pub recall: Vec<f64>,
    pub f1: Vec<f64>,
    pub support: Vec<u64>,
}

/// `None` if a class has no row, or every row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OneVsRest {
    pub roc_auc_ovr_macro: Option<f64>,
    pub average_precision_macro: Option<f64>,
    pub roc_auc_ovr_weighted: Option<f64>,
    pub average_precision_weighted: Option<f64>,
}

/// The curves of one class against the rest; undefined if all rows, or none, are of that class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    defined: bool,
    #[serde(flatten)]
    pub areas: Option<Areas>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Areas {
    pub roc_auc: f64,
    pub average_precision: f64,
    /// One point per distinct score.
    pub roc: Roc,
    /// The same curve without the points on the straight line between their neighbours.
    pub roc_drop_intermediate: Roc,
    pub pr: PrecisionRecall,
}

/// Point i selects the rows with a score of at least `thresholds[i]`, in descending order; the first threshold is infinite and
/// selects none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Roc {
    pub fpr: Vec<f64>,
    pub tpr: Vec<f64>,
    #[serde(serialize_with = "infinity_as_text")]
    pub thresholds: Vec<f64>,
}

/// Point i selects the rows with a score of at least `thresholds[i]`, in ascending order. There is one point more than
/// thresholds: the last, precision 1 and recall 0, closes the curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrecisionRecall {
    pub precision: Vec<f64>,
    pub recall: Vec<f64>,
    pub thresholds: Vec<f64>,
}

impl Metrics {
    /// Metrics of `labels` (rows) and `logits` (rows, classes); the curves are of their softmax.
    ///
    /// Fails like [`Metrics::from_scores`].
    pub fn from_logits(labels: &[u32], logits: &[f32], classes: usize, positive: usize) -> Result<Metrics> {
        check("logits", labels, logits, classes)?;
        let scores: Vec<f64> = logits.chunks_exact(classes).flat_map(softmax).collect();
        Ok(Metrics::count(labels, logits.chunks_exact(classes).map(argmax).collect(), &scores, classes, positive))
    }

    /// Metrics of `labels` (rows) and `scores` (rows, classes). A curve ranks the rows by one class's score, so scores must be
    /// comparable between rows, like probabilities and unlike the logits of a softmax.
    ///
    /// Fails without rows or with fewer than two classes, and with [`Kind::Unusable`] on a NaN or an infinity.
    ///
    /// # Panics
    /// If the sizes disagree or a label is not below `classes`; data is checked for both when it is read.
    pub fn from_scores(labels: &[u32], scores: &[f64], classes: usize, positive: usize) -> Result<Metrics> {
        check("scores", labels, scores, classes)?;
        Ok(Metrics::count(labels, scores.chunks_exact(classes).map(argmax).collect(), scores, classes, positive))
    }

    fn count(labels: &[u32], pred: Vec<usize>, scores: &[f64], classes: usize, positive: usize) -> Metrics {
        let rows = labels.len() as u64;
        let mut confusion = vec![vec![0u64; classes]; classes];
        for (&label, &pred) in labels.iter().zip(&pred) {
            confusion[label as usize][pred] += 1;
        }
        let hits = |class: usize| confusion[class][class];
        let support: Vec<u64> = confusion.iter().map(|row| row.iter().sum()).collect();
        let predicted: Vec<u64> = (0..classes).map(|class| confusion.iter().map(|row| row[class]).sum()).collect();
        let accuracy = ratio((0..classes).map(hits).sum(), rows);

        let precision: Vec<f64> = (0..classes).map(|class| ratio(hits(class), predicted[class])).collect();
        let recall: Vec<f64> = (0..classes).map(|class| ratio(hits(class), support[class])).collect();
        let f1: Vec<f64> = (0..classes).map(|class| ratio(2 * hits(class), predicted[class] + support[class])).collect();
        let averaged =
            |mean: &dyn Fn(&[f64]) -> f64| Scores { precision: mean(&precision), recall: mean(&recall), f1: mean(&f1) };
        let weighted = averaged(&|values| weighted_mean(values, &support));
        let binary = (classes == 2).then(|| averaged(&|values| values[positive]));

        let curved = if classes == 2 { positive..positive + 1 } else { 0..classes };
        let curves: BTreeMap<usize, Curve> = curved.map(|class| (class, Curve::new(labels, scores, classes, class))).collect();
        // If one class is undefined, so is the mean over the classes.
        let areas = |area: fn(&Areas) -> f64| curves.values().map(|curve| curve.areas.as_ref().map(area)).collect();
        let (roc_aucs, precisions): (Option<Vec<f64>>, Option<Vec<f64>>) = (areas(|a| a.roc_auc), areas(|a| a.average_precision));
        let macro_of = |areas: &Option<Vec<f64>>| areas.as_deref().map(mean);
        let weighted_of = |areas: &Option<Vec<f64>>| areas.as_deref().map(|areas| weighted_mean(areas, &support));
        let one_vs_rest = (classes > 2).then(|| OneVsRest {
            roc_auc_ovr_macro: macro_of(&roc_aucs),
            average_precision_macro: macro_of(&precisions),
            roc_auc_ovr_weighted: weighted_of(&roc_aucs),
            average_precision_weighted: weighted_of(&precisions),
        });

        let present: Vec<f64> = recall.iter().zip(&support).filter(|(_, rows)| **rows > 0).map(|(recall, _)| *recall).collect();
        // Sums over pairs of rows, exact in 128 bits: of the same true class, of the same predicted class, of both.
        let product = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(&a, &b)| i128::from(a) * i128::from(b)).sum::<i128>();
        let all = i128::from(rows) * i128::from(rows);
        let apart = [&support, &predicted].map(|counts| (all - product(counts, counts)) as f64);
        let together = (0..classes).map(hits).map(i128::from).sum::<i128>() * i128::from(rows) - product(&support, &predicted);
        let matthews_correlation = if apart.contains(&0.0) { 0.0 } else { together as f64 / (apart[0] * apart[1]).sqrt() };

        let top = binary.unwrap_or(weighted);
        Metrics {
            loss: None,
            accuracy,
            precision: top.precision,
            recall: top.recall,
            f1: top.f1,
            // With two classes there is one curve, which is its own mean.
            roc_auc: macro_of(&roc_aucs),
            average_precision: macro_of(&precisions),
            macro_f1: mean(&f1),
            balanced_accuracy: mean(&present),
            matthews_correlation,
            binary,
            macro_mean: averaged(&mean),
            micro: Scores { precision: accuracy, recall: accuracy, f1: accuracy },
            weighted,
            per_class: PerClass { precision, recall, f1, support },
            confusion_matrix: confusion,
            one_vs_rest,
            curves,
            pred,
            positive,
        }
    }

    /// One of the top-level metrics; `None` if it is undefined.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Loss => self.loss,
            Metric::Accuracy => Some(self.accuracy),
            Metric::Precision => Some(self.precision),
            Metric::Recall => Some(self.recall),
            Metric::F1 => Some(self.f1),
            Metric::RocAuc => self.roc_auc,
            Metric::AveragePrecision => self.average_precision,
            Metric::MacroF1 => Some(self.macro_f1),
            Metric::BalancedAccuracy => Some(self.balanced_accuracy),
            Metric::MatthewsCorrelation => Some(self.matthews_correlation),
        }
    }

    /// One line for people: "loss 0.3479  accuracy 0.8520 ...".
    pub fn summary(&self) -> String {
        let figure = |metric: Metric| match self.get(metric) {
            Some(value) => format!("{} {value:.4}", metric.name()),
            None => format!("{} -", metric.name()),
        };
        Metric::SUMMARY.map(figure).join("  ")
    }

    /// The table that scikit-learn's `classification_report` prints, with `digits` decimals.
    pub fn classification_report(&self, names: &[String], digits: usize) -> String {
        assert_eq!(names.len(), self.per_class.support.len(), "one name per class");
        let rows: u64 = self.per_class.support.iter().sum();
        // A class may have any name; a row is one line.
        let names: Vec<String> = names.iter().map(|name| name.replace(is_control, " ")).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("weighted avg".len()).max(digits);
        let line = |name: &str, precision: &str, recall: &str, f1: &str, support: &str| {
            format!("{name:>width$}  {precision:>9} {recall:>9} {f1:>9} {support:>9}\n")
        };
        let figure = |value: f64| format!("{value:.digits$}");
        let scores = |name: &str, of: Scores, support: u64| {
            line(name, &figure(of.precision), &figure(of.recall), &figure(of.f1), &support.to_string())
        };
        let mut text = line("", "precision", "recall", "f1-score", "support") + "\n";
        let class = &self.per_class;
        for (i, name) in names.iter().enumerate() {
            let of = Scores { precision: class.precision[i], recall: class.recall[i], f1: class.f1[i] };
            text += &scores(name, of, class.support[i]);
        }
        text += "\n";
        text += &line("accuracy", "", "", &figure(self.accuracy), &rows.to_string());
        text += &scores("macro avg", self.macro_mean, rows);
        text += &scores("weighted avg", self.weighted, rows);
        text
    }
}

impl Curve {
    /// Ranks the rows by their score for `class`, and goes through the distinct scores in descending order.
    fn new(labels: &[u32], scores: &[f64], classes: usize, class: usize) -> Curve {
        let mut ranked: Vec<(f64, bool)> =
            scores.chunks_exact(classes).zip(labels).map(|(row, &label)| (row[class], label as usize == class)).collect();
        ranked.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).expect("scores are finite"));
        let rows = ranked.len() as u64;
        let positives = ranked.iter().filter(|row| row.1).count() as u64;
        if positives == 0 || positives == rows {
            return Curve { defined: false, areas: None };
        }

        // The true and the false positives among the rows with a score of at least each threshold.
        let mut points = vec![Point { threshold: f64::INFINITY, tp: 0, fp: 0 }];
        for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
            let before = points[points.len() - 1];
            let hits = tied.iter().filter(|row| row.1).count() as u64;
            points.push(Point { threshold: tied[0].0, tp: before.tp + hits, fp: before.fp + tied.len() as u64 - hits });
        }

        // Trapezoids below the ROC curve: sum (fp' - fp) (tp' + tp) / 2, over positives * negatives.
        let twice_area: u64 = points.windows(2).map(|p| (p[1].fp - p[0].fp) * (p[1].tp + p[0].tp)).sum();
        // Average precision: sum (recall' - recall) precision', in steps, not trapezoids.
        let steps: f64 = points.windows(2).map(|p| (p[1].tp - p[0].tp) as f64 * p[1].precision()).sum();
        let pr = PrecisionRecall {
            precision: points.iter().rev().map(Point::precision).collect(),
            recall: points.iter().rev().map(|point| ratio(point.tp, positives)).collect(),
            thresholds: points.iter().skip(1).rev().map(|point| point.threshold).collect(),
        };
        let roc = Roc::new(&points);
        // As in scikit-learn: a point is kept if the step to it differs from the next step. The infinite threshold is not
        // compared, so the highest score is always kept.
        let bends = |p: &[Point]| (p[1].tp - p[0].tp, p[1].fp - p[0].fp) != (p[2].tp - p[1].tp, p[2].fp - p[1].fp);
        let corners: Vec<Point> = (0..points.len())
            .filter(|&i| i < 2 || i + 1 == points.len() || bends(&points[i - 1..i + 2]))
            .map(|i| points[i])
            .collect();
        Curve {
            defined: true,
            areas: Some(Areas {
                roc_auc: ratio(twice_area, 2 * positives * (rows - positives)),
                average_precision: steps / positives as f64,
                roc,
                roc_drop_intermediate: Roc::new(&corners),
                pr,
            }),
        }
    }
}

/// Counts at a threshold: `tp` rows of the class and `fp` of the rest.
#[derive(Clone, Copy)]
struct Point {
    threshold: f64,
    tp: u64,
    fp: u64,
}

impl Point {
    /// 1 if nothing is selected.
    fn precision(&self) -> f64 {
        if self.tp + self.fp == 0 { 1.0 } else { ratio(self.tp, self.tp + self.fp) }
    }
}

impl Roc {
    fn new(points: &[Point]) -> Roc {
        let all = points[points.len() - 1];
        Roc {
            fpr: points.iter().map(|point| ratio(point.fp, all.fp)).collect(),
            tpr: points.iter().map(|point| ratio(point.tp, all.tp)).collect(),
            thresholds: points.iter().map(|point| point.threshold).collect(),
        }
    }
}

/// JSON has no infinity, and null would mean undefined.
fn infinity_as_text<S: Serializer>(thresholds: &[f64], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Threshold {
        Finite(f64),
        Infinite(&'static str),
    }
    serializer.collect_seq(
        thresholds.iter().map(|&t| if t == f64::INFINITY { Threshold::Infinite("inf") } else { Threshold::Finite(t) }),
    )
}

/// The positive one of two classes: the second, or the one with this name (`--positive-label`).
///
/// # Errors
/// A name that is none of two classes.
pub fn positive_class(name: Option<&str>, classes: &[String]) -> Result<usize> {
    let Some(name) = name else { return Ok(1) };
    if classes.len() != 2 {
        let fact = format!("there are {} classes, not two", classes.len());
        return Err(Error::user("--positive-label", fact, "leave out the flag: the metrics are means over all classes"));
    }
    let same = |other: &String| other == name || other.to_lowercase() == name.to_lowercase();
    classes.iter().position(same).ok_or_else(|| {
        Error::user("--positive-label", format!("no class is named {name}"), format!("name one of {}", classes.join(", ")))
    })
}

/// The rows with a score in one tenth of [0, 1], identified by its upper edge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tenth {
    pub count: u64,
    pub mean_score: f64,
    /// Share of them that were right.
    pub share: f64,
}

/// Calibration: of the rows with a score of about p, a share of p should be `right`. Takes scores and outcomes (rows), and
/// returns the tenths that have rows.
pub fn calibration(scores: impl IntoIterator<Item = (f64, bool)>) -> Vec<Tenth> {
    let mut tenths = [(0u64, 0.0, 0u64); 10];
    for (score, right) in scores {
        // The edges of scikit-learn: 3 * 0.1 is a little over 0.3.
        let tenth = &mut tenths[(1..10).filter(|&edge| f64::from(edge) * 0.1 < score).count()];
        *tenth = (tenth.0 + 1, tenth.1 + score, tenth.2 + u64::from(right));
    }
    let filled = tenths.into_iter().filter(|&(count, ..)| count > 0);
    filled.map(|(count, sum, right)| Tenth { count, mean_score: sum / count as f64, share: ratio(right, count) }).collect()
}

fn check<T: Copy + Into<f64>>(what: &str, labels: &[u32], values: &[T], classes: usize) -> Result<()> {
    assert_eq!(values.len(), labels.len() * classes, "{what} are (rows, classes)");
    assert!(labels.iter().all(|&label| (label as usize) < classes), "a label is a class");
    if labels.is_empty() {
        return Err(Error::user(what, "there are no rows to evaluate", "give a file with at least one labelled row"));
    }
    if classes < 2 {
        return Err(Error::user(what, "a classifier needs two classes", "use a model with at least two labels"));
    }
    match values.iter().position(|&value| !value.into().is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::new(
            Kind::Unusable,
            format!("{what} of row {}, class {}", i / classes, i % classes),
            format!("{} is not a finite number", values[i].into()),
            BROKEN,
        )),
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn weighted_mean(values: &[f64], weights: &[u64]) -> f64 {
    let sum: f64 = values.iter().zip(weights).map(|(&value, &weight)| value * weight as f64).sum();
    sum / weights.iter().sum::<u64>() as f64
}

/// The class with the highest value, the first in a tie. A NaN counts as minus infinity.
///
/// # Panics
/// If there is no class.
pub fn argmax<T: Copy + Into<f64>>(row: &[T]) -> usize {
    assert!(!row.is_empty(), "a row has at least one class");
    let value = |i: usize| Some(row[i].into()).filter(|value| !value.is_nan()).unwrap_or(f64::NEG_INFINITY);
    (1..row.len()).fold(0, |best, i| if value(i) > value(best) { i } else { best })
}

/// Probabilities of one row of logits, (classes): `exp(x - max) / sum exp(x - max)`, which cannot overflow. A NaN or an
/// infinity makes the result NaN.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let exp: Vec<f64> = logits.iter().map(|&x| (x as f64 - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// A metric by which runs are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Loss,
    Accuracy,
    Precision,
    Recall,
    F1,
    RocAuc,
    AveragePrecision,
    MacroF1,
    BalancedAccuracy,
    MatthewsCorrelation,
}

impl Metric {
    /// Those of the line for people.
    pub const SUMMARY: [Metric; 7] =
        [Metric::Loss, Metric::Accuracy, Metric::Precision, Metric::Recall, Metric::F1, Metric::RocAuc, Metric::AveragePrecision];
    pub const ALL: [Metric; 10] = [
        Metric::Loss,
        Metric::Accuracy,
        Metric::Precision,
        Metric::Recall,
        Metric::F1,
        Metric::RocAuc,
        Metric::AveragePrecision,
        Metric::MacroF1,
        Metric::BalancedAccuracy,
        Metric::MatthewsCorrelation,
    ];

    /// Its key in metrics.json; logs prefix it with `eval_`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::Accuracy => "accuracy",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::F1 => "f1",
            Metric::RocAuc => "roc_auc",
            Metric::AveragePrecision => "average_precision",
            Metric::MacroF1 => "macro_f1",
            Metric::BalancedAccuracy => "balanced_accuracy",
            Metric::MatthewsCorrelation => "matthews_correlation",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Loss => "Loss",
            Metric::Accuracy => "Accuracy",
            Metric::Precision => "Precision",
            Metric::Recall => "Recall",
            Metric::F1 => "F1",
            Metric::RocAuc => "ROC AUC",
            Metric::AveragePrecision => "Average precision",
            Metric::MacroF1 => "Macro F1",
            Metric::BalancedAccuracy => "Balanced accuracy",
            Metric::MatthewsCorrelation => "Matthews correlation",
        }
    }

    /// The metric called `name`, with or without the prefix `eval_`. `flag` is the flag that named it.
    pub fn parse(flag: &str, name: &str) -> Result<Metric> {
        let bare = name.strip_prefix("eval_").unwrap_or(name);
        Metric::ALL.into_iter().find(|metric| metric.name() == bare).ok_or_else(|| {
            let known = Metric::ALL.map(Metric::name).join(", ");
            Error::user(flag, format!("there is no metric `{name}`"), format!("use one of {known}"))
        })
    }

    /// Whether `a` is better than `b`. A NaN is never better, and any number is better than a NaN.
    pub fn better(self, a: f64, b: f64) -> bool {
        let ahead = if self == Metric::Loss { a < b } else { a > b };
        ahead || (b.is_nan() && !a.is_nan())
    }
}
