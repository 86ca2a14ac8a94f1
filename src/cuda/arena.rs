//! All memory of the backend: one allocation for the plan's views, working memory shared by the launches of the stream, and
//! page-locked buffers for batches on their way to the GPU and results on their way back.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice, result};
use rayon::prelude::*;

use super::error::failed;
use super::kernels::Ptr;
use crate::data::pack::PackedBatch;
use crate::error::Result;
use crate::ops::{Inputs, Layout, View};

/// Working memory: partial sums, and cuBLASLt's workspace (its manual recommends 32 MiB on Hopper).
pub const SCRATCH: usize = 32 << 20;
/// For sums over chunks of rows until they are added: those of one update of DistilBERT-base on 4,400 tokens are 52 MiB.
pub const SUMS: usize = 64 << 20;
/// What the driver and cuBLASLt load on first use, among it some 50 kernels of cuBLASLt.
pub const LIBRARIES: usize = 352 << 20;
/// Bytes of a download that are copied at a time.
const PIECE: usize = 8 << 20;
/// Bytes that a thread copies at a time.
const PART: usize = 1 << 20;

pub struct Arena {
    pub layout: Layout,
    memory: Memory,
    scratch: Memory,
    sums: Memory,
    /// A number that kernels count with, 0 between launches.
    counter: Memory,
    staging: [Staging; 2],
    /// The next buffer to use.
    turn: usize,
    fetched: [Fetched; 2],
    /// Pieces of a download.
    pieces: [Fetched; 2],
}

/// Device memory, freed immediately when dropped; a pool would keep it.
pub struct Memory {
    pub address: Ptr,
    context: Arc<CudaContext>,
}

impl Memory {
    /// Allocates `bytes`, of any content.
    fn new(stream: &CudaStream, bytes: usize) -> Result<Memory> {
        let context = stream.context().clone();
        context.bind_to_thread().map_err(failed("device memory"))?;
        // SAFETY: freed once, by `drop`.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(failed("device memory"))?;
        Ok(Memory { address, context })
    }

    pub fn zeroed(stream: &CudaStream, bytes: usize) -> Result<Memory> {
        let memory = Memory::new(stream, bytes)?;
        // SAFETY: just allocated.
        unsafe { result::memset_d8_async(memory.address, 0, bytes, stream.cu_stream()) }.map_err(failed("device memory"))?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated above. The driver waits for pending uses; if one has failed, all memory is lost anyway.
        let _ = self.context.bind_to_thread().and_then(|()| unsafe { result::free_sync(self.address) });
    }
}

/// Page-locked memory from which the GPU copies a batch asynchronously.
struct Staging {
    buffer: PinnedHostSlice<i32>,
    /// The GPU has copied the batch.
    copied: CudaEvent,
}

/// Page-locked memory into which the GPU copies asynchronously. Unlike cudarc's it is cached, for it is read. Allocated on first use.
struct Fetched {
    address: *mut u8,
    /// What it holds, and how much it can.
    bytes: usize,
    capacity: usize,
    arrived: CudaEvent,
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for Fetched {}

impl Fetched {
    fn new(context: &Arc<CudaContext>) -> Result<Fetched> {
        let arrived = context.new_event(None).map_err(failed("event"))?;
        Ok(Fetched { address: null_mut(), bytes: 0, capacity: 0, arrived })
    }

    /// Begins to copy these addresses and numbers of bytes, one after the other. What was copied before is lost.
    fn fetch(&mut self, stream: &CudaStream, sources: &[(Ptr, usize)]) -> Result<()> {
        let bytes = sources.iter().map(|(_, bytes)| bytes).sum();
        self.reserve(bytes)?;
        self.bytes = bytes;
        let mut start = 0;
        for &(source, bytes) in sources {
            // SAFETY: within the memory; read again only when the copy has arrived.
            let to = unsafe { std::slice::from_raw_parts_mut(self.address.add(start), bytes) };
            // SAFETY: the callers pass addresses of the arena.
            unsafe { result::memcpy_dtoh_async(to, source, stream.cu_stream()) }.map_err(failed("results"))?;
            start += bytes;
        }
        self.arrived.record(stream).map_err(failed("results"))
    }

    fn reserve(&mut self, bytes: usize) -> Result<()> {
        if self.capacity < bytes {
            self.free();
            self.capacity = 0;
            // SAFETY: freed once, by `free`.
            let address = unsafe { result::malloc_host(bytes.next_power_of_two(), 0) }.map_err(failed("page-locked memory"))?;
            (self.address, self.capacity) = (address.cast(), bytes.next_power_of_two());
        }
        Ok(())
    }

