//! Checks every op against numerical gradients and against itself in another precision and on another device, and for forbidden
//! effects: writing outside its tensors, spreading a NaN, depending on the number of threads. The checks take any backend; see
//! `cases` for the ops.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuilder};
use warpfit::cpu::Instructions;
use warpfit::ops::*;
use warpfit::random::philox;

use crate::fixtures::{On, allocations, factor, is_virtual, max_abs, max_abs_difference, rms};
use cases::*;

pub mod cases;
pub mod views;

/// The checks that apply to every backend.
macro_rules! everywhere {
    ($($module:ident: $on:ident;)* { $($check:ident)* }) => {
        everywhere! { @ [$($module: $on;)*] { $($check)* } }
    };
    (@ [$($module:ident: $on:ident;)*] $checks:tt) => {
        $(everywhere! { @ $module $on $checks })*
    };
    (@ $module:ident $on:ident { $($check:ident)* }) => {
        mod $module {
            $(#[test]
            fn $check() {
                super::$check(super::On::$on);
            })*
        }
    };
}

everywhere! {
    cpu: Cpu; cpu_bf16: CpuBf16; cuda: Cuda; cuda_bf16: CudaBf16; cuda_f16: CudaF16;
    {
        same_bits
        nan_and_infinity_match_f64
        dropout_masks_match_the_definition
        dropout_off_is_the_identity
        the_first_micro_batch_overwrites
        gelu_in_place
        the_loss_at_the_edges
        the_loss_is_counted_in_training_only
        the_loss_scale_multiplies_gradients
        grad_norm_is_the_root_of_the_sum_of_squares
        adamw_matches_the_definition
        adamw_skips_non_finite_updates
        adamw_gives_up_below_a_loss_scale_of_1
        memory
        large_download
        stage
        staging_needs_no_wait
    }
}

fn start(case: &Case, on: On) -> Run {
    case.on(on.arithmetic(), on.backend())
}

/// Continues after a failing case, so that all are named.
fn each(cases: Vec<Case>, check: impl Fn(&Case)) {
    let failed: Vec<_> = cases.iter().filter(|case| catch_unwind(AssertUnwindSafe(|| check(case))).is_err()).collect();
    let names: Vec<&str> = failed.iter().map(|case| case.name.as_str()).collect();
    assert!(names.is_empty(), "{} of {} cases failed:\n{}", names.len(), cases.len(), names.join("\n"));
}

/// A tensor's gradient without the start value it was added to.
fn gradient(run: &mut Run, tensor: &str) -> Vec<f64> {
    let mut values = run.read(tensor);
    if run.tensor(tensor).adds {
        values.iter_mut().zip(&run.tensor(tensor).start).for_each(|(x, start)| *x -= start);
    }
    values
}

/// Entries of a tensor to check: all of a small one, else some of every sequence.
fn sample(tensor: &Tensor, case: &Case) -> BTreeSet<usize> {
    // The cost of attention is quadratic in the length.
    let count = if case.batch.max_seqlen > 128 && matches!(case.call(), Call::Op(Op::Attention(_))) { 24 } else { 128 };
    let len = tensor.start.len();
    if len <= count {
        return (0..len).collect();
    }
    let at = |i: usize, salt: u32, below: usize| philox([i as u32, salt], [[0]; 4])[0][0] as usize % below;
    let row = |i: usize| {
        if tensor.extent != Extent::Batch(Rows::Tokens) {
            return at(i, 1, tensor.extent.rows(&case.batch));
        }
        let seq = i % case.batch.seqs();
        let [start, end] = [seq, seq + 1].map(|seq| case.batch.cu_seqlens[seq] as usize);
        start + at(i, 2, end - start)
    };
    (0..count).map(|i| row(i) * tensor.width + at(i, 3, tensor.width)).collect()
}

/// d (sum of outputs * cotangents) / d (entry `i` of `input`), by central differences of two widths, extrapolated to eliminate
/// the error quadratic in the width.
fn slope(run: &mut Run, input: &Tensor, i: usize) -> f64 {
    let outputs: Vec<Tensor> = run.tensors.iter().filter(|t| t.cotangent.is_some()).cloned().collect();
    let mut outputs_at = |h: f64| -> Vec<Vec<f64>> {
        for tensor in run.tensors.iter().filter(|t| t.grad.is_some()) {
            run.backend.write(tensor.view, &tensor.start).unwrap();
        }
        run.backend.write(input.view.slice(i, 1), &[input.start[i] + h]).unwrap();
        run.forward();
        outputs.iter().map(|t| run.read(t.name)).collect()
    };
    let width = 2e-3;
    let [near, far] = [0.5 * width, width].map(|h| (h, outputs_at(h), outputs_at(-h))).map(|(h, above, below)| {
        let products = outputs.iter().zip(above.iter().zip(&below)).map(|(output, (above, below))| {
            let cotangent = &run.tensor(output.cotangent.unwrap()).start;
            above.iter().zip(below).zip(cotangent).map(|((a, b), c)| (a - b) * c).sum::<f64>()
        });
        products.sum::<f64>() / (2.0 * h)
    });
    (4.0 * near - far) / 3.0
}

fn check_gradients(case: &Case) {
    let mut run = start(case, On::CpuF64);
    run.forward();
    run.backward();
    let inputs: Vec<Tensor> = run.tensors.iter().filter(|t| t.grad.is_some()).cloned().collect();
    let gradients: Vec<Vec<f64>> = inputs.iter().map(|t| gradient(&mut run, t.grad.unwrap())).collect();
    for (input, gradient) in inputs.iter().zip(gradients) {
        let scale = rms(gradient.iter().copied());
        let frozen = match run.call {
            Call::Op(Op::Embed(Embed { pad: Some(pad), dim, .. })) if input.name == "word" => pad * dim..(pad + 1) * dim,
            _ => 0..0,
        };
        assert!(gradient[frozen.clone()].iter().all(|&g| g == 0.0), "{}: the row of PAD has a gradient", case.name);
        for i in sample(input, case).into_iter().filter(|i| !frozen.contains(i)) {
            let (got, want) = (gradient[i], slope(&mut run, input, i));
            let bound = 1e-8 * (want.abs() + scale);
            assert!((got - want).abs() <= bound, "{}: gradient of {}[{i}] is {got}, not {want}", case.name, input.name);
        }
    }
}

