"""An hour of training with logging and saving: memory grows by no more than the log."""

import csv
import signal
import subprocess
import time

from runs import FILES, WORK, empty, ended, start

FLAGS = (
    f"{FILES} --device cpu --max-steps 100000000 --batch-size 4 --dropout 0.1 --logging-steps 300 --eval-strategy steps --eval-steps 3000 "
    "--save-strategy steps --save-steps 3000 --save-total-limit 2"
)
# Bytes per entry, and for everything else.
ENTRY, REST = 250, 2 << 20


def kib(pid, key):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))


def torture(short, counts):
    seconds, pause = (60, 2) if short else (3600, 30)
    out, samples = empty(WORK / "soak"), []
    process = start(FLAGS, out, RAYON_NUM_THREADS=1)
    begin = time.monotonic()
    with open(WORK / "soak.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seconds", "entries", "rss_kib", "peak_kib"])
        while (passed := time.monotonic() - begin) < seconds:
            try:
                code = process.wait(pause)
                return [f"ended after {passed:.0f} s with exit code {code}: {ended(process)[1]}"]
            except subprocess.TimeoutExpired:
                log = out / "metrics.jsonl"
                entries = log.read_bytes().count(b"\n") if log.exists() else 0
                samples.append((round(passed + pause), entries, kib(process.pid, "VmRSS"), kib(process.pid, "VmHWM")))
                rows.writerow(samples[-1])
                file.flush()
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process)
    # The first minutes touch every buffer for the first time.
    (_, before, rss, _), (_, entries, after, _) = samples[len(samples) // 6], samples[-1]
    counts["entries"], counts["grown by KiB"] = entries, after - rss
    problems = [] if code == 130 else [f"exit code {code}: {errors}"]
    if (after - rss) << 10 > (entries - before) * ENTRY + REST:
        problems.append(f"{rss} KiB after {before} entries, {after} KiB after {entries}")
    return problems
