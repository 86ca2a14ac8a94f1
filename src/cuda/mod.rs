//! The backend on NVIDIA GPUs: hand-written kernels (kernels/), products by cuBLASLt, one arena, and one stream but for updates
//! beside the next forward pass. A launcher holds geometry only: the number of blocks, and the addresses passed to the kernel. Only
//! `upload`, `download` and `collect` wait for the GPU, and `stage` when it is two batches ahead.

mod adamw;
mod arena;
mod attention;
mod classifier;
mod columns;
mod device;
mod embed;
mod error;
mod gemm;
mod graph;
mod kernels;
mod linear;
mod norm;
mod overlap;
mod tune;
mod words;

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr, result};

use crate::data::pack::PackedBatch;
use crate::error::{Error, Kind, Result};
use crate::ops::*;
use crate::random::step_key;
use arena::Arena;
use device::Gpu;
use error::failed;
use kernels::{Drop, Kernel, Kernels, Ptr};

pub use kernels::{Arguments, COMPILER, LAYOUTS, architectures};

/// The backend on one GPU, in f32, bf16 or f16.
pub struct Cuda {
    arena: Option<Arena>,
    stream: Arc<CudaStream>,
    gpu: Arc<Gpu>,
    sums: RefCell<columns::Pending>,
    words: Option<words::Words>,
    overlap: overlap::Overlap,
    graphs: RefCell<graph::Graphs>,
    passes_over_rows: bool,
    overlaps: bool,
    always_splits: bool,
    refused_products: Cell<u64>,
    lacks_products: Cell<bool>,
    tuned: RefCell<tune::Tuned>,
    step: Step,
    tokens: usize,
    seqs: usize,
    max_seqlen: usize,
    /// Distinct tokens of the batch.
    distinct: usize,
    /// Of the batch.
    inputs: Option<Inputs>,
}

impl Cuda {
    /// # Errors
    /// There is no such GPU, or a requirement is missing.
    pub fn open(index: usize) -> Result<Cuda> {
        let gpu = Gpu::open(index)?;
        let serial = device::serial()?;
        let (stream, overlap) = (overlap::main_stream(&gpu.context)?, overlap::Overlap::new(&gpu.context)?);
        Ok(Cuda {
            arena: None,
            stream,
            overlap,
            gpu,
            sums: RefCell::new(columns::Pending::NONE),
            words: None,
            graphs: RefCell::new(graph::Graphs::new(!serial)),
            passes_over_rows: true,
            overlaps: !serial,
            always_splits: false,
            refused_products: Cell::new(0),
            lacks_products: Cell::new(false),
            tuned: RefCell::default(),
            step: Step::INFER,
            tokens: 0,
            seqs: 0,
            max_seqlen: 0,
            distinct: 0,
            inputs: None,
        })
    }

    /// For tests: products may split their sums over any k, to detect whether cuBLASLt drops terms.
    pub fn always_splits(self) -> Cuda {
        Cuda { always_splits: true, ..self }
    }

    /// For tests: every update runs over all rows of the word table.
    pub fn updates_every_row(self) -> Cuda {
        Cuda { passes_over_rows: false, ..self }
    }

    /// For tests and benchmarks: every update is complete before the next forward pass begins.
    pub fn updates_at_once(self) -> Cuda {
        Cuda { overlaps: false, ..self }
    }

    /// The number of products for which cuBLASLt refused the algorithm of their bucket, so that one was requested for the exact
    /// number of rows.
    pub fn refused_products(&self) -> u64 {
        self.refused_products.get()
    }

    /// Whether cuBLASLt does not support a product at all, so that a kernel that is many times slower computed it.
    pub fn lacks_products(&self) -> bool {
        self.lacks_products.get()
    }

    /// Copies `src` to `dst` of the same size, on the GPU: an upper bound for the speed of memory-bound kernels.
    ///
    /// # Errors
    /// The GPU has failed.
    fn copy(&self, dst: View, src: View) -> Result<()> {
        assert_eq!(dst.bytes(), src.bytes());
        self.bind()?;
        // SAFETY: both lie in the arena.
        unsafe { result::memcpy_dtod_async(self.at(dst), self.at(src), src.bytes(), self.stream.cu_stream()) }
            .map_err(failed("copy"))
    }

