"""Full disks: a file system in memory, of many sizes; then it grows, and the run goes on."""

import os
import subprocess

from runs import SHORT, WORK, Undisturbed, go_on, half_written, train

FLAGS = f"{SHORT.replace('limit 1', 'limit 2')} --max-steps 12"


def torture(short, counts):
    undisturbed, disk, problems = Undisturbed(FLAGS, "disks"), WORK / "disk", []
    disk.mkdir(exist_ok=True)
    sizes = range(16, 5200, 864) if short else [*range(16, 600, 24), *range(600, 5200, 200)]
    for kib in sizes:
        counts["disks"] += 1
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], check=True)
        try:
            code, errors = train(FLAGS, disk / "out")
            counts["full"] += code != 0
            found = undisturbed.faults(disk / "out") + [f"{path} is left" for path in half_written(disk / "out")]
            if code != 0 and (code != 2 or "\n" in errors or "free some space" not in errors):
                found.append(f"exit code {code}: {errors}")
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
            code, errors = go_on(FLAGS, disk / "out")
            found += undisturbed.faults_at_end(disk / "out") if code == 0 else [f"going on: exit code {code}: {errors}"]
            problems += [f"{kib} KiB: {problem}" for problem in found]
        finally:
            subprocess.run(["umount", disk], check=True)
    os.rmdir(disk)
    return problems
