//! The terminal: results on standard output, notes and errors on standard error, and signals. Whether notes are shown and
//! whether a signal was received are global, since they belong to the process.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::error::{Error, Kind, Result};

/// Prints a result: a line on standard output.
pub fn print(line: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| Error::io(Path::new("standard output"), e))
}

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Default::default);

/// From now on the first SIGINT, SIGTERM, SIGHUP (a terminal that closes) or SIGUSR1 (Slurm's warning before the time limit) is
/// left to [`check_interrupt`]; a second one ends the process immediately. A SIGHUP that is ignored, as under nohup, still is.
pub fn notice_interrupts() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGUSR1] {
        if signal == SIGHUP && is_ignored(signal) {
            continue;
        }
        // In this order: at the first signal the condition is not met yet.
        flag::register_conditional_shutdown(signal, Kind::Interrupted as i32, INTERRUPTED.clone())
            .and_then(|_| flag::register(signal, INTERRUPTED.clone()))
            .map_err(|e| Error::new(Kind::Device, "signals", e.to_string(), "start the program again"))?;
    }
    Ok(())
}

fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.unwrap_or(0) >> (signal - 1) & 1 == 1
}

/// An error of kind [`Kind::Interrupted`] once a signal was received: called where work can stop and be saved.
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

/// Prints a note: a line on standard error, unless notes are off.
pub fn note(line: impl Display) {
    if !is_quiet() {
        complain(line);
    }
}

/// Prints a line on standard error, even if notes are off.
pub fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
