"""The table of predicted and measured times of one training step: assigns each launch to a row of predicted.json."""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import logs

PREDICTED = Path(__file__).with_name("predicted.json")
BEYOND = 1.3
UNASSIGNED = "launches that no row takes"

# Of what the GPU can do in the time of a kernel: bytes of memory, instructions, time of the tensor cores; and warps in flight.
SHARES = {"dram": logs.DRAM, "issue": logs.ISSUE, "tensor": logs.TENSOR, "warps": logs.WARPS}
HEADS = ["DRAM %", "issue %", "tensor %", "warps %"]

# The kernels of each op of `train --profile`, by which the times of ops are assigned to rows of kernels.
KERNELS_OF_OPS = {
    "embed fwd": ["catch_up", "embed_fwd"],
    "embed bwd": ["norm_drop_bwd", "embed_bwd_word", "embed_bwd_position"],
    "linear fwd": ["product"],
    "linear bwd": ["product", "product"],
    "attn fwd": ["attn_fwd"],
    "attn bwd": ["attn_bwd_q", "attn_bwd_kv"],
    "add norm fwd": ["norm_fwd"],
    "add norm bwd": ["norm_bwd"],
    "gelu fwd": ["gelu_fwd"],
    "gelu bwd": ["gelu_bwd"],
    "first row fwd": ["first_row_fwd"],
    "first row bwd": ["first_row_bwd"],
    "classifier fwd": ["classifier_fwd"],
    "classifier bwd": ["classifier_bwd"],
    "grad norm": ["columns_add", "grad_norm"],
    "adamw": ["adamw"],
}


def predicted():
    return json.loads(PREDICTED.read_text())


def our_kernels(kernels):
    """The names of the kernels in a folder of CUDA sources."""
    return {name for file in Path(kernels).glob("*.cu") for name in re.findall(r"^KERNEL\((\w+),", file.read_text(), re.M)}


@dataclass
class Placed:
    """A launch of a step and its place: the kernel without its type and width, and whether it works on all tokens,
    on [CLS] rows or on key and value of the pruned layer."""

    launch: logs.Launch
    kernel: str
    ours: bool
    place: str = "tokens"


def one_step(launches, first):
    """The launches of one step, which begins with the kernel `first`."""
    starts = [i for i, launch in enumerate(launches) if launch.kernel.startswith(first)]
    for start, end in zip(starts, starts[1:]):
        if any(launch.kernel.startswith("adamw") for launch in launches[start:end]):
            return launches[start:end]
    return []


def place(launches, ours):
    """Determines the place of each launch in its step."""
    step = []
    for launch in launches:
        known = launch.kernel in ours
        short = re.sub(r"(_mma)?(_d\d+)?(_f32|_bf16|_f16)*$", "", launch.kernel)
        step.append(Placed(launch, short if known else "product", known))

    def index(kernel, otherwise):
        return next((i for i, placed in enumerate(step) if placed.kernel == kernel), otherwise)

    backward, pruned, unpruned = index("classifier_fwd", len(step)), index("first_row_fwd", len(step)), index("first_row_bwd", len(step))
    for i, placed in enumerate(step):
        if pruned <= i <= unpruned:
            placed.place = "[CLS]"

    # A product may have several launches: the last ones add the parts of a split k.
    products = []
    for i, placed in enumerate(step):
        if not placed.ours:
            if re.search("reduce", placed.launch.kernel, re.I) and products and not step[i - 1].ours:
                products[-1].append(i)
            else:
                products.append([i])
    forward = [product for product in products if product[0] < backward]
    rest = products[len(forward) :]
    # Backward, each linear layer computes dx and then dw. If the launches do not match, their products are not identified.
    if len(rest) != 2 * len(forward):
        for i in (i for product in products for i in product):
            step[i].kernel, step[i].place = "product, not told apart", ""
        return step
    # In the pruned layer key and value are of all tokens: the last product before it, and the last two in it backwards.
    kv = [p for p in forward if p[-1] < pruned < len(step)][-1:] + [p for p in rest if p[0] < unpruned < len(step)][-2:]
    kinds = ["y"] * len(forward) + ["dx", "dw"] * len(forward)
    for product, kind in zip(products, kinds):
        for i in product:
            step[i].kernel = f"product {kind}"
            if product in kv:
                step[i].place = "kv"
    return step


