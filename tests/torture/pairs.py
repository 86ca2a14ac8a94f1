"""Two runs in one folder at once: one of them is refused, and the other undisturbed."""

import random
import time

from runs import FILES, WORK, Undisturbed, checkpoints, empty, ended, start

FLAGS = f"{FILES} --max-steps 60 --batch-size 8 --save-strategy steps --save-steps 1 --logging-steps 1"
REFUSALS = ["another run is writing into this folder", "the folder is not empty"]


def pair(out, kind, rng):
    """Starts two runs."""
    empty(out)
    if kind == "resumed":
        process = start(FLAGS, out)
        while not checkpoints(out):
            time.sleep(0.001)
        process.kill()
        ended(process)
    flags = {"fresh": ("", ""), "overwriting": ("", "--overwrite-output-dir"), "resumed": ("--resume-from-checkpoint",) * 2}[kind]
    first = start(f"{FLAGS} {flags[0]}", out)
    while kind == "overwriting" and not checkpoints(out):
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02))
    return first, start(f"{FLAGS} {flags[1]}", out)


def torture(short, counts):
    rng, undisturbed, out, problems = random.Random(0), Undisturbed(FLAGS, "pairs"), WORK / "pairs", []
    for kind in ["fresh", "overwriting", "resumed"] * (2 if short else 12):
        counts["pairs"] += 1
        (one, errors), (other, more) = sorted((ended(process) for process in pair(out, kind, rng)), key=lambda end: end[0])
        refused = any(refusal in more for refusal in REFUSALS) and "\n" not in more
        found = [] if (one, other, refused) == (0, 2, True) else [f"exit codes {one}, {other}: {errors} {more}"]
        problems += [f"{kind}: {problem}" for problem in found + undisturbed.faults_at_end(out)]
    return problems
