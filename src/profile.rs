//! The time of each op in a run: a backend that times every op while passing it on to another, and ceilings of the hardware,
//! measured alongside. Each op is waited for, so that its time is its own: on a GPU a profiled step takes longer.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::cost::{Cost, Size};
use crate::data::pack::PackedBatch;
use crate::error::Result;
use crate::files::write_file;
use crate::ops::*;
use crate::report::log::counted;

/// The speed of plain copies and products.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Bytes per second read and written by a copy.
    pub copy: f64,
    /// FLOP per second of a large square product.
    pub product: f64,
}

impl Ceilings {
    /// Measures `backend`. Takes its memory; do not use it afterwards.
    pub fn measure(backend: &mut dyn Backend, arithmetic: Arithmetic) -> Result<Ceilings> {
        let ceilings = Ceilings::at(backend, arithmetic, 128 << 20, 2048)?;
        // A GPU reaches full speed only at larger sizes.
        if ceilings.product < 5e12 { Ok(ceilings) } else { Ceilings::at(backend, arithmetic, 512 << 20, 8192) }
    }

    /// Copies `bytes`, and multiplies matrices of (edge, edge); the best of several tries each.
    pub fn at(backend: &mut dyn Backend, arithmetic: Arithmetic, bytes: usize, edge: usize) -> Result<Ceilings> {
        let dtype = arithmetic.dtype();
        let (mut end, square) = (0, edge * edge);
        let mut take = |len: usize, dtype: DType| {
            let view = View { offset: end, len, dtype };
            end += view.bytes().next_multiple_of(256);
            view
        };
        let ids = vec![0; edge];
        let batch = PackedBatch::new([(&ids[..], &[][..], 0)]);
        let region = take(Inputs::capacity(edge, 1), DType::I32);
        let copy = Cast { x: take(bytes / 4, DType::F32), y: take(bytes / 4, DType::F32) };
        let product = Linear {
            x: take(square, dtype),
            w: take(square, dtype),
            b: take(edge, dtype),
            y: take(square, dtype),
            dy: View::NONE,
            dx: View::NONE,
            dw: View::NONE,
            add: false,
            k: edge,
            n: edge,
            rows: Rows::Tokens,
        };
        backend.reserve(&Layout { bytes: end, arithmetic, batch: region, max_seqlen: edge, params: 1, words: None })?;
        // Varied values, whose sums stay small.
        let value = |i: usize| (i % 251) as f64 / 251.0 - 0.5;
        for view in [product.x, product.w] {
            backend.write(view, &(0..square).map(value).collect::<Vec<f64>>())?;
        }
        backend.stage(&batch, &Step::INFER)?;
        let copied = best(backend, |backend| backend.cast(&copy))?;
        let multiplied = best(backend, |backend| backend.forward(&Op::Linear(product)))?;
        let flops = 2.0 * square as f64 * edge as f64;
        Ok(Ceilings { copy: 2.0 * copy.x.bytes() as f64 / copied, product: flops / multiplied })
    }

    /// A lower bound on the seconds of this cost.
    pub fn floor(&self, cost: Cost) -> f64 {
        (cost.bytes as f64 / self.copy).max(cost.flops as f64 / self.product)
    }
}

/// Seconds of a call, the best of several tries of a few milliseconds.
fn best(backend: &mut dyn Backend, mut call: impl FnMut(&mut dyn Backend) -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    let mut calls = 1;
    for _ in 0..8 {
        let begin = Instant::now();
        (0..calls).try_for_each(|_| call(backend))?;
        backend.wait()?;
        let seconds = begin.elapsed().as_secs_f64();
        best = best.min(seconds / calls as f64);
        if seconds < 4e-3 {
            calls *= 4;
        }
    }
    Ok(best)
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "copy {:.1} GB/s, product {:.0} GFLOP/s", self.copy * 1e-9, self.product * 1e-9)
    }
}

/// The timings, shared between the profiled backend and the loop that reads them.
#[derive(Clone)]
pub struct Profile(Arc<Mutex<Record>>);

struct Record {
    /// Updates to time.
    updates: usize,
    /// Updates begun; the first is a warm-up and is not counted.
    begun: usize,
    /// Start of the counted updates, and end of the last of them.
    begin: Instant,
    end: Instant,
    size: Size,
    events: Vec<Event>,
}

