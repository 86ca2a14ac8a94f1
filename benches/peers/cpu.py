"""warpfit on the CPU compared with PyTorch (transformers) and ONNX Runtime: training and classifying the same texts with the same
random weights of a DistilBERT-base. Needs torch, transformers, pyarrow, onnx and onnxruntime, and `cargo build --release` first.

cpu.py --file reviews.parquet --tokenizer FOLDER [--json FILE]

Every contender is a process of its own: it loads everything before its time begins, and its memory is its own. They take
turns, several times; the table has the medians. Padding does not count as tokens.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--file", required=True, help="Parquet with the columns text and label")
parser.add_argument("--tokenizer", required=True, help="a folder with tokenizer.json")
parser.add_argument("--warpfit", default=f"{HERE}/../../target/release/warpfit")
parser.add_argument("--texts", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--max-length", type=int, default=512)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--only", nargs="*", help="contenders with one of these words in their name")
parser.add_argument("--json")
parser.add_argument("--contender", help=argparse.SUPPRESS)
parser.add_argument("--folder", help=argparse.SUPPRESS)
args = parser.parse_args()

WARPFIT = [f"warpfit {what} {precision}" for what in ("training", "inference") for precision in ("fp32", "bf16")]
PEERS = [
    "PyTorch training fp32, padded",
    "PyTorch training bf16, padded",
    "PyTorch inference fp32, padded",
    "PyTorch inference fp32, sorted",
    "PyTorch inference fp32, one by one",
    "PyTorch inference bf16, sorted",
    "PyTorch inference bf16, one by one",
    "ONNX Runtime inference int8, sorted",
    "ONNX Runtime inference int8, one by one",
]


def padded(rows):
    """ids, attention mask and labels of rows, padded to the longest."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    return ids, mask, torch.tensor([label for _, label in rows])