    /// Zeroes a view that has no part in sums over columns.
    fn fill(&self, dst: View) -> Result<()> {
        self.bind()?;
        // SAFETY: inside the arena.
        unsafe { result::memset_d8_async(self.at(dst), 0, dst.bytes(), self.stream.cu_stream()) }.map_err(failed("zero"))
    }

    fn kernels(&self) -> &Kernels {
        &self.gpu.kernels
    }

    fn stream(&self) -> &CudaStream {
        &self.stream
    }

    /// Compute capability: 9.0 is (9, 0).
    pub fn capability(&self) -> (i32, i32) {
        self.gpu.capability
    }

    fn arena(&self) -> &Arena {
        self.arena.as_ref().expect("reserve comes first")
    }

    fn inputs(&self) -> &Inputs {
        self.inputs.as_ref().expect("stage comes first")
    }

    /// Tiles of attention in the batch.
    fn tiles(&self) -> usize {
        self.inputs().tiles.len / 2
    }

    fn words(&self) -> Option<&words::Words> {
        self.words.as_ref()
    }

    /// Completes the content of a view that is read or written other than by ops.
    fn settle(&self, view: View) -> Result<()> {
        overlap::finish(self)?;
        columns::flush(self)?;
        words::before(self, view)
    }

    /// The address of a view; null for an empty one.
    fn at(&self, view: View) -> Ptr {
        self.arena().at(view)
    }

