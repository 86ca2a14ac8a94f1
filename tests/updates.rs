//! Updates that leave something for later, against updates of everything at once: rows of the word table without a gradient, which
//! catch up, and matrices that are updated beside the next forward pass. The same bits, in whatever order parameters are used, read,
//! written, and resumed.

use warpfit::cuda::Cuda;
use warpfit::data::pack::PackedBatch;
use warpfit::model::config::Config;
use warpfit::model::infer::Wanted;
use warpfit::model::plan::ModelSpec;
use warpfit::model::{Hyperparameters, Model};
use warpfit::ops::*;

use crate::fixtures::*;

const VOCAB: usize = 40;
const PAD: usize = 0;

fn config(dim: usize) -> Config {
    config_of(dim, 1, 8, 2)
}

fn config_of(dim: usize, layers: usize, positions: usize, classes: usize) -> Config {
    let json = format!(
        r#"{{"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"], "vocab_size": {VOCAB}, "dim": {dim},
            "n_heads": 4, "n_layers": {layers}, "hidden_dim": 8, "max_position_embeddings": {positions}, "num_labels": {classes}, "pad_token_id": {PAD}}}"#
    );
    Config::parse(json.as_bytes(), "config").unwrap()
}

fn model(config: &Config, on: On, gpu: Cuda) -> Model {
    let spec = ModelSpec { train: true, last_rows: Rows::Cls, tokens: 64, seqs: 4, arithmetic: on.arithmetic() };
    let hyper = Hyperparameters { weight_decay: 0.01, max_grad_norm: 0.5, ..Hyperparameters::default() };
    Model::new(config, spec, hyper, Box::new(gpu)).unwrap()
}

/// A model whose weights are simple functions of their place.
fn fresh(config: &Config, on: On, gpu: Cuda) -> Model {
    let mut model = model(config, on, gpu);
    for slot in model.plan.slots.clone() {
        let values: Vec<f32> =
            (0..slot.view.len).map(|i| ((i * 37 + slot.param.name.len()) % 101) as f32 / 101.0 - 0.3).collect();
        model.write_f32(slot.view, &values).unwrap();
    }
    model
}

/// Two texts of two or three of a few words, which change slowly: most words rest for long, one is used once.
fn texts(number: u64, micro: u32) -> PackedBatch {
    let word = |i: u64| 1 + ((number / 7 * 3 + number % 3 * i + u64::from(micro) * 11 + i) % (VOCAB as u64 - 2)) as i32;
    let once = if number == 3 { VOCAB as i32 - 1 } else { word(5) };
    let rows = [vec![1, word(1), word(2)], vec![1, once, word(3), PAD as i32, word(1)]];
    PackedBatch::new(rows.iter().zip([0, 1]).map(|(ids, label)| (&ids[..], &[][..], label)))
}

fn micro_batches(number: u64) -> u32 {
    1 + u32::from(number.is_multiple_of(3))
}

fn accumulate(model: &mut Model, number: u64, micro: u32) {
    let step = Step { seed: 3, update: number, micro, loss_normalizer: 2.0, train: true };
    model.accumulate(&texts(number, micro), &step).unwrap();
}

/// The update, which a gradient that is not finite makes one to skip at times.
fn update(model: &mut Model, number: u64) {
    if number % 13 == 5 {
        let last = model.plan.slots.last().unwrap().view;
        model.write(model.plan.grad(last).slice(0, 1), &[f64::NAN]).unwrap();
    }
    model.update(&Update { number, learning_rate: 1e-2 / (1.0 + number as f64 / 50.0) }).unwrap();
}

/// All numbers of a model.
fn state(model: &mut Model) -> Vec<u64> {
    let plan = &model.plan;
    let views = [plan.params, plan.weights, plan.grads, plan.m, plan.v, plan.status];
    views.into_iter().flat_map(|view| model.read(view).unwrap()).map(f64::to_bits).collect()
}

/// Reads and writes tensors besides ops, or infers; returns what was read.
fn disturb(model: &mut Model, number: u64, micro: u32) -> Vec<f64> {
    let word = |row: usize, flat: View| flat.slice((row + 1) * model.plan.config.dim - 3, 3);
    let row_of_the_next = texts(number, micro + 1).ids[1] as usize;
    match (number + u64::from(micro)) % 17 {
        2 => return model.infer(&texts(number + 40, 0), Wanted::LOGITS).unwrap().logits,
        5 => return model.read(word(7, model.plan.params)).unwrap(),
        9 => model.write(word(9, model.plan.params), &[0.25, -0.5, 1.0]).unwrap(),
        12 => model.write(word(row_of_the_next, model.plan.grads), &[0.25, -0.5, 1.0]).unwrap(),
        14 => model.write(word(11, model.plan.v), &[0.25, 0.5, 1.0]).unwrap(),
        15 => return model.read(word(38, model.plan.grads)).unwrap(),
        _ => (),
    }
    Vec::new()
}

/// Returns what was read on the way.
fn trained(model: &mut Model, updates: std::ops::RangeInclusive<u64>, disturbed: bool) -> Vec<f64> {
    let mut seen = Vec::new();
    for number in updates {
        for micro in 0..micro_batches(number) {
            accumulate(model, number, micro);
            if disturbed {
                seen.extend(disturb(model, number, micro));
            }
        }
        update(model, number);
    }
    seen
}