/// On the CPU in f64: the other tests compare gradients with these.
#[test]
fn gradients() {
    each(odd(), check_gradients);
}

/// The gradients of biases are the column sums of the gradients of what ends with them, on the CPU in f64.
#[test]
fn gradients_of_biases() {
    each(odd(), |case| {
        let (mut run, _) = finish(case, On::CpuF64);
        let sums = match run.call {
            Call::Op(Op::Classifier(op)) => vec![("db", vec![(op.dlogits, op.classes)]), ("dx_sum", vec![(op.dx, op.dim)])],
            Call::Op(Op::Attention(op)) => {
                vec![("db", vec![(op.dq, op.q_stride), (op.dk, op.kv_stride), (op.dv, op.kv_stride)])]
            }
            Call::Op(Op::AddNorm(op)) if !op.db.is_none() => vec![("db", vec![(op.dx, op.dim)])],
            Call::Op(Op::Gelu(op)) => vec![("db", vec![(op.dy, op.width)])],
            _ => return,
        };
        for (name, parts) in sums {
            let got = gradient(&mut run, name);
            let width = got.len() / parts.len();
            for (got, (d, stride)) in got.chunks(width).zip(parts) {
                let d = run.backend.read(d).unwrap();
                for (c, got) in got.iter().enumerate() {
                    let want: f64 = d.chunks(stride).map(|row| row[c]).sum();
                    assert!((got - want).abs() <= 1e-12 * (1.0 + want.abs()), "{}: {name}[{c}] is {got}, not {want}", case.name);
                }
            }
        }
    });
}

/// Every tensor after forward and backward.
fn finish(case: &Case, on: On) -> (Run, Vec<Vec<f64>>) {
    let mut run = start(case, on);
    run.forward();
    run.backward();
    let values = run.tensors.clone().iter().map(|t| run.read(t.name)).collect();
    (run, values)
}

/// The same in f64, with the same start values as `tensors`.
fn in_f64(case: &Case, tensors: &[Tensor]) -> Vec<Vec<f64>> {
    let mut run = start(case, On::CpuF64);
    tensors.iter().for_each(|t| run.write(t.name, &t.start));
    run.forward();
    run.backward();
    tensors.iter().map(|t| run.read(t.name)).collect()
}

/// No NaN from the start is left; nothing is written outside a tensor; the results in f32 match those in f64.
fn check_f32(case: &Case, on: On) {
    let (mut run, got) = finish(case, on);
    assert!(run.guards_hold(), "{} on {on:?} wrote outside its tensors", case.name);
    let want = in_f64(case, &run.tensors);
    for (tensor, (got, want)) in run.tensors.iter().zip(got.iter().zip(&want)) {
        assert!(want.iter().all(|x| x.is_finite()), "{}: {} is not finite", case.name, tensor.name);
        let difference = max_abs_difference(got, want);
        let bound = 1e-5 * max_abs(want);
        assert!(difference <= bound, "{} on {on:?}: {} differs by {difference:e} from f64", case.name, tensor.name);
    }
}

#[test]
fn f32_on_the_cpu() {
    each(cases(), |case| check_f32(case, On::Cpu));
}

/// Instructions that are inexact on a GPU have errors on the virtual one too, by VGPU_SEED or 1.
fn with_errors(checks: impl FnOnce()) {
    let exact = is_virtual() && !std::env::var("VGPU_SEED").is_ok_and(|seed| seed != "0");
    if exact {
        vgpu::set_errors(1);
    }
    checks();
    if exact {
        vgpu::set_errors(0);
    }
}

#[test]
fn f32_on_cuda() {
    with_errors(|| each(cases(), |case| check_f32(case, On::Cuda)));
}

/// More texts, and tiles of attention, than the second dimension of a grid allows. Of several launches only the first overwrites
/// the gradients of biases.
#[test]
fn sixty_six_thousand_short_texts_on_cuda() {
    let (many, on) = (batch(&[2; 66_000]), DropSite { p: 0.1, site: 3 });
    let first = |mut case: Case| {
        case.step.micro = 0;
        case
    };
    let cases = vec![first(attn(&many, 1, 8, Rows::Cls, on)), first_row(&many, 8, false)];
    let classifier = classifier(&many, 8, 2, Activation::Relu, on, PLAIN);
    each(cases.into_iter().chain([classifier]).collect(), |case| check_f32(case, On::Cuda));
    each(vec![first(attn(&many, 1, 32, Rows::Tokens, on))], |case| check_16_bits(case, On::CudaBf16));
}

/// The errors in 16 bits are at most twice those of a plain computation that rounds only what it stores; sums in f32 are otherwise
/// as exact as there.
fn check_16_bits(case: &Case, on: On) {
    let (mut run, got) = finish(case, on);
    assert!(run.guards_hold(), "{} wrote outside its tensors", case.name);
    let (_, plain) = finish(case, on.plain());
    let copied = |t: &&Tensor| t.name == "copy";
    if let Some(copy) = run.tensors.clone().iter().find(copied) {
        let params = run.read("params");
        assert!(run.read(copy.name) == params.iter().map(|&x| rounded(x, copy.view.dtype)).collect::<Vec<_>>(), "{}", case.name);
    }
    let compared: Vec<Tensor> = run.tensors.iter().filter(|t| !copied(t)).cloned().collect();
    let exact = in_f64(case, &compared);
    let [got, plain] = [got, plain].map(|all| {
        let values = run.tensors.iter().zip(all).filter(|(t, _)| !copied(t)).map(|(_, values)| values);
        let errors = compared.iter().zip(values).zip(&exact).map(|((tensor, values), exact)| {
            let errors: Vec<f64> = values.iter().zip(exact).map(|(a, b)| a - b).collect();
            without_single_keys(case, tensor, errors)
        });
        errors.map(|errors| rms(errors.into_iter())).collect::<Vec<_>>()
    });
    for (i, tensor) in compared.iter().enumerate() {
        let bound = 2.0 * plain[i] + 3e-6 * max_abs(&exact[i]);
        assert!(got[i] <= bound, "{}: {} has an error of {:e} where {:e} is plain", case.name, tensor.name, got[i], plain[i]);
    }
}

