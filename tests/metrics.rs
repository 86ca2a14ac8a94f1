//! Metrics and schedules compared with scikit-learn's and the Hugging Face Trainer's numbers, and with their definitions by
//! brute force; the progress of a run.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressDrawTarget, TermLike};
use proptest::prelude::*;
use serde_json::Value;
use warpfit::Kind;
use warpfit::metrics::{Metric, Metrics, argmax, softmax};
use warpfit::report::log::{self, Bytes, Count, Progress};
use warpfit::train::schedule::{Schedule, ScheduleKind, total_updates, updates_per_epoch, warmup_updates};

use crate::fixtures::{Tensors, json};

/// A case of golden/metrics.json: labels, scores (rows, classes), classes.
fn case(case: &Value) -> (Vec<u32>, Vec<f64>, usize) {
    let labels = case["labels"].as_array().unwrap().iter().map(|l| l.as_u64().unwrap() as u32).collect();
    let rows = case["scores"].as_array().unwrap();
    let scores = rows.iter().flat_map(|row| row.as_array().unwrap()).map(|s| s.as_f64().unwrap()).collect();
    (labels, scores, rows[0].as_array().unwrap().len())
}

/// Same keys, same lengths, numbers to 1e-12.
fn assert_same(place: &str, found: &Value, wanted: &Value) {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            assert_eq!(found.len(), wanted.len(), "{place}: keys");
            wanted.iter().for_each(|(key, wanted)| assert_same(&format!("{place}.{key}"), &found[key], wanted));
        }
        (Value::Array(found), Value::Array(wanted)) => {
            assert_eq!(found.len(), wanted.len(), "{place}: length");
            found
                .iter()
                .zip(wanted)
                .enumerate()
                .for_each(|(i, (found, wanted))| assert_same(&format!("{place}[{i}]"), found, wanted));
        }
        (Value::Number(found), Value::Number(wanted)) => {
            let (found, wanted) = (found.as_f64().unwrap(), wanted.as_f64().unwrap());
            assert!((found - wanted).abs() <= 1e-12, "{place}: {found}, not {wanted}");
        }
        _ => assert_eq!(found, wanted, "{place}"),
    }
}

#[test]
fn metrics_equal_scikit_learn() {
    let cases = json("metrics.json");
    assert_eq!(cases.as_array().unwrap().len(), 5);
    for wanted in cases.as_array().unwrap() {
        let (labels, scores, classes) = case(wanted);
        let name = wanted["name"].as_str().unwrap();
        let found = serde_json::to_value(Metrics::from_scores(&labels, &scores, classes, 1).unwrap()).unwrap();
        for (key, wanted) in wanted.as_object().unwrap() {
            if !["name", "labels", "scores"].contains(&key.as_str()) {
                assert_same(&format!("{name}.{key}"), &found[key], wanted);
            }
        }
        assert_eq!(found.get("binary").is_some(), classes == 2);
        // The top-level metrics.
        let single = if classes == 2 { &wanted["binary"] } else { &wanted["weighted"] };
        for key in ["precision", "recall", "f1"] {
            assert_same(&format!("{name}, top {key}"), &found[key], &single[key]);
        }
        let areas = if classes == 2 {
            ["roc_auc", "average_precision"].map(|key| wanted["curves"]["1"].get(key).unwrap_or(&Value::Null))
        } else {
            [&wanted["roc_auc_ovr_macro"], &wanted["average_precision_macro"]]
        };
        assert_same(name, &found["roc_auc"], areas[0]);
        assert_same(name, &found["average_precision"], areas[1]);
        assert!(found["loss"].is_null());
    }
}

