//! `--version`: the release, and the GPU code in the build.

use std::process::Command;
use warpfit::cuda::COMPILER;

use super::*;
use crate::nvcc::archs;

#[test]
fn every_command_reports_the_release_and_its_gpu_code() {
    let archs: Vec<String> = archs().iter().map(|arch| format!("sm_{arch}")).collect();
    let gpu_code = match COMPILER {
        Some((by, (major, minor))) => format!("GPU code for {} by {by} {major}.{minor}", archs.join(", ")),
        None => "no GPU code".to_string(),
    };
    let warpfit = run(Command::new(env!("CARGO_BIN_EXE_warpfit")).arg("--version"), b"");
    let commands = [TRAIN, PREDICT, EVALUATE, "embed", "serve", "push"].map(|name| (name, ran(name, &["--version"])));
    for (name, ran) in [("warpfit", warpfit)].into_iter().chain(commands) {
        assert_eq!(ran.done().out, format!("{name} {} ({gpu_code})\n", env!("CARGO_PKG_VERSION")));
    }
}