/// `errors` but for the gradients of queries with one key. Those are 0, whatever the query: `p` is 1. What is computed instead is
/// `dy` times what rounding took from `y`, times the key, which is a matter of chance; so it is held to its largest value.
fn without_single_keys(case: &Case, tensor: &Tensor, errors: Vec<f64>) -> Vec<f64> {
    let Call::Op(Op::Attention(op)) = case.call() else { return errors };
    if tensor.name != "dq" {
        return errors;
    }
    let seqs = seq_of(tensor.extent, case).unwrap();
    let keys = |row: usize| case.batch.cu_seqlens[seqs[row] + 1] - case.batch.cu_seqlens[seqs[row]];
    let (single, errors): (Vec<_>, Vec<_>) = errors.into_iter().enumerate().partition(|(i, _)| keys(i / tensor.width) == 1);
    // Inputs are between -1 and 1, and bf16 rounds by half of 2^-8 at most; twice that, for y is more than v where keys are dropped.
    let bound = (op.head_dim as f64).sqrt() / 256.0;
    let largest = max_abs(&single.into_iter().map(|(_, error)| error).collect::<Vec<_>>());
    assert!(largest <= bound, "{}: {} of a query with one key is {largest:e}, not 0", case.name, tensor.name);
    errors.into_iter().map(|(_, error)| error).collect()
}

#[test]
fn bf16_on_cuda() {
    with_errors(|| each(cases(), |case| check_16_bits(case, On::CudaBf16)));
}

#[test]
fn f16_on_cuda() {
    with_errors(|| each(cases(), |case| check_16_bits(case, On::CudaF16)));
}

/// Products round on the CPU; the rest is as in f32.
#[test]
fn bf16_on_the_cpu() {
    each(cases().into_iter().filter(multiplies).collect(), |case| check_16_bits(case, On::CpuBf16));
}

fn multiplies(case: &Case) -> bool {
    matches!(case.call(), Call::Op(Op::Linear(_) | Op::Attention(_) | Op::Classifier(_)))
}

