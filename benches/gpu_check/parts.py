"""The parts of each preset, in order of importance, each with a time limit in seconds."""

import hashlib
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import logs
import machine
import table
from machine import Failed, NotAvailable


@dataclass(frozen=True)
class Part:
    name: str
    limit: int
    what: str
    run: Callable
    needs: str = ""
    # Runs only if it is named: the others take the time of a preset.
    named: bool = False


# Filters for every test that uses the GPU in its own process, and the names to leave out.
TESTS = [
    "ops::cuda::",
    "ops::cuda_bf16::",
    "ops::cuda_f16::",
    "ops::every_kernel_has_a_case",
    "_on_cuda",
    "model::golden_bf16_on_cuda",
    "model::golden_bf16_training_on_cuda",
    "model::golden_loss_variants",
    "model::passes_of_one_text_are_recorded_and_replayed",
    "model::overflow_in_f16_halves_the_loss_scale_and_nothing_else",
    "train::cpu_and_cuda_run_alike",
    "train::updates_that_overflow_f16_are_skipped_and_a_resumed_run_goes_on_alike",
    "train::a_profile_names_every_op",
    "updates::",
]
# They run the binaries from cargo's folder, with the virtual GPU's libraries and faults.
NOT_ON_A_REAL_GPU = [
    "serve::responses_of_cuda_match_the_cpu",
    "train::a_run_interrupted_anywhere_resumes_to_the_same_bits_on_cuda",
]
SKIPS = [word for name in NOT_ON_A_REAL_GPU for word in ("--skip", name)]
SMALL_TESTS = ["model::golden_bf16_training_on_cuda", "ops::cuda_bf16::stage"]
OPS = ["linear", "attn", "norm", "gelu", "embed", "first_row", "classifier", "adamw", "cast"]
SMALL_OPS = ["gelu", "norm"]
EVERY_KERNEL = ["--exact", "--test-threads", "1", "ops::every_kernel_has_a_case"]


