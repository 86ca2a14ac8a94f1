//! Sums over rows, column by column, in two stages: kernels of the ops sum chunks of rows, and the chunks are added here.

use super::Cuda;
use super::arena::SUMS;
use super::kernels::{ColumnsAdd, MOST_OUTS, Ptr};
use crate::error::Result;
use crate::ops::DType;

/// Sums over chunks of rows that are still to be added, so that one launch adds those of many ops: a launch of each would have
/// little to do.
pub struct Pending {
    outs: ColumnsAdd,
    count: usize,
    /// Blocks of the launch.
    blocks: usize,
    /// Bytes of the arena's memory for such sums in use.
    bytes: usize,
}

impl Pending {
    pub const NONE: Pending = Pending {
        outs: ColumnsAdd {
            partials: [0; MOST_OUTS],
            outs: [0; MOST_OUTS],
            chunks: [0; MOST_OUTS],
            widths: [0; MOST_OUTS],
            adds: [0; MOST_OUTS],
            ends: [i32::MAX; MOST_OUTS],
        },
        count: 0,
        blocks: 0,
        bytes: 0,
    };

    /// The blocks of a launch run in any order, so an output has one place in it.
    fn takes(&self, out: Ptr) -> bool {
        self.count < MOST_OUTS && !self.outs.outs[..self.count].contains(&out)
    }

    fn push(&mut self, out: Ptr, partials: Ptr, chunks: usize, width: usize, adds: bool) {
        let (at, outs) = (self.count, &mut self.outs);
        self.count += 1;
        self.blocks += width.div_ceil(32);
        (outs.partials[at], outs.outs[at], outs.adds[at]) = (partials, out, adds.into());
        (outs.chunks[at], outs.widths[at], outs.ends[at]) = (chunks as i32, width as i32, self.blocks as i32);
    }
}

/// Memory for sums over chunks, which keeps them until they are added.
pub fn space(cuda: &Cuda, bytes: usize) -> Result<Ptr> {
    assert!(bytes <= SUMS, "{bytes} bytes of sums over chunks");
    let bytes = bytes.next_multiple_of(256);
    if cuda.sums.borrow().bytes + bytes > SUMS {
        flush(cuda)?;
    }
    let mut pending = cuda.sums.borrow_mut();
    pending.bytes += bytes;
    Ok(cuda.arena().sums() + (pending.bytes - bytes) as u64)
}

/// From the next [`flush`] on, `outs[i][c] = sum over chunks of partials[i][chunk][c]`, or `+=` with `adds`. The partials are in
/// [`space`].
pub fn add(cuda: &Cuda, partials: Ptr, chunks: usize, width: usize, outs: &[Ptr], adds: bool) -> Result<()> {
    for (i, &out) in outs.iter().enumerate() {
        if !cuda.sums.borrow().takes(out) {
            launch(cuda)?;
        }
        let partials = partials + (i * chunks * width * size_of::<f32>()) as u64;
        cuda.sums.borrow_mut().push(out, partials, chunks, width, adds);
    }
    Ok(())
}

/// Adds what is pending: before anything else reads or writes gradients of parameters.
pub fn flush(cuda: &Cuda) -> Result<()> {
    launch(cuda)?;
    cuda.sums.borrow_mut().bytes = 0;
    Ok(())
}

/// Adds what is pending. The memory stays in use, as the current op may have sums in it that are not pending yet.
fn launch(cuda: &Cuda) -> Result<()> {
    let bytes = cuda.sums.borrow().bytes;
    let Pending { outs, count, blocks, .. } = cuda.sums.replace(Pending { bytes, ..Pending::NONE });
    if count == 0 { Ok(()) } else { cuda.launch(&cuda.kernels().columns_add, [blocks, 1, 1], &outs) }
}

/// Number of parts of a row: a warp handles 16 bytes per lane.
pub fn tiles(width: usize, dtype: DType) -> usize {
    width.div_ceil(32 * 16 / dtype.size())
}