/// Odd cases, including the ops that differ in bf16.
fn odd_on_the_cpu() -> impl Iterator<Item = (Case, On)> {
    let rounded = odd().into_iter().filter(multiplies);
    odd().into_iter().map(|case| (case, On::Cpu)).chain(rounded.map(|case| (case, On::CpuBf16)))
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn bits(mut run: Run) -> Vec<u8> {
    run.forward();
    run.backward();
    run.bytes()
}

/// The same bits each time, also in used memory, and in any order of a GPU's threads.
fn same_bits(on: On) {
    each(cases(), |case| {
        let mut run = start(case, on);
        run.forward();
        run.backward();
        let want = run.bytes();
        run.reset();
        on.reorder(1);
        let got = bits(run);
        on.reorder(0);
        assert!(got == want, "{} on {on:?}", case.name);
    });
}

/// The same bits on any number of threads, regardless of the pool in which the memory was reserved.
#[test]
fn same_bits_on_any_number_of_threads() {
    let pools = [1, 2, 3].map(pool);
    for (case, on) in odd_on_the_cpu() {
        let start = || start(&case, on);
        let want = bits(start());
        for pool in &pools {
            let threads = pool.current_num_threads();
            assert!(pool.install(|| bits(start())) == want, "{}: {threads} threads", case.name);
        }
        let run = pools[0].install(start);
        assert!(pools[2].install(|| bits(run)) == want, "{}: reserved on 1 thread, run on 3", case.name);
    }
}

/// The first micro-batch gives the gradients of parameters that a later one adds to zero, whatever they were before.
fn the_first_micro_batch_overwrites(on: On) {
    let drops = |case: &Case| matches!(case.call(), Call::Op(Op::Classifier(op)) if op.drop.p > 0.0);
    each(cases().into_iter().filter(|case| !drops(case)).collect(), |case| {
        let gradients = |micro: u32, before: f64| -> Vec<Vec<f64>> {
            let mut run = start(case, on);
            let of_parameter = |t: &&Tensor| t.adds && matches!(t.extent, Extent::Fixed(_));
            let gradients: Vec<Tensor> = run.tensors.iter().filter(of_parameter).cloned().collect();
            gradients.iter().for_each(|t| run.backend.write(t.view, &vec![before; t.start.len()]).unwrap());
            // The masks of dropout depend on the micro-batch, but the classifier has gradients in training alone.
            let train = matches!(case.call(), Call::Op(Op::Classifier(_)));
            run.backend.stage(&case.batch, &Step { micro, train, ..case.step }).unwrap();
            run.forward();
            run.backward();
            gradients.iter().map(|t| run.read(t.name)).collect()
        };
        assert!(gradients(0, f64::NAN) == gradients(1, 0.0), "{} on {on:?}", case.name);
    });
}

/// The sequence of each row of a tensor.
fn seq_of(extent: Extent, case: &Case) -> Option<Vec<usize>> {
    match extent {
        Extent::Batch(Rows::Tokens) => {
            Some(case.batch.cu_seqlens.windows(2).enumerate().flat_map(|(b, s)| (s[0]..s[1]).map(move |_| b)).collect())
        }
        Extent::Batch(Rows::Cls) => Some((0..case.batch.seqs()).collect()),
        Extent::Fixed(_) => None,
    }
}

/// A NaN in a row of an input reaches that row of the outputs, and no other; with attention, and between tokens and sequences,
/// none of another sequence. In tables and parameters it reaches the row that sums it.
fn check_nan(case: &Case, backward: bool) {
    let mut run = start(case, On::Cpu);
    let inputs: Vec<Tensor> = match backward {
        false => run.tensors.iter().filter(|t| t.grad.is_some()).cloned().collect(),
        true => {
            let names: BTreeSet<_> = run.tensors.iter().filter_map(|t| t.cotangent).filter(|&name| name != "dloss").collect();
            names.into_iter().map(|name| run.tensor(name).clone()).collect()
        }
    };
    let outputs: Vec<Tensor> = match backward {
        false => run.tensors.iter().filter(|t| t.cotangent.is_some()).cloned().collect(),
        true => {
            let names: BTreeSet<_> = run.tensors.iter().filter_map(|t| t.grad).collect();
            names.into_iter().map(|name| run.tensor(name).clone()).collect()
        }
    };
    for input in &inputs {
        let seqs = seq_of(input.extent, case);
        let rows: Vec<usize> = match &seqs {
            Some(seqs) => (0..case.batch.seqs()).map(|b| seqs.iter().position(|&seq| seq == b).unwrap()).collect(),
            None => vec![1 % input.extent.rows(&case.batch)],
        };
        for row in rows {
            run.reset();
            if backward {
                run.forward();
            }
            // In the backward pass of ReLU part of a row may become 0.
            let columns = if backward { 0..input.width } else { 0..1 };
            let mut values = input.start.clone();
            values[row * input.width..][columns].fill(f64::NAN);
            run.write(input.name, &values);
            if backward {
                run.backward()
            } else {
                run.forward()
            };
            for output in &outputs {
                let values = run.read(output.name);
                let nan = |r: usize| values[r * output.width..][..output.width].iter().any(|x| x.is_nan());
                let place = format!("{}: a NaN in row {row} of {}", case.name, input.name);
                let (Some(from), Some(to)) = (&seqs, seq_of(output.extent, case)) else {
                    assert!(values.iter().any(|x| x.is_nan()), "{place} does not reach {}", output.name);
                    continue;
                };
                let same_row = input.extent == output.extent && !matches!(run.call, Call::Op(Op::Attention(_)));
                for (r, to) in to.iter().enumerate() {
                    let may = if same_row { r == row } else { *to == from[row] };
                    assert!(may || !nan(r), "{place} reaches row {r} of {}", output.name);
                }
                let mirror = if input.extent == output.extent { row } else { to.iter().position(|&b| b == from[row]).unwrap() };
                assert!(nan(mirror), "{place} does not reach {}", output.name);
            }
        }
    }
}

#[test]
fn nan_propagates_only_where_it_must() {
    for case in odd() {
        check_nan(&case, false);
        check_nan(&case, true);
    }
}

/// A NaN or an infinity in an input appears in the outputs where it does in f64 on the CPU.
fn nan_and_infinity_match_f64(on: On) {
    each(cases().into_iter().filter(|case| case.batch.max_seqlen < 128).collect(), |case| {
        let mut run = start(case, on);
        let mut exact = start(case, On::CpuF64);
        // Tensors that forward or backward reads.
        let inputs: Vec<Tensor> = run.tensors.iter().filter(|t| !t.start[0].is_nan() && !t.adds).cloned().collect();
        for (input, bad) in inputs.iter().flat_map(|t| [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|bad| (t, bad))) {
            let mut values = input.start.clone();
            // Neither the first row nor the first column.
            let row = 1 % input.extent.rows(&case.batch);
            values[row * input.width + input.width / 2] = bad;
            let [got, want] = [&mut run, &mut exact].map(|run| {
                run.reset();
                inputs.iter().for_each(|t| run.write(t.name, &t.start));
                run.write(input.name, &values);
                run.forward();
                run.backward();
                run.tensors.clone().iter().map(|t| (t.name, run.read(t.name))).collect::<Vec<_>>()
            });
            for (name, want) in want {
                let (_, got) = got.iter().find(|(other, _)| *other == name).unwrap();
                let differs = got.iter().zip(&want).position(|(a, b)| a.is_finite() != b.is_finite());
                let differs = differs.map(|i| format!("{name}[{i}] is {}, in f64 {}", got[i], want[i]));
                assert!(differs.is_none(), "{} on {on:?}: {bad} in {}: {}", case.name, input.name, differs.unwrap());
            }
        }
    });
}

/// The factors applied by classifiers, norms, embeddings and attention match their definition in ops.rs, for tokens and for [CLS].
fn dropout_masks_match_the_definition(on: On) {
    let batch = batch(&[33, 1, 200, 2]);
    let drop = DropSite { p: 0.3, site: 9 };
    let steps = [(7, 3, 1), (43 + (1 << 32), 5 + (1 << 33), 2)];
    for (rows, (seed, update, micro)) in [Rows::Tokens, Rows::Cls].into_iter().zip(steps) {
        let starts = &batch.cu_seqlens;
        let token_row = |r: usize| if rows == Rows::Tokens { r as u32 } else { starts[r] as u32 };
        for width in [130, 64] {
            // The result of a case in this step.
            let result = |mut case: Case, name: &str| {
                case.name = format!("{rows:?}, {width}");
                case.step = Step { seed, update, micro, ..case.step };
                let mut run = start(&case, on);
                run.forward();
                run.read(name)
            };
            // With dropout and without; what is rounded in between.
            let head = |drop| classifier(&batch, width, 2, Activation::Tanh, drop, PLAIN);
            let head = [drop, DropSite::NONE].map(|drop| result(head(drop), "y"));
            let norm = [drop, DropSite::NONE].map(|drop| result(add_norm(&batch, width, rows, false, drop), "x"));
            let embed = [drop, DropSite::NONE].map(|drop| result(embed(&batch, width, 0, None, drop), "y"));
            let dropped = [("classifier", head, Rows::Cls), ("add_norm", norm, rows), ("embed", embed, Rows::Tokens)];
            for (name, [got, whole], rows) in dropped {
                let token_row = |r: usize| if rows == Rows::Tokens { r as u32 } else { starts[r] as u32 };
                assert!(!got.is_empty() && got.len() == whole.len());
                for (i, (got, whole)) in got.into_iter().zip(whole).enumerate() {
                    let step = Step { seed, update, micro, ..Step::INFER };
                    let want = whole * factor(&Step { train: true, ..step }, drop, token_row(i / width), (i % width) as u32);
                    let smallest = if on == On::CudaF16 { 2f64.powi(-24) } else { 0.0 };
                    let bound = (2.0 * on.epsilon() * want.abs()).max(2.0 * smallest);
                    assert!((got - want).abs() <= bound, "{name} {width}: {got} at {i}, not {want}");
                }
            }
        }

        // Equal scores, and values that are unit vectors: each column of the output sums the mask over some of the keys.
        for (heads, head_dim) in [(2, 64), (1, 32), (3, 24)] {
            let dim = heads * head_dim;
            let mut case = attn(&batch, heads, head_dim, rows, drop);
            case.step = Step { seed, update, micro, ..case.step };
            let mut run = start(&case, on);
            let name = if rows == Rows::Tokens { "qkv" } else { "kv" };
            let width = run.tensor(name).width;
            let mut values = vec![0.0; batch.tokens() * width];
            for (r, &key) in batch.positions.iter().enumerate() {
                for head in 0..heads {
                    values[r * width + width - dim + head * head_dim + key as usize % head_dim] = 1.0;
                }
            }
            run.write(name, &values);
            run.forward();
            let got = run.read("y");
            for (r, got) in got.chunks(dim).enumerate() {
                let row = token_row(r);
                let seq = starts.partition_point(|&start| start as u32 <= row) - 1;
                let len = (starts[seq + 1] - starts[seq]) as usize;
                for (c, got) in got.iter().enumerate() {
                    let (head, first) = (c / head_dim, c % head_dim);
                    let of_key = |key| factor(&case.step, drop, row * heads as u32 + head as u32, key as u32);
                    let want = (first..len).step_by(head_dim).map(of_key).sum::<f64>() / len as f64;
                    // A GPU's 2^0 may differ from 1.
                    let same = (got - want).abs() <= (2.0 * on.product_epsilon()).max(1e-5) * want;
                    assert!(same, "{}: row {r}, head {head}, key {first}: {got}, not {want}", case.name);
                }
            }
        }
    }
}

/// The elements of (tokens, 64) that are dropped on the CPU; other backends must match.
fn dropped(rows: Rows, drop: DropSite, step: Step) -> Vec<bool> {
    let mut case = add_norm(&batch(&LONG), 64, rows, false, drop);
    case.step = step;
    let mut run = start(&case, On::Cpu);
    let ones = vec![1.0; run.tensor("x").start.len()];
    run.write("x", &ones);
    run.forward();
    let kept = f64::from(drop.scale() as f32);
    let values = run.read("x");
    assert!(values.iter().all(|&x| x == 0.0 || x == kept), "{drop:?}");
    values.iter().map(|&x| x == 0.0).collect()
}

/// Asserts that a share of `n` fair draws is that of probability `p`, within 4 standard deviations.
fn assert_share(count: usize, n: usize, p: f64, what: &str) {
    let sigma = (p * (1.0 - p) / n as f64).sqrt();
    let share = count as f64 / n as f64;
    assert!((share - p).abs() < 4.0 * sigma, "{what}: a share of {share}, not {p}");
}

#[test]
fn dropout_rates_are_multiples_of_a_draw() {
    for (p, threshold) in [(0.0, 0), (1e-9, 0), (1e-5, 1), (0.1, 6_554), (0.5, 32_768), (0.999_999_9, 65_535)] {
        let drop = DropSite { p, site: 0 };
        assert_eq!(drop.threshold(), threshold, "{p}");
        let expected = drop.scale() * (1.0 - f64::from(threshold) / 65_536.0);
        assert!((expected - 1.0).abs() < 1e-12, "{p}: {expected}");
    }
}

#[test]
fn dropout_is_random() {
    let step = Step { seed: 42, update: 5, micro: 0, train: true, ..Step::INFER };
    let agreeing = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a == b).count();
    for p in [0.1, 0.5, 0.999] {
        let drop = DropSite { p, site: 3 };
        let base = dropped(Rows::Tokens, drop, step);
        let p = f64::from(p);
        assert_share(base.iter().filter(|&&dropped| dropped).count(), base.len(), p, "dropped");

        // Independent masks agree by chance alone.
        let chance = p * p + (1.0 - p) * (1.0 - p);
        for (what, other) in [
            ("seed", Step { seed: 43, ..step }),
            ("high half of the seed", Step { seed: 42 + (1 << 32), ..step }),
            ("update", Step { update: 6, ..step }),
            ("high half of the update", Step { update: 5 + (1 << 32), ..step }),
            ("micro-batch", Step { micro: 1, ..step }),
            ("update and micro-batch exchanged", Step { update: 0, micro: 5, ..step }),
        ] {
            let other = dropped(Rows::Tokens, drop, other);
            assert_share(agreeing(&base, &other), base.len(), chance, what);
        }
        let other = dropped(Rows::Tokens, DropSite { site: 4, ..drop }, step);
        assert_share(agreeing(&base, &other), base.len(), chance, "site");
        for (what, distance) in [("next column", 1), ("next word", 2), ("next block", 8), ("next row", 64), ("fifth row", 5 * 64)]
        {
            assert_share(agreeing(&base, &base[distance..]), base.len() - distance, chance, what);
        }

        let cls = dropped(Rows::Cls, drop, step);
        for (row, &start) in cls.chunks(64).zip(&batch(&LONG).cu_seqlens) {
            assert_eq!(row, &base[start as usize * 64..][..64], "[CLS] at row {start}");
        }
        assert!(dropped(Rows::Tokens, drop, step) == base);
    }
}

