//! Timed algorithms: recorded, found again, kept in checkpoints, and left alone where they do not apply. On the virtual GPU, whose
//! cuBLASLt gives each algorithm bits of its own and takes half the time with the one that VGPU_FASTEST names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use twox_hash::XxHash3_128;

use warpfit::ops::Backend;

use crate::cli::{Ran, TRAIN, path, program, run};
use crate::fixtures::{golden, gpu};

/// Runs on one data set that share a cache folder.
struct Runs {
    dir: TempDir,
}

impl Runs {
    fn new() -> Runs {
        Runs { dir: TempDir::new().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Trains into the folder `out`; `fastest` is the fastest algorithm. Words of `flags` that begin with a capital are variables.
    fn train(&self, out: &str, fastest: usize, flags: &str) -> Ran {
        let mut command = program(TRAIN);
        command.arg("--model").arg(golden("train/hf_init")).arg("--train-file").arg(golden("train/train.csv"));
        command.arg("--output-dir").arg(self.at(out));
        command.args("--epochs 2 --learning-rate 5e-4 --report-to none".split(' '));
        if !flags.contains("--batch-size") {
            command.args(["--batch-size", "8", "--max-train-samples", "44"]);
        }
        command
            .env("LD_LIBRARY_PATH", vgpu::directory())
            .env("VGPU_FASTEST", fastest.to_string())
            // With other seeds the library refuses some algorithms.
            .env("VGPU_SEED", "0")
            .env("WARPFIT_CACHE", self.at("cache"));
        let (variables, flags): (Vec<&str>, Vec<&str>) =
            flags.split_whitespace().partition(|word| word.starts_with(char::is_uppercase));
        command.envs(variables.into_iter().map(|word| word.split_once('=').unwrap())).args(&flags);
        if !flags.contains(&"--device") {
            command.args(["--device", "cuda"]);
        }
        run(&mut command, b"")
    }

    /// The trained weights, and the losses.
    fn weights(&self, out: &str, fastest: usize, flags: &str) -> Vec<u8> {
        self.train(out, fastest, flags).done();
        self.result(out)
    }

    fn result(&self, out: &str) -> Vec<u8> {
        let read = |file: &str| fs::read(self.at(out).join(file)).unwrap();
        let results: Value = serde_json::from_slice(&read("all_results.json")).unwrap();
        [read("model.safetensors"), format!("{} {}", results["train_loss"], results["eval_loss"]).into_bytes()].concat()
    }

    /// The file in the cache folder, of the only GPU that was timed.
    fn file(&self) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(self.at("cache/algorithms")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        file.clone()
    }
}

/// The place among the suggestions, which the virtual GPU writes into the last word of an algorithm.
fn number(product: &Value) -> u64 {
    u64::from_str_radix(&product["algorithm"].as_str().unwrap()[120..], 16).unwrap()
}

fn products(file: &Path) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    json["products"].as_array().unwrap().clone()
}

/// The lines of products in a trace of the virtual GPU.
fn traced(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter(|line| line.starts_with("cublasLtMatmul ")).map(String::from).collect()
}

#[test]
fn the_fastest_algorithms_are_recorded_and_used_by_later_runs() {
    let runs = Runs::new();
    let trace = |name: &str| format!("VGPU_TRACE={}", path(&runs.at(name)));
    let plain = runs.weights("plain", 3, &trace("plain.trace"));
    let tuned = runs.train("tuned", 3, "--tune").done();
    let file = runs.file();
    assert!(file.ends_with("Virtual-GPU-0-compute-capability-9.0-cuBLASLt-13.0.2.json"), "{}", file.display());
    let all = products(&file);
    assert!(all.len() > 100, "{} products", all.len());
    for product in &all {
        let us = |key: &str| product[key].as_f64().unwrap();
        // The medians of seven runs of which one is an outlier.
        assert!(number(product) == 3 && product["of"] == 8 && (us("first_us") / us("us") - 2.0).abs() < 0.01, "{product}");
    }
    let line = format!("algorithms: timed for {} shapes of products in ", all.len());
    assert!(
        tuned.err.contains(&line) && tuned.err.contains(" % less than the ") && tuned.err.contains(path(&file)),
        "{}",
        tuned.err
    );
    let tuned = runs.result("tuned");
    assert!(tuned != plain, "the algorithms have the same bits: the test proves nothing");

    // A later run takes them from the file, whatever is fastest then, and times nothing.
    let later = runs.train("later", 5, &trace("later.trace")).done();
    let line = format!("algorithms: timed on this GPU for {} shapes of products, from {}\n", all.len(), path(&file));
    assert!(later.err.contains(&line) && !later.err.contains("timing algorithms"), "{}", later.err);
    assert!(runs.result("later") == tuned);
    assert_eq!(traced(&runs.at("later.trace")).len(), traced(&runs.at("plain.trace")).len());
    // One that is tuned again, too: they are timed already.
    let again = runs.train("again", 5, "--tune").done();
    assert!(again.err.contains("algorithms: no product of this run was left to time\n"), "{}", again.err);
    assert!(runs.result("again") == tuned && products(&file) == all);
    // Another precision has other products, beside them.
    runs.train("fp32", 2, "--tune --precision fp32").done();
    let both = products(&file);
    assert!(both.len() > all.len() && all.iter().all(|product| both.contains(product)), "{}", both.len());
    assert!(runs.weights("off", 5, "--tune false") == plain);
    // Products that are not in the file are not timed unless that is asked for.
    for (name, flags) in [("with", ""), ("without", "--tune false")] {
        runs.train(name, 3, &format!("{flags} --batch-size 7 {}", trace(&format!("{name}.trace")))).done();
    }
    assert!(runs.result("with") != runs.result("without"));
    assert_eq!(traced(&runs.at("with.trace")).len(), traced(&runs.at("without.trace")).len());
}

/// What the host needs to submit a product hides the time of a shorter one.
#[test]
fn short_products_keep_the_first_algorithm() {
    let runs = Runs::new();
    runs.train("run", 3, "--tune VGPU_PRODUCT_NS=4500").done();
    let of = |short: bool| {
        let all = products(&runs.file()).into_iter();
        all.filter(|product| (product["first_us"].as_f64().unwrap() < 10.0) == short)
            .map(|product| number(&product))
            .collect::<Vec<_>>()
    };
    let [short, long] = [of(true), of(false)];
    assert!(short.len() > 10 && short.iter().all(|&number| number == 0), "{short:?}");
    assert!(long.len() > 10 && long.iter().all(|&number| number == 3), "{long:?}");
}

/// Products of all micro-batches and of evaluations are timed, in a run that then has no other.
#[test]
fn every_product_of_a_run_is_timed_and_timing_leaves_no_trace() {
    // Batches of 44 have more than 256 tokens, so that several numbers of tokens share an algorithm.
    for (precision, size, rows) in [("bf16", 8, 52), ("fp16", 8, 52), ("fp32", 8, 52), ("bf16", 44, 128)] {
        let runs = Runs::new();
        let flags = format!(
            "--gradient-accumulation-steps 3 --dropout 0.1 --eval-batch-size 5 --batch-size {size} --max-train-samples {rows} \
             --precision {precision} --validation-file {}",
            path(&golden("train/test.csv"))
        );
        let plain = runs.weights("plain", 0, &flags);
        // The first suggestion is the fastest: the same algorithms as without timing.
        assert!(runs.weights("first", 0, &format!("{flags} --tune")) == plain, "{precision}");
        assert!(products(&runs.file()).iter().all(|product| number(product) == 0));
        fs::remove_dir_all(runs.at("cache")).unwrap();
        runs.train("tuned", 3, &format!("{flags} --tune")).done();
        // Only the timed ones are used: the run has the same bits where the library suggests others first.
        let trace = |name: &str, first: usize| format!("VGPU_FIRST={first} VGPU_TRACE={} {flags}", path(&runs.at(name)));
        assert!(runs.weights("later", 3, &trace("a", 0)) == runs.weights("other", 3, &trace("b", 4)), "{precision}");
        fs::remove_dir_all(runs.at("cache")).unwrap();
        assert!(runs.weights("untimed", 3, &trace("c", 4)) != plain, "{precision}: the test proves nothing");
    }
}

#[test]
fn a_resumed_run_keeps_the_algorithms_of_its_checkpoint() {
    let runs = Runs::new();
    let saves = "--save-strategy steps --save-steps 4 --dropout 0.1";
    let plain = runs.weights("plain", 3, saves);
    let tuned = runs.weights("tuned", 3, &format!("{saves} --tune"));
    assert!(tuned != plain);
    let file = runs.file();
    let at = |run: &str| runs.at(run).join("checkpoint-4");
    assert_eq!(fs::read(at("tuned").join("algorithms.json")).unwrap(), fs::read(&file).unwrap());
    assert!(!at("plain").join("algorithms.json").exists());

    // With the same file, with none, and with another one.
    let resume = |run: &str, out: &str| {
        let flags = format!("{saves} --resume-from-checkpoint {}", path(&at(run)));
        let resumed = runs.train(out, 5, &flags).done();
        (runs.result(out), resumed.err)
    };
    assert!(resume("tuned", "same").0 == tuned);
    assert!(resume("plain", "of-plain").0 == plain, "algorithms of a file in a run that began without");
    fs::remove_file(&file).unwrap();
    let (weights, err) = resume("tuned", "none");
    assert!(weights == tuned && err.contains(" shapes of products, those of the checkpoint\n"), "{err}");
    assert!(runs.weights("other-file", 5, &format!("{saves} --tune")) != tuned);
    assert!(resume("tuned", "other").0 == tuned);
    // The checkpoints of the resumed run have them, too.
    let last = |run: &str| fs::read(runs.at(run).join("checkpoint-12/algorithms.json")).unwrap();
    assert!(last("other") == last("tuned") && last("other") != fs::read(&file).unwrap());

    let settings =
        |run: &str| -> Value { serde_json::from_slice(&fs::read(runs.at(run).join("training_args.json")).unwrap()).unwrap() };
    assert_eq!(
        ["plain", "of-plain", "tuned", "other"].map(|run| settings(run)["tune"].clone()),
        [json!(null), json!(null), json!(true), json!(true)]
    );

    // Elsewhere they do not apply.
    for (flags, place) in [("--device cuda:1", "Virtual GPU 1"), ("VGPU_CUBLASLT=120103", "cuBLASLt 12.1.3")] {
        let err = runs
            .train(
                "elsewhere",
                3,
                &format!("{flags} {saves} --overwrite-output-dir --resume-from-checkpoint {}", path(&at("tuned"))),
            )
            .done()
            .err;
        let lines: Vec<&str> =
            err.lines().filter(|line| line.contains("algorithms.json: was timed on Virtual GPU 0, ")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with("warning: ") && lines[0].contains(place), "{err}");
    }
    // Other flags have no effect, so that the command of a run resumes it, too.
    for flag in ["--tune", "--tune false", "--algorithms x.json"] {
        let flags = format!("{flag} {saves} --overwrite-output-dir --resume-from-checkpoint {}", path(&at("tuned")));
        let ran = runs.train("again", 3, &flags).done();
        let name = flag.split(' ').next().unwrap();
        let note = format!("note: {name} has no effect: a resumed run keeps the algorithms of its checkpoint");
        assert!(ran.err.contains(&note) && runs.result("again") == tuned, "{}", ran.err);
    }
}

#[test]
fn a_file_that_does_not_apply_is_reported_and_not_used() {
    let runs = Runs::new();
    let plain = runs.weights("plain", 3, "");
    let tuned = runs.weights("tuned", 3, "--tune");
    let (file, named) = (runs.file(), runs.at("named.json"));
    let good = fs::read_to_string(&file).unwrap();
    let digit = good.find("\"algorithm\":\"").unwrap() + 20;
    let other = if &good[digit..=digit] == "0" { "1" } else { "0" };
    let damaged = [&good[..digit], other, &good[digit + 1..]].concat();
    let cases = [
        ("flipped", damaged, "is damaged, or of another version of warpfit: its checksum is another one"),
        ("cut", good[..good.len() / 2].to_string(), "is damaged, or of another version of warpfit: EOF"),
        ("of_another_gpu", with_checksum(&good.replace("Virtual GPU 0", "NVIDIA H100")), "was timed on NVIDIA H100, "),
    ];
    for (name, text, fact) in cases {
        fs::write(&file, &text).unwrap();
        let ran = runs.train(name, 3, "").done();
        let lines: Vec<&str> = ran.err.lines().filter(|line| line.contains(fact)).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("warning: {}", path(&file))), "{name}: {}", ran.err);
        assert!(runs.result(name) == plain, "{name}");
        fs::write(&named, &text).unwrap();
        runs.train("refused", 3, &format!("--algorithms {}", path(&named))).failed(2, fact);
    }
    // Timed anew, it is as before.
    assert!(runs.weights("anew", 3, "--tune") == tuned);
    // A file that is named counts, and the one in the cache folder does not.
    fs::write(&file, "{}").unwrap();
    fs::write(&named, &good).unwrap();
    assert!(runs.weights("by-name", 5, &format!("--algorithms {}", path(&named))) == tuned);
    let none = runs.at("none.json");
    runs.train("refused", 3, &format!("--algorithms {}", path(&none))).failed(2, "no such file or folder");
    runs.train("written", 3, &format!("WARPFIT_CACHE= --tune --algorithms {}", path(&none))).done();
    assert_eq!(products(&none).iter().map(number).collect::<Vec<_>>(), vec![3; products(&named).len()]);
    runs.train("refused", 3, "WARPFIT_CACHE= --tune").failed(2, "`--tune`: there is no cache folder for its file");
    // A folder that cannot be written costs the file, and not the run.
    fs::remove_dir_all(runs.at("cache")).unwrap();
    fs::write(runs.at("cache"), "").unwrap();
    let ran = runs.train("unwritten", 3, "--tune").done();
    assert!(ran.err.contains("; the algorithms are not recorded\n") && !ran.err.contains("recorded in"), "{}", ran.err);
    assert!(runs.result("unwritten") == tuned);
    fs::remove_file(runs.at("cache")).unwrap();
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    runs.train("refused", 3, &format!("--tune false --algorithms {}", path(&named))).failed(2, "--tune false uses no recorded");
    // A dry run ends as the run would, and a file that is no file is not read.
    fs::write(&named, "{}").unwrap();
    runs.train("refused", 3, &format!("--dry-run --algorithms {}", path(&named))).failed(2, "is damaged");
    runs.train("refused", 3, "--dry-run --algorithms /dev/zero")
        .failed(2, "`/dev/zero`: is not a regular file; name another file");
    // Files where they would do harm.
    runs.train("saved", 3, "--tune --max-steps 1 --save-strategy steps --save-steps 1").done();
    let of_checkpoint = runs.at("saved/checkpoint-1/algorithms.json");
    let refused = runs.train("refused", 3, &format!("--tune --algorithms {}", path(&of_checkpoint)));
    refused.failed(2, "is part of a checkpoint, which would be damaged; name a file elsewhere");
    let inside = runs.at("refused/algorithms.json");
    let refused = runs.train("refused", 3, &format!("--tune --algorithms {}", path(&inside)));
    refused.failed(2, "is in the folder of the run, which must be empty; name a file elsewhere");
    // Files that could not be written once all is timed.
    for dry_run in ["", "--dry-run"] {
        let refused = runs.train("refused", 3, &format!("--tune {dry_run} --algorithms /proc/new/a.json"));
        assert!(!refused.err.contains("data: "), "{}", refused.err);
        refused.failed(2, "`/proc/new/a.json`: ");
    }
    // Another version of the library has a file of its own.
    fs::write(&file, &good).unwrap();
    assert!(runs.weights("newer", 3, "VGPU_CUBLASLT=130100") == plain);
}

