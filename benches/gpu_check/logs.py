"""Parses the output of the tools: ncu, nvidia-smi, compute-sanitizer, cuBLASLt, the tests, `train --profile`."""

import csv
import datetime
import json
import re
from dataclasses import dataclass, field

# Counters of their own. ncu's throughputs are each the largest of many counters, for which it runs a kernel again and again.
TIME, DRAM, ISSUE, TENSOR, WARPS, INSTRUCTIONS = METRICS = [
    "gpu__time_duration.sum",
    "dram__bytes.sum.pct_of_peak_sustained_elapsed",
    "sm__inst_executed.avg.pct_of_peak_sustained_elapsed",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
]
MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}


@dataclass
class Launch:
    kernel: str
    us: float
    grid: str = ""
    metrics: dict = field(default_factory=dict)


def launches(text):
    """The launches in the output of `ncu --csv --page raw`, in order. The second line of the table holds the units."""
    table = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(table) < 2:
        return []
    names, units = table[0], table[1]
    found = []
    for row in table[2:]:
        cells = dict(zip(names, row))
        values = {}
        for name, unit in zip(names, units):
            number = cells[name].replace(",", "")
            # A counter that is not available is "n/a" or empty.
            if name in METRICS and re.fullmatch(r"\d+(\.\d+)?", number):
                values[name] = float(number) * (MICROSECONDS[unit] if name == TIME else 1.0)
        if TIME in values:
            kernel = re.match(r"[\w:~]+", cells["Kernel Name"].removeprefix("void ").strip())
            found.append(Launch(kernel.group() if kernel else cells["Kernel Name"], values.pop(TIME), cells["Grid Size"], values))
    return found


def profile(text):
    """(op, microseconds) of each call in profile.json of `train --profile`, in order."""
    return [(event["name"], event["dur"]) for event in json.loads(text)["traceEvents"]]


def algorithms(text):
    """cuBLASLt's choices, from its log: the number of calls of each product, by shape and algorithm."""
    counts = {}
    for line in text.splitlines():
        parts = dict(re.findall(r"(\w+)=\[([^\]]*)\]", line)) if "[Trace][cublasLt" in line else {}
        if "algo" not in parts:
            continue
        matrix = {name: dict(re.findall(r"(\w+)=(\S+)", parts.get(f"{name}desc", ""))) for name in "ABD"}
        compute = dict(re.findall(r"(\w+)=(\S+)", parts.get("computeDesc", "")))
        transposed_a = compute.get("transa", "OP_N") != "OP_N"
        k = matrix["A"].get("rows" if transposed_a else "cols")
        key = (
            f"{matrix['D'].get('rows')} x {matrix['D'].get('cols')} x {k}",
            ("T" if transposed_a else "N") + ("T" if compute.get("transb", "OP_N") != "OP_N" else "N"),
            f"{matrix['A'].get('type')} -> {matrix['D'].get('type')}",
            parts["algo"],
        )
        counts[key] = counts.get(key, 0) + 1
    keys = ("m x n x k", "transposed", "types", "algorithm")
    return [dict(zip(keys, key)) | {"calls": calls} for key, calls in counts.items()]


def tests(text):
    """The number of passed tests, and the names of failed ones. None if the test binary did not finish."""
    result = re.search(r"^test result: \w+\. (\d+) passed; (\d+) failed", text, re.M)
    if not result:
        return None
    # The test's own output may come between its name and the result.
    failed = {name or again for name, again in re.findall(r"^test (\S+) \.\.\. .*FAILED$|^    (\S+::\S+)$", text, re.M)}
    return {"passed": int(result[1]), "failed": sorted(failed)}


def sanitizer(text):
    """The errors that compute-sanitizer counted. None if it printed no summary, and so checked nothing."""
    counts = re.findall(r"^========= (?:ERROR SUMMARY: (\d+) errors?|RACECHECK SUMMARY: (\d+) hazards? displayed)", text, re.M)
    return sum(int(a or b) for a, b in counts) if counts else None


SAMPLED = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "memory.used", "utilization.gpu"]


def samples(text):
    """(time, {field: number}) of each line of `nvidia-smi --query-gpu=timestamp,... --format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        stamp, *cells = [cell.strip() for cell in line.split(",")]
        try:
            time = datetime.datetime.strptime(stamp, "%Y/%m/%d %H:%M:%S.%f").timestamp()
        except ValueError:
            continue
        # Skips "[N/A]" and an incomplete last line.
        numbers = {name: float(cell) for name, cell in zip(SAMPLED, cells) if re.fullmatch(r"\d+(\.\d+)?", cell)}
        found.append((time, numbers))
    return found