/// Without dropout, or outside of training, the results are those of ops without a dropout site, bit for bit.
fn dropout_off_is_the_identity(on: On) {
    let (short, never, outside) = (batch(&SHORT), DropSite { p: 0.0, site: 1 }, DropSite { p: 0.3, site: 1 });
    for (drop, train) in [(never, true), (outside, false)] {
        for rows in [Rows::Tokens, Rows::Cls] {
            let pairs = [
                [drop, DropSite::NONE].map(|drop| embed(&short, 33, 0, None, drop)),
                [drop, DropSite::NONE].map(|drop| classifier(&short, 33, 2, Activation::Tanh, drop, PLAIN)),
                [drop, DropSite::NONE].map(|drop| add_norm(&short, 24, rows, true, drop)),
                [drop, DropSite::NONE].map(|drop| attn(&short, 2, 8, rows, drop)),
            ];
            for mut pair in pairs {
                let name = pair[1].name.clone();
                let [got, want] = pair.each_mut().map(|case| {
                    (case.name, case.step.train) = (name.clone(), train);
                    let mut run = start(case, on);
                    run.forward();
                    run.read("y")
                });
                assert!(got == want, "{name}, train {train}");
            }
        }
    }
}

/// Inference runs GELU over its input.
fn gelu_in_place(on: On) {
    let short = batch(&SHORT);
    let mut apart = start(&gelu(&short, 33, Rows::Tokens), on);
    apart.forward();
    let together = Case::new("gelu in place".into(), &short, move |b| {
        let x = b.random("x", Rows::Tokens, 33);
        Op::Gelu(Gelu { x, y: x, dy: View::NONE, db: View::NONE, width: 33, rows: Rows::Tokens })
    });
    let mut together = start(&together, on);
    together.write("x", &apart.tensor("x").start);
    together.forward();
    assert!(together.read("x") == apart.read("y") && together.guards_hold());
}