class Work:
    """A running part: its commands share its limit and its log."""

    def __init__(self, part, files, root, scratch, log, env, limit, small):
        self.part, self.files, self.root, self.scratch, self.log, self.env = part, files, root, scratch, log, env
        self.limit, self.small = limit, small
        self.facts, self.headline, self.remark = {}, "", ""
        # The command of ncu with the counters that its probe chooses.
        self.ncu = []
        self.end = time.monotonic() + limit

    def bin(self, name):
        return self.files / "bin" / name

    def attempt(self, *argv, env=None):
        """Runs a command: (exit code, output)."""
        code, output = machine.command([str(arg) for arg in argv], self.env | (env or {}), self.log, self.end - time.monotonic())
        if "a kernel that is many times slower computes such products" in output:
            self.remark = "; cuBLASLt does not support some products, which a slow kernel computes"
        return code, output

    def run(self, *argv, env=None):
        """Runs a command that must succeed, and returns its output."""
        code, output = self.attempt(*argv, env=env)
        if code:
            raise Failed(f"exit code {code}: {machine.last_line(output)}")
        return output

    def tests(self, *filters):
        """Runs tests; it is a failure if none matches."""
        env = {"WARPFIT_TEST_SMALL": "1"} if self.small else {}
        code, output = self.attempt(self.bin("tests"), *filters, env=env)
        result = logs.tests(output)
        self.facts |= result or {}
        if result and result["failed"]:
            raise Failed(f"{len(result['failed'])} of {result['passed'] + len(result['failed'])}: {', '.join(result['failed'])}")
        if code or not result:
            raise Failed(f"exit code {code}: {machine.last_line(output)}")
        if not result["passed"]:
            raise Failed(f"no test matches {' '.join(filters)}")
        self.headline = f"{result['passed']} tests"

    def bench(self, *args, env=None):
        """Runs the benchmarks and returns their JSON."""
        file = self.log.with_suffix(".json")
        output = self.run(self.bin("bench"), *args, "--json", file, *(["--small"] if self.small else []), env=env)
        return json.loads(file.read_text()) | {"text": output}

    def model(self):
        """A folder with the config of DistilBERT-base and a tokenizer, for random weights."""
        folder = self.scratch / "model"
        if not folder.exists():
            folder.mkdir()
            packed = self.files / "tokenizer"
            for file in (packed if packed.exists() and not self.small else self.root / "src/sample").iterdir():
                if file.name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
                    shutil.copy(file, folder)
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "DistilBertTokenizer", "model_max_length": 512}')
            (folder / "config.json").write_text(json.dumps(SMALL_BASE if self.small else BASE))
        return folder

    def texts(self):
        """(file to train on, file to evaluate on): IMDb's if they are packed, else the bundled sample."""
        packed = self.files / "texts"
        folder = packed if packed.exists() and not self.small else self.root / "src/sample"
        return next(folder.glob("train.*")), next(folder.glob("validation.*"))

    def train(self, name, model=None, evaluate=False, env=None, through=(), **settings):
        """Runs `train` on the texts: (its output folder, all_results.json). Without a model the weights are random."""
        out, (texts, others) = self.scratch / name, self.texts()
        settings = TRAINING | settings | (SMALL_TRAINING if self.small else {})
        args = ["--model", model or self.model(), *([] if model else ["--from-scratch"]), "--train-file", texts]
        args += ["--validation-file", others, "--eval-strategy", "no"] if evaluate else []
        args += [*flags(settings), "--device", "cuda", "--report-to", "jsonl", "--output-dir", out, "--overwrite-output-dir"]
        self.run(*through, self.bin("train"), *args, env={"WARPFIT_CACHE": str(self.scratch / "cache")} | (env or {}))
        return out, json.loads((out / "all_results.json").read_text())

    def peer(self, model=None, evaluate=False, **settings):
        """Runs Hugging Face Trainer on the same texts and returns its JSON."""
        file, (texts, others) = self.log.with_suffix(".json"), self.texts()
        args = ["--model", model or self.model(), *([] if model else ["--from-scratch"]), "--train-file", texts]
        args += ["--validation-file", others] if evaluate else []
        settings = {name: value for name, value in (TRAINING | settings).items() if name != "save_strategy"}
        self.run(sys.executable, self.root / "benches/peers/trainer.py", *args, *flags(settings), "--json", file)
        return json.loads(file.read_text())

    def loop(self, updates):
        """Runs the loop written by hand on the same texts and returns its JSON; without what does not work there."""
        file, (texts, _) = self.log.with_suffix(".json"), self.texts()
        args = ["--model", self.model(), "--from-scratch", "--train-file", texts, "--max-steps", updates, "--json", file]
        settings = {name: TRAINING[name] for name in ("precision", "batch_size", "max_length", "learning_rate", "weight_decay", "seed")}
        for without in [], ["--no-graphs"], ["--no-graphs", "--no-compile"]:
            code, output = self.attempt(sys.executable, self.root / "benches/peers/loop.py", *args, *flags(settings), *without)
            if not code:
                return json.loads(file.read_text())
        raise Failed(f"exit code {code}: {machine.last_line(output)}")


def flags(settings):
    return [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), value)]


TRAINING = {
    "precision": "bf16",
    "batch_size": 16,
    "eval_batch_size": 16,
    "max_length": 512,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "seed": 42,
    "logging_steps": 100,
    "save_strategy": "no",
}
SMALL_TRAINING = {"batch_size": 4, "eval_batch_size": 4, "max_length": 24, "max_train_samples": 64, "logging_steps": 2}
BASE = {
    "architectures": ["DistilBertForSequenceClassification"],
    "model_type": "distilbert",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "dim": 768,
    "n_heads": 12,
    "hidden_dim": 3072,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
}
# The same launches per step, with little work.
SMALL_BASE = BASE | {"vocab_size": 4000, "dim": 64, "n_heads": 1, "hidden_dim": 128}