def row_of(placed, rows):
    """The first row that matches a launch."""
    takes = lambda rule: all(fnmatch(getattr(placed, key), pattern.replace("[", "[[]")) for key, pattern in rule.items())
    return next((row["row"] for row in rows if any(takes(rule) for rule in row["of"])), UNASSIGNED)


def from_launches(launches, ours, rows):
    """{row: launches} of one step."""
    filled = {}
    for placed in place(launches, ours):
        filled.setdefault(row_of(placed, rows), []).append(placed.launch)
    return filled


def from_profile(calls, rows):
    """[(rows, microseconds)]: the mean step of `train --profile`. Rows are joined if one op launches kernels of both."""
    pseudo, owner = [], []
    updates = sum(op == "adamw" for op, _ in calls)
    first_update = calls[: next(i for i, (op, _) in enumerate(calls) if op == "adamw") + 1]
    for i, (op, _) in enumerate(first_update):
        for kernel in next((k for name, k in KERNELS_OF_OPS.items() if op.startswith(name)), []):
            pseudo.append(logs.Launch(kernel, 0.0))
            owner.append(i)
    ours = {kernel for kernels in KERNELS_OF_OPS.values() for kernel in kernels} - {"product"}
    rows_of_op = {}
    for i, placed in zip(owner, place(pseudo, ours)):
        rows_of_op.setdefault(i, set()).add(row_of(placed, rows))
    groups = []
    for joined in rows_of_op.values():
        for other in [group for group in groups if group & joined]:
            groups.remove(other)
            joined = joined | other
        groups.append(joined)
    times = [0.0] * len(groups)
    for i, (_, us) in enumerate(calls):
        found = rows_of_op.get(i % len(first_update))
        if found:
            times[next(g for g, group in enumerate(groups) if found <= group)] += us / updates
    order = [row["row"] for row in rows] + [UNASSIGNED]
    return [(sorted(group, key=order.index), us) for group, us in zip(groups, times)]


def weighted(launches, metric):
    """The mean of a metric over launches, weighted by time."""
    with_it = [launch for launch in launches if metric in launch.metrics]
    total = sum(launch.us for launch in with_it)
    return sum(launch.us * launch.metrics[metric] for launch in with_it) / total if total else None


def by_kernels(step, ours, rows):
    """The rows with the times and shares of their kernels, as ncu measured one step."""
    filled = from_launches([logs.Launch(**launch) for launch in step], ours, rows)
    lines = []
    for row in rows + [{"row": UNASSIGNED, "launches": 0, "us": 0, "floor_us": 0}]:
        launches = filled.get(row["row"], [])
        seen = {"measured_us": sum(launch.us for launch in launches), "measured_launches": len(launches)}
        seen |= {name: weighted(launches, metric) for name, metric in SHARES.items()}
        if row["row"] != UNASSIGNED:
            lines.append(row | seen)
        elif launches:
            lines.append(row | seen | {"remark": ", ".join(sorted({launch.kernel for launch in launches}))})
    return lines


def by_ops(calls, rows):
    """The rows, joined if an op has kernels in several, with the times of their ops."""
    known = {row["row"]: row for row in rows}
    lines = []
    for names, us in from_profile(calls, rows):
        joined = [known[name] for name in names if name in known]
        sums = {key: sum(row[key] for row in joined) for key in ("launches", "us", "floor_us")}
        remark = joined[0]["remark"] if len(joined) == 1 else ""
        lines.append({"row": " + ".join(names), "measured_us": us, "remark": remark} | sums)
    return sorted(lines, key=lambda line: list(known).index(line["row"].split(" + ")[0]) if line["row"] != UNASSIGNED else len(known))