/// A classifier of this many classes with every kind of weight in its loss.
fn weighted(classes: usize) -> Case {
    classifier(&batch(&LONG), 24, classes, Activation::Tanh, DropSite::NONE, Loss { smoothing: 0.1, weighted: true })
}

/// Logits of 1e4 and equal logits have finite losses and gradients, and so has a class of weight 0.
fn the_loss_at_the_edges(on: On) {
    let case = classifier(&batch(&[1, 2]), 8, 3, Activation::Relu, DropSite::NONE, Loss { smoothing: 0.1, weighted: false });
    let label = case.batch.labels[0] as usize;
    for (logits, weights, want) in [
        ([0.0; 3], [1.0; 3], 3f64.ln()),
        ([1e4, 1e4, 1e4], [1.0; 3], 3f64.ln()),
        (std::array::from_fn(|c| if c == label { 1e4 } else { -1e4 }), [1.0; 3], 0.1 / 3.0 * 4e4),
        (std::array::from_fn(|c| if c == label { -1e4 } else { 1e4 }), std::array::from_fn(|c| f64::from(c != label)), {
            0.1 / 3.0 * 2.0 * 2f64.ln()
        }),
    ] {
        let mut run = start(&case, on);
        // The logits are the bias.
        run.write("x", &[0.0; 16]);
        run.write("logits_bias", &logits);
        run.write("weights", &weights);
        run.forward();
        run.backward();
        let loss = run.read("loss")[0];
        assert!((loss - want).abs() <= 1e-6 * want, "{logits:?}: {loss}, not {want}");
        assert!(["dlogits", "dx", "dw"].iter().all(|d| run.read(d).iter().all(|x| x.is_finite())), "{logits:?}");
    }
}

/// In training the loss is added to the status block; otherwise there are neither gradients nor that sum.
fn the_loss_is_counted_in_training_only(on: On) {
    for classes in [3, 6] {
        let mut run = start(&weighted(classes), on);
        for _ in 0..2 {
            run.forward();
            run.backward();
        }
        let sum: f64 = run.read("loss").iter().sum();
        let (got, want) = (run.read("status")[0], 0.25 + 2.0 * sum / weighted(classes).step.loss_normalizer);
        assert!((got - want).abs() < 1e-6, "{classes} classes: {got}, not {want}");

        let mut case = weighted(classes);
        case.step.train = false;
        let mut run = start(&case, on);
        run.forward();
        assert_eq!(run.read("status")[0], 0.25);
        assert!(["dlogits", "dx"].iter().all(|d| run.read(d).iter().all(|x| x.is_nan())));
        assert!(run.read("loss").iter().all(|loss| loss.is_finite()));
    }
}

/// The scale is a power of two, so that nothing is rounded otherwise.
fn the_loss_scale_multiplies_gradients(on: On) {
    let gradients = |scale: f64| {
        let mut run = start(&weighted(3), on);
        run.write("status", &Status { scale, ..Status::default() }.to_array());
        run.forward();
        run.read("dlogits")
    };
    assert!(gradients(6.0).iter().zip(gradients(0.0)).all(|(scaled, plain)| *scaled == 64.0 * plain && plain != 0.0));
}

fn grad_norm_is_the_root_of_the_sum_of_squares(on: On) {
    for case in cases().into_iter().filter(|case| matches!(case.call(), Call::GradNorm(_))) {
        let mut run = start(&case, on);
        run.forward();
        let want = run.tensor("grads").start.iter().map(|g| g * g).sum::<f64>().sqrt() / 8.0;
        let [loss, loss_sum, got, skipped, ..] = run.read("status")[..] else { unreachable!() };
        assert!((got / want - 1.0).abs() < 1e-13, "{}: {got}, not {want}", case.name);
        assert_eq!([loss, loss_sum, skipped], [0.0; 3]);
    }
}