def opens(work):
    """The GPU opens, and kernels load and launch."""
    if shutil.which("nvidia-smi"):
        work.attempt("nvidia-smi")
    work.attempt("ldd", work.bin("train"))
    result = work.bench("classifier", "--precision", "fp32", "--samples", "3", "--repeats", "3")
    work.facts = result["hardware"]
    work.headline = result["hardware"]["device"]


def products(work):
    """Every number of rows through cuBLASLt: no refusal, and sums of ones that are exact."""
    work.tests("products::")


def tests(work):
    work.tests(*(SMALL_TESTS if work.small else TESTS), *SKIPS)


# Each kernel after the end of the one before it.
SERIAL = {"WARPFIT_CUDA": "serial"}


def steps(work):
    """Milliseconds of a training step, of inference and of the copy of a checkpoint."""
    result = work.bench("train", "infer", "save", "--precision", "bf16", "--batch", "16,64", "--samples", "20")
    for row in result["rows"]:
        kept = {key: row[key] for key in ("tokens_per_s", "bytes_planned", "gb_per_s") if key in row}
        name = f"{row['op']} {row['reviews']}" if "reviews" in row else row["op"]
        work.facts[name] = {"ms": row["us_warm"]["median"] / 1e3} | kept
    work.facts["ceilings"] = result["ceilings"]
    serial = work.bench("train", "--precision", "bf16", "--batch", "16", "--samples", "20", env=SERIAL)
    work.facts["train 16, serial"] = {"ms": serial["rows"][0]["us_warm"]["median"] / 1e3}
    work.headline = ", ".join(f"{name}: {seen['ms']:.3f} ms" for name, seen in work.facts.items() if "ms" in seen)