/// The text of a file that was changed, with the checksum of a sound one.
fn with_checksum(text: &str) -> String {
    let content = &text[..text.find("  \"checksum\"").unwrap()];
    format!("{content}  \"checksum\": {}\n}}\n", json!(format!("{:032x}", XxHash3_128::oneshot(content.as_bytes()))))
}

/// Runs that time at the same time on one file record what both have timed.
#[test]
fn two_runs_record_in_one_file() {
    let runs = Runs::new();
    let flags = |size: usize| format!("--tune --max-steps 1 --batch-size {size} --save-strategy no");
    let alone = [3, 5].map(|size| {
        runs.train(&format!("alone{size}"), 3, &flags(size)).done();
        let shapes = products(&runs.file()).len();
        fs::remove_dir_all(runs.at("cache")).unwrap();
        shapes
    });
    std::thread::scope(|scope| {
        for size in [3, 5] {
            let (runs, flags) = (&runs, &flags);
            scope.spawn(move || runs.train(&format!("both{size}"), 3, &flags(size)).done());
        }
    });
    let both = products(&runs.file()).len();
    assert!(both > alone[0].max(alone[1]), "{both} shapes, {alone:?} of each run alone");
}

#[test]
fn an_algorithm_that_the_library_refuses_is_not_used() {
    let runs = Runs::new();
    let plain = runs.weights("plain", 3, "");
    let tuned = runs.weights("tuned", 3, "--tune");
    assert!(runs.weights("refused", 3, "VGPU_FAULT=refused_algorithms") == plain);
    let text = fs::read_to_string(runs.file()).unwrap();
    // Each product gets the algorithm of another shape; none of them may be used.
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("\"algorithm\":")).collect();
    let of = |line: &str| line.split("\"algorithm\":\"").nth(1).unwrap()[..128].to_string();
    let swapped =
        lines.iter().zip(lines.iter().cycle().skip(lines.len() / 2)).map(|(line, other)| line.replace(&of(line), &of(other)));
    let swapped = text.replace(&lines.join("\n"), &swapped.collect::<Vec<_>>().join("\n"));
    assert!(swapped != text);
    fs::write(runs.file(), with_checksum(&swapped)).unwrap();
    let ran = runs.train("swapped", 3, "").done();
    assert!(ran.err.contains("algorithms: timed on this GPU for "), "{}", ran.err);
    assert!(runs.result("swapped") == plain && plain != tuned);
}

/// Batches whose products have the same shapes after rounding, and sums that may be split alike, are one size.
#[test]
fn sizes_of_batches() {
    let mut gpu = gpu();
    let tuner = gpu.tuner().unwrap();
    for (a, b, same) in
        [(7, 8, false), (255, 256, false), (257, 300, true), (384, 385, false), (319, 320, false), (320, 384, true)]
    {
        assert_eq!(tuner.class(a) == tuner.class(b), same, "{a} and {b} rows");
    }
}

#[test]
fn the_cpu_has_nothing_to_time() {
    let runs = Runs::new();
    for flag in ["--tune", "--algorithms x.json"] {
        let fact = format!("`{}`: there is nothing to choose on CPU, ", flag.split(' ').next().unwrap());
        runs.train("cpu", 0, &format!("--device cpu {flag}")).failed(2, &fact);
    }
    runs.train("cpu", 0, "--device cpu --tune false").done();
}
