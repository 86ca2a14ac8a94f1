//! What the binaries share: flags parsed into one clear line of error, results on standard output, notes on standard
//! error, and the exit code.

use std::env::ArgsOs;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::panic::UnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, Parser};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::data::dataset::Options;
use crate::device::{Device, Precision};
use crate::error::{Error, Kind, Result};
use crate::train::args::{count, delimiter};

/// The body of every binary: runs `main` on the flags that `parse` makes of what was typed, prints its error as one line, and
/// gives the exit code.
pub fn run<A: UnwindSafe>(parse: fn(ArgsOs) -> Result<Option<A>>, main: fn(A) -> Result<()>) -> ExitCode {
    // Printed only where nothing catches the panic.
    static LAST_PANIC: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
        let line = format!("error: `{at}`: a broken invariant of warpfit ({text}); please report it with this line");
        LAST_PANIC.lock().map(|mut last| *last = line).unwrap_or_default();
    }));
    let body = || match parse(std::env::args_os())? {
        Some(args) => main(args),
        None => Ok(()),
    };
    match std::panic::catch_unwind(body) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            if error.kind != Kind::BrokenPipe {
                complain(format!("error: {error}"));
            }
            ExitCode::from(error.kind as u8)
        }
        Err(_) => {
            complain(LAST_PANIC.lock().map(|last| last.clone()).unwrap_or_default());
            ExitCode::from(Kind::Unusable as u8)
        }
    }
}

/// The flags as typed; `None` where help or the version was asked for, and printed.
pub fn parse<A: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<Option<A>> {
    Ok(matches(&command::<A>(), args)?.map(|matches| A::from_arg_matches(&matches).expect("clap has checked the values")))
}

/// The flags of a binary. Every `--kebab-case` flag is also known by its Hugging Face `--snake_case` name.
pub fn command<A: Parser>() -> Command {
    A::command().mut_args(|arg| {
        // Else -1 would be an unknown flag, and not a value that is out of range.
        let arg = arg.allow_negative_numbers(true);
        match arg.get_long() {
            Some(long) if long.contains('-') => {
                let snake = long.replace('-', "_");
                arg.alias(snake)
            }
            _ => arg,
        }
    })
}

/// What was typed, by flag; `None` as of [`parse`].
pub fn matches(command: &Command, args: impl IntoIterator<Item = OsString>) -> Result<Option<ArgMatches>> {
    match command.clone().try_get_matches_from(args) {
        Ok(matches) => Ok(Some(matches)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            print(error.render().to_string().trim_end())?;
            Ok(None)
        }
        Err(error) => {
            // The first paragraph is the fact; the usage that follows it is what --help says too.
            let text = error.render().to_string();
            let fact = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            let fact = fact.split_whitespace().collect::<Vec<_>>().join(" ");
            let name = command.get_name();
            Err(Error::user(name, fact, format!("see {name} --help")))
        }
    }
}

/// How texts are read and a model runs over them: flags of evaluate, predict and embed.
#[derive(Args)]
pub struct Reading {
    /// Column or JSON key of the texts, where its name does not say it
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Between the fields of a CSV file
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Cut texts to this many tokens [default: the least of the tokenizer's limit, the model's positions and 512]
    #[arg(long, value_name = "N", alias = "max_seq_length", value_parser = count)]
    pub max_length: Option<usize>,
    /// The most tokens of a batch
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 8192)]
    pub max_batch_tokens: usize,
    /// What computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Of activations and products; the CPU has fp32 and bf16
    #[arg(long, default_value = "fp32")]
    pub precision: Precision,
}

impl Reading {
    pub fn columns(&self, label_column: Option<&str>) -> Options {
        Options { delimiter: self.delimiter, text_column: self.text_column.clone(), label_column: label_column.map(String::from) }
    }

    pub fn device(&self) -> Result<Device> {
        self.device.parse()
    }
}

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

/// From now on no notes and no progress on standard error, errors alone: `--quiet`.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A note on the way: a line on standard error, which nobody needs to be reading.
pub fn note(line: impl Display) {
    if !is_quiet() {
        complain(line);
    }
}

fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