struct Event {
    op: String,
    start: Duration,
    took: Duration,
    cost: Cost,
}

/// One line of the table: an op at one size.
struct Row<'a> {
    op: &'a str,
    calls: usize,
    seconds: f64,
    cost: Cost,
    floor: f64,
}

impl Profile {
    /// A backend that runs the ops on `inner` and times them, and the profile of the `updates` after the first.
    pub fn of(inner: Box<dyn Backend>, updates: usize) -> (Box<dyn Backend>, Profile) {
        let now = Instant::now();
        let size = Size { tokens: 0, seqs: 0, max_seqlen: 0, distinct: 0, pairs: 0, passed: 0 };
        let record = Record { updates, begun: 0, begin: now, end: now, size, events: Vec::new() };
        let profile = Profile(Arc::new(Mutex::new(record)));
        (Box::new(Profiled { inner, profile: profile.clone(), words: None }), profile)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether all requested updates have been timed.
    pub fn is_done(&self) -> bool {
        let record = self.record();
        record.begun > record.updates
    }

    /// Mean times per update, one op per line, the longest first.
    pub fn table(&self, ceilings: &Ceilings) -> String {
        let record = self.record();
        // The warm-up is not counted.
        let updates = record.begun.saturating_sub(1).min(record.updates);
        if updates == 0 {
            return "profile: no update was timed; the first one is a warm-up".to_string();
        }
        let mut rows: HashMap<&str, Row> = HashMap::new();
        for event in &record.events {
            let row =
                rows.entry(&event.op).or_insert(Row { op: &event.op, calls: 0, seconds: 0.0, cost: Cost::default(), floor: 0.0 });
            row.calls += 1;
            row.seconds += event.took.as_secs_f64();
            row.cost = Cost { bytes: row.cost.bytes + event.cost.bytes, flops: row.cost.flops + event.cost.flops };
            row.floor += ceilings.floor(event.cost);
        }
        let mut rows: Vec<Row> = rows.into_values().collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.op.cmp(b.op)));
        let all = (record.end - record.begin).as_secs_f64();
        let in_ops: f64 = rows.iter().map(|row| row.seconds).sum();
        let floor: f64 = rows.iter().map(|row| row.floor).sum();

        let mut table = format!("profile of {}; ceilings: {ceilings}\n", counted(updates, "update"));
        let head = ["calls", "ms", "share %", "GB/s", "GFLOP/s", "of ceiling %"];
        table +=
            &format!("{:<40}{:>7}{:>11}{:>9}{:>9}{:>10}{:>14}\n", "op", head[0], head[1], head[2], head[3], head[4], head[5]);
        let mut line = |op: &str, calls: usize, seconds: f64, cost: Cost, floor: f64| {
            let ms = seconds * 1e3 / updates as f64;
            let rate = |amount: usize| match amount {
                0 => "-".to_string(),
                _ => format!("{:.1}", amount as f64 / seconds * 1e-9),
            };
            let of_ceiling = if floor > 0.0 { format!("{:.0}", 100.0 * floor / seconds) } else { "-".to_string() };
            let (calls, share) = (calls as f64 / updates as f64, 100.0 * seconds / all);
            let (bytes, flops) = (rate(cost.bytes), rate(cost.flops));
            table += &format!("{op:<40}{calls:>7.0}{ms:>11.3}{share:>9.1}{bytes:>9}{flops:>10}{of_ceiling:>14}\n");
        };
        rows.iter().for_each(|row| line(row.op, row.calls, row.seconds, row.cost, row.floor));
        line("between the ops", 0, all - in_ops, Cost::default(), 0.0);
        line("all", record.events.len(), all, Cost::default(), floor);
        table.trim_end().to_string()
    }

    /// Writes the timings as a Chrome trace (the Trace Event Format, complete events, microseconds), for
    /// chrome://tracing or ui.perfetto.dev.
    pub fn write_trace(&self, path: &Path) -> Result<()> {
        let record = self.record();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let events: Vec<_> = (record.events.iter())
            .map(|event| {
                json!({
                    "name": event.op,
                    "ph": "X",
                    "pid": 1,
                    "tid": 1,
                    "ts": micros(event.start),
                    "dur": micros(event.took),
                    "args": { "bytes": event.cost.bytes, "flops": event.cost.flops },
                })
            })
            .collect();
        write_file(path, json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string().as_bytes())
    }
}

