"""Rehearses benches/gpu_check without a GPU: packed, taken to another folder and run there in its small form on the virtual GPU as
if that were a real one, without its tools and with fake ones.

    python3 tests/gpu_check/rehearsal.py [-v] [TEST...]
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")
sys.path.insert(0, str(ROOT / "benches/gpu_check"))
sys.dont_write_bytecode = True

import logs
import machine
import pack
import parts
import table


class Elsewhere:
    """The pack, the checkout and the virtual GPU in a folder of their own."""

    def __init__(self, folder):
        self.folder, self.pack, self.tree, self.gpu = folder, folder / "pack", folder / "tree", folder / "gpu"
        flags = ["--archs", "all", "--without-gpu-code"]
        subprocess.run([sys.executable, ROOT / "benches/gpu_check", "pack", self.pack, *flags], check=True)
        self.bytes = sum(file.stat().st_size for file in self.pack.iterdir())

        files = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, files.split("\0")):
            if (ROOT / name).exists():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.tree / name)
        self.blind()

        build = ["cargo", "test", "--release", "--test", "tests", "--no-run", "--message-format", "json"]
        messages = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        built = [json.loads(line) for line in messages if "build-script-executed" in line and "vgpu" in line]
        self.gpu.mkdir()
        for name in ("libcuda.so", "libcublasLt.so", "libvgpu_kernels.so"):
            shutil.copy(Path(built[-1]["out_dir"]) / name, self.gpu)

        self.tools = folder / "tools"
        self.tools.mkdir()
        for name in ("ldd", "date", "env"):
            (self.tools / name).symlink_to(shutil.which(name))
        (self.tools / "python3").symlink_to(sys.executable)
        (folder / "no-torch").mkdir()
        (folder / "no-torch/torch.py").write_text("raise ImportError('torch is not installed')")

    def blind(self):
        """Paths of the build folder inside the binaries lead nowhere, as on another machine."""
        files, root, known = self.folder / "files", os.fsencode(ROOT), 0
        nowhere = b"/nowhere".ljust(len(root), b"/")[: len(root)]
        pack.unpack(self.pack, files)
        for binary in (files / "bin").iterdir():
            code = binary.read_bytes()
            known += code.count(root)
            binary.write_bytes(code.replace(root, nowhere))
        assert known, f"no binary knows {ROOT}"
        with tarfile.open(self.pack / pack.ARCHIVE, "w") as tar:
            tar.add(files, ".")

    def env(self):
        names = {"HOME": self.folder, "PYTHONPATH": self.folder / "no-torch", "TMPDIR": self.folder, "LD_LIBRARY_PATH": self.gpu}
        return {name: str(path) for name, path in names.items()}

    def run(self, *names, stand_ins=False, **env):
        """Runs parts: (exit code, gpu_check.json, gpu_check.txt)."""
        out = Path(tempfile.mkdtemp(dir=self.folder))
        env |= {"PATH": f"{STAND_INS}:{self.tools}" if stand_ins else str(self.tools), "OUT": str(out)} | self.env()
        command = [sys.executable, self.tree / "benches/gpu_check", "run", self.pack, *names, "--small"]
        ended = subprocess.run(command, env=env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(ended.stdout)
        came_back = [file for file in out.rglob("*") if file.is_file()]
        assert len(came_back) <= 8 and all(file.stat().st_size < 16 << 20 for file in came_back), came_back
        return ended.returncode, json.loads((out / "gpu_check.json").read_text()), (out / "gpu_check.txt").read_text()


def setUpModule():
    global elsewhere, scratch
    scratch = tempfile.TemporaryDirectory(prefix="rehearsal-")
    elsewhere = Elsewhere(Path(scratch.name))


def tearDownModule():
    scratch.cleanup()


def statuses(report):
    return {name: part["status"] for name, part in report["parts"].items()}


CONTACT = [part.name for part in parts.PRESETS["contact"] if not part.named]


class Rehearsal(unittest.TestCase):
    def test_without_tools(self):
        code, report, text = elsewhere.run()
        lacking = {"ncu", "algorithms", "trainer", "memcheck", "racecheck"}
        self.assertEqual(statuses(report), {name: "not available" if name in lacking else "passed" for name in CONTACT})
        self.assertEqual(code, 0)
        self.assertEqual(len(set(report["facts"]["imdb"]["weights"].values())), 1)
        self.assertLess({"train 16", "train at once 16", "infer 16", "train 64", "infer 64", "save", "train 16, serial"}, set(report["facts"]["steps"]))
        # The profile of the ops replaces ncu: every row of kernels is in some line, with a time.
        lines = [line for line in report["table"]["lines"] if line.get("measured_us")]
        self.assertTrue(report["table"]["source"].startswith("`train --profile`"))
        rows = [name for line in lines for name in line["row"].split(" + ")]
        self.assertEqual(sorted(rows), sorted([row["row"] for row in table.predicted()["rows"]] + ["one step"]))
        self.assertIn("not measurements", text)

    def test_with_stand_ins(self):
        names = ["steps", "ncu", "memcheck", "racecheck", "fp16"]
        code, report, text = elsewhere.run(*names, stand_ins=True)
        self.assertEqual(statuses(report), dict.fromkeys(names, "passed"))
        self.assertEqual(code, 0)
        self.assertEqual(report["parts"]["ncu"]["gpu"], {"sm_mhz": 1980.0, "watts": 312.45, "celsius": 41.0, "mib": 2411.0})
        # Each launch of a step is in a row, and a row has the predicted number of launches, except for cuBLASLt's splits.
        lines = {line["row"]: line for line in report["table"]["lines"]}
        self.assertIsNone(lines.get(table.UNASSIGNED, {}).get("remark"), table.UNASSIGNED)
        for row in table.predicted()["rows"]:
            seen, expected = lines[row["row"]]["measured_launches"], row["launches"]
            if any(rule.get("kernel", "").startswith("product") for rule in row["of"]):
                self.assertGreater(seen, 0, row["row"])
            else:
                self.assertEqual(seen, expected, row["row"])
        measured = sum(line["us"] for line in report["facts"]["ncu"]["step"])
        self.assertAlmostEqual(measured, sum(lines[row["row"]]["measured_us"] for row in table.predicted()["rows"]))
        adamw = next(row for row in table.predicted()["rows"] if row["row"] == "AdamW")
        self.assertRegex(text, rf"(?m)^AdamW +{adamw['launches']} +{adamw['floor_us']} +{adamw['us']} .*(SLOWER|FASTER)")

    def test_what_fails_is_reported_and_stops_nothing(self):
        code, report, _ = elsewhere.run("memcheck", "ncu", "steps", stand_ins=True, STAND_IN_ERRORS="2", STAND_IN_REFUSES="1")
        self.assertEqual(statuses(report), {"memcheck": "failed", "ncu": "not available", "steps": "passed"})
        self.assertEqual((code, report["parts"]["memcheck"]["line"]), (1, "2 errors"))
        self.assertIn("ERR_NVGPUCTRPERM", report["parts"]["ncu"]["line"])
        code, report, _ = elsewhere.run("opens", "tests", VGPU_FAIL_LAUNCH="3")
        self.assertEqual((code, statuses(report)), (1, {"opens": "failed", "tests": "failed"}))
        self.assertIn("CUDA_ERROR_ILLEGAL_ADDRESS", report["parts"]["opens"]["line"])

    def test_slow_products_are_reported(self):
        code, report, _ = elsewhere.run("opens", VGPU_FAULT="no_products")
        self.assertEqual((code, statuses(report)), (0, {"opens": "passed"}))
        self.assertIn("cuBLASLt does not support some products", report["parts"]["opens"]["line"])

    def test_no_gpu(self):
        code, report, _ = elsewhere.run("opens", "ncu", "loop", VGPU_FAULT="no_device")
        self.assertEqual((code, statuses(report)), (1, {"opens": "failed", "ncu": "not available", "loop": "not available"}))


class Whole(unittest.TestCase):
    """All that the part `tests` runs on a GPU; takes minutes, so only if it is named (tests/full)."""

    def test_tests(self):
        env = elsewhere.env() | {"WARPFIT_TEST_DEVICE": "real", "WARPFIT_TEST_ROOT": str(elsewhere.tree)}
        command = [elsewhere.folder / "files/bin/tests", *parts.TESTS, *parts.SKIPS]
        ended = subprocess.run(command, env=env, cwd=elsewhere.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(ended.returncode, 0, ended.stdout)


class Contents(unittest.TestCase):
    def test_size(self):
        self.assertLessEqual(elsewhere.bytes, 48 << 20)

    def test_limits(self):
        for preset, most in {"contact": 420, "compare": 240}.items():
            self.assertLessEqual(sum(part.limit for part in parts.PRESETS[preset] if not part.named), most)

    def test_selection_of_tests(self):
        def listed(*filters):
            command = [elsewhere.folder / "files/bin/tests", "--list", *filters]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            return {line.removesuffix(": test") for line in lines if line.endswith(": test")}

        selected = listed(*parts.TESTS, *parts.SKIPS)
        self.assertEqual(listed("cuda") - selected, set(parts.NOT_ON_A_REAL_GPU))
        self.assertEqual({name for name in selected if name.split("::")[0] in ("cli", "device", "nvcc", "serve", "virtual_gpu")}, set())
        self.assertLess({f"model::golden_{name}" for name in ("bf16_on_cuda", "bf16_training_on_cuda", "loss_variants", "backward_on_cuda")}, selected)
        for name in parts.TESTS + parts.SMALL_TESTS + [parts.EVERY_KERNEL[-1], machine.PROBE[-1]]:
            self.assertTrue(listed(name), f"no test is named {name}")

    def test_ncu_without_a_counter_measures_time(self):
        folder = Path(tempfile.mkdtemp(dir=elsewhere.folder))
        env = os.environ | elsewhere.env() | {"PATH": f"{STAND_INS}:{elsewhere.tools}"}
        env |= {"WARPFIT_TEST_DEVICE": "real", "WARPFIT_TEST_ROOT": str(elsewhere.tree)}
        for lacks, metrics in {"": logs.METRICS, logs.TENSOR: [logs.TIME]}.items():
            work = parts.Work(None, elsewhere.folder / "files", elsewhere.tree, folder, folder / "log", env | {"STAND_IN_LACKS": lacks}, 60, True)
            with unittest.mock.patch.dict(os.environ, env):
                self.assertIsNone(machine.probe(work, "ncu"))
            self.assertEqual(work.ncu[-1].split(","), metrics)

    def test_a_command_has_a_limit(self):
        log = elsewhere.folder / "sleep.log"
        begin = time.monotonic()
        with self.assertRaises(machine.Overtime):
            machine.command(["sh", "-c", "echo before; sleep 60 & sleep 60"], dict(os.environ), log, 0.5)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertIn("before", log.read_text())

    def test_weights_in_f16(self):
        import struct

        source, target = elsewhere.folder / "f32", elsewhere.folder / "f16"
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}).encode()
        header += b" " * (-len(header) % 8)
        source.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<3f", 1.5, -2.0, 0.1))
        pack.in_f16(source, target)
        data = target.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        seen = json.loads(data[8 : 8 + length])
        self.assertEqual([seen[name]["data_offsets"] for name in "ab"], [[0, 4], [4, 6]])
        values = struct.unpack("<3e", data[8 + length :])
        self.assertEqual(values[:2], (1.5, -2.0))
        self.assertAlmostEqual(values[2], 0.1, places=4)


    def test_archive_with_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            files, packed = Path(folder) / "files", Path(folder) / "packed"
            contents = {"bin/train": b"code" * 999, "model/model.safetensors": bytes(range(256)) * 9, "model/config.json": b"{}"}
            for name, content in contents.items():
                (files / name).parent.mkdir(parents=True, exist_ok=True)
                (files / name).write_bytes(content)
            packed.mkdir()
            pack.archive(files, packed / pack.ARCHIVE, 1)
            (packed / "pack.json").write_text("{}")
            pack.unpack(packed, Path(folder) / "again")
            self.assertEqual({name: (Path(folder) / "again" / name).read_bytes() for name in contents}, contents)


class Logs(unittest.TestCase):
    def test_ncu(self):
        text = """==PROF== Profiling "norm_fwd_bf16" - 0: 0%....50%....100% - 9 passes
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","dram__bytes.sum.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","smsp__inst_executed.sum"
"","","","","","","","","","","","%","us","inst"
"0","7","train","127.0.0.1","norm_fwd_bf16","1","13","(256, 1, 1)","(551, 1, 1)","0","9.0","n/a","10.50","1,205,000"
"1","7","train","127.0.0.1","void cublasLt::splitKreduce_kernel<32, 16>(float *)","1","13","(512, 1, 1)","(96, 1, 1)","0","9.0","81.5","1,205.00","7"
==PROF== Disconnected from process 7
"""
        first, second = logs.launches(text)
        self.assertEqual((first.kernel, first.us, first.grid, first.metrics), ("norm_fwd_bf16", 10.5, "(551, 1, 1)", {logs.INSTRUCTIONS: 1205000}))
        self.assertEqual((second.kernel, second.us, second.metrics[logs.DRAM]), ("cublasLt::splitKreduce_kernel", 1205.0, 81.5))
        for lacking in "n/a", "(!) n/a", "":
            self.assertEqual(logs.launches(text.replace('"10.50"', f'"{lacking}"')), [second])
        self.assertEqual(logs.launches("==ERROR== ERR_NVGPUCTRPERM"), [])

    def test_cublaslt(self):
        line = (
            "[2026-11-26 17:32:51][cublasLt][133267][Trace][cublasLtMatmul] A=0X1 Adesc=[type=R_16BF rows=768 cols=4405 ld=768] B=0X2 "
            "Bdesc=[type=R_16BF rows=2304 cols=4405 ld=2304] C=0X3 Cdesc=[type=R_32F rows=768 cols=2304 ld=768] D=0X3 Ddesc=[type=R_32F "
            "rows=768 cols=2304 ld=768] computeDesc=[computeType=COMPUTE_32F scaleType=R_32F transb=OP_T] algo=[algoId=66 "
            "tile=MATMUL_TILE_128x128 stages=MATMUL_STAGES_64xAUTO numSplitsK=3] workSpace=0X4 workSpaceSizeInBytes=33554432 beta=1\n"
        )
        (chosen,) = logs.algorithms("[x][cublasLt][1][Api][cublasLtCreate] lightHandle[out]=0x1\n" + line * 2)
        self.assertEqual((chosen["m x n x k"], chosen["transposed"], chosen["types"], chosen["calls"]), ("768 x 2304 x 4405", "NT", "R_16BF -> R_32F", 2))
        self.assertIn("numSplitsK=3", chosen["algorithm"])

    def test_sanitizer(self):
        self.assertEqual(logs.sanitizer("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"), 0)
        self.assertEqual(logs.sanitizer("========= ERROR SUMMARY: 1 error\n========= LEAK SUMMARY: 0 bytes leaked in 0 allocations\n"), 1)
        self.assertEqual(logs.sanitizer("========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"), 3)
        self.assertIsNone(logs.sanitizer("========= Error: Device not supported\n"))

    def test_tests(self):
        text = "test a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n    a::c\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n"
        self.assertEqual(logs.tests(text), {"passed": 1, "failed": ["a::c"]})
        self.assertIsNone(logs.tests("test a::b ... \nSegmentation fault"))

    def test_nvidia_smi(self):
        (sample,) = logs.samples("2026/11/26 18:58:29.123, 1980, 2619, 312.45, 41, 2411, [N/A]\nUnable to determine\n")
        self.assertEqual(sample[1], {"clocks.sm": 1980, "clocks.mem": 2619, "power.draw": 312.45, "temperature.gpu": 41, "memory.used": 2411})

    def test_products_that_are_not_told_apart_are_not_claimed(self):
        kernels = ["embed_fwd", "gemm", "classifier_fwd_bf16", "gemm", "adamw"]
        filled = table.from_launches([logs.Launch(kernel, 1.0) for kernel in kernels], {"embed_fwd", "classifier_fwd_bf16", "adamw"}, table.predicted()["rows"])
        self.assertEqual(len(filled[table.UNASSIGNED]), 2)


def load_tests(loader, tests, pattern):
    return unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in (Rehearsal, Contents, Logs))


if __name__ == "__main__":
    unittest.main(buffer=True)