    /// Waits for the copies.
    fn content(&self) -> Result<&[u8]> {
        self.arrived.synchronize().map_err(failed("results"))?;
        // SAFETY: the copies have arrived, and `fetch` needs `&mut self`.
        Ok(if self.bytes == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.address, self.bytes) } })
    }

    fn free(&mut self) {
        if self.capacity > 0 {
            // The GPU may still be copying.
            let _ = self.arrived.synchronize();
            // SAFETY: allocated by `reserve`.
            let _ = unsafe { result::free_host(self.address.cast()) };
        }
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.free();
    }
}

impl Arena {
    pub fn new(stream: &CudaStream, layout: &Layout) -> Result<Arena> {
        let (memory, scratch) = (Memory::zeroed(stream, layout.bytes)?, Memory::new(stream, SCRATCH)?);
        let (sums, counter) = (Memory::new(stream, SUMS)?, Memory::zeroed(stream, size_of::<u32>())?);
        let staging = || -> Result<Staging> {
            // SAFETY: written before it is read.
            let buffer = unsafe { stream.context().alloc_pinned(layout.batch.len) }.map_err(failed("page-locked memory"))?;
            let copied = stream.context().new_event(None).map_err(failed("event"))?;
            Ok(Staging { buffer, copied })
        };
        let staging = [staging()?, staging()?];
        let pair = || -> Result<[Fetched; 2]> { Ok([Fetched::new(stream.context())?, Fetched::new(stream.context())?]) };
        let (fetched, pieces) = (pair()?, pair()?);
        Ok(Arena { layout: *layout, memory, scratch, sums, counter, staging, turn: 0, fetched, pieces })
    }

    /// The address of a view; null for an empty one.
    pub fn at(&self, view: View) -> Ptr {
        if view.is_none() {
            return 0;
        }
        assert!(view.offset + view.bytes() <= self.layout.bytes, "{view:?} is not in the arena");
        self.memory.address + view.offset as u64
    }

    pub fn scratch(&self) -> Ptr {
        self.scratch.address
    }

    pub fn counter(&self) -> Ptr {
        self.counter.address
    }

    pub fn sums(&self) -> Ptr {
        self.sums.address
    }

    /// Begins to copy views, one after the other, into `slot`.
    pub fn fetch(&mut self, stream: &CudaStream, slot: usize, views: &[View]) -> Result<()> {
        let sources: Vec<(Ptr, usize)> =
            views.iter().filter(|view| !view.is_none()).map(|&view| (self.at(view), view.bytes())).collect();
        self.fetched[slot].fetch(stream, &sources)
    }

    /// What was last copied into `slot`.
    pub fn collect(&self, slot: usize) -> Result<Vec<u8>> {
        self.fetched[slot].content().map(<[u8]>::to_vec)
    }

    /// Copies the start of a view to `dst`: all threads copy a piece to its place while the GPU fetches the next one. By itself the
    /// driver copies memory that is not page-locked with one thread.
    pub fn download(&mut self, stream: &CudaStream, src: View, dst: &mut [u8]) -> Result<()> {
        let from = self.at(src);
        let sources = dst.chunks(PIECE).zip(0..).map(|(piece, i)| (from + i * PIECE as u64, piece.len()));
        let mut sources = sources.collect::<Vec<_>>().into_iter();
        let [now, next] = &mut self.pieces;
        let (mut now, mut next) = (now, next);
        now.fetch(stream, sources.next().as_slice())?;
        for piece in dst.chunks_mut(PIECE) {
            next.fetch(stream, sources.next().as_slice())?;
            let content = now.content()?;
            piece.par_chunks_mut(PART).zip(content.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
            (now, next) = (next, now);
        }
        Ok(())
    }

    /// Uploads a batch in one copy; returns the places of its arrays.
    pub fn stage(&mut self, stream: &CudaStream, batch: &PackedBatch) -> Result<Inputs> {
        let region = self.layout.batch;
        let (inputs, address) = (Inputs::of(batch, region), self.at(region));
        let Staging { buffer, copied } = &mut self.staging[self.turn];
        self.turn ^= 1;
        // The GPU may still be copying the batch before last from this buffer.
        copied.synchronize().map_err(failed("batch"))?;
        let buffer = buffer.as_mut_slice().map_err(failed("batch"))?;
        let mut end = 0;
        for (view, values) in inputs.with(batch) {
            let start = (view.offset - region.offset) / view.dtype.size();
            end = start + values.len();
            buffer[start..end].copy_from_slice(values);
        }
        // SAFETY: the region lies in the arena; the buffer is not written before `copied`.
        unsafe { result::memcpy_htod_async(address, &buffer[..end], stream.cu_stream()) }.map_err(failed("batch"))?;
        copied.record(stream).map_err(failed("batch"))?;
        Ok(inputs)
    }
}
