//! The commands of the program: each parses its words, runs, and returns a result that becomes the exit code.

pub mod describe;
pub mod embed;
pub mod evaluate;
pub mod predict;
pub mod push;
pub mod serve;
pub mod tokenize;
pub mod train;

use std::ffi::OsString;
use std::panic::UnwindSafe;
use std::process::ExitCode;
use std::sync::Mutex;

use clap::{Arg, Command, value_parser};

use crate::console::{complain, outlive_large_files, report};
use crate::error::{Kind, Result, no_threads};
use crate::flags;
use crate::train::{hugging_face, recipe};

/// A command: its name, its flags for the overview, and the function that runs it on its words.
type Entry = (&'static str, fn() -> Command, fn(Vec<OsString>) -> Result<()>);

const COMMANDS: [Entry; 8] = [
    ("describe", flags::command::<describe::Args>, describe::run),
    ("tokenize", flags::command::<tokenize::Args>, |words| flags::parse(words)?.map_or(Ok(()), tokenize::run)),
    ("train", flags::command::<crate::train::args::Args>, train),
    ("predict", flags::command::<predict::Args>, |words| flags::parse(words)?.map_or(Ok(()), predict::run)),
    ("evaluate", flags::command::<evaluate::Args>, |words| flags::parse(words)?.map_or(Ok(()), evaluate::run)),
    ("embed", flags::command::<embed::Args>, |words| flags::parse(words)?.map_or(Ok(()), embed::run)),
    ("serve", flags::command::<serve::Args>, |words| flags::parse(words)?.map_or(Ok(()), serve::run)),
    ("push", flags::command::<push::Args>, |words| flags::parse(words)?.map_or(Ok(()), push::run)),
];

/// What the overview ends with.
const MORE_HELP: &str = "\
warpfit COMMAND --help describes the flags of a command.

Environment variables:
  HF_HOME, HF_TOKEN, ...  Models and data sets of the Hugging Face hub, as in huggingface_hub
  WARPFIT_CACHE           Folder for tokenized texts and timed algorithms, or empty for none
                          [default: ~/.cache/warpfit]
  CUDA_VISIBLE_DEVICES    GPUs to choose from
  WARPFIT_CUDA            serial: a GPU's kernels run one after the other, to find a fault
  WARPFIT_CPU             Instructions of the CPU: plain, avx2, avx512, avx512bf16, amx or neon
                          [default: the fastest that it has]
  RAYON_NUM_THREADS       Threads of the CPU [default: one per core]
  NO_COLOR                No colours";

/// `warpfit COMMAND [FLAGS]`
pub fn warpfit(mut words: Vec<OsString>) -> Result<()> {
    // `help COMMAND` is `COMMAND --help`.
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    // The flags are parsed by the command itself, --help among them.
    let rest = || {
        let words = Arg::new("flags").num_args(0..).value_parser(value_parser!(OsString));
        words.allow_hyphen_values(true).trailing_var_arg(true)
    };
    let listed = COMMANDS.map(|(name, command, _)| {
        let about = command().get_about().cloned().unwrap_or_default();
        Command::new(name).about(about).disable_help_flag(true).arg(rest())
    });
    let program = Command::new("warpfit")
        .version(flags::version())
        .about("Fine-tune BERT-family encoders for text classification, and use them")
        .after_help(MORE_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(listed);
    let Some(matches) = flags::matches(&program, words)? else { return Ok(()) };
    let (chosen, matches) = matches.subcommand().expect("clap requires one");
    let (name, _, run) = COMMANDS.into_iter().find(|(name, ..)| *name == chosen).expect("clap knows their names");
    let flags = matches.get_many::<OsString>("flags").into_iter().flatten().cloned();
    run([format!("warpfit {name}").into()].into_iter().chain(flags).collect())
}

/// `train [FLAGS]`
pub fn train(words: Vec<OsString>) -> Result<()> {
    let (words, no_effect) = hugging_face::translate(words)?;
    recipe::parse(words)?.map_or(Ok(()), |args| train::run(args, &no_effect))
}

/// Starts the threads of all parallel work; without memory or processes left for them the first use would panic.
fn threads() -> Result<()> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(no_threads)
}

/// The body of a program: prints an error of `main` as one line, and returns the exit code.
pub fn exit(main: impl FnOnce() -> Result<()> + UnwindSafe) -> ExitCode {
    // The message of the last panic, printed only if nothing catches it.
    static LAST_PANIC: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
        let line = format!("error: `{at}`: internal error ({text}); please report this line");
        LAST_PANIC.lock().map(|mut last| *last = line).unwrap_or_default();
    }));
    match std::panic::catch_unwind(|| outlive_large_files().and_then(|()| threads()).and_then(|()| main())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            if error.kind != Kind::BrokenPipe {
                report(&error);
            }
            ExitCode::from(error.kind as u8)
        }
        Err(_) => {
            complain(LAST_PANIC.lock().map(|last| last.clone()).unwrap_or_default());
            ExitCode::from(Kind::Unusable as u8)
        }
    }
}
