//! The model against golden numbers: forward, every gradient, twelve updates. Tolerances: tests/golden/README.md.

use serde_json::Value;
use warpfit::cpu::Real;
use warpfit::data::pack::PackedBatch;
use warpfit::model::{Hyper, Model};
use warpfit::ops::{DType, Rows, Step};
use warpfit::train::schedule::{Schedule, ScheduleKind};

use crate::fixtures::*;

const CASES: [&str; 3] = ["distilbert-a", "distilbert-b", "bert-a"];

/// The key biases, whose gradient is zero in theory: softmax cancels them.
fn is_key_bias(name: &str) -> bool {
    name.ends_with(".k_lin.bias") || name.ends_with(".self.key.bias")
}

fn inputs(case: &str) -> PackedBatch {
    let t = Tensors::read(&format!("{case}/inputs.safetensors"));
    let types = if t.has("token_type_ids") { t.ints("token_type_ids") } else { Vec::new() };
    pack(&t.ints("input_ids"), &t.ints("attention_mask"), &types, &t.ints("labels"))
}

fn step(batch: &PackedBatch) -> Step {
    Step { denominator: batch.seqs() as f64, train: true, update: 1, ..Step::INFER }
}

fn forward<T: Real>(case: &str, scale: f64) {
    let batch = inputs(case);
    let want = Tensors::read(&format!("{case}/forward.safetensors"));
    let mut model = model::<T>(&format!("{case}/hf"), Rows::Tokens, &batch, Hyper::default());
    model.accumulate(&batch, &step(&batch)).unwrap();

    let dim = model.plan.config.dim;
    let mut states = vec![("embeddings".to_string(), model.plan.embeddings.out)];
    states.extend(model.plan.layers.iter().enumerate().map(|(l, layer)| (format!("layer.{l}"), layer.out)));
    for (name, view) in states {
        let got = model.read(view).unwrap();
        let width = want.shape(&name)[1];
        for (b, seq) in batch.cu_seqlens.windows(2).enumerate() {
            let len = (seq[1] - seq[0]) as usize;
            let difference =
                max_abs_difference(&got[seq[0] as usize * dim..][..len * dim], &want.get(&name)[b * width * dim..][..len * dim]);
            assert!(difference < 2e-5 * scale, "{case} {name} of sequence {b}: {difference:e}");
        }
    }
    let logits = model.read(model.plan.head.logits).unwrap();
    let difference = max_abs_difference(&logits, want.get("logits"));
    assert!(difference < 1e-5 * scale, "{case} logits: {difference:e}");
    let losses = model.read(model.plan.head.loss).unwrap();
    assert!(max_abs_difference(&losses, want.get("loss_per_sample")) < 2e-6 * scale, "{case} losses");
    let loss = model.take_status().unwrap().loss;
    assert!((loss - want.scalar("loss")).abs() < 2e-6 * scale, "{case} loss {loss}");
}

#[test]
fn golden_forward() {
    for case in CASES {
        forward::<f32>(case, 1.0);
        // In f64 what is left is the rounding of the files.
        forward::<f64>(case, 0.05);
    }
}

fn backward<T: Real>(case: &str, last_rows: Rows) {
    let batch = inputs(case);
    let want = Tensors::read(&format!("{case}/backward.safetensors"));
    let mut model = model::<T>(&format!("{case}/hf"), last_rows, &batch, Hyper::default());
    model.accumulate(&batch, &step(&batch)).unwrap();
    let (mut error, mut norm) = (0.0, 0.0);
    for slot in model.plan.slots.clone() {
        let name = &slot.param.name;
        let got = model.read(model.plan.grad(slot.view)).unwrap();
        let want = want.get(name);
        let difference = max_abs_difference(&got, want);
        let bound = if is_key_bias(name) { 1e-6 } else { 2e-5 * max_abs(want) };
        assert!(difference <= bound, "{case} gradient of {name}: {difference:e} over {bound:e}");
        error += got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        norm += got.iter().map(|x| x * x).sum::<f64>();
    }
    let (error, norm) = (error.sqrt(), norm.sqrt());
    let want = want.scalar("grad_norm");
    assert!(error < 1e-5 * want, "{case} all gradients: {error:e}");
    assert!((norm / want - 1.0).abs() < 5e-6, "{case} gradient norm {norm}");
    model.update().unwrap();
    let reported = model.take_status().unwrap().grad_norm;
    assert!((reported / want - 1.0).abs() < 5e-6, "{case} reported gradient norm {reported}");
}