#[test]
fn the_report_matches_scikit_learn() {
    let cases = json("metrics.json");
    let report = |i: usize, names: &[&str], digits| {
        let (labels, scores, classes) = case(&cases[i]);
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        Metrics::from_scores(&labels, &scores, classes, 1).unwrap().classification_report(&names, digits)
    };
    assert_eq!(
        report(0, &["NEGATIVE", "POSITIVE"], 2),
        "              precision    recall  f1-score   support

    NEGATIVE       0.70      0.66      0.68        32
    POSITIVE       0.63      0.68      0.66        28

    accuracy                           0.67        60
   macro avg       0.67      0.67      0.67        60
weighted avg       0.67      0.67      0.67        60
"
    );
    assert_eq!(
        report(2, &["sadness", "joy", "love", "anger", "fear", "surprise"], 4),
        "              precision    recall  f1-score   support

     sadness     0.7358    0.6290    0.6783        62
         joy     0.6471    0.5946    0.6197        37
        love     0.6364    0.4828    0.5490        29
       anger     0.3000    0.7500    0.4286         8
        fear     0.1905    0.5714    0.2857         7
    surprise     0.0000    0.0000    0.0000         7

    accuracy                         0.5667       150
   macro avg     0.4183    0.5046    0.4269       150
weighted avg     0.6117    0.5667    0.5755       150
"
    );
    // A name longer than the table's own, with a line break in it.
    let report = report(0, &["not a very\ngood one", "POSITIVE"], 2);
    assert!(report.contains("\nnot a very good one       0.70      0.66      0.68        32\n"), "{report}");
}

#[test]
fn undefined_metrics_are_null() {
    // Class 2 never occurs, and is never predicted.
    let metrics = Metrics::from_scores(&[0, 1, 0], &[0.8, 0.1, 0.1, 0.3, 0.6, 0.1, 0.4, 0.5, 0.1], 3, 1).unwrap();
    let json = serde_json::to_value(&metrics).unwrap();
    for key in ["roc_auc", "average_precision", "roc_auc_ovr_macro", "roc_auc_ovr_weighted", "average_precision_weighted"] {
        assert_eq!(json.get(key), Some(&Value::Null), "{key}");
    }
    assert_eq!(json["curves"]["2"], serde_json::json!({"defined": false}));
    assert_eq!(json["curves"]["0"]["roc_auc"], 1.0);
    assert_eq!(json["per_class"]["support"], serde_json::json!([2, 1, 0]));
    assert_eq!(json["macro"]["recall"], 0.5);
    assert_eq!(metrics.get(Metric::RocAuc), None);
    assert_eq!(metrics.get(Metric::Accuracy), Some(2.0 / 3.0));
    // A loss that is not a number is null in JSON.
    assert!(serde_json::to_value(Metrics { loss: Some(f64::NAN), ..metrics }).unwrap()["loss"].is_null());
}

#[test]
fn logits_become_scores() {
    let p = softmax(&[1e4, -1e4, 1e4]);
    assert_eq!(p, [0.5, 0.0, 0.5]);
    approx::assert_abs_diff_eq!(softmax(&[0.0, 2.0])[1], 1.0 / (1.0 + (-2.0f64).exp()), epsilon = 1e-15);
    assert_eq!(softmax(&[-3.0; 4]), [0.25; 4]);
    assert!(softmax(&[0.0, f32::NAN]).iter().all(|p| p.is_nan()));
    assert!(softmax(&[0.0, f32::INFINITY])[1].is_nan());

    assert_eq!(argmax(&[1.0f32, 3.0, 3.0]), 1);
    assert_eq!(argmax(&[f64::NAN, 1.0, f64::NAN, 2.0]), 3);
    assert_eq!(argmax(&[f64::NAN; 2]), 0);

    let metrics = Metrics::from_logits(&[0, 1, 1], &[2.0, 1.0, 0.0, 5.0, -7.0, -7.0], 2, 1).unwrap();
    assert_eq!(metrics.pred, [0, 1, 0]);
    assert_eq!(
        metrics.curves[&1].areas.as_ref().unwrap().roc.thresholds[1..],
        [softmax(&[0.0, 5.0])[1], 0.5, softmax(&[2.0, 1.0])[1]]
    );

    let error = Metrics::from_logits(&[0, 1], &[0.0, 1.0, 0.5, f32::NAN], 2, 1).unwrap_err();
    assert_eq!(error.kind, Kind::Unusable);
    assert!(error.to_string().starts_with("`logits of row 1, class 1`: NaN is not a finite number; "), "{error}");
    let error = Metrics::from_scores(&[0], &[0.0, f64::INFINITY], 2, 1).unwrap_err();
    assert!(error.to_string().contains("inf is not a finite number"), "{error}");
    assert_eq!(Metrics::from_scores(&[], &[], 2, 1).unwrap_err().kind, Kind::User);
    assert_eq!(Metrics::from_scores(&[0], &[1.0], 1, 1).unwrap_err().kind, Kind::User);
}

