//! `--device` from outside, on the virtual GPU: a missing or failing GPU is one line and exit code 3, and with `auto` the CPU
//! is used. A machine with a real driver leaves `no_driver` out (`--skip no_driver`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use warpfit::checkpoint::model_dir::ModelDir;
use warpfit::cpu::Instructions;
use warpfit::data::tokenize::Tokenizer;
use warpfit::device::{Device, Precision};
use warpfit::model::plan::{ModelSpec, Plan};
use warpfit::ops::{Arithmetic, Backend, Rows};

use crate::cli::{PREDICT, Ran, TRAIN, path, program, run};
use crate::fixtures::{golden, gpu, max_abs_difference};
use crate::nvcc::archs;

/// Classifies one text, with libraries from a folder and variables for the virtual GPU.
fn predict(libraries: &Path, vars: &[(&str, &str)], more: &[&str]) -> Ran {
    let model = golden("text/hf");
    let mut command = program(PREDICT);
    command.args(["--model", path(&model), "--text", "a film"]).args(more);
    run(command.env("LD_LIBRARY_PATH", libraries).envs(vars.iter().copied()), b"")
}

/// `--device cuda` is refused with this fact, and `auto` falls back to the CPU because of it.
#[track_caller]
fn refused(libraries: &Path, vars: &[(&str, &str)], fact: &str) {
    predict(libraries, vars, &["--device", "cuda"]).failed(3, &format!("`--device cuda`: {fact}"));
    let auto = predict(libraries, vars, &[]).done();
    let line = auto.err.lines().find(|line| line.starts_with("device: ")).unwrap_or_else(|| panic!("{}", auto.err));
    assert!(line.starts_with("device: CPU, ") && line.contains(fact), "{line}");
    assert_eq!(auto.out, predict(libraries, vars, &["--device", "cpu"]).done().out);
}

#[test]
fn no_driver() {
    refused(TempDir::new().unwrap().path(), &[], "no NVIDIA driver (libcuda) found");
}

#[test]
fn the_cpu_rounds_products_to_bf16_and_has_no_tf32() {
    let on = |precision: &str| {
        let flags = ["--device", "cpu", "--precision", precision, "--raw-scores", "--top-k", "0"];
        predict(TempDir::new().unwrap().path(), &[], &flags)
    };
    on("tf32").failed(2, "`--precision tf32`: the CPU computes in fp32 or bf16");
    let [exact, rounded] = ["fp32", "bf16"].map(|precision| {
        let line: serde_json::Value = serde_json::from_str(&on(precision).done().out).unwrap();
        line["scores"].as_array().unwrap().iter().map(|score| score["score"].as_f64().unwrap()).collect::<Vec<_>>()
    });
    let difference = max_abs_difference(&exact, &rounded);
    assert!((1e-6..2e-2).contains(&difference), "logits {exact:?} and in bf16 {rounded:?}");
}

/// `auto` leaves it to the user to round.
#[test]
fn a_faster_precision_is_proposed() {
    let faster = |precision| Device::Cpu.open(precision).unwrap().faster;
    assert_eq!(faster(Precision::Auto), Instructions::in_use().multiply_bf16_faster().then_some(Precision::Bf16));
    assert_eq!([Precision::Fp32, Precision::Bf16].map(faster), [None; 2]);
}

#[test]
fn unsuitable_drivers() {
    let vgpu = vgpu::directory();
    // Without nvcc there is no GPU code that could be too new.
    let built = |fact| if archs().is_empty() { "this binary has no GPU code: it was built without nvcc" } else { fact };
    for (fault, fact) in [
        ("stub_driver", "the libcuda found is the stub of a toolkit, not a driver"),
        ("no_device", "no NVIDIA GPU found"),
        ("old_driver", built("the driver is for CUDA 12.2, the kernels are compiled by nvcc ")),
        ("unsupported_arch", built("this binary has no GPU code for sm_50, only for sm_")),
    ] {
        refused(&vgpu, &[("VGPU_FAULT", fault)], fact);
    }
}

