//! Writes checkpoints on a thread of its own, one at a time, while training goes on.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::checkpoint::snapshot::Snapshot;
use crate::error::{Result, no_threads};

pub struct Saver {
    snapshot: Arc<Snapshot>,
    writing: Option<JoinHandle<Result<()>>>,
}

impl Saver {
    pub fn new(snapshot: Snapshot) -> Saver {
        Saver { snapshot: Arc::new(snapshot), writing: None }
    }

    /// The snapshot to take for the next checkpoint, once the last one is written.
    ///
    /// # Errors
    /// The last one could not be written.
    pub fn snapshot(&mut self) -> Result<&mut Snapshot> {
        self.wait()?;
        Ok(Arc::get_mut(&mut self.snapshot).expect("the thread that shared it has ended"))
    }

    /// Begins to write a checkpoint from the snapshot.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(&mut self, write: impl FnOnce(&Snapshot) -> Result<()> + Send + 'static) -> Result<()> {
        let snapshot = self.snapshot.clone();
        self.writing = Some(Builder::new().spawn(move || write(&snapshot)).map_err(no_threads)?);
        Ok(())
    }

    /// Does not wait.
    ///
    /// # Errors
    /// The last checkpoint could not be written.
    pub fn check(&mut self) -> Result<()> {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) { self.wait() } else { Ok(()) }
    }

    /// Returns when the last checkpoint is on disk.
    ///
    /// # Errors
    /// It could not be written.
    pub fn wait(&mut self) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        writing.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}