#[test]
fn golden_backward() {
    for case in CASES {
        for last_rows in [Rows::Tokens, Rows::Seqs] {
            backward::<f32>(case, last_rows);
            backward::<f64>(case, last_rows);
        }
    }
}

#[test]
fn golden_loss_variants() {
    for case in CASES {
        let batch = inputs(case);
        let want = Tensors::read(&format!("{case}/variants.safetensors"));
        let weights = want.get("class_weighted.class_weights");
        let total: f64 = batch.labels.iter().map(|&label| weights[label as usize]).sum();
        for (variant, smoothing, denominator) in [("label_smoothing", 0.1, batch.seqs() as f64), ("class_weighted", 0.0, total)] {
            let hyper = Hyper { label_smoothing: smoothing, ..Hyper::default() };
            let mut model = model::<f32>(&format!("{case}/hf"), Rows::Seqs, &batch, hyper);
            if variant == "class_weighted" {
                model.set_class_weights(weights).unwrap();
            }
            model.accumulate(&batch, &Step { denominator, ..step(&batch) }).unwrap();
            let loss = model.take_status().unwrap().loss;
            assert!((loss - want.scalar(&format!("{variant}.loss"))).abs() < 2e-6, "{case} {variant} loss {loss}");
            let slots = model.plan.slots.clone();
            for slot in &slots[slots.len() - 2..] {
                let want = want.get(&format!("{variant}.{}", slot.param.name));
                let difference = max_abs_difference(&model.read(model.plan.grad(slot.view)).unwrap(), want);
                assert!(difference < 2e-5 * max_abs(want), "{case} {variant} {}: {difference:e}", slot.param.name);
            }
        }
    }
}

#[test]
fn golden_adamw() {
    for case in CASES {
        adamw::<f32>(case);
    }
    // In f64 what is left is the rounding of the file.
    adamw::<f64>("distilbert-a");
    adamw::<f64>("bert-a");
}