def contend(name):
    """Loads everything, then makes a pass over all texts for every input line, and prints its seconds."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(args.threads)
    rows = json.load(open(f"{args.folder}/rows.json"))
    if "sorted" in name:
        rows = sorted(rows, key=lambda row: len(row[0]))
    size = 1 if "one by one" in name else args.batch_size
    batches = [padded(rows[i : i + size]) for i in range(0, len(rows), size)]
    first = padded(rows[:1])
    model = AutoModelForSequenceClassification.from_pretrained(f"{args.folder}/model").eval()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name)

    if "training" in name:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)

        def step(ids, mask, labels):
            with autocast:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    elif name.startswith("ONNX"):
        session = onnx_int8(model, first)

        def step(ids, mask, _):
            session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})

    else:

        @torch.inference_mode()
        def step(ids, mask, _):
            with autocast:
                model(input_ids=ids, attention_mask=mask)

    step(*first)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for batch in batches:
            step(*batch)
        print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def onnx_int8(model, example):
    """A session with the weights of the products in int8, and their other operands quantised dynamically."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model(input_ids=ids, attention_mask=mask).logits

    path = f"{args.folder}/{os.getpid()}"
    axes = {"ids": {0: "seqs", 1: "tokens"}, "mask": {0: "seqs", 1: "tokens"}, "logits": {0: "seqs"}}
    names = {"input_names": ["ids", "mask"], "output_names": ["logits"]}
    torch.onnx.export(Logits().eval(), example[:2], f"{path}.onnx", dynamic_axes=axes, dynamo=False, opset_version=17, **names)
    quantize_dynamic(f"{path}.onnx", f"{path}-int8.onnx", weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    # A contender that waits for its turn must not spin.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(f"{path}-int8.onnx", options, providers=["CPUExecutionProvider"])


class Peer:
    def __init__(self, name, folder):
        command = [sys.executable, __file__, *sys.argv[1:], "--contender", name, "--folder", folder]
        # Idle threads sleep immediately, so that others have their turn.
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        self.said = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            sys.exit(self.said.read())
        return line

    def run(self):
        print(file=self.process.stdin, flush=True)
        seconds, mib = map(float, self.answer().split())
        return tokens / seconds, mib


class Warpfit:
    """The program as a user would run it. It prints the tokens per second of the whole task, after the model is loaded;
    reading and tokenizing are included, and so is the first use of all memory."""

    def __init__(self, name, folder):
        _, what, precision = name.split()
        common = ["--model", f"{folder}/model", "--device", "cpu", "--precision", precision, "--max-length", str(args.max_length)]
        if what == "training":
            batch = ["--batch-size", str(args.batch_size), "--epochs", "1", "--learning-rate", "2e-5", "--weight-decay", "0.01"]
            quiet = ["--save-strategy", "no", "--output-dir", f"{folder}/run", "--overwrite-output-dir"]
            self.command = [args.warpfit, "train", *common, "--train-file", f"{folder}/texts.csv", *batch, *quiet]
        else:
            self.command = [args.warpfit, "predict", *common, "--input", f"{folder}/texts.csv", "--output", f"{folder}/scored.jsonl"]

    def run(self):
        environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=output, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            output.seek(0)
            lines = output.read()
        rates = re.findall(r"^(?:training|predicting) .* ([\d,.]+) tokens/s", lines, re.MULTILINE)
        if status or not rates:
            sys.exit(f"{' '.join(self.command)}\n{lines}")
        return float(rates[-1].replace(",", "")), usage.ru_maxrss / 1024


if args.contender:
    contend(args.contender)
    sys.exit()

import pyarrow.parquet
from tokenizers import Tokenizer

table = pyarrow.parquet.read_table(args.file, columns=["text", "label"])
every = range(0, len(table) // args.texts * args.texts, len(table) // args.texts)
texts, labels = ([table[name][i].as_py() for i in every] for name in ("text", "label"))
tokenizer = Tokenizer.from_file(f"{args.tokenizer}/tokenizer.json")
tokenizer.enable_truncation(args.max_length)
tokenizer.no_padding()
rows = [(encoding.ids, int(label)) for encoding, label in zip(tokenizer.encode_batch(texts), labels)]
tokens = sum(len(ids) for ids, _ in rows)

cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime", "onnx")}
hardware = {"cpu": cpu, "threads": args.threads, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
print(f"{cpu}, {args.threads} threads; {', '.join(f'{name} {version}' for name, version in versions.items())}")
print(f"{len(rows)} texts of {tokens} tokens, at most {args.max_length}; batches of {args.batch_size}; {args.repeats} turns")

with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, f"{HERE}/random_model.py", args.tokenizer, f"{folder}/model"], check=True, stderr=subprocess.DEVNULL)
    json.dump(rows, open(f"{folder}/rows.json", "w"))
    with open(f"{folder}/texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, (["NEGATIVE", "POSITIVE"][int(label)] for label in labels))])
    wanted = [name for name in WARPFIT + PEERS if not args.only or any(word in name for word in args.only)]
    contenders = {name: (Warpfit if name in WARPFIT else Peer)(name, folder) for name in wanted}
    samples = {name: [] for name in contenders}
    for turn in range(args.repeats):
        for name, contender in contenders.items():
            samples[name].append(contender.run())
            print(f"turn {turn + 1}: {name:<42}{samples[name][-1][0]:8.0f} tokens/s", file=sys.stderr)

results = []
for what in ("training", "inference"):
    ours = {precision: f"warpfit {what} {precision}" for precision in ("fp32", "bf16")}
    best = {precision: statistics.median(s for s, _ in samples[name]) for precision, name in ours.items() if name in samples}
    print(f"\n{what:<42}{'tokens/s':>10}{'least':>8}{'most':>8}{'peak MiB':>10}{'fp32':>8}{'bf16 of warpfit to it':>24}")
    for name in [name for name in contenders if what in name]:
        speeds = [speed for speed, _ in samples[name]]
        median, peak = statistics.median(speeds), max(mib for _, mib in samples[name])
        ratios = {precision: speed / median for precision, speed in best.items()}
        line = f"{name.replace(what + ' ', ''):<42}{median:>10.0f}{min(speeds):>8.0f}{max(speeds):>8.0f}{peak:>10.0f}"
        ratio = lambda precision: f"{ratios[precision]:.2f}x" if precision in ratios else "-"
        print(f"{line}{ratio('fp32'):>8}{ratio('bf16'):>24}")
        results.append({"name": name, "tokens_per_s": median, "samples": speeds, "peak_mib": peak, "warpfit_to_it": ratios})
if args.json:
    settings = {key: vars(args)[key] for key in ("texts", "batch_size", "max_length", "repeats")} | {"tokens": tokens}
    json.dump({"hardware": hardware, "versions": versions, "settings": settings, "results": results}, open(args.json, "w"), indent=1)