#[test]
fn updates_of_few_rows_have_the_bits_of_updates_of_all() {
    // The first runs beyond the updates on which a row can catch up; the second and third have rows of several tiles.
    for (on, dim, updates) in [(On::Cuda, 8, 530), (On::Cuda, 264, 25), (On::CudaBf16, 264, 25), (On::CudaF16, 8, 110)] {
        let config = config(dim);
        for (disturbed, updates) in [(false, updates), (true, updates.min(60))] {
            let [mut few, mut all] = [gpu(), gpu().updates_every_row()].map(|gpu| fresh(&config, on, gpu));
            assert!(few.backend().passes_over_rows() && !all.backend().passes_over_rows());
            let [of_few, of_all] = [&mut few, &mut all].map(|model| trained(model, 1..=updates, disturbed));
            assert!(of_few == of_all && of_few.is_empty() != disturbed, "{on:?}, {dim}");
            assert!(state(&mut few) == state(&mut all), "{on:?}, {dim}, disturbed: {disturbed}");
            assert!(few.status().unwrap().skipped >= 2.0);
        }
    }
}

/// Whatever follows an update: a forward pass of a batch, in training or not, or a read or write of some parameters, or another
/// update of the same gradients.
#[test]
fn updates_beside_the_next_forward_pass_have_the_bits_of_updates_at_once() {
    // With 64 positions, part of their table is updated beside the pass; with 300 classes, nothing but part of the last layer.
    let models =
        [(On::Cuda, 3, 8, 2), (On::CudaBf16, 3, 8, 2), (On::CudaF16, 2, 64, 2), (On::Cuda, 1, 64, 2), (On::CudaBf16, 1, 8, 300)];
    for (on, layers, positions, classes) in models {
        let config = config_of(8, layers, positions, classes);
        let longest = PackedBatch::new([(&vec![1; positions][..], &[][..], 0)]);
        let [mut beside, mut at_once] = [gpu(), gpu().updates_at_once()].map(|gpu| fresh(&config, on, gpu));
        let run = |model: &mut Model| -> Vec<f64> {
            let mut seen = Vec::new();
            for number in 1..=30 {
                seen.extend(trained(model, number..=number, number % 4 == 0));
                let plan = model.plan.clone();
                let last = plan.slots[plan.slots.len() - 2].view;
                match number % 9 {
                    1 => seen.extend(model.infer(&longest, Wanted::LOGITS).unwrap().logits),
                    2 => seen.extend(model.read(last).unwrap()),
                    3 => seen.extend(model.read(plan.view_in(last, plan.m)).unwrap()),
                    4 => model.write(plan.grad(last).slice(0, 1), &[0.5]).unwrap(),
                    5 => model.write(last.slice(1, 2), &[0.5, -0.5]).unwrap(),
                    6 => model.update(&Update { number, learning_rate: 1e-3 }).unwrap(),
                    7 => seen.push(model.status().unwrap().grad_norm),
                    _ => (),
                }
            }
            seen
        };
        let (of_beside, of_at_once) = (run(&mut beside), run(&mut at_once));
        assert!(
            of_beside == of_at_once && of_beside.iter().all(|x| x.is_finite()),
            "{on:?}, {layers} layers, {positions} positions, {classes} classes"
        );
        assert!(state(&mut beside) == state(&mut at_once), "{on:?}, {layers} layers, {positions} positions, {classes} classes");
        if is_virtual() {
            let kernels = |model: &mut Model| vgpu::submitted(|| update(model, 31)).kernels;
            assert_eq!(kernels(&mut beside), kernels(&mut at_once) + 1, "one launch more, that of the second stream");
        }
    }
}

/// From a state that was read at any point, as from a checkpoint.
#[test]
fn a_run_that_is_resumed_has_the_bits_of_one_that_is_not() {
    let config = config(8);
    let mut whole = fresh(&config, On::Cuda, gpu());
    trained(&mut whole, 1..=24, false);
    let whole = state(&mut whole);
    for (number, micro) in (1..=24).flat_map(|number| (0..=micro_batches(number)).map(move |micro| (number, micro))) {
        let mut first = fresh(&config, On::Cuda, gpu());
        trained(&mut first, 1..=number - 1, false);
        (0..micro).for_each(|micro| accumulate(&mut first, number, micro));
        let mut second = model(&config, On::Cuda, gpu());
        let plan = first.plan.clone();
        for flat in [plan.m, plan.grads, plan.params, plan.v] {
            let values = first.read_all(flat).unwrap();
            second.write_all(flat, &values).unwrap();
        }
        second.set_status(&first.status().unwrap()).unwrap();
        (micro..micro_batches(number)).for_each(|micro| accumulate(&mut second, number, micro));
        update(&mut second, number);
        trained(&mut second, number + 1..=24, false);
        assert!(state(&mut second) == whole, "resumed in update {number} after {micro} micro-batches");
    }
}

/// An update moves few bytes more than those of the batch's words: rows that nothing reads stay as they are in memory.
#[test]
fn rows_without_a_gradient_are_not_touched() {
    if !is_virtual() {
        return; // A real GPU does not count.
    }
    let config = config(8);
    let mut model = fresh(&config, On::Cuda, gpu());
    trained(&mut model, 1..=6, false);
    // The first update after all rows were read needs no launch for rows that catch up.
    state(&mut model);
    let kernels = |model: &mut Model, number| vgpu::submitted(|| drop(trained(model, number..=number, false))).kernels;
    let (settled, behind) = (kernels(&mut model, 7), kernels(&mut model, 8));
    assert_eq!(behind, settled + 1);
    let read = |model: &mut Model, view: View| vgpu::submitted(|| drop(model.read(view).unwrap())).kernels;
    // The status block and the head's weights are read without the table.
    let head = model.plan.slots.last().unwrap().view;
    let (status, params) = (model.plan.status, model.plan.params);
    assert_eq!([status, head, params, params].map(|view| read(&mut model, view)), [0, 0, 1, 0]);
}