fn adamw<T: Real>(case: &str) {
    let double = T::DTYPE == DType::F64;
    let file = if double { Some(Tensors::read(&format!("{case}/adamw_f64.safetensors"))) } else { None };
    let (run, scale) = if double { ("f64", 0.05) } else { ("f32", 1.0) };
    let golden = Tensors::read(&format!("{case}/adamw.safetensors"));
    let notes: Value = json(&format!("{case}/case.json"));
    let (ids, mask) = (golden.ints("batches.input_ids"), golden.ints("batches.attention_mask"));
    let types = if golden.has("batches.token_type_ids") { golden.ints("batches.token_type_ids") } else { Vec::new() };
    let labels = golden.ints("batches.labels");
    let [steps, seqs, width] = golden.shape("batches.input_ids").try_into().unwrap();
    let of = |all: &[i32], i: usize, size: usize| if all.is_empty() { Vec::new() } else { all[i * size..][..size].to_vec() };
    let batches: Vec<PackedBatch> = (0..steps)
        .map(|i| {
            let padded = [&ids, &mask, &types].map(|all| of(all, i, seqs * width));
            pack(&padded[0], &padded[1], &padded[2], &of(&labels, i, seqs))
        })
        .collect();
    let largest = batches.iter().max_by_key(|b| b.rows()).unwrap();
    let hyper = Hyper { weight_decay: 0.01, ..Hyper::default() };
    let mut model = model::<T>(&format!("{case}/hf"), Rows::Seqs, largest, hyper);
    let start = model.read_all(model.plan.params).unwrap();
    let schedule = Schedule { kind: ScheduleKind::Linear, base_lr: 5e-4, warmup: 2, total: 12 };

    let (mut kept, mut compared) = (1.0, 0);
    let mut rates = 0.0;
    for (i, batch) in batches.iter().enumerate() {
        let learning_rate = schedule.lr(i + 1);
        assert!((learning_rate - golden.get("lr")[i]).abs() < 1e-15, "{case} learning rate {learning_rate}");
        kept *= 1.0 - 0.01 * learning_rate;
        rates += learning_rate;
        model.accumulate(batch, &Step { update: i as u64 + 1, learning_rate, ..step(batch) }).unwrap();
        model.update().unwrap();
        let status = model.take_status().unwrap();
        assert!(
            (status.loss_sum - golden.get(&format!("{run}.loss"))[i]).abs() < 3e-6 * scale,
            "{case} step {i} loss {}",
            status.loss_sum
        );
        assert!((status.grad_norm - golden.get(&format!("{run}.grad_norm"))[i]).abs() < 2e-5 * scale, "{case} step {i} norm");
        if i == 0 {
            // Warm-up makes the first learning rate 0: the weights stay bit for bit.
            assert!(model.read_all(model.plan.params).unwrap() == start, "{case}: the first update moved a weight");
        }
        let stored = file.as_ref().unwrap_or(&golden);
        if stored.has(&format!("step{}/{}", i + 1, model.plan.slots[0].param.name)) {
            let bounds = [3e-7, 2e-6, 1e-4].map(|bound| bound * scale);
            compare_parameters(&mut model, &|name| stored.get(&format!("step{}/{name}", i + 1)).to_vec(), rates, bounds);
            compared += 1;
        }
    }

    assert_eq!(
        compared,
        if double {
            1
        } else if case == "distilbert-b" {
            2
        } else {
            3
        },
        "{case}"
    );

    // Weight decay alone, on rows that no batch reaches: PAD's word row, and the positions beyond the batch.
    let dim = model.plan.config.dim;
    let now = model.read_all(model.plan.params).unwrap();
    let position_start = width * dim;
    for (tensor, range) in [(0, 0..dim), (1, position_start..now[1].len())] {
        assert!(!range.is_empty());
        for i in range {
            let want = f64::from(start[tensor][i]) * kept;
            assert!((f64::from(now[tensor][i]) - want).abs() <= 1e-6 * want.abs(), "{case}: decay of an untouched row");
        }
    }

    // And which parameters decay at all.
    for slot in &model.plan.slots {
        let decays = slot.view.offset + slot.view.bytes() <= model.plan.params.offset + model.plan.decayed * T::DTYPE.size();
        let listed = |key: &str| notes["adamw"][key].as_array().unwrap().iter().any(|name| *name == slot.param.name);
        assert_eq!((decays, !decays), (listed("decayed"), listed("not_decayed")), "{case} {}", slot.param.name);
    }
}

/// rms, 99.9 % quantile and maximum of the differences, key biases left out but bounded.
pub fn compare_parameters(model: &mut Model, want: &dyn Fn(&str) -> Vec<f64>, rates: f64, bounds: [f64; 3]) {
    let values = model.read_all(model.plan.params).unwrap();
    let mut differences = Vec::new();
    for (slot, values) in model.plan.slots.iter().zip(values) {
        let name = &slot.param.name;
        let each = values.iter().zip(want(name)).map(|(&a, b)| (f64::from(a) - b).abs()).collect::<Vec<_>>();
        if is_key_bias(name) {
            assert!(max_abs(&each) <= 2.0 * rates, "{name}");
        } else {
            differences.extend(each);
        }
    }
    let rms = rms(differences.iter().copied());
    differences.sort_by(f64::total_cmp);
    let quantile = differences[(differences.len() as f64 * 0.999) as usize];
    let max = differences[differences.len() - 1];
    let got = [rms, quantile, max];
    assert!(got.iter().zip(bounds).all(|(&got, bound)| got < bound), "rms, 99.9 % quantile, maximum: {got:?} over {bounds:?}");
}