def fill(facts, ours):
    """predicted.json with measurements: of ncu if it ran, else of the profile of the ops."""
    table = predicted()
    ncu, profile = facts.get("ncu", {}), facts.get("profile", {})
    step_ms = facts.get("steps", {}).get("train 16", {}).get("ms")
    outside, step = table["outside_kernels"], table["step"]
    if step_ms:
        step["measured_us"] = step_ms * 1e3
    if ncu.get("step"):
        source = f"ncu, one step of about {ncu['tokens']:,} tokens"
        lines = by_kernels(ncu["step"], ours, table["rows"])
        if step_ms:
            outside["measured_us"] = step["measured_us"] - sum(line["measured_us"] for line in lines)
    elif profile.get("calls"):
        source = "`train --profile`, each op with a wait of about 20 us"
        lines = by_ops(profile["calls"], table["rows"])
    else:
        source, lines = "the benchmark of a step alone" if step_ms else None, table["rows"]
    lines += [outside, step]
    for line in lines:
        line.pop("of", None)
        line["ratio"] = line["measured_us"] / line["us"] if line.get("measured_us") and line["us"] > 0 else None
    figures = []
    for figure in table["figures"]:
        value = facts
        for key in figure["measured_by"]:
            value = value.get(key) if isinstance(value, dict) else None
        ratio = value / figure["predicted"] if value else None
        figures.append({"figure": figure["figure"], "predicted": figure["predicted"], "measured": value, "ratio": ratio})
    return {"what": table["what"], "origin": table["origin"], "source": source, "lines": lines, "figures": figures}


def mark(ratio):
    if ratio is None or 1 / BEYOND <= ratio <= BEYOND:
        return ""
    return "SLOWER" if ratio > 1 else "FASTER"


def number(value, pattern="{:,.0f}"):
    return "-" if value is None else pattern.format(value)


def text(table):
    """The table as text."""
    out = [table["what"], table["origin"], f"Measured by: {table['source']}. SLOWER and FASTER: by more than {BEYOND} times."]
    pattern = "{:<42}{:>10}{:>9}{:>10}{:>8}{:>7}  {:<7}{:>7}{:>8}{:>9}{:>8}  {}"
    out += ["", pattern.format("", "launches", "floor", "predicted", "us", "ratio", "", *HEADS, "predicted as").rstrip()]
    for line in table["lines"]:
        seen = line.get("measured_launches")
        launches = number(line.get("launches")) + ("" if seen in (None, line.get("launches")) else f" ({seen})")
        name = line["row"]
        if len(name) > 41:
            out.append(name)
            name = ""
        cells = [name, launches, number(line["floor_us"]), number(line["us"]), number(line.get("measured_us"))]
        cells += [number(line["ratio"], "{:.2f}"), mark(line["ratio"])]
        cells += [number(line.get(share)) for share in SHARES] + [line.get("remark", "")]
        out.append(pattern.format(*cells).rstrip())
    out.append("")
    for figure in table["figures"]:
        measured, ratio = number(figure["measured"], "{:.2f}"), number(figure["ratio"], "{:.2f}")
        out.append(f"{figure['figure']:<42}{figure['predicted']:>10} predicted{measured:>10} measured{ratio:>7}  {mark(figure['ratio'])}".rstrip())
    return "\n".join(out)


def kernels(step):
    """Every kernel of the step measured by ncu, the longest first."""
    by_name = {}
    for launch in step:
        by_name.setdefault((launch["kernel"], launch["grid"]), []).append(logs.Launch(**launch))
    rows = sorted(by_name.items(), key=lambda item: -sum(launch.us for launch in item[1]))
    pattern = "{:<60}{:<18}{:>6}{:>9}{:>9}{:>8}{:>8}{:>9}{:>8}{:>14}"
    out = [pattern.format("kernel", "grid", "calls", "us", "us each", *HEADS, "instructions")]
    for (name, grid), launches in rows:
        us = sum(launch.us for launch in launches)
        instructions = sum(launch.metrics.get(logs.INSTRUCTIONS, 0) for launch in launches)
        means = [number(weighted(launches, metric)) for metric in SHARES.values()]
        out.append(pattern.format(name[:59], grid, len(launches), f"{us:.1f}", f"{us / len(launches):.1f}", *means, f"{instructions:,.0f}"))
    return "\n".join(out)
