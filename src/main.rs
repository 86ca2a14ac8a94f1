use std::process::ExitCode;

fn main() -> ExitCode {
    warpfit::commands::exit(|| warpfit::commands::warpfit(std::env::args_os().collect()))
}
