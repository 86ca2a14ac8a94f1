//! The whole model with random weights: training steps, inference, and the copy of a checkpoint, during which training waits.

use serde_json::json;
use warpfit::checkpoint::snapshot::Snapshot;
use warpfit::console::print;
use warpfit::cuda::Cuda;
use warpfit::device::{Device, Opened, Precision};
use warpfit::error::{Error, Kind, Result};
use warpfit::model::config::Config;
use warpfit::model::infer::Wanted;
use warpfit::model::plan::ModelSpec;
use warpfit::model::{Hyperparameters, Model};
use warpfit::ops::{Rows, Step, Update};

use crate::measure::{name, time};
use crate::{Args, Report, reviews};

/// DistilBERT-base: every other key has its default.
const BASE: &str = r#"{ "model_type": "distilbert" }"#;
/// Training without updates beside the next forward pass, to measure what they gain.
const AT_ONCE: &str = "train at once";
const SAVE: &str = "save";
const SMALL: &str =
    r#"{ "model_type": "distilbert", "vocab_size": 1000, "dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": 128 }"#;

pub fn bench(args: &Args, report: &mut Report) -> Result<()> {
    let config = Config::parse(if args.small { SMALL } else { BASE }.as_bytes(), "the model timed")?;
    let on_gpu = matches!(args.device, Device::Cuda(_));
    let all = ["train", AT_ONCE, "infer"];
    for what in all.into_iter().filter(|&what| args.wants(what) && (on_gpu || what != AT_ONCE)) {
        for &count in &args.batch {
            for precision in args.precisions() {
                row(args, &config, what, count, precision, report)?;
            }
        }
    }
    if args.wants(SAVE) { save(args, &config, report) } else { Ok(()) }
}

/// Copies the parameters and moments to the host, as a save does before it writes them.
fn save(args: &Args, config: &Config, report: &mut Report) -> Result<()> {
    let Some(&precision) = args.precisions().first() else { return Ok(()) };
    let Opened { backend, arithmetic, .. } = args.device.open(precision)?;
    let spec = ModelSpec { train: true, last_rows: Rows::Cls, tokens: 1, seqs: 1, arithmetic };
    let mut model = Model::new(config, spec, Hyperparameters::default(), backend)?;
    let views = [model.plan.params, model.plan.m, model.plan.v];
    let mut snapshot = Snapshot::new(&model.plan, views.len());
    let timing = time(args.samples, |n| (0..n).try_for_each(|_| snapshot.take(&mut model, &views)))?;
    let bytes = Snapshot::bytes(&model.plan, views.len());
    let gb_per_s = bytes as f64 / timing.median * 1e-3;
    let mib = bytes as f64 / (1 << 20) as f64;
    print(format!("{SAVE:<18}{:<31}{:>24} us; {gb_per_s:.1} GB/s", format!("{mib:.0} MiB to the host"), timing.to_string()))?;
    report.add(json!({ "op": SAVE, "bytes": bytes, "us_warm": timing, "gb_per_s": gb_per_s }))
}

fn row(args: &Args, config: &Config, what: &str, count: usize, precision: Precision, report: &mut Report) -> Result<()> {
    let batch = reviews(count, config.vocab, if args.small { 32 } else { 1 });
    let train = what != "infer";
    let (tokens, seqs) = (batch.tokens(), batch.seqs());
    let Opened { mut backend, arithmetic, .. } = args.device.open(precision)?;
    if let (AT_ONCE, Device::Cuda(index)) = (what, args.device) {
        backend = Box::new(Cuda::open(index)?.updates_at_once());
    }
    let spec = ModelSpec { train, last_rows: Rows::Cls, tokens, seqs, arithmetic };
    let mut model = Model::new(config, spec, Hyperparameters { weight_decay: 0.01, ..Hyperparameters::default() }, backend)?;
    let weights: Vec<_> = model.plan.slots.iter().map(|slot| slot.param.initialise(1, config.initializer_range)).collect();
    model.write_all(model.plan.params, &weights)?;

    let mut update = 0;
    let mut skipped = 0.0;
    let timing = time(args.samples, |n| {
        if !train {
            let batches = std::iter::repeat_n((batch.clone(), Wanted::LOGITS), n);
            model.infer_all(batches, |_, results| {
                skipped += f64::from(u8::from(!results.logits.iter().all(|x| x.is_finite())));
                Ok(())
            })?;
        } else {
            for _ in 0..n {
                update += 1;
                let step = Step { seed: 1, update, micro: 0, loss_normalizer: seqs as f64, train };
                model.accumulate(&batch, &step)?;
                model.update(&Update { number: update, learning_rate: 2e-5 })?;
            }
        }
        skipped += model.take_status()?.skipped;
        Ok(())
    })?;
    // With a loss scale, updates at its start may overflow and be skipped.
    if skipped > 0.0 && !(train && model.scales_loss()) {
        let place = format!("{what}, {count} reviews, {}", name(precision));
        return Err(Error::new(Kind::Unusable, place, "its result is not finite", "run the tests on this device"));
    }
    let a_second = |count: usize| count as f64 / timing.median * 1e6;
    let (tokens_per_s, texts_per_s) = (a_second(tokens), a_second(seqs));
    let mib = model.plan.layout.bytes as f64 / (1 << 20) as f64;
    print(format!(
        "{what:<18}{:<26}{:<5}{:>24} us per step; {tokens_per_s:.0} tokens/s, {texts_per_s:.0} texts/s, {mib:.0} MiB planned",
        format!("{count} reviews, {tokens} tokens"),
        name(precision),
        timing.to_string(),
    ))?;
    report.add(json!({
        "op": what,
        "shape": format!("{tokens} tokens"),
        "reviews": count,
        "precision": precision,
        "us_warm": timing,
        "tokens_per_s": tokens_per_s,
        "texts_per_s": texts_per_s,
        "bytes_planned": model.plan.layout.bytes,
    }))
}