#[test]
fn no_cublaslt() {
    let libraries = TempDir::new().unwrap();
    for name in ["libcuda.so", "libvgpu_kernels.so"] {
        symlink(vgpu::directory().join(name), libraries.path().join(name)).unwrap();
    }
    refused(libraries.path(), &[], "no cuBLASLt library (libcublasLt) found");
}

#[test]
fn the_requested_gpu_is_used_and_no_other() {
    let vgpu = vgpu::directory();
    let cpu = predict(&vgpu, &[], &["--device", "cpu"]).done().out;
    for (device, name) in [("auto", "Virtual GPU 0"), ("cuda", "Virtual GPU 0"), ("cuda:1", "Virtual GPU 1")] {
        let ran = predict(&vgpu, &[], &["--device", device, "--precision", "fp32"]).done();
        let note = format!("device: {name}, precision fp32\n");
        assert!(ran.err.starts_with(&note) && ran.err.matches("device").count() == 1, "{}", ran.err);
        assert_eq!(ran.out.split(",\"score\"").next(), cpu.split(",\"score\"").next());
    }
    let fact = "`--device cuda:2`: there are 2 GPUs, cuda:0 to cuda:1";
    predict(&vgpu, &[], &["--device", "cuda:2"]).failed(3, fact);
}

#[test]
fn one_byte_too_little_memory() {
    let config = ModelDir::read(&golden("text/hf")).unwrap().config;
    let spec = ModelSpec { train: false, last_rows: Rows::Cls, tokens: 512, seqs: 8, arithmetic: Arithmetic::F32 };
    let (layout, gpu) = (Plan::new(&config, spec).layout, gpu());
    let beside = gpu.workspace(&layout) + gpu.libraries();
    let needed = layout.bytes + beside;
    let with = |bytes: usize| {
        predict(
            &vgpu::directory(),
            &[("VGPU_MEMORY", &bytes.to_string())],
            &["--device", "cuda", "--precision", "fp32", "--max-batch-tokens", "512", "--batch-size", "8"],
        )
    };
    with(needed).done();
    with(needed - 1).failed(3, " are free; the largest batch that fits has 7 rows");
    with(beside + 1000).failed(3, " are free; not even a batch of one row fits");

    // Training keeps count of the rows of the word table, too.
    let (folder, model) = (TempDir::new().unwrap(), golden("text/hf"));
    let file = folder.path().join("train.csv");
    fs::write(&file, "text,label\na film,0\na good film,1\n").unwrap();
    let tokenizer = Tokenizer::read(&model).unwrap();
    let tokens = ["a film", "a good film"].map(|text| tokenizer.pieces(text, true).unwrap().len()).iter().sum();
    let layout = Plan::new(&config, ModelSpec { train: true, tokens, seqs: 2, ..spec }).layout;
    assert!(gpu.workspace(&layout) + gpu.libraries() > beside);
    let needed = layout.bytes + gpu.workspace(&layout) + gpu.libraries();
    let with = |bytes: usize| {
        let mut command = program(TRAIN);
        command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&folder.path().join("out"))]);
        command.args(["--batch-size", "2", "--max-steps", "1", "--device", "cuda", "--precision", "fp32"]);
        run(command.env("LD_LIBRARY_PATH", vgpu::directory()).env("VGPU_MEMORY", bytes.to_string()), b"")
    };
    with(needed - 1).failed(3, " are free; ");
    with(needed).done();
}

/// cuBLASLt allocates memory of its own on the first use of a kernel.
#[test]
fn cublaslt_without_memory() {
    let ran = predict(&vgpu::directory(), &[("VGPU_FAULT", "cublaslt_memory")], &["--device", "cuda"]);
    ran.failed(3, "CUBLAS_STATUS_ALLOC_FAILED; stop other programs on the GPU, or lower --batch-size");
}

/// Products that cuBLASLt does not support are computed all the same.
#[test]
fn cublaslt_without_products() {
    let flags = ["--device", "cuda", "--precision", "fp32"];
    let [plain, slow] = ["", "no_products"].map(|fault| predict(&vgpu::directory(), &[("VGPU_FAULT", fault)], &flags).done());
    assert_eq!(slow.err.matches("CUBLAS_STATUS_NOT_SUPPORTED; a kernel that is many times slower").count(), 1, "{}", slow.err);
    assert_eq!(slow.out.split(",\"score\"").next(), plain.out.split(",\"score\"").next());
}

