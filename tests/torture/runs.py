"""Runs of `train` that are disturbed, and what must hold of their folders: at any moment, and at the end."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target/torture"
SHIM = WORK / "faultfs.so"
GOLDEN = ROOT / "tests/golden/train"

# Flags of a short run with evaluations, dropout, accumulation and rotating checkpoints.
FILES = f"--model {GOLDEN}/hf_init --train-file {GOLDEN}/train.csv --validation-file {GOLDEN}/test.csv --max-length 32 --quiet"
SHORT = (
    f"{FILES} --batch-size 5 --gradient-accumulation-steps 3 --dropout 0.1 --eval-strategy steps --eval-steps 2 "
    "--save-strategy steps --save-steps 2 --save-total-limit 1 --logging-steps 1"
)

CHECKPOINT = {
    "checksums.json", "config.json", "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json",
    "tokenizer_config.json", "trainer_state.json", "training_args.json",
}  # fmt: skip
HALF_WRITTEN = re.compile(r"\.(partial|old|ready|writable)$")
CLOCK = re.compile("runtime|per_second")


def start(flags, out, **env):
    env = dict(os.environ, WARPFIT_CACHE="", **{name: str(value) for name, value in env.items()})
    command = [ROOT / "target/release/train", *flags.split(), "--output-dir", out]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process, timeout=300):
    """The exit code, or minus the signal, and the errors, without the warning of all of these runs."""
    lines = process.communicate(timeout=timeout)[1].splitlines()
    return process.returncode, "\n".join(line for line in lines if not line.endswith("are in the training data too")).strip()


def train(flags, out, **env):
    return ended(start(flags, out, **env))


def faulty(out, **fault):
    """Variables that let a call on a file below `out` fail; faultfs.c describes them."""
    return {"LD_PRELOAD": SHIM, "FAULT_PATH": out, **{f"FAULT_{name.upper()}": value for name, value in fault.items()}}


def go_on(flags, out, **env):
    """The command that a user would give after a run that has ended badly."""
    return train(f"{flags} {'--resume-from-checkpoint' if checkpoints(out) else '--overwrite-output-dir'}", out, **env)


def empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def checkpoints(out):
    names = os.listdir(out) if out.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"checkpoint-(\d+)", name)))


def sha(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bits(checkpoint):
    return [sha(checkpoint / name) for name in ("model.safetensors", "optimizer.safetensors")]


def timeless(entries):
    return [{key: value for key, value in entry.items() if not CLOCK.search(key)} for entry in entries]


def read_json(path):
    return json.loads(path.read_bytes())


class Undisturbed:
    """The bits of every checkpoint of a run that nothing disturbs, and its results."""

    def __init__(self, flags, name):
        every, out = empty(WORK / f"{name}-every"), empty(WORK / f"{name}-undisturbed")
        kept = re.sub(r"--save-(strategy|steps|total-limit) \S+", "", flags)
        assert train(f"{kept} --save-strategy steps --save-steps 1", every) == (0, ""), every
        assert train(flags, out) == (0, ""), out
        self.flags, self.results = flags, results(out)
        self.checkpoints = {step: bits(every / f"checkpoint-{step}") for step in checkpoints(every)}
        shutil.rmtree(every)

    def faults(self, out):
        """What is wrong in a folder at any moment: a file under its final name is whole, a checkpoint has the right bits."""
        found = []
        for step in checkpoints(out):
            checkpoint = out / f"checkpoint-{step}"
            names = set(os.listdir(checkpoint))
            if missing := CHECKPOINT - names:
                found.append(f"checkpoint-{step} lacks {missing}")
                continue
            state = read_json(checkpoint / "state.json")
            if state["step"] != step or any(HALF_WRITTEN.search(name) for name in names):
                found.append(f"checkpoint-{step} is of step {state['step']} and has {names}")
            # Within an update, or over all updates but with other evaluations, there is no other run to compare with.
            if state["micro_batch"] == 0 and bits(checkpoint) != self.checkpoints.get(step, bits(checkpoint)):
                found.append(f"checkpoint-{step} has other bits")
        for folder, folders, names in os.walk(out):
            folders[:] = [name for name in folders if not HALF_WRITTEN.search(name) and not name.startswith("earlier-run-")]
            for path in (Path(folder) / name for name in names):
                if (fault := broken(path)) is not None:
                    found.append(f"{path.relative_to(out)}: {fault}")
        return found

    def faults_at_end(self, out):
        found = self.faults(out) + [f"{path} is left" for path in half_written(out)]
        got = results(out)
        return found + [f"another {key}" for key, value in self.results.items() if got[key] != value]


def results(out):
    state = read_json(out / "trainer_state.json")
    return {
        "model": sha(out / "model.safetensors"),
        "log": timeless(state["log_history"]),
        "best": (state["best_global_step"], state["best_metric"]),
        "metrics.jsonl": timeless(json.loads(line) for line in open(out / "metrics.jsonl")),
        "all_results.json": timeless([read_json(out / "all_results.json")]),
        "events": shown(out / "runs/events.out.tfevents.warpfit"),
    }


def half_written(out):
    found = [Path(folder) / name for folder, folders, names in os.walk(out) for name in folders + names]
    return [path for path in found if HALF_WRITTEN.search(path.name) and "earlier-run-" not in str(path)]


def broken(path):
    """Why a file under a final name is not whole."""
    try:
        if path.suffix == ".safetensors":
            header_size = struct.unpack("<Q", path.open("rb").read(8))[0]
            header = json.loads(path.read_bytes()[8 : 8 + header_size])
            end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
            assert path.stat().st_size == 8 + header_size + end, "truncated"
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jsonl":
            # A line is appended; the last one may be half-written, and is rewritten on resume.
            [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        elif path.suffix == ".svg":
            assert path.read_text().endswith("</svg>\n"), "truncated"
        elif not HALF_WRITTEN.search(path.name) and "tfevents" not in path.name and path.name != "run.lock":
            assert path.stat().st_size > 0, "empty"
    except Exception as error:
        return repr(error)


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def fields(message):
    """Numbers and contents of the fields of a protobuf message."""
    found, at = [], 0
    while at < len(message):
        key, at = varint(message, at)
        if key & 7 == 0:
            value, at = varint(message, at)
        else:
            size, at = varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = message[at : at + size], at + size
        found.append((key >> 3, value))
    return found


def shown(path):
    """What TensorBoard shows of a file of events: the start of a session at a step voids earlier events from that step on."""
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        size = struct.unpack_from("<Q", data, at)[0]
        event = dict(fields(data[at + 12 : at + 12 + size]))
        at += size + 16
        if 7 in event:
            events = [kept for kept in events if kept[0] < event[2]]
        elif 5 in event:
            values = (dict(fields(value)) for _, value in fields(event[5]))
            events.append((event[2], {tag: value[2] for value in values if not CLOCK.search(tag := value[1].decode())}))
    assert at == len(data), "a record is truncated"
    return events