/// Rows with few distinct scores, so that ties are common.
fn rows() -> impl Strategy<Value = (Vec<u32>, Vec<f64>, usize)> {
    (2usize..5).prop_flat_map(|classes| {
        let row = (0..classes as u32, prop::collection::vec((-2i32..4).prop_map(|s| s as f64 / 8.0), classes));
        prop::collection::vec(row, 1..24).prop_map(move |rows| {
            let (labels, scores): (Vec<u32>, Vec<Vec<f64>>) = rows.into_iter().unzip();
            (labels, scores.concat(), classes)
        })
    })
}

/// Quotient of two counts; 0 / 0 is 0.
fn over(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn metrics_match_their_definitions((labels, scores, classes) in rows()) {
        let metrics = Metrics::from_scores(&labels, &scores, classes, 1).unwrap();
        let rows = labels.len();
        let row = |i: usize| &scores[i * classes..][..classes];
        let pred: Vec<usize> = (0..rows).map(|i| (0..classes).find(|&c| row(i).iter().all(|&s| s <= row(i)[c])).unwrap()).collect();
        prop_assert_eq!(&metrics.pred, &pred);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let count = |is: &dyn Fn(usize) -> bool| (0..rows).filter(|&i| is(i)).count();
        prop_assert!(close(metrics.accuracy, over(count(&|i| pred[i] == labels[i] as usize), rows)));

        let mut weighted_f1 = 0.0;
        for class in 0..classes {
            let truth = |i: usize| labels[i] as usize == class;
            let (tp, predicted, support) =
                (count(&|i| truth(i) && pred[i] == class), count(&|i| pred[i] == class), count(&truth));
            let (p, r) = (over(tp, predicted), over(tp, support));
            let f1 = if p + r == 0.0 { 0.0 } else { 2.0 * p * r / (p + r) };
            prop_assert!(close(metrics.per_class.precision[class], p));
            prop_assert!(close(metrics.per_class.recall[class], r));
            prop_assert!(close(metrics.per_class.f1[class], f1));
            prop_assert_eq!(metrics.per_class.support[class], support as u64);
            for other in 0..classes {
                prop_assert_eq!(metrics.confusion_matrix[class][other], count(&|i| truth(i) && pred[i] == other) as u64);
            }
            weighted_f1 += f1 * support as f64 / rows as f64;

            if classes == 2 && class == 0 {
                prop_assert!(!metrics.curves.contains_key(&0));
                continue;
            }
            let Some(areas) = &metrics.curves[&class].areas else {
                prop_assert!(support == 0 || support == rows);
                continue;
            };
            prop_assert!(0 < support && support < rows);
            let score = |i: usize| row(i)[class];
            // The probability that a row of the class ranks above another row; a tie counts half.
            let mut above = 0.0;
            for i in (0..rows).filter(|&i| truth(i)) {
                for j in (0..rows).filter(|&j| !truth(j)) {
                    above += if score(i) > score(j) { 1.0 } else if score(i) == score(j) { 0.5 } else { 0.0 };
                }
            }
            prop_assert!(close(areas.roc_auc, above / (support * (rows - support)) as f64));

            let mut thresholds: Vec<f64> = (0..rows).map(score).collect();
            thresholds.sort_by(|a, b| b.total_cmp(a));
            thresholds.dedup();
            prop_assert_eq!(&areas.roc.thresholds[1..], &thresholds[..]);
            prop_assert!(areas.pr.thresholds.iter().rev().eq(&thresholds));
            prop_assert_eq!((areas.roc.thresholds[0], areas.roc.fpr[0], areas.roc.tpr[0]), (f64::INFINITY, 0.0, 0.0));
            prop_assert_eq!((areas.pr.precision.last(), areas.pr.recall.last()), (Some(&1.0), Some(&0.0)));
            let (mut average_precision, mut recall_before) = (0.0, 0.0);
            for (k, &threshold) in thresholds.iter().enumerate() {
                let (tp, taken) = (count(&|i| truth(i) && score(i) >= threshold), count(&|i| score(i) >= threshold));
                let (precision, recall) = (over(tp, taken), over(tp, support));
                prop_assert_eq!(areas.roc.tpr[k + 1], recall);
                prop_assert_eq!(areas.roc.fpr[k + 1], over(taken - tp, rows - support));
                let k = thresholds.len() - 1 - k;
                prop_assert_eq!((areas.pr.precision[k], areas.pr.recall[k]), (precision, recall));
                average_precision += (recall - recall_before) * precision;
                recall_before = recall;
            }
            prop_assert!(close(areas.average_precision, average_precision));

            // The reduced curve is the same line: a subset of the points, with the same area.
            let short = &areas.roc_drop_intermediate;
            prop_assert!(short.thresholds.iter().all(|t| areas.roc.thresholds.contains(t)));
            let area: f64 = (1..short.fpr.len()).map(|k| (short.fpr[k] - short.fpr[k - 1]) * (short.tpr[k] + short.tpr[k - 1]) / 2.0).sum();
            prop_assert!(close(area, areas.roc_auc));
        }
        prop_assert!(close(metrics.weighted.f1, weighted_f1));
        prop_assert!(close(metrics.weighted.recall, metrics.accuracy));
    }
}

