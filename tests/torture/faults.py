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


def run(out, finished, **fault):
    """The exit code and the errors of a run, and its calls in order: thread, kind, path."""
    log = WORK / "faults.log"
    log.unlink(missing_ok=True)
    flag = begin_over(out, finished)
    code, errors = train(f"{FLAGS} {flag}", out, **faulty(out, log=log, **fault))
    lines = (line.split(maxsplit=3) for line in log.read_text().splitlines())
    return code, errors, [call for _, *call in sorted(lines, key=lambda line: int(line[0]))]


def saved_by(calls):
    """Checkpoints complete after these calls: they have their names, as the next call of the thread that renamed them shows."""
    for i, (thread, kind, path) in enumerate(calls):
        match = re.search(r"checkpoint-(\d+)\.partial$", path)
        if match and kind == "rename" and any(other == thread for other, *_ in calls[i + 1 :]):
            yield int(match[1])


def problems_of(out, finished, k, fault, undisturbed, counts):
    code, errors, calls = run(out, finished, k=k, **fault)
    _, kind, path = calls[k - 1]
    counts[f"exit code {code}"] += 1
    found = undisturbed.faults(out)
    is_killed = fault["mode"] in ("kill", "killed_after")
    one_line = errors.startswith("stopped: " if code == 130 else "error: `") and "\n" not in errors
    if not (code == -9 if is_killed else code == 0 or (code in (2, 130) and one_line)):
        found.append(f"exit code {code}: {errors}")
    saved, have = [*saved_by(calls[:k]), *checkpoints(finished or out)], checkpoints(out)
    if saved and (not have or have[-1] < max(saved)):
        found.append(f"checkpoint-{max(saved)} is lost, there are {have}")
    code, errors = go_on(FLAGS, out)
    found += undisturbed.faults_at_end(out) if code == 0 else [f"going on: exit code {code}: {errors}"]
    return [f"{fault['mode']} at call {k}, {kind} {path.removeprefix(str(out))}: {problem}" for problem in found]


def torture(short, counts):
    undisturbed, out, problems = Undisturbed(FLAGS, "faults"), WORK / "faults", []
    for finished in (None, WORK / "faults-undisturbed"):
        code, errors, calls = run(out, finished)
        assert (code, errors) == (0, "")
        counts["calls"] += len(calls)
        for k in range(1, len(calls) + 1, len(calls) // 13 if short else 1):
            # The writes of a file are alike: each is struck in one way, all other calls in every way.
            modes = [MODES[counts["faults"] % len(MODES)]] if short or calls[k - 1][1] == "write" else MODES
            for fault in modes:
                counts["faults"] += 1
                problems += problems_of(out, finished, k, fault, undisturbed, counts)
    return problems
