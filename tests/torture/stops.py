"""Random stops, by KILL among others, and the run resumed after each until it ends."""

import json
import random
import shutil
import signal
import subprocess
import time

from runs import FILES, GOLDEN, ROOT, SHORT, WORK, Undisturbed, checkpoints, empty, ended, start

KILL = ["kill"]
ANY = ["kill", "term", "int", "hup", "term, then kill", "term, then term"]

# Name: flags, signals, stops in the long and in the short form.
RUNS = {
    "accumulation, evaluation, best model": (SHORT.replace("limit 1", "limit 2") + " --epochs 20", KILL, 250, 8),
    "a checkpoint after each update": (
        f"{FILES} --max-steps 80 --batch-size 8 --dropout 0.1 --save-strategy steps --save-steps 1 --save-total-limit 1",
        KILL, 250, 8,
    ),
    "by epoch, ties of the metric": (
        f"{FILES} --epochs 30 --batch-size 16 --dropout 0.1 --metric-for-best-model accuracy --save-total-limit 1 "
        "--logging-steps 4 --learning-rate 1e-3 --lr-scheduler-type cosine",
        KILL, 150, 0,
    ),
    "long updates": (
        f"{FILES} --epochs 20 --batch-size 1 --gradient-accumulation-steps 24 --dropout 0.1 --eval-strategy steps "
        "--eval-steps 3 --save-strategy steps --save-steps 5 --save-total-limit 2 --logging-steps 1",
        ANY, 250, 8,
    ),
    "bf16": (
        f"{FILES} --epochs 15 --batch-size 8 --precision bf16 --dropout 0.1 --eval-strategy steps --eval-steps 5 "
        "--save-strategy steps --save-steps 5 --logging-steps 5 --save-total-limit 3",
        ANY, 100, 0,
    ),
    "checkpoints of 270 MB": (
        f"--model {WORK}/large --from-scratch --train-file {GOLDEN}/train.csv --quiet --max-steps 12 --batch-size 4 --max-length 32 "
        "--save-strategy steps --save-steps 2 --save-total-limit 1 --logging-steps 1 --dropout 0.1",
        KILL, 40, 0,
    ),
}  # fmt: skip

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "hup": signal.SIGHUP}


def large_model():
    """A folder with the tokenizer of the sample and a config of 22 million parameters."""
    folder = empty(WORK / "large")
    shutil.copytree(ROOT / "src/sample", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"dim": 384, "hidden_dim": 1536, "n_layers": 6, "n_heads": 12, "vocab_size": 30522}
    (folder / "config.json").write_text(json.dumps(config))


def stop(process, how, rng):
    first, *then = how.split(", then ")
    process.send_signal(SIGNALS[first])
    for second in then:
        time.sleep(rng.uniform(0, 0.012))
        process.send_signal(SIGNALS[second])


def torture_one(name, flags, signals, stops, counts):
    rng = random.Random(name)
    undisturbed = Undisturbed(flags, "stops")
    # The latest moment of a stop, such that a few runs in ten end before it.
    latest = 1.0
    out, done, problems = empty(WORK / "stops"), 0, []
    while done < stops:
        had = checkpoints(out)
        process = start(f"{flags} {'--resume-from-checkpoint' if had else '--overwrite-output-dir'}", out)
        how = rng.choice(signals)
        try:
            process.wait(rng.uniform(0, latest))
        except subprocess.TimeoutExpired:
            stop(process, how, rng)
        code, errors = ended(process)
        where = f"{name}, stop {done + 1} by {how}"
        if code == 0:
            problems += [f"{where}: at the end: {fault}" for fault in undisturbed.faults_at_end(out)]
            counts["completed"] += 1
            latest *= 0.8
            empty(out)
            continue
        latest *= 1.06
        done += 1
        counts["stops"] += 1
        counts["saved"] += "saved in" in errors
        if code == 130 or code == -signal.SIGKILL or (code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)):
            problems += [f"{where}: {fault}" for fault in undisturbed.faults(out)]
        else:
            problems.append(f"{where}: exit code {code}: {errors}")
        have = checkpoints(out)
        if had and (not have or have[-1] < had[-1]):
            problems.append(f"{where}: checkpoint-{had[-1]} is lost, of {had} there are {have}")
        if len(problems) > 20:
            break
    return problems


def torture(short, counts):
    large_model()
    problems = []
    for name, (flags, signals, long_stops, short_stops) in RUNS.items():
        if stops := short_stops if short else long_stops:
            problems += torture_one(name, flags, signals, stops, counts)
    return problems