def sha256(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def imdb(work):
    """Two epochs; then some updates again and again, resumed from the middle and in turn: the weights must be the same."""
    out, results = work.train("two-epochs", evaluate=True, epochs=2, **({"max_steps": 6, "max_eval_samples": 8} if work.small else {}))
    work.facts = {"seconds": results["train_runtime"], "results": results, "sha256": sha256(out)}
    work.headline = f"{results['train_runtime']:.1f} s, eval accuracy {results['eval_accuracy']:.4f}"
    updates = 4 if work.small else 200
    first, _ = work.train("first", max_steps=updates, save_strategy="steps", save_steps=updates // 2)
    again, _ = work.train("again", max_steps=updates)
    resumed, _ = work.train("resumed", max_steps=updates, resume_from_checkpoint=first / f"checkpoint-{updates // 2}")
    serial, _ = work.train("serial", max_steps=updates, env=SERIAL)
    hashes = {folder.name: sha256(folder) for folder in (first, again, resumed, serial)}
    work.facts["weights"] = hashes
    if len(set(hashes.values())) > 1:
        raise Failed(f"{updates} updates do not repeat: {json.dumps(hashes)}")
    work.headline += f"; {updates} updates, again, resumed and serial: the same weights {hashes['first'][:12]}"


def tuned(work):
    """The same updates with cuBLASLt's first suggestions, with the fastest ones, and with these again from their file: the same weights."""
    updates, file = 4 if work.small else 200, work.log.with_suffix(".json")
    _, first = work.train("first-suggestions", max_steps=updates)
    timed, fastest = work.train("timed", max_steps=updates, tune="true", algorithms=file)
    read, _ = work.train("from-file", max_steps=updates, algorithms=file)
    products = json.loads(file.read_text())["products"]
    us = {key: sum(product[key] for product in products) for key in ("us", "first_us")}
    work.facts = {"updates": updates, "first": first, "fastest": fastest, "shapes": len(products)} | us
    if sha256(timed) != sha256(read):
        raise Failed("the weights trained with the algorithms of the file differ")
    seconds = f"{first['train_runtime']:.2f} s, {fastest['train_runtime']:.2f} s with the fastest algorithms"
    less = 100 * (1 - us["us"] / us["first_us"])
    work.headline = f"{updates} updates: {seconds}; one product of each of {len(products)} shapes takes {less:.1f} % less"


def ncu(work):
    """Every kernel of one training step. About three steps warm up; the launches of two steps contain a whole one."""
    file = work.log.with_suffix(".csv")
    window = ["--launch-skip", 700, "--launch-count", 350, "--log-file", file]
    work.train("profiled", max_steps=12, through=[*work.ncu, *window])
    launches = logs.launches(file.read_text(errors="replace"))
    step = table.one_step(launches, table.predicted()["first_kernel"])
    work.facts = {"launches": len(launches), "step": [vars(launch) for launch in step]}
    if not step:
        raise Failed(f"no whole step among the {len(launches)} launches that ncu profiled")
    # The first kernel has one warp per token, eight per block.
    work.facts["tokens"] = tokens = 8 * int(step[0].grid.strip("()").split(",")[0])
    work.headline = f"{len(step)} launches, {sum(launch.us for launch in step):,.0f} us in kernels, some {tokens:,} tokens"


def algorithms(work):
    """The algorithms that cuBLASLt chooses."""
    file = work.log.with_suffix(".cublaslt.txt")
    work.train("algorithms", max_steps=2, env={"CUBLASLT_LOG_LEVEL": "5", "CUBLASLT_LOG_FILE": str(file)})
    work.facts["chosen"] = chosen = logs.algorithms(file.read_text(errors="replace")) if file.exists() else []
    if not chosen:
        raise NotAvailable("this cuBLASLt logs no products")
    split = sum("numSplitsK" in algorithm["algorithm"] for algorithm in chosen)
    work.headline = f"{len(chosen)} products of different shape or algorithm, {split} split over k"


def profile(work):
    """Every op of some steps, each waited for."""
    updates = 3 if work.small else 20
    out, _ = work.train("profile", profile=updates, max_steps=updates + 2)
    shutil.copy(out / "profile.txt", work.log.with_suffix(".txt"))
    work.facts["calls"] = logs.profile((out / "profile.json").read_text())
    work.headline = f"{len(work.facts['calls'])} ops timed"


def ops(work):
    """Every op cold and warm beside the ceilings. Their errors are left to the tests."""
    filters = SMALL_OPS if work.small else OPS
    result = work.bench(*filters, "--precision", "bf16", "--batch", "16", "--samples", "15", "--repeats", "3", "--no-errors")
    work.facts = {"rows": result["rows"], "ceilings": result["ceilings"]}
    changed = [row["op"] for row in result["rows"] if row["same_bits"] < row["of_runs"]]
    if changed:
        raise Failed(f"the bits do not repeat: {', '.join(changed)}")
    work.headline = f"{len(result['rows'])} ops"


def trainer(work):
    """The first updates of the same run by Hugging Face Trainer."""
    updates = 3 if work.small else 300
    _, ours = work.train("beside-trainer", max_steps=updates)
    beside(work, updates, ours, work.peer(max_steps=updates))


def loop(work):
    """The same updates by a loop written by hand in PyTorch."""
    updates = 3 if work.small else 300
    _, ours = work.train("beside-loop", max_steps=updates)
    beside(work, updates, ours, work.loop(updates))


def beside(work, updates, ours, theirs):
    seconds = [theirs["train_seconds"], ours["train_runtime"]]
    work.facts |= {"updates": updates, "warpfit": ours, "PyTorch": theirs, "ratio": seconds[0] / seconds[1]}
    times = f"{seconds[0]:.2f} s, warpfit {seconds[1]:.2f} s, {seconds[0] / seconds[1]:.2f}x as fast"
    work.headline = f"{updates} updates: {theirs['what']}: {times}"


def fp16(work):
    """A step in half precision, and the first updates of a run, beside Hugging Face Trainer's where torch works."""
    updates = 3 if work.small else 300
    result = work.bench("train", "--precision", "fp16", "--batch", "16,64", "--samples", "20")
    work.facts["steps"] = {f"{row['op']} {row['reviews']}": row["us_warm"]["median"] / 1e3 for row in result["rows"]}
    _, ours = work.train("half", max_steps=updates, precision="fp16")
    lacking = machine.probe(work, "torch")
    if lacking:
        work.facts |= {"updates": updates, "warpfit": ours}
        work.headline = f"{updates} updates: {ours['train_runtime']:.2f} s; no Trainer: {lacking}"
    else:
        beside(work, updates, ours, work.peer(max_steps=updates, precision="fp16"))


def sanitize(tool):
    def run(work):
        # Libraries ask the driver for what it may not have; the calls of ours are checked by the host code.
        options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", "--kernel-name-exclude", machine.NOT_OURS]
        code, output = work.attempt("compute-sanitizer", *options, work.bin("tests"), *EVERY_KERNEL)
        errors, result = logs.sanitizer(output), logs.tests(output)
        work.facts = {"errors": errors} | (result or {})
        if errors:
            raise Failed(f"{errors} errors")
        if code or errors is None or not result or result["passed"] != 1:
            raise Failed(f"exit code {code}: {machine.last_line(output)}")
        work.headline = "no errors in any kernel of ours"

    return run


COMPARED = {"batch_size": 64, "eval_batch_size": 64, "max_length": 128, "epochs": 2, "learning_rate": 5e-5, "logging_steps": 10}


def weights(work):
    """Fine-tuning of real weights."""
    out, results = work.train("weights", work.files / "model", evaluate=True, **COMPARED, **({"max_steps": 4, "max_eval_samples": 8} if work.small else {}))
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    work.facts = results | {"losses": [entry["loss"] for entry in log if "loss" in entry]}
    work.headline = f"{results['train_runtime']:.1f} s, {scores(results)}"


def weights_of_trainer(work):
    """The same batches through Hugging Face Trainer."""
    work.facts = work.peer(work.files / "model", evaluate=True, **COMPARED, **({"max_steps": 4} if work.small else {}))
    work.headline = f"{work.facts['train_seconds']:.1f} s, {scores(work.facts)}"


def scores(results):
    return ", ".join(f"{name} {results['eval_' + name]:.4f}" for name in ("loss", "accuracy", "f1"))


# A command is limited to ten minutes, more than the parts of a preset need.
LIMITS = {"contact": 420, "compare": 240}
PRESETS = {
    "contact": [
        Part("opens", 25, "the GPU opens, kernels load and run", opens),
        Part("products", 35, "every number of rows through cuBLASLt", products),
        Part("tests", 70, "the tests that use the GPU", tests),
        Part("steps", 28, "training and inference, batches of 16 and 64", steps),
        Part("imdb", 50, "two epochs; the same bits again, resumed and serial", imdb),
        Part("tuned", 18, "updates with the fastest algorithms of cuBLASLt", tuned),
        Part("ncu", 45, "every kernel of one step", ncu, "ncu"),
        Part("algorithms", 10, "the algorithms of cuBLASLt", algorithms),
        Part("profile", 11, "every op of twenty steps", profile),
        Part("ops", 35, "each op cold and warm, beside the ceilings", ops),
        Part("trainer", 35, "300 updates beside Hugging Face Trainer", trainer, "torch"),
        Part("memcheck", 28, "memory errors in any kernel", sanitize("memcheck"), "compute-sanitizer"),
        Part("racecheck", 30, "races in shared memory in any kernel", sanitize("racecheck"), "compute-sanitizer"),
        Part("fp16", 60, "a step and 300 updates in half precision", fp16, named=True),
        Part("loop", 180, "300 updates beside a loop written by hand in PyTorch", loop, "torch", named=True),
    ],
    "compare": [
        Part("weights", 60, "fine-tuning of real weights", weights),
        Part("trainer", 100, "the same by Hugging Face Trainer", weights_of_trainer, "torch"),
        Part("synccheck", 40, "wrong barriers in any kernel", sanitize("synccheck"), "compute-sanitizer"),
        Part("initcheck", 40, "reads of uninitialized memory", sanitize("initcheck"), "compute-sanitizer"),
    ],
}
for preset, parts in PRESETS.items():
    assert sum(part.limit for part in parts if not part.named) <= LIMITS[preset], f"the parts of {preset} may take longer than {LIMITS[preset]} s"
