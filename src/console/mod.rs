//! The terminal: results on standard output, notes and errors on standard error (`look`: how a terminal shows them), and signals.
//! Whether notes are shown and whether a signal was received are global, since they belong to the process.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, PipeWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;

use crate::error::{Error, Kind, Result};
use look::LABEL;
pub use look::{Look, fill};

mod look;

/// Prints a result for people: as [`print()`], but dressed for the terminal.
pub fn tell(line: impl Display) -> Result<()> {
    print(Look::of_stdout().dressed(&line.to_string()))
}

/// Prints a result: a line on standard output.
pub fn print(line: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| Error::io(Path::new("standard output"), e))
}

/// SIGINT and SIGTERM; on Unix also SIGHUP (a terminal that closes) and SIGUSR1 (Slurm's warning before the time limit). A
/// SIGHUP that is ignored, as under nohup, still is.
#[cfg(unix)]
fn interrupts() -> impl Iterator<Item = i32> {
    use signal_hook::consts::{SIGHUP, SIGUSR1};
    [SIGINT, SIGTERM, SIGHUP, SIGUSR1].into_iter().filter(|&signal| signal != SIGHUP || !is_ignored(signal))
}

#[cfg(not(unix))]
fn interrupts() -> impl Iterator<Item = i32> {
    [SIGINT, SIGTERM].into_iter()
}

fn no_signals(e: io::Error) -> Error {
    Error::new(Kind::Device, "signals", e.to_string(), "start the program again")
}

/// A file that grows beyond `ulimit -f` is an error of its write, which is reported, and not the end of the process.
pub fn outlive_large_files() -> Result<()> {
    #[cfg(unix)]
    // SAFETY: the handler does nothing.
    unsafe { low_level::register(signal_hook::consts::SIGXFSZ, || ()) }.map_err(no_signals)?;
    Ok(())
}

/// Whether signals are left to [`check_interrupt`]. Locked while the process ends by one that is not.
static NOTICES: Mutex<bool> = Mutex::new(false);

fn notices() -> MutexGuard<'static, bool> {
    NOTICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes the thread of [`leave_on_interrupt`].
static WAKE: OnceLock<PipeWriter> = OnceLock::new();

/// Until [`notice_interrupts`], a signal ends the process: there is nothing to save. `leave` is run before, and `fact` is
/// reported. To be called once.
pub fn leave_on_interrupt(fact: String, leave: impl FnOnce() + Send + 'static) -> Result<()> {
    let (mut signals, wake) = io::pipe().map_err(no_signals)?;
    WAKE.get_or_init(|| wake);
    let wait = move || {
        let signalled = signals.read_exact(&mut [0]).is_ok();
        let notices = notices();
        if signalled && !*notices {
            leave();
            report(&Error::interrupted(fact, "start the same command again"));
            low_level::exit(Kind::Interrupted as i32);
        }
    };
    std::thread::Builder::new().spawn(wait).map_err(no_signals)?;
    listen()
}

/// From now on the first signal is left to [`check_interrupt`]; a second one ends the process immediately. A command that has
/// written its results calls this, and ends without a check.
pub fn notice_interrupts() -> Result<()> {
    *notices() = true;
    listen()
}

/// Handles signals for the rest of the process.
fn listen() -> Result<()> {
    if BEGIN.set(Instant::now()).is_err() {
        return Ok(());
    }
    for signal in interrupts() {
        // SAFETY: the handler reads the clock and atomic numbers, writes to a pipe, and may end the process, all of which a handler
        // may do.
        unsafe { low_level::register(signal, on_signal) }.map_err(no_signals)?;
    }
    Ok(())
}

/// Signals within this time are one: `timeout` sends one to its child and one to the group that the child is in.
const ONE_SIGNAL: u64 = 300; // ms

/// When signals began to be handled.
static BEGIN: OnceLock<Instant> = OnceLock::new();

/// When the first signal came, in milliseconds from 1 after [`BEGIN`]; 0 before.
static FIRST: AtomicU64 = AtomicU64::new(0);

fn on_signal() {
    let now = 1 + BEGIN.get().map_or(0, |begin| begin.elapsed().as_millis() as u64);
    match FIRST.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            let _ = WAKE.get().map(|mut wake| wake.write(&[0]));
        }
        // Another thread may have had the first signal, and read the clock later.
        Err(first) if now.saturating_sub(first) > ONE_SIGNAL => low_level::exit(Kind::Interrupted as i32),
        Err(_) => (),
    }
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    use std::{mem::MaybeUninit, ptr::null};
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call writes the action; zeros are one, too.
    unsafe { libc::sigaction(signal, null(), action.as_mut_ptr()) == 0 && action.assume_init().sa_sigaction == libc::SIG_IGN }
}

/// An error of kind [`Kind::Interrupted`] once a signal was received after [`notice_interrupts`]: called where work can stop and
/// be saved.
pub fn check_interrupt() -> Result<()> {
    match FIRST.load(Ordering::Relaxed) > 0 && *notices() {
        true => Err(Error::interrupted("by a signal", "")),
        false => Ok(()),
    }
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Turns off notes and progress on standard error, or on again, for `--quiet`; warnings and errors are still printed.
pub fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a note: a line on standard error, unless notes are off and it is no warning.
pub fn note(line: impl Display) {
    let line = line.to_string();
    if !is_quiet() || line.starts_with("warning:") {
        complain(&line);
    }
    NOTED.with_borrow_mut(|noted| noted.iter_mut().for_each(|noted| noted.push(line.clone())));
}

/// Prints the error that ends the program. A stop that was asked for is not called one.
pub fn report(error: &Error) {
    let what = if error.kind == Kind::Interrupted { "stopped" } else { "error" };
    complain(format!("{what}: {error}"));
}

/// Prints the commands to type next, after a blank line, as [`note`] does.
pub fn next(commands: &[String]) {
    let look = Look::of_stderr();
    for (i, command) in commands.iter().enumerate().filter(|_| !is_quiet()) {
        let label = if i == 0 { "next" } else { "" };
        let line = format!("{label:<LABEL$}{}", look.command(command));
        // Not wrapped, to be copied.
        let _ = writeln!(io::stderr(), "{}{}", if i == 0 { "\n" } else { "" }, look.with_label(&line));
    }
}

thread_local! {
    /// The notes of [`noted`], while it runs.
    static NOTED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Runs `f`, and also returns the notes that it prints on this thread.
pub fn noted<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    let outer = NOTED.replace(Some(Vec::new()));
    let result = f();
    (result, NOTED.replace(outer).unwrap_or_default())
}

/// Prints a line on standard error, even if notes are off.
pub fn complain(line: impl Display) {
    let _ = writeln!(io::stderr(), "{}", Look::of_stderr().dressed(&line.to_string()));
}