/// The backend that wraps `inner`.
struct Profiled {
    inner: Box<dyn Backend>,
    profile: Profile,
    /// If updates pass over rows of them.
    words: Option<Words>,
}

impl Profiled {
    fn timed(
        &mut self,
        op: impl FnOnce() -> String,
        cost: impl FnOnce(&Size) -> Cost,
        run: impl FnOnce(&mut dyn Backend) -> Result<()>,
    ) -> Result<()> {
        let (begun, updates) = {
            let record = self.profile.record();
            (record.begun, record.updates)
        };
        if !(1..=updates).contains(&begun) {
            return run(self.inner.as_mut());
        }
        let start = Instant::now();
        run(self.inner.as_mut())?;
        self.inner.wait()?;
        let took = start.elapsed();
        let mut record = self.profile.record();
        let (start, cost) = (start - record.begin, cost(&record.size));
        record.events.push(Event { op: op(), start, took, cost });
        Ok(())
    }

    fn timed_op(&mut self, op: &Op, pass: Pass) -> Result<()> {
        self.timed(|| op.label(pass), |size| op.cost(pass, size), |backend| backend.run(op, pass))
    }
}

impl Backend for Profiled {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn processor(&self) -> String {
        self.inner.processor()
    }

    fn tuner(&mut self) -> Option<&mut dyn Tuner> {
        self.inner.tuner()
    }

    fn available(&self, layout: &Layout) -> Result<Option<usize>> {
        self.inner.available(layout)
    }

    fn workspace(&self, layout: &Layout) -> usize {
        self.inner.workspace(layout)
    }

    fn libraries(&self) -> usize {
        self.inner.libraries()
    }

    fn passes_over_rows(&self) -> bool {
        self.inner.passes_over_rows()
    }

    fn reserve(&mut self, layout: &Layout) -> Result<()> {
        self.inner.reserve(layout)?;
        self.words = layout.words.filter(|_| self.inner.passes_over_rows());
        Ok(())
    }

    fn upload(&mut self, dst: View, src: &[u8]) -> Result<()> {
        self.inner.upload(dst, src)
    }

    fn download(&mut self, src: View, dst: &mut [u8]) -> Result<()> {
        self.inner.download(src, dst)
    }

    fn fetch(&mut self, slot: usize, views: &[View]) -> Result<()> {
        self.inner.fetch(slot, views)
    }

    fn collect(&mut self, slot: usize) -> Result<Vec<u8>> {
        self.inner.collect(slot)
    }

    fn zero(&mut self, dst: View) -> Result<()> {
        self.inner.zero(dst)
    }

    fn stage(&mut self, batch: &PackedBatch, step: &Step) -> Result<()> {
        let mut size = Size::from(batch);
        size.passed = self.words.map_or(0, |words| (words.rows - size.distinct) * words.dim);
        self.profile.record().size = size;
        let arrays = batch.arrays().iter().map(|values| size_of_val(*values)).sum();
        let cost = Cost { bytes: arrays, flops: 0 };
        self.timed(|| "stage".to_string(), |_| cost, |backend| backend.stage(batch, step))
    }

    fn forward(&mut self, op: &Op) -> Result<()> {
        self.timed_op(op, Pass::Forward)
    }

    fn backward(&mut self, op: &Op) -> Result<()> {
        self.timed_op(op, Pass::Backward)
    }

    fn cast(&mut self, op: &Cast) -> Result<()> {
        self.timed(|| "cast".to_string(), |_| op.cost(), |backend| backend.cast(op))
    }

    fn grad_norm(&mut self, op: &GradNorm) -> Result<()> {
        self.timed(|| "grad norm".to_string(), |size| op.cost(size), |backend| backend.grad_norm(op))
    }

    /// The last op of an update.
    fn adamw(&mut self, op: &AdamW, update: &Update) -> Result<()> {
        self.timed(|| "adamw".to_string(), |size| op.cost(size), |backend| backend.adamw(op, update))?;
        let mut record = self.profile.record();
        if record.begun <= record.updates {
            self.inner.wait()?;
            record.end = Instant::now();
            if record.begun == 0 {
                record.begin = record.end;
            }
            record.begun += 1;
        }
        Ok(())
    }
}
