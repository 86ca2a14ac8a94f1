#!/usr/bin/env python3
"""Shows that the tests can fail: breaks the engine in one place at a time, in a copy of the sources, and runs the test that
should notice, and all of the engine's where it does not. Exits 1 when a break goes unnoticed by the test named for it.

    tests/mutants.py [WORD...]     only the breaks whose row has one of the words; all take an hour on 2 cores
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# File, what stands there (once), what replaces it, a test that must fail.
MUTANTS = [
    ("src/cpu/embed.rs", "rows.iter().for_each(|&r| add_row(out, row(dy, r, dim)))", "rows.iter().skip(1).for_each(|&r| add_row(out, row(dy, r, dim)))", "ops::gradients"),
    ("src/cpu/embed.rs", "if Some(token) != op.pad {", "if true {", "ops::gradients"),
    ("src/cpu/embed.rs", ".take(cpu.longest)", ".take(cpu.longest - 1)", "ops::gradients"),
    ("src/cpu/embed.rs", "if types[r] == t as i32", "if types[r] <= t as i32", "ops::gradients"),
    ("src/cpu/embed.rs", "if !op.add {", "if op.add {", "ops::gradients"),
    ("src/cpu/linear.rs", "(dy_matrix, w), T::one(), op.add,", "(dy_matrix, w), T::one(), false,", "ops::gradients"),
    ("src/cpu/linear.rs", "(dy_matrix.t(), x), T::one(), true,", "(dy_matrix.t(), x), T::one(), false,", "model::accumulated_is_at_once"),
    ("src/cpu/linear.rs", "add_columns(db, rows, ", "add_columns(db, rows - 1, ", "ops::gradients"),
    ("src/cpu/linear.rs", "*dy *= cdf + x * density;", "*dy *= cdf;", "ops::gradients"),
    ("src/cpu/linear.rs", "if x <= T::zero() {", "if x <= T::one() {", "ops::gradients"),
    ("src/cpu/linear.rs", "*dy *= T::one() - y * y;", "*dy *= T::one() - y;", "ops::gradients"),
    ("src/cpu/linear.rs", "if *y < T::zero() { T::zero() } else { *y }", "if *y > T::zero() { *y } else { T::zero() }", "ops::nan_goes_where_it_must"),
    ("src/cpu/norm.rs", "- g_mean - (z - mean) * rstd * gn_mean", "- g_mean", "ops::gradients"),
    ("src/cpu/norm.rs", "dy[r * dim + c] * normed(r, c)", "dy[r * dim + c] * z[r * dim + c]", "ops::gradients"),
    ("src/cpu/norm.rs", "token_row(task * grain + r)", "token_row(task * grain)", "ops::gradients"),
    ("src/cpu/attention.rs", "*ds = prob * (*ds * factor - delta);", "*ds = prob * (*ds - delta);", "model::numerical_gradients"),
    ("src/cpu/attention.rs", "*p = prob * factor;", "*p = prob;", "ops::gradients"),
    ("src/cpu/attention.rs", "(ds.t(), q), scale, later,", "(ds.t(), q), T::one(), later,", "ops::gradients"),
    ("src/cpu/attention.rs", "(p.t(), dy_block), T::one(), later,", "(p.t(), dy_block), T::one(), false,", "ops::gradients"),
    ("src/cpu/attention.rs", "dropout + ((row - from) * heads) as u32", "dropout + (row - from) as u32", "ops::cpu::masks_are_those_of_the_page"),
    ("src/cpu/dropout.rs", "factors[4 * l + w] =", "factors[4 * l + 3 - w] =", "ops::cpu::masks_are_those_of_the_page"),
    ("src/cpu/mod.rs", "Rows::Seqs => starts[r] as u32,", "Rows::Seqs => r as u32,", "model::pruned_is_unpruned"),
    ("src/random.rs", "[micro], [0]];", "[0], [0]];", "ops::dropout_is_random"),
    ("src/cpu/loss.rs", "(p * shares - share)", "(p - share)", "ops::gradients"),
    ("src/cpu/loss.rs", "total / cpu.step.denominator", "total", "ops::cpu::xent_counts_its_loss"),
    ("src/cpu/adamw.rs", "partials.iter().sum", "partials.iter().skip(1).sum", "ops::cpu::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("src/cpu/adamw.rs", "grads.par_chunks(CHUNK)", "grads.par_chunks(grads.len().div_ceil(rayon::current_num_threads()))", "ops::same_bits_on_any_number_of_threads"),
    ("src/cpu/adamw.rs", "rest2 * grad * grad", "rest2 * *g * *g", "ops::cpu::adamw_is_that_of_the_page"),
    ("src/cpu/adamw.rs", "(op.decayed..len, 0.0)", "(op.decayed..len, op.weight_decay)", "ops::cpu::adamw_is_that_of_the_page"),
    ("src/cpu/adamw.rs", "loss.is_finite() && s.grad_norm.is_finite()", "loss.is_finite()", "model::not_finite_is_left_out"),
    ("src/model/encoder.rs", "dy: d.context,", "dy: d.projected.slice(0, d.context.len),", "model::ops_share_what_they_may"),
    ("src/model/plan.rs", "out: if train || pruned {", "out: if pruned {", "model::views_are_identical_or_disjoint"),
    ("kernels/gpu.cuh", "for (int step = 16; step > 0; step /= 2) x += ", "for (int step = 8; step > 0; step /= 2) x += ", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "if (lane() == 0) parts[warp()] = x;\n    __syncthreads();", "if (lane() == 0) parts[warp()] = x;", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "const int at = start + i * step, r = at < end ? row(at) : -1;", "const int at = start + i * step, r = at <= end ? row(at) : -1;", "ops::f32_on_cuda"),
    ("kernels/gpu.cuh", "unsigned(b >> 32) ^ c.y ^ k0", "unsigned(b >> 32) ^ c.y", "ops::cuda::masks_are_those_of_the_page"),
    ("kernels/embed.cu", "load<WHOLE>(x, type + c, a.dim - c);\n            add(sum, x);", "load<WHOLE>(x, type + c, a.dim - c);", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "    if (token == a.pad) return;\n", "", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "const int warps = min(end - start, WARPS);", "const int warps = min(end - start, WARPS) - 1;", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "store(parts[warp()] + lane() * P, sum);\n    __syncthreads();", "store(parts[warp()] + lane() * P, sum);", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "a.dword[size_t(token) * a.dim + first + c] += total;", "a.dword[size_t(token) * a.dim + first + c] = total;", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "row < a.cu_seqlens[seq + 1]", "row <= a.cu_seqlens[seq + 1]", "ops::f32_on_cuda"),
    ("kernels/embed.cu", "            add(x, dy);\n", "", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "store(parts[warp()] + lane() * P, sum);\n    __syncthreads();", "store(parts[warp()] + lane() * P, sum);", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "a.types && a.types[row] != a.only ? -1 : row", "row", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "out[column] += total;", "out[column] = total;", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "chunk < a.chunks; chunk += WARPS", "chunk < a.chunks - 1; chunk += WARPS", "ops::f32_on_cuda"),
    ("kernels/columns.cu", "min(int(blockIdx.y + 1) * a.chunk, a.rows)", "int(blockIdx.y + 1) * a.chunk", "ops::f32_on_cuda"),
    ("kernels/dropout.cu", "a.token_rows ? a.token_rows[row] : row;", "row;", "ops::cuda::masks_are_those_of_the_page"),
    ("kernels/dropout.cu", "a.width % PACK<T> == 0 ? drop_row<true>", "true ? drop_row<true>", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "return dy * (cdf + x * density);", "return dy * cdf;", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "return x < 0.0f ? 0.0f : x;", "return x > 0.0f ? x : 0.0f;", "ops::cuda::not_finite_is_where_it_is_in_f64"),
    ("kernels/linear.cu", "start + BLOCK <= len ?", "start < len ?", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "if (s.add) sum +=", "if (false) sum +=", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "p < s.k; p += 32", "p < s.k - 1; p += 32", "ops::f32_on_cuda"),
    ("kernels/linear.cu", "static_cast<const Out*>(s.bias)[i]", "static_cast<const Out*>(s.bias)[j % s.m]", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "squares += (z[pack][i] - mean) * (z[pack][i] - mean);", "squares += z[pack][i] * z[pack][i];", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "(g[r][i] - mean_g - n[r][i] * mean_gn)", "(g[r][i] - mean_g)", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "dbeta[i] += g[r][i];", "dbeta[i] += g[r][i] * gamma[i];", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "turn ^= 1) {", "turn ^= 0) {", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "if (lane() == 0) parts[turn][r][warp()] = sums;\n        }\n        __syncthreads();", "if (lane() == 0) parts[turn][r][warp()] = sums;\n        }", "ops::f32_on_cuda"),
    ("kernels/norm.cu", "for (int i = 0; i < P && c + i < a.dim; i++) sum += z[i];", "for (int i = 0; i < P; i++) sum += z[i];", "ops::f32_on_cuda"),
    ("kernels/loss.cu", "if (share > 0.0) loss -=", "loss -=", "ops::cuda::xent_at_the_edges"),
    ("kernels/loss.cu", "a.status[0] += total / a.denominator;", "a.status[0] += total;", "ops::cuda::xent_counts_its_loss"),
    ("kernels/loss.cu", "(exp(row.log_p(c)) * shares - row.share(c))", "(exp(row.log_p(c)) - row.share(c))", "ops::f32_on_cuda"),
    ("kernels/adamw.cu", "fabs(loss) < INFINITY && fabs(norm) < INFINITY", "fabs(loss) < INFINITY", "ops::cuda::adamw_leaves_out_what_is_not_finite"),
    ("kernels/adamw.cu", "at + i < a.decayed", "at + i <= a.decayed", "ops::f32_on_cuda"),
    ("kernels/adamw.cu", "if (rest < end)", "if (rest < end - 1)", "ops::cuda::grad_norm_is_the_root_of_the_sum_of_squares"),
    ("kernels/adamw.cu", "        g[i] = 0.0f;\n", "", "ops::f32_on_cuda"),
    ("kernels/adamw.cu", "if (a.copy) store<WHOLE>(a.copy + at, p, count);", "if (a.copy) store<WHOLE>(a.copy + at, m, count);", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "key + column_of(j) < seq.keys ? p[i][j] * a.scale : -INFINITY;", "p[i][j] * a.scale;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "            total[i] *= shrink;\n", "", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "a.lse[size_t(seq.query + first + r) * a.heads + head] = largest[i] + logf(total[i]);", "a.lse[size_t(seq.query + first + r) * a.heads + head] = largest[i];", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "ds[i][j] = p[i][j] * (ds[i][j] * factor - delta[i]);", "ds[i][j] = p[i][j] * ds[i][j] * factor;", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "accumulate<D>(dk, ds, buffer, q);", "accumulate<D>(dk, p, buffer, q);", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "return uint2{unsigned(first + row_of<D>(i)) / 4, row * a.heads + head};", "return uint2{unsigned(first + row_of<D>(i)) / 4, row + head};", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "buffer[row_of<D>(i) * P_STRIDE<D> + column_of(j)] = p[i][j];\n    __syncwarp();", "buffer[row_of<D>(i) * P_STRIDE<D> + column_of(j)] = p[i][j];", "ops::f32_on_cuda"),
    ("kernels/attention.cu", "p[m][n][e] = -INFINITY;", "p[m][n][e] = 0.0f;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "row + (g + t % 2 * 8) * heads) << 4 * n;\n    return exchange<2>(bits, 1);", "row + (g + t % 2 * 8) * heads) << 4 * n;\n    return bits;", "ops::cuda_bf16::masks_are_those_of_the_page"),
    ("kernels/attention.cu", "row + (g + t % 2 * 8) * heads)", "row + g * heads)", "ops::cuda_bf16::masks_are_those_of_the_page"),
    ("kernels/attention.cu", "const float shrink = exp2_approx((largest[m][h] - next) * scale)", "const float shrink = exp2_approx((largest[m][h] - next) * a.scale)", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "ds[0][n][e] = prob * (ds[0][n][e] * (keep ? a.drop.scale : 0.0f) - delta[e % 2]);", "ds[0][n][e] = prob * ds[0][n][e] * (keep ? a.drop.scale : 0.0f);", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "p[0][n][e] = keep ? prob : 0.0f;", "p[0][n][e] = prob;", "ops::bf16_on_cuda"),
    ("kernels/attention.cu", "constexpr int STAGE = 2 * TILE * PITCH<D>;", "constexpr int STAGE = TILE * PITCH<D>;", "ops::bf16_on_cuda"),
    ("src/cuda/arena.rs", "        fetched.synchronize().map_err(failed(\"batch\"))?;\n", "", "train::golden_trainer_runs_on_cuda"),
    ("src/cuda/arena.rs", ".step_by(TILE)", ".step_by(2 * TILE)", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "ldd: n,", "ldd: k,", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "        add: true,\n        ..input", "        add: false,\n        ..input", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "        add: op.add,\n", "        add: false,\n", "ops::f32_on_cuda"),
    ("src/cuda/gemm.rs", "if all && p.bias.is_multiple_of(16) {", "if all {", "ops::bf16_on_cuda"),
    ("src/cuda/gemm.rs", "p.input == DType::F32 && cuda.arena().layout.tf32", "p.input == DType::F32", "ops::f32_on_cuda"),
    ("src/cuda/mod.rs", "self.step.train && drop.p > 0.0", "drop.p > 0.0", "ops::cuda::dropout_off_is_the_identity"),
    ("src/cuda/mod.rs", "Rows::Seqs => self.at(self.inputs().cu_seqlens),", "Rows::Seqs => 0,", "ops::cuda::masks_are_those_of_the_page"),
    ("src/cuda/mod.rs", "step_key(self.step.seed, self.step.update, self.step.micro)", "step_key(self.step.seed, self.step.update, 0)", "ops::cuda::masks_are_those_of_the_page"),
    ("src/cuda/norm.rs", "dx: if op.dx == op.dy { 0 } else { cuda.at(op.dx) },", "dx: 0,", "ops::f32_on_cuda"),
    ("src/cuda/columns.rs", "let chunks = rows.div_ceil(chunk);", "let chunks = (rows / chunk).max(1);", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "        cuda.zero(op.dx.slice(0, cuda.tokens * op.dim))?;\n", "", "ops::f32_on_cuda"),
    ("src/cuda/embed.rs", "op.pad.map_or(-1, |pad| pad as i32)", "-1", "ops::f32_on_cuda"),
    ("src/cuda/adamw.rs", "keep: (1.0 - lr * op.weight_decay) as f32,", "keep: (1.0 - op.weight_decay) as f32,", "ops::f32_on_cuda"),
    ("src/cuda/loss.rs", "train: cuda.step.train.into(),", "train: 1,", "ops::cuda::xent_counts_its_loss"),
    ("src/cuda/attention.rs", "let shared = 2 * 2 * 64 * 2 * (width + 8);", "let shared = 2 * 2 * 64 * 2 * width;", "ops::bf16_on_cuda"),
    ("src/cuda/attention.rs", "DType::Bf16 && aligned =>", "DType::Bf16 =>", "ops::bf16_on_cuda"),
]


def executable(folder):
    """The test binary of a copy; None where it does not build."""
    cargo = ["cargo", "test", "--release", "--test", "tests", "--no-run", "--message-format", "json"]
    built = subprocess.run(cargo, cwd=folder, capture_output=True, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    found = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "tests"]
    return found[0] if found and not built.returncode else None


def failed(binary, folder, *which):
    """The tests that fail, of those named or of the whole engine; a binary that dies has failed all that it ran."""
    which = ["--exact", *which] if which else ["ops::", "model::", "train::"]
    try:
        run = subprocess.run([binary, "--format=pretty", *which], cwd=folder, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return ["(ran for 15 minutes)"]
    names = re.findall(r"^test (\S+) \.\.\. FAILED$", run.stdout, re.M)
    if run.returncode == 0 and "running 0 tests" in run.stdout:
        sys.exit(f"no test is called {' '.join(which)}; correct the table")
    return names or (["(died)"] if run.returncode else [])


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
        if not (binary := executable(copy)):
            sys.exit("without a break: does not build")
        if names := failed(binary, copy, *sorted({test for *_, test in chosen})):
            sys.exit(f"without a break: {', '.join(names)}")
        for file, old, new, test in chosen:
            start = time.monotonic()
            path = copy / file
            source = path.read_text()
            if source.count(old) != 1:
                sys.exit(f"{file}: `{old}` stands there {source.count(old)} times; correct the table")
            path.write_text(source.replace(old, new))
            if file.startswith("kernels/"):
                # The virtual GPU alone has them, and the test binary finds it where it was.
                command = ["cargo", "build", "--release", "--package", "vgpu"]
                builds = subprocess.run(command, cwd=copy, capture_output=True).returncode == 0
            else:
                found = executable(copy)
                builds, binary = found is not None, found or binary
            if not builds:
                verdict = "does not build"
            elif failed(binary, copy, test):
                verdict = "caught"
            elif names := failed(binary, copy):
                verdict = f"caught by {', '.join(names)}, but not by {test}"
            else:
                verdict = "SURVIVED"
            path.write_text(source)
            bad += verdict != "caught"
            line = f"{verdict}: {file}: {old}  ->  {new}  [{test}, {time.monotonic() - start:.0f} s]"
            print(" ".join(line.split()), flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} caught by the test named")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
