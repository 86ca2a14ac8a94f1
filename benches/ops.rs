//! Every op alone.

use serde_json::json;
use warpfit::console::print;
use warpfit::cost::{Cost, Size};
use warpfit::cpu::Cpu;
use warpfit::device::Opened;
use warpfit::error::Result;
use warpfit::ops::*;

use crate::cases::{self, *};
use crate::measure::{Ceilings, name, time};
use crate::{Args, Report, reviews};

/// Parameters of DistilBERT-base with two classes, padded as in a plan, and those with weight decay.
const PARAMS: usize = 66_955_024;
const DECAYED: usize = 66_892_800;
const VOCAB: usize = 30_522;
/// Bytes accessed before the same address is used again, in copies of the tensors, unless that needs more copies than this.
const COLD: usize = 256 << 20;
const COPIES: usize = 16;
/// Numbers and operations up to which an op is recomputed in f64, and bytes moved in checking whether bits repeat.
const CHECKED: [usize; 2] = [64 << 20, 100_000_000_000];
const REPEATED: usize = 16 << 30;

/// An op with a short name and its shape, and the number of reviews on which it depends, if any.
struct Entry {
    name: String,
    shape: String,
    reviews: Option<usize>,
    case: Case,
}

pub fn bench(args: &Args, ceilings: &Ceilings, report: &mut Report) -> Result<()> {
    let line = |[op, shape, precision, cold, warm, speed, share, error, bits]: [&str; 9]| {
        let what = format!("{op:<18}{shape}");
        print(format!("{what:<43} {precision:<5}{cold:>24}{warm:>24}{speed:>15}{share:>7}{error:>9}{bits:>10}"))
    };
    line(["op", "shape", "", "cold us (p10-p90)", "warm us (p10-p90)", "speed", "% roof", "error", "same bits"])?;
    for entry in entries(args) {
        let call = entry.case.call();
        for precision in args.precisions() {
            let name_of = |pass: Pass| match call {
                Call::Op(_) => format!("{} {pass}", entry.name),
                _ => entry.name.clone(),
            };
            let passes = passes(&call).iter().map(|&pass| (pass, name_of(pass)));
            let passes: Vec<_> = passes.filter(|(_, name)| args.wants(name)).collect();
            if passes.is_empty() {
                continue;
            }
            let Opened { backend, arithmetic, .. } = args.device.open(precision)?;
            match call {
                // Only products differ from f32.
                Call::Op(Op::Linear(_)) => (),
                Call::Op(Op::Attention(_) | Op::Classifier(_)) if arithmetic == Arithmetic::Bf16Products => (),
                Call::Cast(_) if arithmetic.dtype().size() != 2 => continue,
                _ if matches!(arithmetic, Arithmetic::Tf32 | Arithmetic::Bf16Products) => continue,
                _ => (),
            }
            let size = Size::from(&entry.case.batch);
            let least = cost(&call, Pass::Forward, &size).bytes / (DType::F32.size() / arithmetic.dtype().size());
            let copies = if args.small { 1 } else { COLD.div_ceil(least).min(COPIES) };
            let (mut run, calls) = entry.case.copies(copies, arithmetic, backend);
            let errors = if args.no_errors { None } else { errors(&mut run, &entry.case) };
            let repeats = repeats(&mut run, args.repeats);
            for (pass, name_of_pass) in passes {
                // The inputs of the backward pass; for the caches, one whole pass over the copies.
                calls.iter().try_for_each(|call| call.run(run.backend.as_mut(), Pass::Forward))?;
                let mut timed = |calls: &[Call]| {
                    let mut next = calls.iter().cycle();
                    let backend = run.backend.as_mut();
                    time(args.samples, |n| {
                        next.by_ref().take(n).try_for_each(|call| call.run(backend, pass))?;
                        backend.wait()
                    })
                };
                let cost = cost(&run.call, pass, &size);
                // Half of it still exceeds the caches by far.
                let is_cold = cost.bytes * copies >= COLD / 2;
                let cold = if is_cold { Some(timed(&calls)?) } else { None };
                let warm = if copies > 1 || !is_cold { Some(timed(&calls[..1])?) } else { None };
                let median = cold.or(warm).expect("one of them").median;
                let (speed, unit) =
                    if cost.flops > 0 { (cost.flops as f64 * 1e-6, "TFLOP/s") } else { (cost.bytes as f64 * 1e-3, "GB/s") };
                let speed = speed / median;
                let share = 100.0 * ceilings.floor(cost, precision) / median;
                let error = errors.map(|errors| errors[pass as usize]);
                line([
                    &name_of_pass,
                    &entry.shape,
                    &name(precision),
                    &cold.map_or("-".into(), |timing| timing.to_string()),
                    &warm.map_or("-".into(), |timing| timing.to_string()),
                    &format!("{speed:.3} {unit}"),
                    &format!("{share:.0}"),
                    &error.map_or("-".into(), |error| format!("{error:.1e}")),
                    &format!("{}/{}", repeats[0], repeats[1]),
                ])?;
                report.add(json!({
                    "op": name_of_pass,
                    "shape": entry.shape,
                    "reviews": entry.reviews,
                    "precision": precision,
                    "us_cold": cold,
                    "us_warm": warm,
                    "copies": copies,
                    "bytes": cost.bytes,
                    "flops": cost.flops,
                    "speed": speed,
                    "unit": unit,
                    "percent_of_ceiling": share,
                    "error": error,
                    "same_bits": repeats[0],
                    "of_runs": repeats[1],
                }))?;
            }
            assert!(run.guards_hold(), "{} wrote outside its tensors", entry.name);
        }
    }
    Ok(())
}

