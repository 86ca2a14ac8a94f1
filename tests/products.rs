//! Products of ones by cuBLASLt, which have exact results, at every number of rows: they reveal lost terms, refused algorithms
//! and intermediate rounding. On a real GPU with the sizes of DistilBERT-base.

use warpfit::cuda::Cuda;
use warpfit::data::pack::PackedBatch;
use warpfit::ops::*;

use crate::fixtures::{gpu, is_virtual};

/// Every number of rows up to 300, and those around a batch of sixteen film reviews.
fn numbers_of_rows() -> impl Iterator<Item = usize> + Clone {
    (1..=300).chain(4096..=4480)
}

/// (k, n) of the linear layers. A virtual GPU in place of a real one uses the small one, with WARPFIT_TEST_SMALL.
fn layers() -> &'static [(usize, usize)] {
    if is_virtual() || std::env::var_os("WARPFIT_TEST_SMALL").is_some() {
        &[(16, 32)]
    } else {
        &[(768, 768), (768, 2304), (768, 3072), (3072, 768)]
    }
}

/// This many tokens, in sequences of up to 512.
fn batch(rows: usize) -> PackedBatch {
    let (ids, full) = ([0; 512], rows / 512);
    let lengths = std::iter::repeat_n(512, full).chain((!rows.is_multiple_of(512)).then_some(rows % 512));
    PackedBatch::new(lengths.map(|len| (&ids[..len], &[][..], 0)))
}

/// A linear layer with operands of 1, and a bias of 0.
struct Ones {
    backend: Cuda,
    op: Linear,
    /// The gradient of the weight, on the host.
    dw: Vec<f32>,
}

impl Ones {
    fn new(mut backend: Cuda, arithmetic: Arithmetic, (k, n): (usize, usize), rows: usize) -> Ones {
        let mut bytes = 0;
        let mut take = |len: usize, dtype: DType| {
            let view = View { offset: bytes, len, dtype };
            bytes = (bytes + view.bytes()).next_multiple_of(256);
            view
        };
        let region = take(Inputs::capacity(rows, rows), DType::I32);
        let dtype = arithmetic.dtype();
        let op = Linear {
            x: take(rows * k, dtype),
            w: take(n * k, dtype),
            b: take(n, dtype),
            y: take(rows * n, dtype),
            dy: take(rows * n, dtype),
            dx: take(rows * k, dtype),
            dw: take(n * k, DType::F32),
            add: false,
            k,
            n,
            rows: Rows::Tokens,
        };
        backend.reserve(&Layout { bytes, arithmetic, batch: region, max_seqlen: 512, params: n * k, words: None }).unwrap();
        let all: &mut dyn Backend = &mut backend;
        for view in [op.x, op.w, op.dy] {
            all.write(view, &vec![1.0; view.len]).unwrap();
        }
        Ones { backend, op, dw: vec![0.0; op.dw.len] }
    }

    /// The inexact results of the layer and its gradients at a number of rows: a sum of ones has one right value.
    fn faults(&mut self, rows: usize) -> Vec<String> {
        let Ones { backend, op, dw } = self;
        backend.stage(&batch(rows), &Step::INFER).unwrap();
        backend.zero(op.dw).unwrap();
        backend.forward(&Op::Linear(*op)).unwrap();
        backend.backward(&Op::Linear(*op)).unwrap();
        // The kernel in its place is exact, and would take minutes.
        assert!(!backend.lacks_products(), "cuBLASLt does not support a product of a layer from {} to {}", op.k, op.n);
        let row = |view: View, width: usize| view.slice((rows - 1) * width, width);
        let backend: &mut dyn Backend = backend;
        let [y, dx] = [row(op.y, op.n), row(op.dx, op.k)].map(|view| backend.read(view).unwrap());
        backend.download(op.dw, bytemuck::cast_slice_mut(dw)).unwrap();
        let fault = |name: &str, right: usize, wrong: Option<f64>| {
            Some(format!("{rows} rows, {} to {}: {} in {name}, not {right}", op.k, op.n, wrong?))
        };
        let faults = [
            fault("y", op.k, y.into_iter().find(|&value| value != op.k as f64)),
            fault("dx", op.n, dx.into_iter().find(|&value| value != op.n as f64)),
            fault("dw", rows, dw.iter().find(|&&value| value != rows as f32).copied().map(f64::from)),
        ];
        faults.into_iter().flatten().collect()
    }
}

/// The inexact results of all layers at these numbers of rows, and the number of refused algorithms.
fn sweep(open: impl Fn() -> Cuda, arithmetic: Arithmetic, rows: impl Iterator<Item = usize> + Clone) -> (Vec<String>, u64) {
    let (mut faults, mut refused) = (Vec::new(), 0);
    for &layer in layers() {
        let mut ones = Ones::new(open(), arithmetic, layer, rows.clone().max().unwrap());
        faults.extend(rows.clone().flat_map(|rows| ones.faults(rows)));
        refused += ones.backend.refused_products();
    }
    println!("{arithmetic:?}: {} results are not exact, {refused} products were refused at first", faults.len());
    (faults, refused)
}

#[test]
fn weight_gradients_of_ones_are_exact() {
    // 5 and the unit of cuBLASLt's tiles are coprime: every remainder occurs.
    let every_fifth = numbers_of_rows().step_by(5);
    let (faults, _) = sweep(gpu, Arithmetic::Bf16, numbers_of_rows());
    assert!(faults.is_empty(), "{faults:#?}");
    for arithmetic in [Arithmetic::F32, Arithmetic::Tf32] {
        let (faults, _) = sweep(gpu, arithmetic, every_fifth.clone());
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

/// An algorithm is requested for large numbers of rows rounded up. If it is refused for the exact number, another is requested;
/// the virtual GPU refuses some by the seed, and all that were requested for another small number.
#[test]
fn every_number_of_rows() {
    let (faults, refused) = sweep(gpu, Arithmetic::Bf16, 1..257);
    assert!(faults.is_empty() && refused == 0, "{refused} were refused; {faults:#?}");
    for seed in if is_virtual() { 1..5 } else { 0..1 } {
        let open = || {
            if is_virtual() {
                vgpu::set_seed(seed);
            }
            gpu()
        };
        let (faults, refused) = sweep(open, Arithmetic::Bf16, (257..1025).step_by(3));
        assert!(faults.is_empty(), "{faults:#?}");
        assert!(refused > 0 || !is_virtual(), "nothing was refused with seed {seed}");
    }
}

/// The reason for the sweep: with sums split over any k, the virtual GPU drops terms, as cuBLASLt was seen to do. On a real GPU
/// this reports whether it does.
#[test]
fn sums_split_over_any_k_lose_terms() {
    let (faults, _) = sweep(|| gpu().always_splits(), Arithmetic::Bf16, numbers_of_rows());
    faults.iter().take(20).for_each(|fault| println!("{fault}"));
    assert!(!faults.is_empty() || !is_virtual(), "no term was dropped: the sweep proves nothing");
}
