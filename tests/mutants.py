#!/usr/bin/env python3
"""Shows that the tests can fail: breaks the engine in one place at a time, in a copy of the sources, and runs the tests
of the ops and of the model. Prints which tests notice; exits 1 when a break goes unnoticed, or not by the test named.

    tests/mutants.py [WORD...]     only the breaks whose row has one of the words; all take half an hour
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# File under src/, what stands there (once), what replaces it, a test that must fail.
MUTANTS = [
    ("cpu/embed.rs", "rows.iter().for_each(|&r| add_row(out, row(dy, r, dim)))", "rows.iter().skip(1).for_each(|&r| add_row(out, row(dy, r, dim)))", "ops::gradients"),
    ("cpu/embed.rs", "if Some(token) != op.pad {", "if true {", "ops::gradients"),
    ("cpu/embed.rs", ".take(cpu.longest)", ".take(cpu.longest - 1)", "ops::gradients"),
    ("cpu/embed.rs", "if types[r] == t as i32", "if types[r] <= t as i32", "ops::gradients"),
    ("cpu/embed.rs", "if !op.add {", "if op.add {", "ops::gradients"),
    ("cpu/linear.rs", "(dy_matrix, w), T::one(), op.add,", "(dy_matrix, w), T::one(), false,", "ops::gradients"),
    ("cpu/linear.rs", "(dy_matrix.t(), x), T::one(), true,", "(dy_matrix.t(), x), T::one(), false,", "model::accumulated_is_at_once"),
    ("cpu/linear.rs", "add_columns(db, rows, ", "add_columns(db, rows - 1, ", "ops::gradients"),
    ("cpu/linear.rs", "*dy *= cdf + x * density;", "*dy *= cdf;", "ops::gradients"),
    ("cpu/linear.rs", "if x <= T::zero() {", "if x <= T::one() {", "ops::gradients"),
    ("cpu/linear.rs", "*dy *= T::one() - y * y;", "*dy *= T::one() - y;", "ops::gradients"),
    ("cpu/linear.rs", "if *y < T::zero() { T::zero() } else { *y }", "if *y > T::zero() { *y } else { T::zero() }", "ops::nan_goes_where_it_must"),
    ("cpu/norm.rs", "- g_mean - (z - mean) * rstd * gn_mean", "- g_mean", "ops::gradients"),
    ("cpu/norm.rs", "dy[r * dim + c] * normed(r, c)", "dy[r * dim + c] * z[r * dim + c]", "ops::gradients"),
    ("cpu/norm.rs", "token_row(task * grain + r)", "token_row(task * grain)", "ops::gradients"),
    ("cpu/attention.rs", "*ds = prob * (*ds * factor - delta);", "*ds = prob * (*ds - delta);", "model::numerical_gradients"),
    ("cpu/attention.rs", "*p = prob * factor;", "*p = prob;", "ops::gradients"),
    ("cpu/attention.rs", "(ds.t(), q), scale, later,", "(ds.t(), q), T::one(), later,", "ops::gradients"),
    ("cpu/attention.rs", "(p.t(), dy_block), T::one(), later,", "(p.t(), dy_block), T::one(), false,", "ops::gradients"),
    ("cpu/attention.rs", "dropout + ((row - from) * heads) as u32", "dropout + (row - from) as u32", "ops::masks_are_those_of_the_page"),
    ("cpu/dropout.rs", "factors[4 * l + w] =", "factors[4 * l + 3 - w] =", "ops::masks_are_those_of_the_page"),
    ("cpu/mod.rs", "Rows::Seqs => starts[r] as u32,", "Rows::Seqs => r as u32,", "model::pruned_is_unpruned"),
    ("random.rs", "[micro], [0]];", "[0], [0]];", "ops::dropout_is_random"),
    ("cpu/loss.rs", "(p * shares - share)", "(p - share)", "ops::gradients"),
    ("cpu/loss.rs", "total / cpu.step.denominator", "total", "ops::xent_counts_its_loss"),
    ("cpu/adamw.rs", "partials.iter().sum", "partials.iter().skip(1).sum", "ops::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("cpu/adamw.rs", "grads.par_chunks(CHUNK)", "grads.par_chunks(grads.len().div_ceil(rayon::current_num_threads()))", "ops::same_bits"),
    ("cpu/adamw.rs", "rest2 * grad * grad", "rest2 * *g * *g", "ops::adamw_is_that_of_the_page"),
    ("cpu/adamw.rs", "(op.decayed..len, 0.0)", "(op.decayed..len, op.weight_decay)", "ops::adamw_is_that_of_the_page"),
    ("cpu/adamw.rs", "loss.is_finite() && s.grad_norm.is_finite()", "loss.is_finite()", "model::not_finite_is_left_out"),
    ("model/encoder.rs", "dy: d.context,", "dy: d.projected.slice(0, d.context.len),", "model::ops_share_what_they_may"),
    ("model/plan.rs", "out: if train || pruned {", "out: if pruned {", "model::views_are_identical_or_disjoint"),
]


def tests(folder):
    """The tests that fail there; None where it does not build."""
    cargo = ["cargo", "test", "--release", "--quiet", "--test", "tests"]
    quiet = {"cwd": folder, "capture_output": True, "text": True}
    if subprocess.run([*cargo, "--no-run"], **quiet).returncode:
        return None
    run = subprocess.run([*cargo, "--", "--format=pretty", "ops::", "model::"], **quiet)
    failed = re.findall(r"^test (\S+) \.\.\. FAILED$", run.stdout, re.M)
    if run.returncode and not failed:
        sys.exit(run.stdout + run.stderr)
    return failed


def main():
    root = Path(__file__).resolve().parent.parent
    words = sys.argv[1:] or [""]
    chosen = [mutant for mutant in MUTANTS if any(word in part for word in words for part in mutant)]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CARGO_TARGET_DIR"] = str(root / "target" / "mutants")
        copy = Path(folder) / "warpfit"
        # With times of today, or cargo would keep what the last run left.
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns("target", ".git"), copy_function=shutil.copy)
        if (failed := tests(copy)) != []:
            sys.exit(f"without a break: {failed or 'does not build'}")
        for file, old, new, test in chosen:
            path = copy / "src" / file
            source = path.read_text()
            if source.count(old) != 1:
                sys.exit(f"src/{file}: `{old}` stands there {source.count(old)} times; correct the table")
            path.write_text(source.replace(old, new))
            failed = tests(copy)
            path.write_text(source)
            if failed is None:
                verdict = "does not build"
            elif test in failed:
                verdict = "caught"
            else:
                verdict = f"caught, but not by {test}" if failed else "SURVIVED"
            bad += verdict != "caught"
            print(f"{verdict}: src/{file}: {old}  ->  {new}  [{', '.join(failed or [])}]", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught by the test named")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
