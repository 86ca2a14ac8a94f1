//! A GPU that fails in the middle of a run: at any allocation, copy, fill, launch or product.

use std::ffi::OsString;
use std::path::Path;
use std::sync::PoisonError;

use cudarc::driver::sys;
use tempfile::TempDir;
use warpfit::checkpoint::run_dir::checkpoint_step;
use warpfit::console::be_quiet;
use warpfit::cuda::Cuda;
use warpfit::error::{Kind, Result};
use warpfit::files::verify;
use warpfit::train::{Outcome, recipe, train};

use super::ONE_AT_A_TIME;
use crate::fixtures::{golden, json};

/// Two updates of a model with one layer, each with an evaluation and a checkpoint.
fn run(model: &Path, out: &Path, more: &str) -> Result<Option<Outcome>> {
    let (golden, model) = (golden("train"), model.display());
    let golden = golden.display();
    let flags = format!(
        "train --model {model} --from-scratch --train-file {golden}/train.csv --validation-file {golden}/test.csv --max-length 4 \
         --max-train-samples 8 --max-eval-samples 2 --batch-size 2 --max-steps 2 --eval-strategy steps --eval-steps 1 \
         --save-strategy steps --save-steps 1 --logging-steps 1 --device cuda:1 {more} --output-dir"
    );
    let words = flags.split_whitespace().map(OsString::from).chain([out.into()]);
    train(&recipe::parse(words)?.expect("no help").settings()?, None)
}

/// The tokenizer and the config of a golden model, with one small layer.
fn small_model(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    std::fs::copy(golden("train/hf_init/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut config = json("train/hf_init/config.json");
    for (key, value) in [("n_layers", 1), ("dim", 16), ("hidden_dim", 32), ("n_heads", 1)] {
        config[key] = value.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// A context that was broken by an earlier failure is replaced.
fn reset() {
    vgpu::fail(1, 0, false);
    // SAFETY: nothing is left in it.
    assert_eq!(unsafe { sys::cuDevicePrimaryCtxReset_v2(1) }, sys::CUresult::CUDA_SUCCESS);
    // What could not be freed is reported with the next call.
    let _ = Cuda::open(1);
}

/// The newest checkpoint of a folder, after a check that all is complete in it.
fn newest(out: &Path, what: &str) -> Option<usize> {
    let names: Vec<String> =
        std::fs::read_dir(out).into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".partial") && name != "model.ready"), "{what}: {names:?}");
    let checkpoints = names.iter().filter_map(|name| checkpoint_step(name));
    checkpoints.inspect(|step| assert!(verify(&out.join(format!("checkpoint-{step}"))).unwrap(), "{what}")).max()
}

#[test]
fn a_run_survives_a_failure_of_any_call() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    vgpu::install();
    be_quiet(true);
    let dir = TempDir::new().unwrap();
    let [small, whole, out] = ["model", "whole", "out"].map(|name| dir.path().join(name));
    small_model(&small);
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    reset();
    run(&small, &whole, "").unwrap();
    let calls = vgpu::calls(1);
    // The failures before, between and after the two checkpoints.
    let mut failures = [0; 3];
    for call in 1..=calls {
        // At once, or when the work runs.
        let late = call % 2 == 0;
        let what = format!("call {call} of {calls}, late {late}");
        reset();
        vgpu::fail(1, call, late);
        let error = run(&small, &out, "").err().unwrap_or_else(|| panic!("{what}: the run succeeds"));
        let line = error.to_string();
        assert!(error.kind == Kind::Device && !line.contains('\n'), "{what}: {line}");
        let saved = newest(&out, &what);
        let named = match saved {
            Some(step) => format!("the last good checkpoint is {};", out.join(format!("checkpoint-{step}")).display()),
            None => "no checkpoint was written yet;".to_string(),
        };
        // Before the run there is nothing to name; a new folder into which nothing was written is removed.
        let begun = line.contains(&named);
        assert!(begun || !out.exists(), "{what}: {line}");
        // Nor is there anything to resume from before the first checkpoint.
        assert_eq!(line.ends_with("; --resume-from-checkpoint continues the run"), saved.is_some(), "{what}: {line}");
        failures[saved.unwrap_or(0)] += usize::from(begun);
        if call % 64 == 0 {
            reset();
            run(&small, &out, if saved.is_some() { "--resume-from-checkpoint" } else { "--overwrite-output-dir" }).unwrap();
            assert!(weights(&out) == weights(&whole), "{what}");
        }
        let _ = std::fs::remove_dir_all(&out);
    }
    reset();
    assert!(failures.iter().all(|&count| count > 20), "{failures:?}");
}