/// Element by element, as in [`AdamW`].
fn adamw_matches_the_definition(on: On) {
    for case in cases().into_iter().filter(|case| matches!(case.call(), Call::AdamW(..))) {
        let mut run = start(&case, on);
        let Call::AdamW(op, Update { number, learning_rate: lr }) = run.call else { unreachable!() };
        run.forward();
        let [params, grads, m, v] = ["params", "grads", "m", "v"].map(|name| (run.tensor(name).start.clone(), run.read(name)));
        assert!(grads.0 == grads.1, "{}: the gradients changed", case.name);
        let norm = run.tensor("status").start[2];
        // One update was skipped.
        let t = number as f64 - 1.0;
        for i in 0..params.0.len() {
            let g = grads.0[i] / 8.0 * if op.max_norm > 0.0 { f64::min(1.0, op.max_norm / (norm + 1e-6)) } else { 1.0 };
            let want_m = op.beta1 * m.0[i] + (1.0 - op.beta1) * g;
            let want_v = op.beta2 * v.0[i] + (1.0 - op.beta2) * g * g;
            let decayed = if i < op.decayed { params.0[i] * (1.0 - lr * op.weight_decay) } else { params.0[i] };
            let (m_hat, v_hat) = (want_m / (1.0 - op.beta1.powf(t)), want_v / (1.0 - op.beta2.powf(t)));
            let want = decayed - lr * m_hat / (v_hat.sqrt() + op.eps);
            // Rounding errors scale with the operands of the difference, not with its result.
            let size = decayed.abs().max(want.abs());
            for (name, got, want, size) in
                [("params", params.1[i], want, size), ("m", m.1[i], want_m, want_m.abs()), ("v", v.1[i], want_v, want_v)]
            {
                assert!((got - want).abs() <= 1e-6 * (0.1 + size), "{}: {name}[{i}] is {got}, not {want}", case.name);
            }
        }
        assert_eq!(run.read("status"), [0.0, 0.75, norm, 1.0, 4.0, 0.0], "{}", case.name);
    }
}

/// A loss or a norm that is not finite is counted and halves the loss scale, if that is dynamic; no tensor changes.
fn adamw_skips_non_finite_updates(on: On) {
    let bad = [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (0.5, f64::NAN), (0.5, f64::INFINITY)];
    for ((loss, norm), growth) in bad.into_iter().flat_map(|bad| [0, 2].map(|growth| (bad, growth))) {
        let mut run = start(&adamw(100, 48, 1.0, 1.0), on);
        let Call::AdamW(op, _) = &mut run.call else { unreachable!() };
        op.growth = growth;
        run.write("status", &[loss, 0.25, norm, 1.0, 3.0, 1.0]);
        run.forward();
        for name in ["params", "grads", "m", "v"] {
            assert!(run.read(name) == run.tensor(name).start, "loss {loss}, norm {norm}: {name} changed");
        }
        let [loss, loss_sum, _, skipped, scale, good] = run.read("status").try_into().unwrap();
        assert_eq!([loss, loss_sum, skipped], [0.0, 0.25, 2.0]);
        assert_eq!([scale, good], if growth > 0 { [2.0, 0.0] } else { [3.0, 1.0] });
    }
}

/// Once a scale of 1 was too large, no later update counts.
fn adamw_gives_up_below_a_loss_scale_of_1(on: On) {
    let mut run = start(&adamw(100, 48, 1.0, 1.0), on);
    run.write("status", &Status { loss: f64::NAN, ..Status::default() }.to_array());
    run.forward();
    for skipped in [1.0, 2.0, 3.0] {
        assert_eq!(run.read("status"), [0.0, 0.0, 0.0, skipped, -1.0, 0.0]);
        run.write("status", &Status { loss: 1.0, skipped, scale: -1.0, ..Status::default() }.to_array());
        run.forward();
        assert!(run.read("params") == run.tensor("params").start);
    }
}

/// To nearest, ties to even: beside ties, at the ends of the ranges, and for what is no number.
#[test]
fn casts_round_to_nearest() {
    let edges =
        [65504.0, 65519.0, 65520.0, 3.4e38, 1.0, 2f32.powi(-14), 2f32.powi(-24), 2f32.powi(-25), f32::MIN_POSITIVE, 1e-44];
    let ties = (0..64).map(|i| 1.0 + i as f32 * 2f32.powi(-12)).chain((0..64).map(|i| i as f32 * 2f32.powi(-26)));
    let beside = |x: f32| [x, x.next_up(), x.next_down()];
    let numbers = edges.into_iter().chain(ties).flat_map(beside).chain([f32::INFINITY, f32::NAN]);
    let numbers: Vec<f64> = numbers.flat_map(|x| [x, -x]).map(f64::from).collect();
    for on in [On::CudaBf16, On::CudaF16] {
        let mut run = start(&cast(numbers.len()), on);
        run.write("params", &numbers);
        run.forward();
        let dtype = on.arithmetic().dtype();
        for (&x, got) in numbers.iter().zip(run.read("copy")) {
            let want = rounded(x, dtype);
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{x:e} is {got:e} in {dtype:?}, not {want:e}"
            );
        }
    }
}

/// Uploads and downloads match; a partial one leaves the rest; nothing outside is written.
fn memory(on: On) {
    let case = linear(&batch(&SHORT), 24, 33, Rows::Tokens, false);
    let mut run = start(&case, on);
    for tensor in run.tensors.clone().iter().filter(|t| !t.start[0].is_nan()) {
        assert!(run.read(tensor.name) == tensor.start, "{}", tensor.name);
    }
    let start = run.tensor("x").start.clone();
    run.write("x", &[5.0, 6.0]);
    assert!(run.read("x") == [&[5.0, 6.0], &start[2..]].concat());
    let view = run.tensor("x").view;
    assert_eq!(run.backend.read(view.slice(1, 2)).unwrap(), [6.0, start[2]]);
    run.backend.zero(view.slice(1, 2)).unwrap();
    assert!(run.read("x") == [&[5.0, 0.0, 0.0], &start[3..]].concat());
    run.backend.zero(view).unwrap();
    assert!(run.read("x").iter().all(|&x| x == 0.0));
    assert!(run.guards_hold());
    run.backend.zero(View { len: view.len + 1, ..view }).unwrap();
    assert!(!run.guards_hold());
    assert!(!run.backend.name().is_empty());
}

