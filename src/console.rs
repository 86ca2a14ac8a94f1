//! The terminal: results on standard output, notes and errors on standard error, and signals.
//! Whether notes are shown and whether a signal came are the state of the process, so they are global here.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Kind, Result};

/// A result: a line on standard output.
pub fn print(line: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| Error::io(Path::new("standard output"), e))
}

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Default::default);

/// From now on the first SIGINT or SIGTERM is for the work to notice, in [`check_interrupt`]; a second one ends the
/// process at once.
pub fn notice_interrupts() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the condition not met yet.
        flag::register_conditional_shutdown(signal, Kind::Interrupted as i32, INTERRUPTED.clone())
            .and_then(|_| flag::register(signal, INTERRUPTED.clone()))
            .map_err(|e| Error::new(Kind::Device, "signals", e.to_string(), "start the program anew"))?;
    }
    Ok(())
}

/// An error of kind [`Kind::Interrupted`] once a signal was noticed: for work to stop where it can be saved.
pub fn check_interrupt() -> Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err(Error::new(Kind::Interrupted, "signal", "interrupted", "")),
        false => Ok(()),
    }
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Turns off notes and progress on standard error, for `--quiet`; errors are still printed.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A note: a line on standard error, unless notes are off.
pub fn note(line: impl Display) {
    if !is_quiet() {
        complain(line);
    }
}

/// A line on standard error, also where notes are off.
pub fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
