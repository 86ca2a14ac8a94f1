//! warpfit fine-tunes BERT-family encoders for text classification: a transformer engine of its own, no tensor framework.
//!
//! # The map
//! Data flow = file order:
//! ```text
//! dataset -> tokenize -> pack -> loader
//!   -> embed -> (linear qkv, attention, linear out, add & norm, linear up, gelu, linear down, add & norm) x layers
//!   -> head on [CLS] -> cross-entropy -> the same list backwards -> gradient norm -> AdamW -> checkpoint
//! ```
//! | place | what lies there |
//! | --- | --- |
//! | [`ops`] | THE page: one struct an op with its maths, and the trait [`ops::Backend`] that runs them |
//! | [`data`] | `dataset` (labelled texts: one file a format, the splits of a folder), `inputs` (rows to classify), `scored` (rows classified), `tokenize` (with `wordpiece`, BERT's own way), `cache` (tokens kept for the next run), `pack` (no padding), `loader` (order of rows, prefetching) |
//! | [`model`] | `config`, `names` (Hugging Face tensor names), `plan` (every buffer), `encoder` and `head` (forward, backward: two mirrored lists) |
//! | [`cpu`] | the backend on CPUs: one file an op stem (embed linear attention norm dropout loss adamw), `instructions` (what the CPU has, and `WARPFIT_CPU`), `arena`, `product` (of matrices), `gemm` (products in f32 and f64), `rounded` (products of bf16; `avx512` where the CPU has it), `real` (f32 and f64 arithmetic) |
//! | [`cuda`] | the backend on NVIDIA GPUs: the same stems, each a launcher of the kernels in `kernels/<stem>.cu`; `gemm` (cuBLASLt), `columns` (sums over rows), `device`, `arena`, `kernels` (the table that build.rs writes from the sources) |
//! | [`device`] | which backend computes, and how precisely: the one place that knows them by name |
//! | [`cost`], [`profile`] | bytes and FLOPs of each op at the least; where the time of a run goes |
//! | [`random`] | Philox: dropout as a pure function of where and when |
//! | [`hub`] | the Hugging Face hub: `client` (HTTP), `cache` (models and data sets fetched), `push` |
//! | [`train`] | `recipe` (flags under the typed ones), `args` (as typed -> as meant), `data`, `trainer` (the loop), `schedule`, `resume`, `evaluate`, `card` (the model card) |
//! | [`metrics`] | accuracy to curves, as scikit-learn has them |
//! | [`checkpoint`] | `weights` (safetensors, whole or in shards), `model_dir` (what `from_pretrained` loads), `run_dir` (nothing half-written) |
//! | [`classifier`] | a trained model opened to classify |
//! | [`embed`] | hidden states as features; `probe` (logistic regression on them), `projection` (two dimensions of them: `pca`, `tsne`), `npy` |
//! | [`report`] | `log` (progress, tables), `predictions`, `plot` (SVG; `density` of points), `curves` (of a run), `tensorboard`, `evaluation` (its folder), `page` (HTML), `compare` |
//! | [`serve`] | a model behind HTTP: `api` (the routes), `queue` (batches made of the requests that wait), `engine` (what computes them), `metrics`, `page.html` |
//! | [`sample`] | the bundled reviews of the default run |
//! | [`cli`], [`error`] | what the binaries share; one error type: what, where, what to do |
//!
//! A backend implements the trait, one file an op stem; `device` opens it, and nothing else names one. Beside `src/`: `kernels/`
//! (CUDA sources), `build.rs` (nvcc, where there is one), `tests/vgpu` (a GPU in software, for the tests), `benches/`.
//!
//! # Invariants
//! 1. Padding does not exist. A batch is packed: `ids`, `positions` and `cu_seqlens`; every dense op runs on the rows that
//!    are there; only attention and the [CLS] gather read `cu_seqlens`.
//! 2. An op allocates nothing (the `gemm` crate's working memory aside): all memory is planned and taken once, and
//!    `plan.rs` is the whole list.
//! 3. Parameter gradients accumulate (`+=`), activation gradients are overwritten (`=`) unless the op's field says so.
//! 4. Every reduction has a fixed order, and there are no floating-point atomics: the same inputs give the same bits, run after
//!    run, on any number of threads of one kind of processor.
//! 5. Every op has a backward. After one step every parameter that should move has moved (tested).
//! 6. Randomness is counter-based (Philox4x32-10 keyed by seed, update and micro-batch; the counter says site, row and
//!    column) and computed again in the backward pass: no stored masks, no generator state to lose.
//! 7. The maths of an op is written once, in `ops.rs`; a kernel file holds kernels, a launcher holds geometry. A test gives each
//!    op a case: its numerical gradient on the CPU, and every other backend against that.
//! 8. The model code names no device: a `Box<dyn Backend>`, tensors as [`ops::View`]s into its memory, dtype a run-time field.
//! 9. Only [CLS] feeds the head: a plan with `last_rows` = `Seqs` runs the last layer's queries, feed-forward and norms on
//!    [CLS] rows alone. Exact, and with the same dropout masks.
//! 10. What stands on disk under a final name is complete.

pub mod checkpoint;
pub mod classifier;
pub mod cli;
pub mod cost;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod device;
pub mod embed;
pub mod error;
pub mod hub;
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
