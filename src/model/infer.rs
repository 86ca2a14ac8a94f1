//! Inference: batches run one after the other, and the results of each are read back while the next one runs.

use super::Model;
use crate::data::pack::PackedBatch;
use crate::error::Result;
use crate::ops::{Rows, Step, View, decoded};

/// The results of a batch that are read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub logits: bool,
    pub losses: bool,
    pub hidden: bool,
}

impl Wanted {
    pub const LOGITS: Wanted = Wanted { logits: true, losses: false, hidden: false };
    pub const HIDDEN: Wanted = Wanted { logits: false, losses: false, hidden: true };
    pub const LOSSES: Wanted = Wanted { logits: true, losses: true, hidden: false };
}

/// The results of a batch; empty where they are not wanted.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// (seqs, classes)
    pub logits: Vec<f64>,
    /// Of each row, (seqs).
    pub losses: Vec<f64>,
    /// The last hidden states, packed: (tokens, dim), or (seqs, dim) if the plan keeps `[CLS]` alone.
    pub hidden: Vec<f64>,
}

impl Model {
    /// Runs `batches` in order and calls `each` with their results. A batch is submitted before the results of the one before it
    /// are waited for, so that a GPU always has work.
    ///
    /// # Errors
    /// Those of the device and of `each`.
    pub fn infer_all(
        &mut self,
        batches: impl Iterator<Item = (PackedBatch, Wanted)>,
        mut each: impl FnMut(&PackedBatch, Results) -> Result<()>,
    ) -> Result<()> {
        let mut last: Option<(PackedBatch, Wanted, usize)> = None;
        for (number, (batch, wanted)) in batches.enumerate() {
            let slot = number % 2;
            self.submit(&batch, wanted, slot)?;
            if let Some((batch, wanted, slot)) = last.replace((batch, wanted, slot)) {
                each(&batch, self.collect(&batch, wanted, slot)?)?;
            }
        }
        match last {
            Some((batch, wanted, slot)) => each(&batch, self.collect(&batch, wanted, slot)?),
            None => Ok(()),
        }
    }

    /// The results of one batch.
    pub fn infer(&mut self, batch: &PackedBatch, wanted: Wanted) -> Result<Results> {
        self.submit(batch, wanted, 0)?;
        self.collect(batch, wanted, 0)
    }

    fn submit(&mut self, batch: &PackedBatch, wanted: Wanted, slot: usize) -> Result<()> {
        self.renew_copy()?;
        let ops = if wanted.logits || wanted.losses { &self.ops } else { &self.ops[..self.encoder] };
        self.backend.stage(batch, &Step::INFER)?;
        self.backend.forward_all(ops)?;
        self.backend.fetch(slot, &self.views(batch, wanted))
    }

    fn collect(&mut self, batch: &PackedBatch, wanted: Wanted, slot: usize) -> Result<Results> {
        let bytes = self.backend.collect(slot)?;
        let mut rest = &bytes[..];
        let [logits, losses, hidden] = self.views(batch, wanted).map(|view| {
            let (bytes, after) = rest.split_at(view.bytes());
            rest = after;
            decoded(bytes, view.dtype)
        });
        Ok(Results { logits, losses, hidden })
    }

    /// The places of the logits, losses and hidden states of a batch; NONE where they are not wanted.
    fn views(&self, batch: &PackedBatch, wanted: Wanted) -> [View; 3] {
        let (head, config) = (&self.plan.head, &self.plan.config);
        let rows = match self.plan.spec.last_rows {
            Rows::Tokens => batch.tokens(),
            Rows::Cls => batch.seqs(),
        };
        [
            (wanted.logits, head.logits, batch.seqs() * config.classes()),
            (wanted.losses, head.loss, batch.seqs()),
            (wanted.hidden, self.plan.last_hidden(), rows * config.dim),
        ]
        .map(|(wanted, view, len)| if wanted { view.slice(0, len) } else { View::NONE })
    }
}
