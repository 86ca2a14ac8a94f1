"""The machine with the GPU: commands with time limits, tools that may be missing, clocks and memory during the run."""

import contextlib
import glob
import os
import re
import shutil
import signal
import site
import statistics
import subprocess
import sys
from pathlib import Path

import logs


class Failed(Exception):
    """A command of a part failed, or its result is wrong."""


class Overtime(Exception):
    """A part took longer than its limit."""


class NotAvailable(Exception):
    """The machine lacks what a part needs."""


def command(argv, env, log, seconds):
    """Runs a command, logged: (exit code, output). After the given seconds it is killed with its children."""
    with open(log, "ab") as file:
        file.write(f"==> {' '.join(map(str, argv))}\n".encode())
        file.flush()
        start = file.tell()
        child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(max(seconds, 0.1))
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)
            # A process that hangs in the driver may not end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            raise Overtime if isinstance(error, subprocess.TimeoutExpired) else error
    return code, Path(log).read_bytes()[start:].decode(errors="replace")


def environment(root):
    """Environment of the commands: the real GPU, the golden files of this tree, cuBLASLt on the loader's path, no network."""
    env = os.environ | {"WARPFIT_TEST_DEVICE": "real", "WARPFIT_TEST_ROOT": str(root), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    folder = cublaslt(env.get("LD_LIBRARY_PATH", ""))
    if folder:
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, [folder, env.get("LD_LIBRARY_PATH")]))
    return env


def cublaslt(path):
    """The folder of libcublasLt among Python's packages, if the loader finds none by itself."""
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    known = subprocess.run([ldconfig, "-p"], capture_output=True, text=True).stdout if os.path.exists(ldconfig) else ""
    if "libcublasLt.so" in known or any(glob.glob(f"{folder}/libcublasLt.so*") for folder in path.split(":") if folder):
        return None
    folders = dict.fromkeys(site.getsitepackages() + [site.getusersitepackages()] + sys.path)
    found = [file for folder in folders for file in glob.glob(f"{folder}/nvidia/*/lib/libcublasLt.so*")]
    return os.path.dirname(found[0]) if found else None


class Monitor:
    """nvidia-smi in the background: clocks, power, temperature and memory twice a second."""

    def __init__(self, log):
        self.log, self.child = log, None
        if shutil.which("nvidia-smi"):
            query = ["--query-gpu=timestamp," + ",".join(logs.SAMPLED), "--format=csv,noheader,nounits", "--loop-ms=500"]
            with open(log, "wb") as file:
                self.child = subprocess.Popen(["nvidia-smi", *query], stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def between(self, begin, end):
        """The samples between two times: the median clock of the SMs under load, the maximum of power and memory."""
        if not self.child:
            return None
        seen = [numbers for when, numbers in logs.samples(Path(self.log).read_text(errors="replace")) if begin <= when <= end]
        columns = {name: [numbers[name] for numbers in seen if name in numbers] for name in logs.SAMPLED}
        busy = [numbers["clocks.sm"] for numbers in seen if numbers.get("utilization.gpu", 0) > 0 and "clocks.sm" in numbers]
        return {
            "sm_mhz": statistics.median(busy) if busy else None,
            "watts": max(columns["power.draw"], default=None),
            "celsius": max(columns["temperature.gpu"], default=None),
            "mib": max(columns["memory.used"], default=None),
        }

    def stop(self):
        if self.child:
            os.killpg(self.child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(5)


# A short test, to find out whether a tool works here.
PROBE = ["--exact", "ops::cuda_bf16::dropout_off_is_the_identity"]
# Kernels of cuBLASLt, by its names for them.
NOT_OURS = "regex=nvjet|cublas|cutlass|gemm|splitK"


NCU = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--cache-control", "none"]


def probe(work, tool):
    """The tool's own message if it does not work here; None if it works."""
    if tool == "torch":
        code = "import torch, transformers, accelerate, sklearn, pyarrow; assert torch.cuda.is_available(), 'torch sees no GPU'"
        failed, output = work.attempt(sys.executable, "-c", code)
        return last_line(output) if failed else None
    if not shutil.which(tool):
        return f"{tool} is not installed"
    if tool == "ncu":
        # A version of ncu that lacks one of the counters measures time alone.
        file, complaint = work.scratch / "probe.csv", "==ERROR=="
        for metrics in logs.METRICS, [logs.TIME]:
            work.ncu = ["ncu", *NCU, "--metrics", ",".join(metrics)]
            file.unlink(missing_ok=True)
            _, output = work.attempt(*work.ncu, "--launch-count", "1", "--log-file", file, work.bin("tests"), *PROBE)
            output += file.read_text(errors="replace") if file.exists() else ""
            works = logs.launches(output)
            if works:
                break
    else:
        _, output = work.attempt(tool, "--tool", "memcheck", work.bin("tests"), *PROBE)
        works, complaint = logs.sanitizer(output) is not None and "Device not supported" not in output, "not supported|error|unable"
    complaints = [line for line in output.splitlines() if re.search(complaint, line, re.I)]
    return None if works else complaints[0] if complaints else last_line(output)


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
