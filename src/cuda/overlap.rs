//! Updates beside the next forward pass. AdamW is limited by memory and products by arithmetic, so most weights are updated in a
//! second stream while the first layers, whose weights are updated before, run in the main one. The main stream waits for them before
//! the first op that reads one of them, and before the host reads or writes anything. A backward pass and the next update come after
//! such an op.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::Cuda;
use super::error::failed;
use super::words::Passed;
use crate::error::Result;
use crate::ops::{AdamW, Op, View};

/// The first of this many parts of the matrices after the word table is updated in the main stream. The update of the others
/// takes less time than the forward pass of that first part, even when it is slowed down.
const PARTS: usize = 3;

/// The second stream.
pub struct Overlap {
    stream: Arc<CudaStream>,
    /// The main stream has updated the first weights, and this stream the others.
    begins: CudaEvent,
    ends: CudaEvent,
    /// The parameters that it updates, and their copy of 16 bits, if the main stream has not waited for them.
    pending: Cell<Option<[View; 2]>>,
}

impl Overlap {
    pub fn new(context: &Arc<CudaContext>) -> Result<Overlap> {
        Ok(Overlap {
            stream: context.new_stream().map_err(failed("stream"))?,
            begins: context.new_event(None).map_err(failed("event"))?,
            ends: context.new_event(None).map_err(failed("event"))?,
            pending: Cell::new(None),
        })
    }
}

/// The main stream: the GPU begins blocks of its kernels first, and those of an update where there is room.
pub fn main_stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>> {
    context.bind_to_thread().map_err(failed("stream"))?;
    let (_, greatest) = result::stream::get_priority_range().map_err(failed("stream"))?;
    context.new_stream_with_priority(greatest).map_err(failed("stream"))
}

/// The parameters that are updated beside the next forward pass, all of them matrices; none if the factors of the update do not
/// outlast its launch.
pub fn range(cuda: &Cuda, op: &AdamW, passed: &Passed) -> Range<usize> {
    let table = (passed.rows * passed.dim) as usize;
    if !cuda.overlaps || passed.factors.is_none() || op.decayed <= table || !op.decayed.is_multiple_of(4) {
        return 0..0;
    }
    table + ((op.decayed - table) / PARTS).next_multiple_of(4)..op.decayed
}

/// Calls `launch` with the second stream, to update these parameters after what the main stream does until now.
pub fn update(cuda: &Cuda, op: &AdamW, range: Range<usize>, launch: impl FnOnce(&CudaStream) -> Result<()>) -> Result<()> {
    let Overlap { stream, begins, ends, pending } = &cuda.overlap;
    begins.record(cuda.stream()).and_then(|()| stream.wait(begins)).map_err(failed("update"))?;
    launch(stream)?;
    ends.record(stream).map_err(failed("update"))?;
    let part = |flat: View| if flat.is_none() { flat } else { flat.slice(range.start, range.len()) };
    pending.set(Some([op.params, op.copy].map(part)));
    Ok(())
}

/// The main stream waits for an update if the op reads what it writes.
pub fn before(cuda: &Cuda, op: &Op) -> Result<()> {
    let Some(pending) = cuda.overlap.pending.get() else { return Ok(()) };
    let matrices = match op {
        Op::Linear(op) => [op.w, View::NONE],
        Op::Classifier(op) => [op.w, View::NONE],
        Op::Embed(op) => [op.position, op.types],
        _ => return Ok(()),
    };
    if matrices.into_iter().any(|matrix| pending.into_iter().any(|view| view.overlaps(matrix))) { finish(cuda) } else { Ok(()) }
}

/// The main stream waits for the update.
pub fn finish(cuda: &Cuda) -> Result<()> {
    let Overlap { ends, pending, .. } = &cuda.overlap;
    match pending.take() {
        Some(_) => cuda.stream().wait(ends).map_err(failed("update")),
        None => Ok(()),
    }
}