/// Kernels start early only if they wait for the one before them: made from older PTX, they do not.
#[test]
fn kernels_that_start_in_turn() {
    let vgpu = vgpu::directory();
    let with = |vars: &[(&str, &str)]| predict(&vgpu, vars, &["--device", "cuda"]);
    let plain = with(&[]).done().out;
    let refuses = ("VGPU_FAULT", "no_early_launches");
    with(&[refuses]).failed(3, "CUDA_ERROR_NOT_SUPPORTED");
    for vars in [&[refuses, ("WARPFIT_CUDA", "serial")][..], &[("VGPU_PTX", "80")]] {
        assert_eq!(with(vars).done().out, plain);
    }
    with(&[("WARPFIT_CUDA", "fast")]).failed(2, "`WARPFIT_CUDA=fast`: no such value; WARPFIT_CUDA=serial is the only one");
}

/// A driver that records no graphs launches every kernel by itself.
#[test]
fn a_driver_without_graphs() {
    let model = golden("text/hf");
    let predict = |fault: &str| {
        let mut command = program(PREDICT);
        command.args(["--model", path(&model), "--device", "cuda", "--batch-size", "1"]);
        run(command.env("LD_LIBRARY_PATH", vgpu::directory()).env("VGPU_FAULT", fault), b"good\nbad\ngood\nbad\n").done()
    };
    let [with, without] = ["", "no_capture"].map(predict);
    assert_eq!(with.out, without.out);
    let note = "note: every kernel is launched by itself, as recording them fails (graph: CUDA_ERROR_NOT_SUPPORTED";
    assert_eq!([&with, &without].map(|ran| ran.err.matches(note).count()), [0, 1], "{}", without.err);
}

#[test]
fn a_run_whose_gpu_fails_names_its_last_checkpoint_and_resumes() {
    let (model, file, folder) = (golden("train/hf_init"), golden("train/train.csv"), TempDir::new().unwrap());
    let out = folder.path().join("run");
    let train = |failing: &str, more: &[&str]| {
        let mut command = program(TRAIN);
        command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)]);
        command.args(["--max-steps", "6", "--batch-size", "8", "--save-strategy", "steps", "--save-steps", "2"]).args(more);
        run(command.env("LD_LIBRARY_PATH", vgpu::directory()).env("VGPU_FAIL_LAUNCH", failing), b"")
    };
    let error = train("20", &["--device", "cuda"]).failed(3, "CUDA_ERROR_ILLEGAL_ADDRESS").err;
    assert!(error.contains("no checkpoint was written yet") && !error.contains("--resume-from-checkpoint"), "{error}");
    let error = train("150", &["--device", "cuda", "--overwrite-output-dir"]).failed(3, "CUDA_ERROR_ILLEGAL_ADDRESS").err;
    let checkpoints = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let last = checkpoints.filter(|name| name.starts_with("checkpoint-")).max().expect(&error);
    assert!(error.contains(&format!("the last good checkpoint is {}", path(&out.join(last)))), "{error}");
    let resumed = train("0", &["--device", "cpu", "--resume-from-checkpoint"]).done().err;
    let warning = resumed.lines().find(|line| line.contains("was computed by Virtual GPU 0: on "));
    assert!(warning.is_some_and(|line| line.contains("the bits may differ")), "{resumed}");
    // Nothing is left to do.
    let resumed = train("0", &["--device", "auto", "--resume-from-checkpoint"]).done().err;
    assert!(!resumed.contains("may differ"), "{resumed}");
}

