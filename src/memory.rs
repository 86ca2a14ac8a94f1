//! The allocator of the programs: without memory they end with one line and the exit code of a device. All large buffers are
//! planned and allocated elsewhere, with errors of their own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Kind;

/// The system's allocator, which ends the process instead of aborting it.
pub struct OrExit;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for OrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        or_exit(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        or_exit(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        or_exit(unsafe { System.realloc(start, layout, size) }, size)
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        unsafe { System.dealloc(start, layout) }
    }
}

#[inline]
fn or_exit(start: *mut u8, bytes: usize) -> *mut u8 {
    if start.is_null() {
        exit(bytes);
    }
    start
}

#[cold]
fn exit(bytes: usize) -> ! {
    // One line, even if several threads find no memory.
    static EXITING: AtomicBool = AtomicBool::new(false);
    while EXITING.swap(true, Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(1));
    }
    // Nothing here allocates: not the line, and not its way to standard error, where std registers a destructor for its lock.
    let (mut line, mib) = (Cursor::new([0; 256]), bytes as f64 / f64::from(1 << 20));
    let written = writeln!(
        line,
        "error: `memory`: {mib:.1} MiB cannot be allocated; stop other programs or lower --batch-size, and start again, a training \
         run that has a checkpoint with --resume-from-checkpoint"
    );
    let end = line.position() as usize;
    if written.is_ok() {
        print(&line.get_ref()[..end]);
    }
    // Files under their final names are complete at any moment.
    signal_hook::low_level::exit(Kind::Device as i32)
}

#[cfg(unix)]
fn print(line: &[u8]) {
    use std::fs::File;
    use std::mem::ManuallyDrop;
    use std::os::fd::FromRawFd;
    // SAFETY: open, or the write fails; not closed by a drop.
    let mut errors = ManuallyDrop::new(unsafe { File::from_raw_fd(2) });
    let _ = errors.write_all(line);
}

#[cfg(not(unix))]
fn print(line: &[u8]) {
    let _ = std::io::stderr().write_all(line);
}