#[test]
fn metric_names_and_order() {
    let parse = |name: &str| Metric::parse("--metric-for-best-model", name);
    for metric in Metric::ALL {
        assert_eq!(parse(metric.name()).unwrap(), metric);
        assert_eq!(parse(&format!("eval_{}", metric.name())).unwrap(), metric);
        let up = metric != Metric::Loss;
        assert_eq!(metric.better(0.9, 0.8), up);
        assert_eq!(metric.better(0.8, 0.9), !up);
        assert!(!metric.better(0.8, 0.8));
        assert!(!metric.better(f64::NAN, 0.8));
        assert!(!metric.better(f64::NAN, f64::NAN));
        assert!(metric.better(0.8, f64::NAN));
    }
    for name in ["bleu", "eval_eval_loss", "", "F1"] {
        let error = parse(name).unwrap_err();
        assert_eq!(error.kind, Kind::User);
        assert!(error.to_string().contains("use one of loss, accuracy, precision, recall, f1, roc_auc, average_precision"));
    }
}

#[test]
fn learning_rates_equal_the_trainers() {
    for (case, batch, accumulation, total) in [("train", 8usize, 1, 24), ("train-accumulate", 9, 3, 8)] {
        let steps = json(&format!("{case}/losses.json"));
        let steps = steps["train"].as_array().unwrap();
        let per_epoch = updates_per_epoch(96usize.div_ceil(batch), accumulation);
        assert_eq!(total_updates(2.0, per_epoch), total);
        assert_eq!(steps.len(), total);
        let schedule = Schedule { kind: ScheduleKind::Linear, base_lr: 5e-4, warmup: 0, total };
        for (i, step) in steps.iter().enumerate() {
            assert_eq!(schedule.lr(i + 1), step["learning_rate"].as_f64().unwrap(), "{case}, update {}", i + 1);
        }
    }
    for case in ["distilbert-a", "distilbert-b", "bert-a"] {
        let tensors = Tensors::read(&format!("{case}/adamw.safetensors"));
        let schedule = Schedule { kind: ScheduleKind::Linear, base_lr: 5e-4, warmup: 2, total: 12 };
        assert_eq!((1..=12).map(|update| schedule.lr(update)).collect::<Vec<_>>(), tensors.get("lr"), "{case}");
    }
}

