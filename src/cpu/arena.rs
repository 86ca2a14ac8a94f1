//! The CPU's memory: one allocation, sliced by views.

use std::marker::PhantomData;

use memmap2::MmapMut;

use crate::error::{Error, Kind, Result};
use crate::ops::View;

pub struct Arena {
    start: *mut u8,
    memory: MmapMut,
}

// SAFETY: the arena owns its memory, as a Box<[u8]> does.
unsafe impl Send for Arena {}
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` zeroed bytes, page-aligned. The system provides each page on first touch.
    pub fn new(bytes: usize) -> Result<Arena> {
        let mut memory = MmapMut::map_anon(bytes.max(1)).map_err(|_| {
            let fact = format!("{:.1} GiB of memory cannot be allocated", bytes as f64 / (1u64 << 30) as f64);
            Error::new(Kind::Device, "cpu", fact, "pass a smaller --batch-size or --max-length")
        })?;
        // Huge pages, where the system has them, are touched in less time.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Arena { start: memory.as_mut_ptr(), memory })
    }

    /// Sets every byte to 0xff: NaN as a float, -1 as an integer.
    pub fn poison(&mut self) {
        // SAFETY: `start` points to `memory.len()` bytes of our own.
        unsafe { self.start.write_bytes(0xff, self.memory.len()) }
    }

    /// The elements of a view: all access to the arena's memory starts here.
    pub fn scattered<T>(&self, view: View) -> UnsafeSlice<'_, T> {
        let bytes = view.len * size_of::<T>();
        assert!(view.offset + bytes <= self.memory.len(), "{view:?} ends beyond the arena");
        assert_eq!(view.offset % align_of::<T>(), 0, "{view:?} is not aligned");
        // SAFETY: `offset` is within the allocation.
        UnsafeSlice { start: unsafe { self.start.add(view.offset) }.cast(), len: view.len, of: PhantomData }
    }

    /// The elements of a view, to read. Such slices may overlap.
    ///
    /// # Safety
    /// While the slice lives, nothing may write these elements. Any bit pattern must be a `T`.
    pub unsafe fn read<T>(&self, view: View) -> &[T] {
        // SAFETY: in bounds, as `pointer` checks; not written by contract.
        unsafe { std::slice::from_raw_parts(self.scattered(view).pointer(0, view.len), view.len) }
    }

    /// The elements of a view, to read and write.
    ///
    /// # Safety
    /// While the slice lives, nothing else may read or write these elements. Ops ensure this by using each view that they write
    /// once: the plan's views are distinct buffers, or one buffer under one field of the op.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<T>(&self, view: View) -> &mut [T] {
        // SAFETY: by contract.
        unsafe { self.scattered(view).row(0, view.len) }
    }
}

/// Elements that parallel tasks write in an order that chunks cannot express.
pub struct UnsafeSlice<'a, T> {
    start: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

impl<T> Clone for UnsafeSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for UnsafeSlice<'_, T> {}

// SAFETY: all access goes through functions whose contract keeps tasks apart.
unsafe impl<T: Send> Send for UnsafeSlice<'_, T> {}
unsafe impl<T: Send> Sync for UnsafeSlice<'_, T> {}

impl<'a, T> UnsafeSlice<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        UnsafeSlice { start: slice.as_mut_ptr(), len: slice.len(), of: PhantomData }
    }

    /// `len` elements from `at`.
    ///
    /// # Safety
    /// While the slice lives, nothing else may access these elements, unless both only read. Any bit pattern must be a valid
    /// `T`.
    #[inline(always)]
    pub unsafe fn row(&self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: in bounds, as `pointer` checks; not aliased by contract.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(at, len), len) }
    }

    /// A pointer to element `at`, with at least `len` elements from there.
    #[inline(always)]
    pub fn pointer(&self, at: usize, len: usize) -> *mut T {
        assert!(at + len <= self.len, "{at}+{len} of {}", self.len);
        // SAFETY: in bounds.
        unsafe { self.start.add(at) }
    }
}
