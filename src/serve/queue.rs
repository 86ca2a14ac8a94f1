//! Dynamic batching: requests wait in a bounded queue; the thread that has the model takes the waiting requests, up to a limit
//! of tokens, runs them as one packed batch, and sends the results back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::metrics::Metrics;
use crate::console::note;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Kind, Result};
use crate::infer::Output;

/// The end of the queue that requests use.
pub struct Queue {
    places: Arc<Semaphore>,
    entries: mpsc::Sender<Entry>,
    well: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

/// The end of the queue that the model uses.
pub struct Batches {
    entries: mpsc::Receiver<Entry>,
    /// The entry that did not fit the previous batch.
    next: Option<Entry>,
    max_tokens: usize,
    well: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

/// A place in the queue, returned when it is dropped.
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// The rows of one request, while they wait for the model.
struct Entry {
    rows: Encoded,
    output: Output,
    since: Instant,
    answer: oneshot::Sender<Result<Answer>>,
    /// Held by the entry and not by the request, so that the queue stays bounded when clients disconnect.
    _place: Place,
}

pub struct Answer {
    /// The output of each row.
    pub rows: Vec<Vec<f32>>,
    /// From the end of tokenization to the start of the batch.
    pub queued: Duration,
    /// Time of the whole batch.
    pub computed: Duration,
}

/// A queue with `places` places, whose batches have at most `max_tokens` tokens, or one request.
pub fn queue(places: usize, max_tokens: usize, metrics: &Arc<Metrics>) -> (Queue, Batches) {
    let (sender, receiver) = mpsc::channel();
    let well = Arc::new(AtomicBool::new(true));
    let places = Arc::new(Semaphore::new(places));
    let queue = Queue { places, entries: sender, well: well.clone(), metrics: metrics.clone() };
    (queue, Batches { entries: receiver, next: None, max_tokens, well, metrics: metrics.clone() })
}

impl Queue {
    /// `None` if the queue is full.
    pub fn place(&self) -> Option<Place> {
        self.places.clone().try_acquire_owned().ok().map(|permit| Place { _permit: permit })
    }

    /// The output of `rows`. Rows whose client has disconnected are not computed.
    ///
    /// # Errors
    /// Those of the device, and a panic of the model.
    pub async fn answer(&self, place: Place, rows: Encoded, output: Output) -> Result<Answer> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::new(Kind::Device, "model", "has stopped", "restart the server");
        self.metrics.queue_size.inc();
        let entry = Entry { rows, output, since: Instant::now(), answer, _place: place };
        self.entries.send(entry).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Whether the last batch succeeded.
    pub fn is_well(&self) -> bool {
        self.well.load(Ordering::Relaxed)
    }
}

/// Computes the requested output of each row.
pub type Compute<'a> = &'a mut dyn FnMut(&Encoded, &[Output]) -> Result<Vec<Vec<f32>>>;

impl Batches {
    /// Processes batches until the other end of the queue is dropped.
    pub fn run(mut self, compute: Compute) {
        while let Some(batch) = self.take() {
            self.metrics.batch_size.observe(batch.iter().map(|entry| entry.rows.rows()).sum::<usize>() as f64);
            self.metrics.batch_tokens.observe(batch.iter().map(|entry| entry.rows.ids.len()).sum::<usize>() as f64);
            self.answer(batch, compute);
        }
    }

    /// The next batch: the waiting requests that fit, in order; blocks until there is one.
    fn take(&mut self) -> Option<Vec<Entry>> {
        let (mut batch, mut tokens) = (Vec::new(), 0);
        loop {
            let entry = match self.next.take() {
                Some(entry) => entry,
                None => {
                    let received = if batch.is_empty() { self.entries.recv().ok() } else { self.entries.try_recv().ok() };
                    let Some(entry) = received else { break };
                    self.metrics.queue_size.dec();
                    entry
                }
            };
            if entry.answer.is_closed() {
                continue;
            }
            if !batch.is_empty() && tokens + entry.rows.ids.len() > self.max_tokens {
                self.next = Some(entry);
                break;
            }
            tokens += entry.rows.ids.len();
            batch.push(entry);
        }
        Some(batch).filter(|batch| !batch.is_empty())
    }

    fn answer(&self, batch: Vec<Entry>, compute: Compute) {
        let start = Instant::now();
        let (mut rows, mut outputs) = (Encoded::default(), Vec::new());
        for entry in &batch {
            (0..entry.rows.rows()).for_each(|row| rows.append_row(&entry.rows, row));
            outputs.resize(rows.rows(), entry.output);
        }
        // A panic leaves only scratch memory behind, which the next batch overwrites.
        let computed = catch_unwind(AssertUnwindSafe(|| compute(&rows, &outputs))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let fact = format!("internal error ({})", text.unwrap_or("no message"));
            Err(Error::new(Kind::Unusable, "model", fact, "please report this line"))
        });
        self.well.store(computed.is_ok(), Ordering::Relaxed);
        match computed {
            Ok(answers) => {
                let (mut answers, computed) = (answers.into_iter(), start.elapsed());
                for Entry { rows, since, answer, .. } in batch {
                    let rows = answers.by_ref().take(rows.rows()).collect();
                    // The client may have disconnected meanwhile.
                    let _ = answer.send(Ok(Answer { rows, queued: start - since, computed }));
                }
            }
            // A single request may be the cause: run alone, it does not fail the others.
            Err(_) if batch.len() > 1 => batch.into_iter().for_each(|entry| self.answer(vec![entry], compute)),
            Err(error) => {
                note(format!("error: {error}"));
                batch
                    .into_iter()
                    .for_each(|entry| drop(entry.answer.send(Err(Error::new(error.kind, "model", error.fact(), "")))));
            }
        }
    }
}
