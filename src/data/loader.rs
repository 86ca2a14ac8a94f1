//! The order of rows, the same as PyTorch's, and batches packed ahead on a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use rand_mt::Mt;

use crate::data::pack::PackedBatch;
use crate::data::tokenize::Encoded;
use crate::error::{Result, no_threads};

/// `torch.randperm(rows)` of a CPU generator seeded with `seed`: Mersenne Twister on the low 32 bits of the seed.
pub fn randperm(rows: usize, seed: u64) -> Vec<u32> {
    let mut random = Mt::new(seed as u32);
    let mut order: Vec<u32> = (0..rows as u32).collect();
    for i in 0..rows.saturating_sub(1) {
        order.swap(i, i + random.next_u32() as usize % (rows - i));
    }
    order
}

/// The rows of an epoch (from 0) in the order of Hugging Face's Trainer; in file order without `shuffle`.
pub fn row_order(rows: usize, shuffle: bool, seed: u64, epoch: u64) -> Vec<u32> {
    if shuffle { randperm(rows, seed.wrapping_add(epoch)) } else { (0..rows as u32).collect() }
}

/// Batches of one pass over the rows; the last one may be short. Two are kept ready. Dropping the loader ends its thread.
pub struct Loader {
    batches: Receiver<PackedBatch>,
    packer: Option<JoinHandle<()>>,
}

impl Loader {
    /// Packs the rows of `order`, `batch_size` at a time, from batch `first` (from 0), as a resumed run needs.
    ///
    /// # Errors
    /// No thread can be started.
    ///
    /// # Panics
    /// If `batch_size` is 0; while iterating, if a row of `order` does not exist.
    pub fn new(data: Arc<Encoded>, order: Vec<u32>, batch_size: usize, first: usize) -> Result<Loader> {
        assert!(batch_size > 0, "a batch holds at least one row");
        Loader::spawn(move |send| {
            let batch = |rows: &[u32]| PackedBatch::new(rows.iter().map(|&row| data.row(row as usize)));
            // Ends when the loader is dropped.
            order.chunks(batch_size).skip(first).map(batch).all(send);
        })
    }

    /// Packs all rows in order, into batches of at most `tokens` tokens and `seqs` rows.
    ///
    /// # Errors
    /// No thread can be started.
    ///
    /// # Panics
    /// While iterating, if a row is longer than `tokens`.
    pub fn in_order(data: Arc<Encoded>, tokens: usize, seqs: usize) -> Result<Loader> {
        Loader::spawn(move |send| {
            data.batches(tokens, seqs).all(send);
        })
    }

    fn spawn(pack: impl FnOnce(&mut dyn FnMut(PackedBatch) -> bool) + Send + 'static) -> Result<Loader> {
        let (sender, batches) = sync_channel(2);
        let packer = thread::Builder::new().spawn(move || pack(&mut |batch| sender.send(batch).is_ok())).map_err(no_threads)?;
        Ok(Loader { batches, packer: Some(packer) })
    }
}

impl Iterator for Loader {
    type Item = PackedBatch;

    fn next(&mut self) -> Option<PackedBatch> {
        self.batches.recv().ok().or_else(|| {
            // The packer has ended: a panic of its own must not be mistaken for the end of the epoch.
            if let Some(Err(panic)) = self.packer.take().map(JoinHandle::join) {
                std::panic::resume_unwind(panic);
            }
            None
        })
    }
}
