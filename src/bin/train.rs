//! `warpfit train` under a name of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpfit::commands::exit(|| warpfit::commands::train(std::env::args_os().collect()))
}