fn entries(args: &Args) -> Vec<Entry> {
    if args.small {
        let entry = |case: Case| Entry { name: case.name.clone(), shape: String::new(), reviews: None, case };
        return cases::cases().into_iter().map(entry).collect();
    }
    let (t, s) = (Rows::Tokens, Rows::Cls);
    let drop = DropSite { p: 0.1, site: 5 };
    let (dim, ffn, heads) = (768, 3072, 12);
    let mut entries = Vec::new();
    for &count in &args.batch {
        let batch = &reviews(count, VOCAB, 1);
        let tokens = batch.tokens();
        let mut add = |name: &str, rows: usize, widths: String, case: Case| {
            entries.push(Entry { name: name.into(), shape: format!("{rows} x {widths}"), reviews: Some(count), case });
        };
        let mut linear = |name: &str, k: usize, n: usize, add_dx: bool| {
            add(&format!("linear {name}"), tokens, format!("{k} -> {n}"), cases::linear(batch, k, n, t, add_dx));
        };
        linear("qkv", dim, 3 * dim, true);
        linear("out", dim, dim, false);
        linear("up", dim, ffn, true);
        linear("down", ffn, dim, false);
        add("attn", tokens, format!("{heads} x 64"), attn(batch, heads, 64, t, drop));
        add("attn cls", count, format!("{heads} x 64"), attn(batch, heads, 64, s, drop));
        add("add_norm", tokens, dim.to_string(), add_norm(batch, dim, t, true, drop));
        add("norm", tokens, dim.to_string(), add_norm(batch, dim, t, false, DropSite::NONE));
        add("gelu", tokens, ffn.to_string(), gelu(batch, ffn, t));
        add("embed", tokens, dim.to_string(), embed(batch, dim, 0, Some(0), drop));
        add("first_row", count, dim.to_string(), first_row(batch, dim, false));
        let head = classifier(batch, dim, 2, Activation::Relu, drop, PLAIN);
        add("classifier", count, format!("{dim} -> 2"), head);
    }
    let flat = [("grad_norm", grad_norm(PARAMS)), ("adamw", adamw(PARAMS, DECAYED, 1.0, 0.5)), ("cast", cast(PARAMS))];
    let entry = |(name, case): (&str, _)| Entry { name: name.into(), shape: PARAMS.to_string(), reviews: None, case };
    entries.extend(flat.map(entry));
    entries
}