#[test]
fn a_gpu_of_compute_capability_7_5_trains_in_fp32_and_fp16_and_refuses_bf16() {
    let (model, file, folder) = (golden("train/hf_init"), golden("train/train.csv"), TempDir::new().unwrap());
    let train = |device: &str, precision: &str| {
        let out = folder.path().join(format!("{device}-{precision}"));
        let mut command = program(TRAIN);
        command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(&out)]);
        command.args(["--max-steps", "4", "--batch-size", "8", "--logging-steps", "1", "--save-strategy", "no"]);
        command.args(["--device", device, "--precision", precision]);
        let ran = run(command.env("LD_LIBRARY_PATH", vgpu::directory()).env("VGPU_CAPABILITY", "7.5"), b"");
        (ran, out)
    };
    let losses = |precision: &str, (ran, out): (Ran, PathBuf)| {
        let error = ran.done().err;
        let saved: serde_json::Value = serde_json::from_slice(&fs::read(out.join("training_args.json")).unwrap()).unwrap();
        assert_eq!(saved["precision"], precision, "{error}");
        let state: serde_json::Value = serde_json::from_slice(&fs::read(out.join("trainer_state.json")).unwrap()).unwrap();
        let steps = state["log_history"].as_array().unwrap().iter();
        steps.filter_map(|step| step["loss"].as_f64()).collect::<Vec<_>>()
    };
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| losses("fp32", train(device, "fp32")));
    assert_eq!(cpu.len(), 4);
    assert!(max_abs_difference(&cpu, &cuda) < 1e-4, "{cpu:?} on the CPU, {cuda:?} on the GPU");
    let (auto, fp16) = (train("cuda", "auto"), train("cuda", "fp16"));
    assert!(auto.0.err.contains("device: Virtual GPU 0, precision fp16\n"), "{}", auto.0.err);
    let [auto, fp16] = [auto, fp16].map(|run| losses("fp16", run));
    assert!(auto == fp16 && max_abs_difference(&cpu, &fp16) < 2e-3, "{cpu:?} on the CPU, {fp16:?} in fp16");
    for precision in ["bf16", "tf32"] {
        let fact = format!("compute capability 7.5: products of {precision} need 8.0; pass --precision fp16 or fp32");
        train("cuda", precision).0.failed(3, &fact);
    }
    train("cpu", "fp16").0.failed(2, "`--precision fp16`: the CPU computes in fp32 or bf16");
}

/// The other tests of f16, on a GPU whose tensor cores have neither bf16 nor asynchronous copies.
#[test]
fn f16_at_compute_capability_7_5() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["ops::f16_on_cuda", "ops::cuda_f16::", "model::golden_f16"]).env("VGPU_CAPABILITY", "7.5");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("test ops::f16_on_cuda ... ok"), "{text}");
}

#[test]
fn auto_is_bf16_on_a_gpu_that_has_it_and_a_resumed_run_keeps_its_precision() {
    let (model, file, folder) = (golden("train/hf_init"), golden("train/train.csv"), TempDir::new().unwrap());
    let train = |more: &[&str]| {
        let mut command = program(TRAIN);
        command.args(["--model", path(&model), "--train-file", path(&file), "--output-dir", path(folder.path())]);
        command.args(["--max-steps", "2", "--batch-size", "8", "--save-strategy", "steps", "--save-steps", "1"]).args(more);
        run(command.env("LD_LIBRARY_PATH", vgpu::directory()), b"")
    };
    let first = train(&["--device", "cuda"]).done().err;
    assert!(first.contains("device: Virtual GPU 0, precision bf16\n"), "{first}");
    for precision in ["fp32", "fp16", "tf32"] {
        train(&["--device", "cuda", "--overwrite-output-dir", "--precision", precision]).done();
        let resumed = train(&["--device", "cuda", "--resume-from-checkpoint"]).done().err;
        assert!(resumed.contains(&format!("precision: {precision}, that of the checkpoint\n")), "{resumed}");
    }
    let other = train(&["--device", "cpu", "--resume-from-checkpoint"]);
    other.failed(2, "the run was trained in tf32, which this device lacks: the CPU computes in fp32 or bf16; resume on a GPU");
    let other = train(&["--device", "cuda", "--precision", "bf16", "--resume-from-checkpoint"]);
    other.failed(2, "was written with --precision tf32, but this run has bf16");
}
