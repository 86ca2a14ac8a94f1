//! The golden files, as numbers.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicIsize, Ordering};

use warpfit::cpu::Cpu;
use warpfit::cuda::Cuda;
use warpfit::data::pack::PackedBatch;
use warpfit::model::config::Config;
use warpfit::model::plan::ModelSpec;
use warpfit::model::{Hyperparameters, Model};
use warpfit::ops::{Arithmetic, Backend, DType, DropSite, Rows, Step};
use warpfit::random::{philox, step_key};

use crate::rounded::Rounded;

/// A backend and its arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Cpu,
    /// Products in bf16.
    CpuBf16,
    /// The reference for all others.
    CpuF64,
    Cuda,
    CudaBf16,
    CudaF16,
    /// The references for errors in 16 bits.
    RoundedBf16,
    RoundedF16,
    RoundedProducts,
}

impl On {
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            On::Cpu | On::Cuda => Arithmetic::F32,
            On::CpuF64 => Arithmetic::F64,
            On::CudaBf16 | On::RoundedBf16 => Arithmetic::Bf16,
            On::CudaF16 | On::RoundedF16 => Arithmetic::F16,
            On::CpuBf16 | On::RoundedProducts => Arithmetic::Bf16Products,
        }
    }

    /// The reference for a computation in 16 bits.
    pub fn plain(self) -> On {
        match self {
            On::CpuBf16 => On::RoundedProducts,
            On::CudaF16 => On::RoundedF16,
            _ => On::RoundedBf16,
        }
    }

    pub fn backend(self) -> Box<dyn Backend> {
        match self {
            On::Cpu | On::CpuBf16 => Box::new(Cpu::<f32>::poisoned()),
            On::CpuF64 => Box::new(Cpu::<f64>::poisoned()),
            On::Cuda | On::CudaBf16 | On::CudaF16 => Box::new(gpu()),
            On::RoundedBf16 | On::RoundedProducts => Box::new(Rounded::new(DType::Bf16)),
            On::RoundedF16 => Box::new(Rounded::new(DType::F16)),
        }
    }

    /// Changes the order of threads and blocks in launches of this thread on a virtual GPU.
    pub fn reorder(self, seed: u64) {
        if matches!(self, On::Cuda | On::CudaBf16 | On::CudaF16) && is_virtual() {
            vgpu::set_seed(seed);
        }
    }

    /// Twice the relative error of storing a number.
    pub fn epsilon(self) -> f64 {
        match self.arithmetic().dtype() {
            DType::Bf16 => 2f64.powi(-8),
            DType::F16 => 2f64.powi(-11),
            _ => 2f64.powi(-23),
        }
    }

    /// The same for an operand of a product.
    pub fn product_epsilon(self) -> f64 {
        if self == On::CpuBf16 { 2f64.powi(-8) } else { self.epsilon() }
    }
}

/// The factor of an element, by the definition in [`DropSite`].
pub fn factor(step: &Step, drop: DropSite, row: u32, column: u32) -> f64 {
    if !step.train || drop.p == 0.0 {
        return 1.0;
    }
    let words = philox(step_key(step.seed, step.update, step.micro), [[column / 8], [row], [drop.site], [0]]);
    let (word, half) = (words[column as usize % 8 / 2][0], column % 2);
    let draw = if half == 0 { word & 0xffff } else { word >> 16 };
    if draw < drop.threshold() { 0.0 } else { drop.scale() }
}

/// Whether the GPU is virtual: unless WARPFIT_TEST_DEVICE=real.
pub fn is_virtual() -> bool {
    std::env::var_os("WARPFIT_TEST_DEVICE").is_none_or(|device| device != "real")
}

/// The GPU; the test fails if there is none.
pub fn gpu() -> Cuda {
    if is_virtual() {
        vgpu::install();
    }
    Cuda::open(0).unwrap()
}

/// Counts the allocations of the current thread, and the bytes in use by all.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

static IN_USE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

// SAFETY: forwards all calls to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        let before = IN_USE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        PEAK.fetch_max(before + layout.size() as isize, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The number of allocations of `f`, on this thread.
pub fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

