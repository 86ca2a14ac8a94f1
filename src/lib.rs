//! warpfit fine-tunes BERT-family encoders for text classification: a transformer engine of its own, no tensor framework.
//!
//! # The map
//! Data flow = file order:
//! ```text
//! dataset -> tokenize -> pack -> loader
//!   -> embed -> (linear qkv, attention, linear out, add & norm, linear up, gelu, linear down, add & norm) x layers
//!   -> head on `[CLS]` (linear dense, classifier & loss) -> the same list backwards -> gradient norm -> AdamW -> checkpoint
//! ```
//! | place | content |
//! | --- | --- |
//! | [`ops`] | the operator definitions: one struct per op with its maths, the enum [`ops::Op`], and the trait [`ops::Backend`] that runs them |
//! | [`model`] | a model as one list of ops: `encoder`, `head`; `infer` (batches in order, submitted ahead); `names` (parameters by role, with Hugging Face's names), `config`, `plan` (every buffer) |
//! | [`cpu`] | the backend on CPUs: one file per group of ops (embed linear attention norm classifier adamw), `dropout` (its masks), `arena`, `instructions` (the machine's, or those of `WARPFIT_CPU`), and matrix products: `matrix`, `product`, by `gemm`, of few rows by `dots`, or, rounded to bf16, by `panels` (`avx512`, `amx`) or `copies` |
//! | [`cuda`] | the backend on NVIDIA GPUs: the same groups, each launching the kernels in `kernels/<name>.cu`; `gemm` (cuBLASLt), `tune` (its algorithms, timed), `columns` (sums over rows, added once per update), `words` (rows of the word table that updates pass over), `overlap` (updates beside the next forward pass), `graph` (the pass of one text, recorded and replayed), `device`, `arena`, `kernels` (the table that build.rs writes from the sources) |
//! | [`device`] | the choice of backend and precision: the only module that opens a backend |
//! | [`cost`], [`profile`] | the least bytes and FLOPs of each op; the time of each op in a run |
//! | [`random`] | Philox: dropout as a pure function of place and step |
//! | [`data`] | `dataset` (labelled texts: one file per format, the splits of a folder, the `classes` of a run), `description` (a look at them before training), `inputs` (rows to classify), `scored` (rows classified), `tokenize` (with `pretrained`, the settings of a model folder, `wordpiece`, BERT's own algorithm, and `truncation`, the part of long texts that is left out), `cache` (tokenized texts kept for later runs), `pack` (no padding), `loader` (order of rows, prefetching) |
//! | [`train`] | fine-tuning: `hugging_face` (flags of its scripts, translated), `recipe` and `args` (raw flags -> validated settings), `data`, `setup`, `epochs` (the loop), `tune` (the algorithms of a run: timed, from a file, from its checkpoint), `schedule`, `evaluate`, `state` (that of a checkpoint), `resume` (a checkpoint chosen and restored), `saver` (writes them beside the training), `results`, `card` (the model card) |
//! | [`infer`] | a trained model opened for inference: the session of predict, evaluate, embed and serve; `predictions` (their formats), `pooling`, `probe` (logistic regression on vectors), `projection` (to two dimensions: `pca`, `tsne`), `npy` |
//! | [`checkpoint`] | `weights` (safetensors, whole or in shards), `snapshot` (a model's numbers in host memory, to be written), `model_dir` (the folder of a model), `run_dir` (the folder of a run) |
//! | [`hub`] | the Hugging Face hub: `client` (HTTP), `cache` (models and data sets fetched), `push` |
//! | [`metrics`] | accuracy to curves, equal to scikit-learn's |
//! | [`report`] | `log` (progress, tables), `history` (the log of a run), `plot` (SVG; `density` of points), `curves` (of a run), `tensorboard`, `description` (of a data set, as text and page), `evaluated` and `evaluation` (an evaluation and its folder), `page` (HTML), `compare` |
//! | [`serve`] | a model behind HTTP: `api` (the routes, one file per protocol), `access_log`, `queue` (batches of waiting requests), `metrics`, `page.html` |
//! | [`commands`] | one file per command of the program |
//! | [`sample`] | the bundled reviews of the default run |
//! | [`console`], [`files`], [`flags`], [`memory`], [`error`] | the terminal and signals; atomic files; command-line flags; the allocator; one error type: where, what, what to do |
//!
//! A backend implements the trait, one file per group of ops; `device` opens it, and no other module names one (`tsne` uses the CPU's instructions for its own loops). Beside `src/`:
//! `kernels/` (CUDA sources), `build.rs` (runs nvcc, if there is one), `tests/vgpu` (a GPU in software, for the tests),
//! `benches/`.
//!
//! # Invariants
//! 1. Padding does not exist. A batch is packed: `ids`, `positions` and `cu_seqlens`; every dense op runs on the rows that
//!    exist; only attention and the gather of `[CLS]` read `cu_seqlens`.
//! 2. An op allocates nothing (the working memory of the `gemm` crates aside, and on first use page-locked memory for results and, on a CPU in bf16, the packed
//!    weights of inference):
//!    all memory is planned and taken once, and `plan.rs` is the whole list, but for the working memory that a backend takes in
//!    [`ops::Backend::reserve`].
//! 3. Gradients of parameters accumulate (`+=`) over an update's micro-batches, of which the first overwrites (`=`); gradients of
//!    activations are overwritten unless the op's field says otherwise. On a GPU an update passes over the rows of the word table
//!    without a gradient, and updates most matrices beside the next forward pass; both have all updates before anything reads
//!    them: the bits are those of an update of everything at once.
//! 4. Every reduction has a fixed order, and there are no floating-point atomics: the same inputs give the same bits, run after
//!    run, on any number of threads. A product's algorithm is a function of its shape, the library, the GPU and the run's timed
//!    algorithms alone; its checkpoints hold those.
//! 5. Every op has a backward: a model's backward pass is its list reversed. After one step every parameter that should move has
//!    moved (tested).
//! 6. Randomness is counter-based (Philox4x32-7 keyed by seed, update and micro-batch; the counter is site, row and
//!    column) and computed again in the backward pass: no stored masks, no generator state to lose.
//! 7. The maths of an op is written once, in `ops.rs`; a kernel file holds kernels, a launcher holds geometry. A test gives each
//!    op a case: its numerical gradient on the CPU, and every other backend against that.
//! 8. The model code names no device: a `Box<dyn Backend>`, tensors as [`ops::View`]s into its memory, dtype a run-time field.
//! 9. Only `[CLS]` feeds the head: a plan with `last_rows` = `Seqs` runs the last layer's queries, feed-forward and norms on
//!    the `[CLS]` rows alone. Exact, and with the same dropout masks.
//! 10. Files and checkpoints are atomic: a file under its final name is complete. A checkpoint is the state at the moment of the save,
//!     although training goes on while it is written.

pub mod checkpoint;
pub mod commands;
pub mod console;
pub mod cost;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod device;
pub mod error;
pub mod files;
pub mod flags;
pub mod hub;
pub mod infer;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod profile;
pub mod random;
pub mod report;
pub mod sample;
pub mod serve;
pub mod train;

pub use error::{Error, Kind, Result};
