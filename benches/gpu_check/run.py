"""Runs the parts of a pack in order, continuing after failures, and writes a table, a JSON and an archive of logs."""

import json
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import machine
import pack
import parts
import table
from machine import Failed, NotAvailable, Overtime

PASSED, FAILED, OVERTIME, NOT_AVAILABLE = "passed", "failed", "too slow", "not available"


def run(folder, names, small):
    out = Path(os.environ.get("OUT") or folder / "out")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as scratch:
        scratch = Path(scratch)
        files, log_folder = scratch / "files", scratch / "logs"
        log_folder.mkdir()
        packed = pack.unpack(folder, files)
        known = {part.name: part for part in parts.PRESETS[packed["preset"]]}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise SystemExit(f"gpu_check: no part {', '.join(unknown)}; {folder} has {', '.join(known)}")
        report = Report(out, log_folder, packed, small)
        monitor = machine.Monitor(log_folder / "nvidia-smi.csv")
        env, probed = machine.environment(pack.ROOT), {}
        try:
            for part in [known[name] for name in names] or [part for part in known.values() if not part.named]:
                limit = part.limit * (SMALL_TAKES if small else 1)
                work = parts.Work(part, files, pack.ROOT, scratch, log_folder / f"{part.name}.log", env, limit, small)
                report.add(part, one(part, work, probed), work, monitor)
        finally:
            monitor.stop()
        print(report.text)
        return 1 if report.failed else 0


# Of a line about a part.
LONGEST = 200
# The small form is for machines without a GPU, which are slow.
SMALL_TAKES = 3


def one(part, work, probed):
    """Runs a part: (status, a line about it). Tools are probed once: `probed` has the reason why one is not available."""
    print(f"==> {part.name}: {part.what}, at most {work.limit} s", flush=True)
    try:
        if part.needs:
            if part.needs not in probed:
                probed[part.needs] = machine.probe(work, part.needs)
            if probed[part.needs]:
                return NOT_AVAILABLE, probed[part.needs]
            # The first import of torch alone may take half a part's time.
            work.end = time.monotonic() + work.limit
        part.run(work)
        return PASSED, work.headline + work.remark
    except NotAvailable as error:
        return NOT_AVAILABLE, str(error)
    except Overtime:
        return OVERTIME, f"over {work.limit} s"
    except Failed as error:
        return FAILED, str(error)
    except Exception as error:
        # A log in an unexpected format must not prevent the remaining parts.
        return FAILED, f"{type(error).__name__}: {error}"


class Report:
    """The results so far, written after each part, so that an interrupted run leaves them."""

    def __init__(self, out, log_folder, packed, small):
        self.out, self.log_folder, self.small = out, log_folder, small
        self.content = {"packed": packed, "parts": {}, "facts": {}, "table": None}
        self.ours = table.our_kernels(pack.ROOT / "kernels")
        self.text = ""
        self.begin = time.time()

    @property
    def failed(self):
        return any(part["status"] in (FAILED, OVERTIME) for part in self.content["parts"].values())

    def add(self, part, result, work, monitor):
        (status, line), end = result, time.time()
        line = line if len(line) <= LONGEST else line[:LONGEST] + " ..."
        print(f"    {status} in {end - self.begin:.0f} s: {line}", flush=True)
        if status in (FAILED, OVERTIME) and work.log.exists():
            print("".join(f"    | {text}\n" for text in work.log.read_text(errors="replace").splitlines()[-15:]), flush=True)
        content = self.content
        seen = {"status": status, "seconds": end - self.begin, "limit": work.limit, "line": line}
        content["parts"][part.name] = seen | {"gpu": monitor.between(self.begin, end)}
        content["facts"][part.name] = work.facts
        try:
            content["table"] = table.fill(content["facts"], self.ours) if content["packed"]["preset"] == "contact" else None
            self.text = self.compose()
        except Exception as error:
            # Unexpected numbers must not prevent the remaining parts.
            self.text = f"The tables failed ({type(error).__name__}: {error}); gpu_check.json has what was measured.\n"
        (self.out / "gpu_check.txt").write_text(self.text)
        (self.out / "gpu_check.json").write_text(json.dumps(content, indent=1))
        # A run that is cut off here leaves the archive of the part before.
        archive = self.log_folder.with_name("logs.tar.xz")
        with tarfile.open(archive, "w:xz", preset=1) as tar:
            tar.add(self.log_folder, "logs")
        shutil.copy(archive, self.out)
        self.begin = time.time()

    def compose(self):
        content, facts = self.content, self.content["facts"]
        out = [f"warpfit {content['packed']['commit']}, kernels for {content['packed']['archs']}", ""]
        if self.small:
            out += ["The small form: it shows only that everything runs. Its sizes are not those of the predictions.", ""]
        out.append(f"{'part':<12}{'':<15}{'s':>5}{'of':>5}{'MHz':>7}{'W':>6}{'MiB':>8}")
        for name, part in content["parts"].items():
            gpu = part["gpu"] or {}
            cells = [table.number(gpu.get(key), "{:.0f}") for key in ("sm_mhz", "watts", "mib")]
            line = f"{name:<12}{part['status']:<15}{part['seconds']:>5.0f}{part['limit']:>5}{cells[0]:>7}{cells[1]:>6}{cells[2]:>8}  {part['line']}"
            out.append(line)
        if content["table"] and content["table"]["source"]:
            out += ["", table.text(content["table"])]
        if facts.get("ncu", {}).get("step"):
            out += ["", table.kernels(facts["ncu"]["step"])]
        if facts.get("algorithms", {}).get("chosen"):
            out += ["", "cuBLASLt's choices: m x n x k, transposed, types, calls, algorithm"]
            for choice in facts["algorithms"]["chosen"]:
                shape = f"{choice['m x n x k']:<22}{choice['transposed']:<4}{choice['types']:<18}{choice['calls']:>4}"
                out.append(f"{shape}  {choice['algorithm']}")
        if content["packed"]["preset"] == "compare":
            curves = [(name, facts.get(name, {}).get("losses")) for name in ("weights", "trainer")]
            curves = [(name, losses) for name, losses in curves if losses]
            if curves:
                out += ["", "training loss, mean of every 10 updates: " + " beside ".join(name for name, _ in curves)]
                out += ["  ".join(f"{loss:.4f}" for loss in losses) for losses in zip(*(losses for _, losses in curves))]
        return "\n".join(out) + "\n"