/// The most bytes that `f` has in use, with whatever other threads do meanwhile.
pub fn peak_of(f: impl FnOnce()) -> isize {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    f();
    PEAK.load(Ordering::Relaxed) - before
}

/// The golden model folders.
pub const FOLDERS: [&str; 8] = [
    "distilbert-a/hf",
    "distilbert-b/hf",
    "bert-a/hf",
    "text/hf",
    "train/hf_init",
    "train/hf_final",
    "train-accumulate/hf_init",
    "train-accumulate/hf_final",
];

/// Golden files are in the repository, or in WARPFIT_TEST_ROOT for a test binary run elsewhere.
pub fn golden(path: &str) -> PathBuf {
    let root = std::env::var_os("WARPFIT_TEST_ROOT").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("tests/golden").join(path)
}

pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden(path)).expect(path)).expect(path)
}

/// A safetensors file: shapes and values, integers too, as f64.
pub struct Tensors(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Tensors {
    pub fn read(path: &str) -> Tensors {
        use safetensors::Dtype::*;
        let bytes = std::fs::read(golden(path)).expect(path);
        let file = safetensors::SafeTensors::deserialize(&bytes).expect(path);
        let values = |t: &safetensors::tensor::TensorView| -> Vec<f64> {
            let data = t.data();
            match t.dtype() {
                F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
                F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                I64 => data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
                other => panic!("{other:?} in {path}"),
            }
        };
        Tensors(file.tensors().iter().map(|(name, t)| (name.clone(), (t.shape().to_vec(), values(t)))).collect())
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).0
    }

    pub fn get(&self, name: &str) -> &[f64] {
        &self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn ints(&self, name: &str) -> Vec<i32> {
        self.get(name).iter().map(|&x| x as i32).collect()
    }

    pub fn scalar(&self, name: &str) -> f64 {
        self.get(name)[0]
    }
}

/// Right-padded ids (seqs, width) with their attention mask, token types and labels, packed.
pub fn pack(ids: &[i32], mask: &[i32], types: &[i32], labels: &[i32]) -> PackedBatch {
    let width = ids.len() / labels.len();
    PackedBatch::new(labels.iter().enumerate().map(|(b, &label)| {
        let len = mask[b * width..][..width].iter().filter(|&&m| m == 1).count();
        let types = if types.is_empty() { &[][..] } else { &types[b * width..][..len] };
        (&ids[b * width..][..len], types, label as u32)
    }))
}

/// A model of a golden folder, planned for training with space for `batch`.
pub fn model(on: On, folder: &str, last_rows: Rows, batch: &PackedBatch, hyper: Hyperparameters) -> Model {
    let config = Config::read(&golden(folder).join("config.json")).unwrap();
    let spec = ModelSpec { train: true, last_rows, tokens: batch.tokens(), seqs: batch.seqs(), arithmetic: on.arithmetic() };
    let mut model = Model::new(&config, spec, hyper, on.backend()).unwrap();
    let weights = Tensors::read(&format!("{folder}/model.safetensors"));
    for slot in model.plan.slots.clone() {
        assert_eq!(weights.shape(&slot.param.name), slot.param.shape, "{}", slot.param.name);
        model.write(slot.view, weights.get(&slot.param.name)).unwrap();
    }
    model
}

pub fn max_abs_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // max would hide a NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |max, d| if d.is_nan() { f64::INFINITY } else { max.max(d) })
}

pub fn max_abs(a: &[f64]) -> f64 {
    max_abs_difference(a, &vec![0.0; a.len()])
}

pub fn rms(a: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = a.fold((0, 0.0), |(n, sum), x| (n + 1, sum + x * x));
    (sum / n as f64).sqrt()
}

/// Bounds on rms, 99.9 % quantile and maximum of absolute differences between trained parameters.
pub fn check_parameters(mut differences: Vec<f64>, bounds: [f64; 3]) {
    let n = differences.len();
    let rms = rms(differences.iter().copied());
    differences.sort_by(f64::total_cmp);
    let got = [rms, differences[(n as f64 * 0.999) as usize], differences[n - 1]];
    assert!(got.iter().zip(bounds).all(|(&got, bound)| got < bound), "rms, 99.9 % quantile, maximum: {got:?} over {bounds:?}");
}