/// A download in several pieces.
fn large_download(on: On) {
    let mut run = start(&linear(&batch(&[2]), 3001, 2000, Rows::Tokens, false), on);
    assert!(run.read("w") == run.tensor("w").start);
}

/// A smaller batch staged over a larger one: the ops run on its rows only.
fn stage(on: On) {
    // By our own product, and by cuBLASLt's.
    for n in [33, 32] {
        stage_smaller(on, n);
    }
}

fn stage_smaller(on: On, n: usize) {
    let small = batch(&[3, 2]);
    let case = linear(&batch(&SHORT), 24, n, Rows::Tokens, false);
    let mut run = start(&case, on);
    run.backend.stage(&small, &case.step).unwrap();
    for (view, values) in Inputs::of(&small, run.layout.batch).with(&small) {
        let got = run.backend.read(view).unwrap();
        assert!(got.iter().zip(values).all(|(&a, &b)| a == f64::from(b)));
    }
    run.forward();
    run.backward();
    assert!(run.guards_hold());
    for (name, width) in [("y", n), ("dx", 24)] {
        let values = run.read(name);
        let (rows, rest) = values.split_at(small.tokens() * width);
        assert!(rows.iter().all(|x| x.is_finite()) && rest.iter().all(|x| x.is_nan()), "{name}");
    }
}

/// The next batch can be staged without waiting; each op still sees its own batch.
fn staging_needs_no_wait(on: On) {
    let batches: Vec<_> = (0..6).map(|i| batch(&[9 + i, 7])).collect();
    // Adds to the first row of each sequence.
    let case = first_row(batches.last().unwrap(), 8, true);
    let [got, want] = [on, On::CpuF64].map(|on| {
        let mut run = start(&case, on);
        run.write("dy", &vec![1.0; run.tensor("dy").start.len()]);
        run.write("dx", &vec![0.0; run.tensor("dx").start.len()]);
        for batch in &batches {
            run.backend.stage(batch, &case.step).unwrap();
            run.backward();
        }
        run.read("dx")
    });
    assert!(got == want);
}

/// What is derived from weights is derived again after they were written: with -w, the product has the other sign.
#[test]
fn weights_that_change() {
    let case = linear(&batch(&[9, 70]), 40, 24, Rows::Tokens, false);
    for on in [On::Cpu, On::CpuBf16] {
        let mut run = start(&case, on);
        run.forward();
        let (y, b) = (run.read("y"), run.read("b"));
        let negative: Vec<f64> = run.read("w").iter().map(|w| -w).collect();
        run.write("w", &negative);
        run.forward();
        let sums = run.read("y").into_iter().zip(y).map(|(after, before)| after + before);
        let [bias, product] = [&b, &run.read("y")].map(|values| max_abs(values));
        let difference = sums.zip(b.iter().cycle()).map(|(sum, b)| (sum - 2.0 * b).abs()).fold(0.0, f64::max);
        assert!(product > 2.0 * bias && difference < 1e-5 * product, "{on:?}: {difference} of {product}");
    }
}

#[test]
fn nothing_is_allocated() {
    // All work is on this thread, whose allocations are counted.
    let pool = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
    pool.install(|| {
        for (case, on) in odd_on_the_cpu() {
            let mut run = start(&case, on);
            let mut both_ways = || {
                run.forward();
                run.backward();
            };
            both_ways();
            let count = allocations(both_ways);
            // The crate gemm allocates working memory in every product.
            let by_gemm = (on == On::Cpu || Instructions::in_use() == Instructions::in_use().for_f32()) && multiplies(&case);
            assert!(count == 0 || by_gemm, "{} allocated {count} times", case.name);
        }
    });
}

/// An op's files have the same stem on both sides and in the kernels, where attention has a file more.
#[test]
fn every_op_has_its_files() {
    let stems = |folder: &str, others: &[&str]| -> BTreeSet<String> {
        let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        let files = files.map(|file| file.unwrap().path()).filter(|path| path.extension().unwrap() != "cuh");
        let stems = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string());
        stems.filter(|stem| !others.contains(&stem.as_str())).collect()
    };
    let ops = stems(
        "src/cpu",
        &[
            "mod",
            "amx",
            "arena",
            "avx512",
            "copies",
            "dots",
            "dropout",
            "gemm",
            "instructions",
            "matrix",
            "panels",
            "product",
            "real",
        ],
    );
    assert_eq!(
        ops,
        stems(
            "src/cuda",
            &["mod", "arena", "device", "error", "kernels", "gemm", "graph", "columns", "overlap", "tune", "words"]
        )
    );
    assert_eq!(ops, stems("kernels", &["columns", "attention_cls"]));
}

/// The cases launch every kernel, and cuBLASLt. The virtual GPU counts launches; a real one does not.
#[test]
fn every_kernel_has_a_case() {
    let run = || {
        for on in [On::Cuda, On::CudaBf16, On::CudaF16] {
            for case in cases().iter().filter(|case| case.batch.max_seqlen < 128) {
                bits(start(case, on));
            }
        }
    };
    if !is_virtual() {
        return run();
    }
    let submitted = vgpu::submitted(run);
    let launches = vgpu::launches();
    let missing: Vec<_> = launches.iter().filter(|(_, launched)| launched.times == 0).map(|(kernel, _)| kernel).collect();
    assert!(missing.is_empty(), "no case launches {missing:?}");
    assert!(submitted.products > 0, "no case calls cuBLASLt");
}
