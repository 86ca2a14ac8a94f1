"""Every call that changes a file of a run, while it saves and at its end, fails or is the last before a kill; then the run goes on."""

import errno
import re
import shutil

from runs import SHORT, WORK, Undisturbed, checkpoints, empty, faulty, go_on, train

MODES = [
    {"mode": "once", "errno": errno.EIO},
    {"mode": "from_then_on", "errno": errno.ENOSPC},
    {"mode": "half", "errno": errno.ENOSPC},
    {"mode": "kill"},
    {"mode": "killed_after"},
    {"mode": "term"},
]
FLAGS = f"{SHORT} --max-steps 4"


def begin_over(out, finished):
    """A folder in which nothing was done, or everything but the end of the run; the flag for it."""
    empty(out)
    if not finished:
        return "--overwrite-output-dir"
    shutil.copytree(finished, out)
    return "--resume-from-checkpoint"


def calls_of(out, finished):
    log = WORK / "faults.log"
    log.unlink(missing_ok=True)
    flag = begin_over(out, finished)
    assert train(f"{FLAGS} {flag}", out, **faulty(out, log=log)) == (0, "")
    return [line.split(maxsplit=2)[1:] for line in log.read_text().splitlines()]


def problems_of(out, finished, calls, k, fault, undisturbed, counts):
    kind, path = calls[k - 1]
    flag = begin_over(out, finished)
    code, errors = train(f"{FLAGS} {flag}", out, **faulty(out, k=k, **fault))
    counts[f"exit code {code}"] += 1
    found = undisturbed.faults(out)
    is_killed = fault["mode"] in ("kill", "killed_after")
    one_line = errors.startswith("stopped: " if code == 130 else "error: `") and "\n" not in errors
    if not (code == -9 if is_killed else code == 0 or (code in (2, 130) and one_line)):
        found.append(f"exit code {code}: {errors}")
    # Complete once it has its name, and known to be so by the next call.
    renamed = (re.search(r"checkpoint-(\d+)\.partial$", path) for kind, path in calls[: k - 1] if kind == "rename")
    saved = [int(match[1]) for match in renamed if match] + checkpoints(finished or out)
    have = checkpoints(out)
    if saved and (not have or have[-1] < max(saved)):
        found.append(f"checkpoint-{max(saved)} is lost, there are {have}")
    code, errors = go_on(FLAGS, out)
    found += undisturbed.faults_at_end(out) if code == 0 else [f"going on: exit code {code}: {errors}"]
    return [f"{fault['mode']} at call {k} of {len(calls)}, {kind} {path.removeprefix(str(out))}: {problem}" for problem in found]


def torture(short, counts):
    undisturbed, out, problems = Undisturbed(FLAGS, "faults"), WORK / "faults", []
    for finished in (None, WORK / "faults-undisturbed"):
        calls = calls_of(out, finished)
        counts["calls"] += len(calls)
        for k in range(1, len(calls) + 1, len(calls) // 13 if short else 1):
            # The writes of a file are alike: each is struck in one way, all other calls in every way.
            modes = [MODES[counts["faults"] % len(MODES)]] if short or calls[k - 1][0] == "write" else MODES
            for fault in modes:
                counts["faults"] += 1
                problems += problems_of(out, finished, calls, k, fault, undisturbed, counts)
    return problems
