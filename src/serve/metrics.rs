//! The content of `/metrics`: counters and histograms under the names of text-embeddings-inference.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder, exponential_buckets as buckets,
};

pub struct Metrics {
    registry: Registry,
    /// By method: single or batch.
    pub requests: IntCounterVec,
    pub successes: IntCounterVec,
    /// By error type.
    pub failures: IntCounterVec,
    // Seconds.
    pub total: Histogram,
    pub tokenization: Histogram,
    pub queued: Histogram,
    pub inference: Histogram,
    /// Tokens per text.
    pub input_length: Histogram,
    /// Requests waiting for the model.
    pub queue_size: IntGauge,
    /// Rows per batch.
    pub batch_size: Histogram,
    pub batch_tokens: Histogram,
}

/// Names and buckets are constants: a failure is a mistake in this file.
const SOUND: &str = "names and buckets are valid";

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect(SOUND);
    registry.register(Box::new(metric.clone())).expect(SOUND);
    metric
}

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let counter = |name, help, label| registered(&registry, IntCounterVec::new(Opts::new(name, help), &[label]));
        let histogram = |name, help, buckets: prometheus::Result<Vec<f64>>| {
            let options = HistogramOpts::new(name, help).buckets(buckets.expect(SOUND));
            registered(&registry, Histogram::with_opts(options))
        };
        let seconds = |name, help| histogram(name, help, buckets(1e-4, 2.0, 20));
        let sizes = |name, help| histogram(name, help, buckets(1.0, 2.0, 16));
        Metrics {
            requests: counter("te_request_count", "Requests to classify or embed", "method"),
            successes: counter("te_request_success", "Requests answered", "method"),
            failures: counter("te_request_failure", "Requests refused or failed", "err"),
            total: seconds("te_request_duration", "Seconds from a request to its response"),
            tokenization: seconds("te_request_tokenization_duration", "Seconds spent tokenizing"),
            queued: seconds("te_request_queue_duration", "Seconds spent waiting for the model"),
            inference: seconds("te_request_inference_duration", "Seconds spent computing the batch"),
            input_length: sizes("te_request_input_length", "Tokens per text"),
            queue_size: registered(&registry, IntGauge::new("te_queue_size", "Requests waiting for the model")),
            batch_size: sizes("te_batch_next_size", "Texts per batch"),
            batch_tokens: sizes("te_batch_next_tokens", "Tokens per batch"),
            registry,
        }
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect(SOUND)
    }
}
