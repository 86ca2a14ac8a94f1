use std::process::ExitCode;

use warpfit::memory::OrExit;

#[global_allocator]
static ALLOCATOR: OrExit = OrExit;

fn main() -> ExitCode {
    warpfit::commands::exit(|| warpfit::commands::warpfit(std::env::args_os().collect()))
}