#[test]
fn schedules_at_their_ends() {
    let schedule = |kind, warmup| Schedule { kind, base_lr: 8e-5, warmup, total: 12 };
    let rates = |s: Schedule| (1..=13).map(|update| s.lr(update)).collect::<Vec<_>>();
    let constant = rates(schedule(ScheduleKind::ConstantWithWarmup, 2));
    assert_eq!(constant[..3], [0.0, 4e-5, 8e-5]);
    assert!(constant[2..].iter().all(|&lr| lr == 8e-5));
    for (kind, warmup) in [(ScheduleKind::ConstantWithWarmup, 0), (ScheduleKind::Constant, 0), (ScheduleKind::Constant, 2)] {
        assert_eq!(rates(schedule(kind, warmup)), [8e-5; 13]);
    }

    let cosine = rates(schedule(ScheduleKind::Cosine, 4));
    assert_eq!(cosine[..5], [0.0, 2e-5, 4e-5, 8e-5 * 0.75, 8e-5]);
    for (i, &lr) in cosine.iter().enumerate().skip(4) {
        // cos^2(x / 2) = (1 + cos x) / 2
        let wanted = 8e-5 * (std::f64::consts::FRAC_PI_2 * (i - 4) as f64 / 8.0).cos().powi(2);
        approx::assert_abs_diff_eq!(lr, wanted, epsilon = 1e-19);
    }
    assert_eq!(cosine[8], 4e-5);

    // After the last update, and in a run of warm-up alone, the rate is not negative.
    assert_eq!(rates(schedule(ScheduleKind::Linear, 2))[12], 0.0);
    assert_eq!(Schedule { kind: ScheduleKind::Cosine, base_lr: 1.0, warmup: 0, total: 4 }.lr(9), 0.0);
    for kind in [ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Constant, ScheduleKind::ConstantWithWarmup] {
        assert!(rates(schedule(kind, 12)).iter().all(|lr| (0.0..=8e-5).contains(lr)));
    }
}

#[test]
fn lengths_of_runs_and_warm_ups() {
    assert_eq!(updates_per_epoch(11, 3), 4);
    assert_eq!(updates_per_epoch(12, 3), 4);
    assert_eq!(total_updates(2.0, 1563), 3126);
    assert_eq!(total_updates(0.5, 3), 2);
    assert_eq!(total_updates(2.1, 10), 21);
    assert_eq!(total_updates(0.0, 10), 0);

    assert_eq!(warmup_updates(0.0, 100).unwrap(), 0);
    assert_eq!(warmup_updates(0.06, 3126).unwrap(), 188);
    assert_eq!(warmup_updates(0.1, 10).unwrap(), 1);
    assert_eq!(warmup_updates(1.0, 10).unwrap(), 1);
    assert_eq!(warmup_updates(10.0, 10).unwrap(), 10);
    for warmup in [-1.0, f64::NAN, 11.0, f64::INFINITY] {
        let error = warmup_updates(warmup, 10).unwrap_err();
        assert_eq!(error.kind, Kind::User);
        assert!(error.to_string().starts_with("`--warmup-steps`: "), "{error}");
    }
}

/// Captured standard error.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal of a given width that keeps its output.
#[derive(Clone)]
struct Screen(u16, Page);

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "a screen of width {}", self.0)
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        self.0
    }
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, s: &str) -> io::Result<()> {
        writeln!(self.1.clone(), "{s}")
    }
    fn write_str(&self, s: &str) -> io::Result<()> {
        write!(self.1.clone(), "{s}")
    }
    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r")
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn without_a_terminal_progress_is_lines() {
    let page = Page::default();
    let progress = Progress::lines(Box::new(page.clone()), Duration::ZERO, "training", 3126, &["steps"]).resumed_at(1000);
    std::thread::sleep(Duration::from_millis(30));
    progress.note("loss 0.3479 lr 4.2e-5");
    progress.add(&[1]);
    progress.println("a warning");
    progress.add(&[2125]);
    let least = progress.elapsed();
    progress.finish("trained");
    let text = page.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("training 1,001/3,126  ") && lines[0].contains(" left  loss 0.3479 lr 4.2e-5  "), "{text}");
    assert_eq!(lines[1], "a warning");
    assert!(lines[2].starts_with("training 3,126/3,126  0.0s left  loss 0.3479"), "{text}");
    assert!(lines[3].starts_with("training 3,126/3,126  in "), "{text}");
    assert_eq!(lines[4], "trained");
    // The thousand steps of an earlier run do not count for rates.
    let rate: f64 =
        lines[3].split("  ").find_map(|part| part.strip_suffix(" steps/s")).unwrap().replace(',', "").parse().unwrap();
    assert!(rate > 0.0 && rate <= (2126.0 / least.as_secs_f64()).ceil(), "{rate} a second");
}

#[test]
fn progress_lines_are_sparse_but_the_last_is_printed() {
    let page = Page::default();
    let progress = Progress::lines(Box::new(page.clone()), Duration::from_secs(3600), "tokenizing", 25_000, &["texts"]);
    rayon::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|_| (0..6250).for_each(|_| progress.add(&[1])));
        }
    });
    assert_eq!(page.text(), "");
    progress.finish("");
    let text = page.text();
    assert!(text.starts_with("tokenizing 25,000/25,000  in ") && text.ends_with(" texts/s\n"), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn progress_outlives_a_broken_standard_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let progress = Progress::lines(Box::new(Full), Duration::ZERO, "training", None, &["steps"]);
    progress.add(&[1]);
    progress.finish("trained");
}