fn passes(call: &Call) -> &'static [Pass] {
    if let Call::Op(_) = call { &Pass::BOTH } else { &[Pass::Forward] }
}

fn cost(call: &Call, pass: Pass, size: &Size) -> Cost {
    match (call, pass) {
        (Call::Op(op), pass) => op.cost(pass, size),
        (Call::Cast(op), Pass::Forward) => op.cost(),
        (Call::GradNorm(op), Pass::Forward) => op.cost(size),
        (Call::AdamW(op, _), Pass::Forward) => op.cost(size),
        (_, Pass::Backward) => Cost::default(),
    }
}

/// |got - f64| / |f64| of forward and backward, of the tensor with the largest error; `None` if f64 would take long.
fn errors(run: &mut Run, case: &Case) -> Option<[f64; 2]> {
    let size = Size::from(&case.batch);
    let numbers: usize = run.tensors.iter().map(|tensor| tensor.extent.rows(&case.batch) * tensor.width).sum();
    let flops: usize = Pass::BOTH.iter().map(|&pass| cost(&run.call, pass, &size).flops).sum();
    if numbers > CHECKED[0] || flops > CHECKED[1] {
        return None;
    }
    let mut exact = case.on(Arithmetic::F64, Box::new(Cpu::<f64>::new()));
    let names: Vec<&str> = exact.tensors.iter().map(|tensor| tensor.name).collect();
    names.iter().for_each(|name| exact.write(name, &run.tensor(name).start));
    let mut before: Vec<Vec<f64>> = names.iter().map(|name| exact.read(name)).collect();
    let passes: [fn(&mut Run); 2] = [Run::forward, Run::backward];
    let errors = passes.map(|pass| {
        pass(run);
        pass(&mut exact);
        let mut largest = 0.0;
        for (name, before) in names.iter().zip(&mut before) {
            let want = exact.read(name);
            if want.iter().zip(before.iter()).any(|(after, before)| after.to_bits() != before.to_bits()) {
                let difference = norm(run.read(name).iter().zip(&want).map(|(got, want)| got - want));
                let error = difference / norm(want.iter().copied());
                // A NaN is kept.
                if error > largest || error.is_nan() {
                    largest = error;
                }
            }
            *before = want;
        }
        largest
    });
    Some(errors)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Runs forward and backward repeatedly from the same start: the number of runs with the bits of the first, and of all runs.
fn repeats(run: &mut Run, runs: usize) -> [usize; 2] {
    let bytes = |run: &mut Run, view: View| {
        let mut bytes = vec![0; view.bytes()];
        run.backend.download(view, &mut bytes).unwrap();
        bytes
    };
    let views: Vec<View> = run.tensors.iter().map(|tensor| tensor.view).collect();
    run.reset();
    let start: Vec<_> = views.iter().map(|&view| bytes(run, view)).collect();
    run.forward();
    run.backward();
    // The written tensors have to be restored, and compared.
    let written = views.into_iter().zip(start).map(|(view, start)| (view, start, bytes(run, view)));
    let written: Vec<_> = written.filter(|(_, start, end)| start != end).collect();
    let moved: usize = written.iter().map(|(view, ..)| 2 * view.bytes()).sum();
    let runs = runs.min((REPEATED / moved.max(1)).max(3));
    let same = (1..runs).filter(|_| {
        written.iter().for_each(|(view, start, _)| run.backend.upload(*view, start).unwrap());
        run.forward();
        run.backward();
        written.iter().all(|(view, _, end)| bytes(run, *view) == *end)
    });
    [1 + same.count(), runs.max(1)]
}
