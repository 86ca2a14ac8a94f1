//! Algorithms of products that are timed on this GPU, in place of those that cuBLASLt suggests first. They are timed while ops
//! run, with the operands at hand: the first suggestions for a shape take turns, and the fastest is recorded. The records are a
//! text that a later run restores; the library checks an algorithm for the product at hand before it is used.

use std::collections::{BTreeMap, HashMap};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t as Status;
use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult};
use cudarc::driver::{CudaEvent, DriverError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use twox_hash::XxHash3_128;

use super::Cuda;
use super::gemm::{self, Algorithm, Gemm, Product, Shape, is_refusal};
use crate::ops::{Timed, Tuner};

/// Suggestions that are timed, at most.
const SUGGESTIONS: usize = 12;
/// Measurements of each; their median counts.
const MEASUREMENTS: usize = 5;
/// A measurement is of products in a row that take about this many milliseconds, at most `IN_A_ROW` of them.
const SPAN: f32 = 0.1;
const IN_A_ROW: f32 = 16.0;
/// A suggestion that takes this many times as long as the fastest, in the best of `TRIES` runs, is not measured.
const HOPELESS: f32 = 1.5;
const TRIES: usize = 3;
/// The first suggestion is kept unless another takes at most this part of its time: noise alone changes nothing.
const GAIN: f32 = 0.98;
/// Milliseconds. The host submits products no faster than this, so that the times of shorter ones tell nothing.
const SHORT: f32 = 0.01;
/// Factor of the products that are timed, so that those that are added to D hardly change it.
const ALPHA: f32 = 1.0 / (1 << 20) as f32;

/// The records of a backend.
#[derive(Default)]
pub struct Tuned {
    timing: bool,
    /// By the shape of a bucket.
    records: BTreeMap<Shape, Record>,
    /// By exact shape: the algorithm, if there is one and the library supports it.
    checked: HashMap<Shape, Option<Algorithm>>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Record {
    /// Microseconds of a product.
    us: f32,
    /// Those of the first suggestion.
    first_us: f32,
    /// The number of suggestions that were timed.
    of: usize,
    #[serde(with = "hexadecimal")]
    algorithm: Algorithm,
}

/// A line of the text.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    shape: Shape,
    #[serde(flatten)]
    record: Record,
}

#[derive(Deserialize)]
struct Text {
    device: String,
    products: Vec<Entry>,
    checksum: String,
}

/// The algorithm that was timed for a bucket, if there is one and the library supports it for the exact shape of `p`. If timing is
/// on, it is timed first.
pub fn algorithm(cuda: &Cuda, gemm: &Gemm, p: &Product, exact: Shape, bucket: Shape) -> Result<Option<Algorithm>, CublasError> {
    let mut tuned = cuda.tuned.borrow_mut();
    let Tuned { timing, records, checked } = &mut *tuned;
    if *timing && !records.contains_key(&bucket) {
        records.extend(time(cuda, gemm, p, exact, bucket)?.map(|record| (bucket, record)));
    }
    if records.is_empty() {
        return Ok(None);
    }
    if let Some(algorithm) = checked.get(&exact) {
        return Ok(*algorithm);
    }
    let algorithm = match records.get(&bucket) {
        Some(record) if gemm.supports(&record.algorithm, p, exact)? => Some(record.algorithm),
        _ => None,
    };
    checked.insert(exact, algorithm);
    Ok(algorithm)
}

/// Times the suggestions for a bucket with a product in it; `None` if there are none.
fn time(cuda: &Cuda, gemm: &Gemm, p: &Product, exact: Shape, bucket: Shape) -> Result<Option<Record>, CublasError> {
    let run = |algorithm: &Algorithm| gemm::run(cuda, gemm, p, exact, algorithm, ALPHA);
    let mut algorithms = Vec::new();
    for algorithm in gemm.suggestions(bucket, p, SUGGESTIONS).or_else(none_if_refused)? {
        // Its first run loads its kernel.
        if gemm.supports(&algorithm, p, exact)? && run(&algorithm).map(|()| true).or_else(none_if_refused)? {
            algorithms.push(algorithm);
        }
    }
    let measure = |algorithm: &Algorithm, products: usize| -> Result<Span, CublasError> {
        let begin = event(cuda)?;
        (0..products).try_for_each(|_| run(algorithm))?;
        Ok(Span { begin, end: event(cuda)?, products })
    };
    // In turns, here and below, as the clock of a GPU changes.
    let mut tries = vec![f32::INFINITY; algorithms.len()];
    for _ in 0..TRIES {
        let spans = algorithms.iter().map(|algorithm| measure(algorithm, 1)).collect::<Result<Vec<_>, _>>()?;
        for (shortest, span) in tries.iter_mut().zip(spans) {
            *shortest = shortest.min(span.milliseconds()?);
        }
    }
    let Some(fastest) = tries.iter().copied().reduce(f32::min) else { return Ok(None) };
    let products = (SPAN / fastest).clamp(1.0, IN_A_ROW) as usize;

    let mut spans: Vec<Vec<Span>> = algorithms.iter().map(|_| Vec::new()).collect();
    for _ in 0..MEASUREMENTS {
        for (i, algorithm) in algorithms.iter().enumerate().filter(|&(i, _)| i == 0 || tries[i] < HOPELESS * fastest) {
            spans[i].push(measure(algorithm, products)?);
        }
    }
    let mut medians = Vec::new();
    for (i, spans) in spans.iter().enumerate().filter(|(_, spans)| !spans.is_empty()) {
        let mut times = spans.iter().map(Span::milliseconds).collect::<Result<Vec<f32>, _>>()?;
        times.sort_by(f32::total_cmp);
        medians.push((times[MEASUREMENTS / 2], i));
    }
    let first = medians[0];
    let best = medians.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0)).expect("the first is one of them");
    let best = if best.0 <= GAIN * first.0 && first.0 >= SHORT { best } else { first };
    let us = |milliseconds: f32| (milliseconds * 1e6).round() / 1e3;
    Ok(Some(Record { us: us(best.0), first_us: us(first.0), of: algorithms.len(), algorithm: algorithms[best.1] }))
}