    /// Working memory, valid until the next op.
    fn scratch(&self, bytes: usize) -> Result<Ptr> {
        if bytes > arena::SCRATCH {
            let fact = format!("an op needs {bytes} bytes of working memory, but there are {}", arena::SCRATCH);
            return Err(Error::new(Kind::Device, self.name(), fact, "lower --batch-size"));
        }
        Ok(self.arena().scratch())
    }

    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Cls => self.seqs,
        }
    }

    /// The packed rows whose dropout masks apply to the rows of an op; null if they are the same.
    fn token_rows(&self, rows: Rows) -> Ptr {
        match rows {
            Rows::Tokens => 0,
            Rows::Cls => self.at(self.inputs().cu_seqlens),
        }
    }

    /// A dropout site in this step.
    fn drop(&self, drop: DropSite) -> Drop {
        let [key_low, key_high] = step_key(self.step.seed, self.step.update, self.step.micro);
        let (threshold, scale) = if self.step.train { (drop.threshold(), drop.scale()) } else { (0, 1.0) };
        Drop { key_low, key_high, site: drop.site, threshold, scale: scale as f32 }
    }

    fn launch<A: DeviceRepr>(&self, kernel: &Kernel<A>, grid: [usize; 3], arguments: &A) -> Result<()> {
        self.launch_on(&self.stream, kernel, grid, arguments)
    }

    fn launch_on<A: DeviceRepr>(&self, stream: &CudaStream, kernel: &Kernel<A>, grid: [usize; 3], arguments: &A) -> Result<()> {
        // SAFETY: the launchers fill the arguments with addresses of the arena.
        unsafe { kernel.launch(stream, grid, arguments) }
    }

    fn launch_forward(&self, op: &Op) -> Result<()> {
        overlap::before(self, op)?;
        match op {
            Op::Embed(op) => embed::fwd(self, op),
            Op::Linear(op) => linear::fwd(self, op),
            Op::Attention(op) => attention::fwd(self, op),
            Op::AddNorm(op) => norm::fwd(self, op),
            Op::Gelu(op) => linear::gelu_fwd(self, op),
            Op::GatherCls(op) => embed::first_row_fwd(self, op),
            Op::Classifier(op) => classifier::fwd(self, op),
        }
    }

    fn bind(&self) -> Result<()> {
        self.gpu.context.bind_to_thread().map_err(failed("device"))
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.gpu.name.clone()
    }

    fn available(&self, layout: &Layout) -> Result<Option<usize>> {
        let (free, _) = self.gpu.context.mem_get_info().map_err(failed("free memory"))?;
        Ok(Some(free.saturating_sub(self.workspace(layout) + self.libraries())))
    }

    fn workspace(&self, layout: &Layout) -> usize {
        let words = layout.words.filter(|_| self.passes_over_rows);
        arena::SCRATCH + arena::SUMS + words.map_or(0, |words| words::bytes(&words, layout.arithmetic))
    }

    fn libraries(&self) -> usize {
        arena::LIBRARIES
    }

    fn passes_over_rows(&self) -> bool {
        self.words.is_some()
    }

    fn reserve(&mut self, layout: &Layout) -> Result<()> {
        let arithmetic = layout.arithmetic;
        assert!(!matches!(arithmetic, Arithmetic::F64 | Arithmetic::Bf16Products), "GPUs do not support {arithmetic:?}");
        // Frees the previous arena first.
        (self.arena, self.words) = (None, None);
        self.graphs.get_mut().clear();
        self.sums.replace(columns::Pending::NONE);
        self.arena = Some(Arena::new(&self.stream, layout)?);
        if let Some(table) = layout.words.filter(|_| self.passes_over_rows) {
            self.words = words::Words::new(&self.stream, table, arithmetic)?;
        }
        Ok(())
    }

    fn upload(&mut self, dst: View, src: &[u8]) -> Result<()> {
        assert!(src.len() <= dst.bytes(), "the source exceeds {dst:?}");
        self.bind()?;
        self.settle(dst)?;
        // SAFETY: inside the arena; the driver has copied `src` when the call returns, or waits.
        unsafe { result::memcpy_htod_async(self.at(dst), src, self.stream.cu_stream()) }.map_err(failed("upload"))?;
        self.stream.synchronize().map_err(failed("upload"))
    }

    fn download(&mut self, src: View, dst: &mut [u8]) -> Result<()> {
        assert!(dst.len() <= src.bytes(), "the destination exceeds {src:?}");
        self.bind()?;
        self.settle(src)?;
        self.arena.as_mut().expect("reserve comes first").download(&self.stream, src, dst)
    }

    fn fetch(&mut self, slot: usize, views: &[View]) -> Result<()> {
        self.bind()?;
        views.iter().try_for_each(|&view| self.settle(view))?;
        self.arena.as_mut().expect("reserve comes first").fetch(&self.stream, slot, views)
    }

    fn collect(&mut self, slot: usize) -> Result<Vec<u8>> {
        self.bind()?;
        self.arena().collect(slot)
    }

    fn zero(&mut self, dst: View) -> Result<()> {
        self.settle(dst)?;
        self.fill(dst)
    }

    fn stage(&mut self, batch: &PackedBatch, step: &Step) -> Result<()> {
        self.bind()?;
        let arena = self.arena.as_mut().expect("reserve comes first");
        self.inputs = Some(arena.stage(&self.stream, batch)?);
        self.step = *step;
        (self.tokens, self.seqs, self.max_seqlen) = (batch.tokens(), batch.seqs(), batch.max_seqlen);
        self.distinct = batch.token_starts.len() - 1;
        self.words.iter().for_each(words::Words::stage);
        Ok(())
    }

    fn forward(&mut self, op: &Op) -> Result<()> {
        self.launch_forward(op)
    }

    fn forward_all(&mut self, ops: &[Op]) -> Result<()> {
        let launch = || ops.iter().try_for_each(|op| self.launch_forward(op));
        // A plan for training has words that catch up, or not.
        if self.seqs > 1 || self.arena().layout.words.is_some() {
            return launch();
        }
        self.graphs.borrow_mut().run(&self.stream, (self.tokens, ops.len()), launch)
    }

    fn backward(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed(op) => embed::bwd(self, op),
            Op::Linear(op) => linear::bwd(self, op),
            Op::Attention(op) => attention::bwd(self, op),
            Op::AddNorm(op) => norm::bwd(self, op),
            Op::Gelu(op) => linear::gelu_bwd(self, op),
            Op::GatherCls(op) => embed::first_row_bwd(self, op),
            Op::Classifier(op) => classifier::bwd(self, op),
        }
    }

    fn cast(&mut self, op: &Cast) -> Result<()> {
        self.settle(op.x)?;
        self.settle(op.y)?;
        if op.x.dtype == op.y.dtype { self.copy(op.y, op.x) } else { adamw::cast(self, op) }
    }

    fn grad_norm(&mut self, op: &GradNorm) -> Result<()> {
        columns::flush(self)?;
        adamw::grad_norm(self, op)
    }

    fn adamw(&mut self, op: &AdamW, update: &Update) -> Result<()> {
        columns::flush(self)?;
        adamw::update(self, op, update)
    }

    fn tuner(&mut self) -> Option<&mut dyn Tuner> {
        Some(self)
    }
}
