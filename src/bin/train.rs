//! `warpfit train` under a name of its own.

use std::process::ExitCode;

use warpfit::memory::OrExit;

#[global_allocator]
static ALLOCATOR: OrExit = OrExit;

fn main() -> ExitCode {
    warpfit::commands::exit(|| warpfit::commands::train(std::env::args_os().collect()))
}