#[test]
fn a_bar_fits_its_terminal() {
    for width in [1, 2, 20, 40, 200] {
        for total in [Some(8), Some(0), None] {
            let page = Page::default();
            let target = ProgressDrawTarget::term_like(Box::new(Screen(width, page.clone())));
            let progress = Progress::bar(target, "training", total, &["steps", "tokens"]);
            progress.note("loss 0.3479");
            std::thread::sleep(Duration::from_millis(101));
            progress.add(&[4, 8192]);
            let drawn = page.text();
            assert!(
                drawn.lines().flat_map(|line| line.split('\r')).all(|line| line.chars().count() <= width as usize),
                "{drawn:?}"
            );
            if width == 200 {
                let wanted = match total {
                    Some(8) => "training [#####-----] 4/8  ",
                    Some(_) => "training [----------] 4/0  ",
                    None => "training 4  loss 0.3479  ",
                };
                assert!(drawn.contains(wanted), "{drawn:?}");
                assert!(drawn.contains(" tokens/s") && !drawn.contains("steps/s"), "{drawn:?}");
            }
            progress.println("a warning that is longer than the terminal is wide");
            progress.finish("trained");
            let text = page.text();
            assert!(text.contains("a warning that is longer than the terminal is wide"), "{text:?}");
            assert!(text.contains("trained"), "{text:?}");
            assert!(!text.contains('\x1b'), "no colours");
        }
    }
}

#[test]
fn rates_cover_the_last_seconds() {
    let begin = Instant::now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let mut samples = [(begin, vec![0, 0])].into();
    assert_eq!(log::recent_rates(&mut samples, at(4), &[4, 400]), [1.0, 100.0]);
    assert_eq!(log::recent_rates(&mut samples, at(10), &[10, 1000]), [1.0, 100.0]);
    // From second 10 to 20 the speed is doubled; what was before no longer counts.
    assert_eq!(log::recent_rates(&mut samples, at(20), &[30, 3000]), [2.0, 200.0]);
    // One step that takes longer than the window.
    assert_eq!(log::recent_rates(&mut samples, at(60), &[31, 3000]), [1.0 / 40.0, 0.0]);
    assert_eq!(samples.len(), 2);
}

#[test]
fn numbers_and_tables_are_easy_to_read() {
    assert_eq!(Count(1_234_567).to_string(), "1,234,567");
    let counts = [(0, "row"), (1, "row"), (1, "class"), (25_000, "row"), (2, "class"), (2, "batch")];
    let counts = counts.map(|(count, noun)| log::counted(count, noun));
    assert_eq!(counts, ["0 rows", "1 row", "1 class", "25,000 rows", "2 classes", "2 batches"]);
    assert_eq!(Bytes(3 << 29).to_string(), "1.50 GiB");
    assert_eq!(Bytes(200 << 20).to_string(), "200.00 MiB");
    let rates = [0.0, 0.314, 9.994, 14.23, 99.96, 2012.6, f64::NAN, f64::INFINITY].map(log::rate);
    assert_eq!(rates, ["0.00", "0.31", "9.99", "14.2", "100", "2,013", "-", "-"]);
    let times = [0.04, 9.94, 9.96, 59.6, 83.2, 3599.7, 7500.0, 360_000.0];
    let times = times.map(|seconds| log::duration(Duration::from_secs_f64(seconds)));
    assert_eq!(times, ["0.0s", "9.9s", "10s", "1m 00s", "1m 23s", "1h 00m", "2h 05m", "100h 00m"]);

    let row = |name: &str, size: &str, share: &str| [name.to_string(), size.to_string(), share.to_string()];
    let rows = [row("", "bytes", "share"), row("weights", "255.41 MiB", "9 %"), row("résumé", "1 B", "")];
    assert_eq!(log::table(&rows), "              bytes  share\nweights  255.41 MiB    9 %\nrésumé          1 B\n");
    assert_eq!(log::table::<[String; 2]>(&[]), "");
}