fn none_if_refused<T: Default>(e: CublasError) -> Result<T, CublasError> {
    if is_refusal(&e) { Ok(T::default()) } else { Err(e) }
}

/// The stream's work between two events.
struct Span {
    begin: CudaEvent,
    end: CudaEvent,
    products: usize,
}

impl Span {
    /// Of one product, when the work is done.
    fn milliseconds(&self) -> Result<f32, CublasError> {
        type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
        let mut all = 0.0;
        self.end.synchronize().map_err(failed)?;
        // SAFETY: the signature in cuda.h. cudarc calls the second version of it, which drivers older than CUDA 12.8 lack.
        unsafe {
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime").expect("every driver has it");
            elapsed(&mut all, self.begin.cu_event(), self.end.cu_event())
        }
        .result()
        .map_err(failed)?;
        Ok(all / self.products as f32)
    }
}

fn event(cuda: &Cuda) -> Result<CudaEvent, CublasError> {
    cuda.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed)
}

/// The stream's own error is reported, if it has one.
fn failed(_: DriverError) -> CublasError {
    CublasError(Status::CUBLAS_STATUS_EXECUTION_FAILED)
}

impl Tuner for Cuda {
    fn device(&self) -> String {
        let ((major, minor), (a, b, c)) = (self.capability(), self.gpu.gemm().version);
        format!("{}, compute capability {major}.{minor}, cuBLASLt {a}.{b}.{c}", self.gpu.name)
    }

    fn class(&self, rows: usize) -> (usize, bool) {
        gemm::class(rows)
    }

    fn set_timing(&mut self, on: bool) {
        let tuned = self.tuned.get_mut();
        tuned.timing = on;
        tuned.checked.clear();
    }

    fn timed(&self) -> Timed {
        let records = &self.tuned.borrow().records;
        let seconds = |us: fn(&Record) -> f32| records.values().map(|record| f64::from(us(record)) * 1e-6).sum();
        let (text, _) = text(&self.device(), records);
        Timed { text, shapes: records.len(), seconds: seconds(|record| record.us), first_seconds: seconds(|r| r.first_us) }
    }

    fn restore(&mut self, json: &str) -> Result<(), String> {
        let damaged = |e| format!("is damaged, or of another version of warpfit: {e}");
        let Text { device, products, checksum } = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        let records: BTreeMap<Shape, Record> = products.into_iter().map(|entry| (entry.shape, entry.record)).collect();
        if text(&device, &records).1 != checksum {
            return Err(damaged("its checksum is another one".to_string()));
        }
        if device != self.device() {
            return Err(format!("was timed on {device}; this is {}", self.device()));
        }
        let tuned = self.tuned.get_mut();
        tuned.records.extend(records);
        tuned.checked.clear();
        Ok(())
    }
}

/// The records as JSON, one product per line, and its checksum.
fn text(device: &str, records: &BTreeMap<Shape, Record>) -> (String, String) {
    let entry =
        |(&shape, &record): (&Shape, &Record)| serde_json::to_string(&Entry { shape, record }).expect("numbers and names");
    let products = records.iter().map(entry).collect::<Vec<_>>().join(",\n    ");
    let content = format!("{{\n  \"device\": {},\n  \"products\": [\n    {products}\n  ],\n", json!(device));
    let checksum = format!("{:032x}", XxHash3_128::oneshot(content.as_bytes()));
    (format!("{content}  \"checksum\": \"{checksum}\"\n}}\n"), checksum)
}

mod hexadecimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Algorithm;

    pub fn serialize<S: Serializer>(algorithm: &Algorithm, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&algorithm.data.map(|word| format!("{word:016x}")).concat())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Algorithm, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let words = digits
            .as_bytes()
            .chunks(16)
            .map(|word| std::str::from_utf8(word).ok().and_then(|word| u64::from_str_radix(word, 16).ok()));
        let data = words.collect::<Option<Vec<u64>>>().and_then(|words| words.try_into().ok());
        data.map(|data| Algorithm { data }).ok_or_else(|| D::Error::custom("an algorithm is 128 hexadecimal digits"))
    }
}
