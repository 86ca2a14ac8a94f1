//! `WARPFIT_CPU`: refused values, and the CPU's ops and golden numbers with each of the machine's instructions.

use std::env;
use std::process::Command;
use std::time::Instant;

use clap::ValueEnum;
use warpfit::cpu::{Cpu, Instructions};
use warpfit::ops::Backend;

use crate::cli::{PREDICT, path, program, run};
use crate::fixtures::golden;

#[test]
fn missing_instructions_are_refused() {
    let refused = |name: &str, fact: &str| {
        let available = Instructions::available().iter().map(Instructions::to_string).collect::<Vec<_>>().join(", ");
        let mut command = program(PREDICT);
        command.args(["--device", "cpu", "--model", path(&golden("text/hf")), "--text", "a film"]).env("WARPFIT_CPU", name);
        run(&mut command, b"").failed(2, &format!("`WARPFIT_CPU={name}`: {fact}; this machine has {available}"));
    };
    for name in ["", "AVX2", "sse2"] {
        refused(name, "no such instructions");
    }
    // No machine has the instructions of all architectures.
    let available = Instructions::available();
    for lacking in Instructions::value_variants().iter().filter(|instructions| !available.contains(instructions)) {
        refused(&lacking.to_string(), "these instructions are missing here");
    }
}

#[test]
fn the_name_shows_the_instructions() {
    let named = env::var("WARPFIT_CPU").unwrap_or(Instructions::best().to_string());
    let name = Cpu::<f32>::new().name();
    assert!(name.ends_with(&format!(" threads, {named}")), "{name} instead of {named}");
}

#[test]
#[ignore = "runs this binary once for each of the machine's instructions"]
fn each() {
    for instructions in Instructions::available() {
        let start = Instant::now();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["instructions::", "ops::", "model::golden", "--skip", "cuda", "--skip", "every_kernel_has_a_case"]);
        let output = command.env("WARPFIT_CPU", instructions.to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let ok = text.lines().find_map(|line| line.strip_prefix("test result: ok. ")).filter(|_| output.status.success());
        let passed = ok.and_then(|ok| ok.split(' ').next()).map_or(0, |passed| passed.parse::<usize>().unwrap());
        assert!(passed > 2, "with {instructions}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
        println!("WARPFIT_CPU={instructions}: {passed} tests passed in {:.0} s", start.elapsed().as_secs_f64());
    }
}
