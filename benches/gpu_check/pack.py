"""Packs what the machine with the GPU needs beside the checkout: binaries, texts, a tokenizer or a model, in one archive."""

import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = "files.tar.xz"
LARGEST = 48 << 20

BINARIES = {"contact": ["train", "tests", "bench"], "compare": ["train", "tests"]}
# xz levels; the higher one takes a minute, and is for the preset that would otherwise be too large.
EFFORTS = {"contact": 1, "compare": 6}
BUILDS = {
    "train": ["build", "--release", "--bin", "train"],
    "tests": ["test", "--release", "--test", "tests", "--no-run"],
    "bench": ["bench", "--bench", "bench", "--no-run"],
}
OF_TOKENIZERS = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"]
# The first bytes of a fatbin of nvcc.
FATBIN = b"\x50\xed\x55\xba"


def build(target, archs):
    """Builds a target: returns (the executable, whether it has GPU code)."""
    env = dict(os.environ)
    if archs != "all":
        env["WARPFIT_CUDA_ARCHS"] = archs
    command = ["cargo", *BUILDS[target], "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    messages = [json.loads(line) for line in built.splitlines() if line.startswith("{")]
    executable = [m["executable"] for m in messages if m["reason"] == "compiler-artifact" and m["target"]["name"] == target and m["executable"]]
    ours = [m["out_dir"] for m in messages if m["reason"] == "build-script-executed" and "warpfit" in m["package_id"] and "vgpu" not in m["package_id"]]
    images = [file.read_bytes() for folder in ours for file in Path(folder).glob("*.image")]
    return Path(executable[-1]), any(image.startswith(FATBIN) for image in images)


def in_f16(source, target):
    """Converts a safetensors file of f32 tensors to f16."""
    data = source.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
    tensors = sorted((entry for name, entry in header.items() if name != "__metadata__"), key=lambda entry: entry["data_offsets"])
    parts, end = [], 0
    for entry in tensors:
        assert entry["dtype"] == "F32", f"{source}: a tensor of {entry['dtype']}"
        begin, stop = entry["data_offsets"]
        values = body[begin:stop].cast("f")
        parts.append(struct.pack(f"<{len(values)}e", *values))
        entry |= {"dtype": "F16", "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def pack(folder, preset, archs, without_gpu_code, train_file, validation_file, tokenizer, model):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        (files / "bin").mkdir()
        for name in BINARIES[preset]:
            executable, gpu_code = build(name, archs)
            if not gpu_code and not without_gpu_code:
                raise SystemExit('gpu_check: built without nvcc, so nothing of it would run on a GPU: README.md, "nvcc"')
            subprocess.run(["strip", "-o", files / "bin" / name, executable], check=True)
        if train_file:
            (files / "texts").mkdir()
            for file, name in ((train_file, "train"), (validation_file, "validation")):
                shutil.copy(file, files / "texts" / (name + file.suffix))
        for source, name in ((tokenizer, "tokenizer"), (model, "model")):
            if source:
                (files / name).mkdir()
                for file in [source / file for file in OF_TOKENIZERS if (source / file).exists()]:
                    shutil.copy(file, files / name)
        if model:
            shutil.copy(model / "config.json", files / "model")
            in_f16(model / "model.safetensors", files / "model" / "model.safetensors")
        archive(files, folder / ARCHIVE, EFFORTS[preset])
        sizes = {str(file.relative_to(files)): file.stat().st_size for file in sorted(files.rglob("*")) if file.is_file()}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    (folder / "pack.json").write_text(json.dumps({"preset": preset, "commit": commit, "archs": archs, "files": sizes}, indent=1))
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{total / 2**20:8.2f} MiB  {folder}, packed")
    if total > LARGEST:
        raise SystemExit(f"gpu_check: {folder} is larger than {LARGEST >> 20} MiB, the limit of a transfer: pack fewer texts")


def archive(files, target, effort):
    """One tar in two xz streams: binaries share code far apart; of an f16's two bytes only the second looks random."""

    def anonymous(info):
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    code = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": effort, "dict_size": 64 << 20}]
    halves = [{"id": lzma.FILTER_LZMA2, "preset": 1, "lc": 0, "lp": 1, "pb": 1}]
    weights = files / "model" / "model.safetensors"
    with open(target, "wb") as out:
        with lzma.open(out, "wb", filters=code) as stream:
            tar = tarfile.open(fileobj=stream, mode="w")
            for file in sorted(file for file in files.rglob("*") if file.is_file() and file != weights):
                tar.add(file, file.relative_to(files), filter=anonymous)
            if not weights.exists():
                tar.close()
        if weights.exists():
            with lzma.open(out, "wb", filters=halves) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
                tar.add(weights, weights.relative_to(files), filter=anonymous)


def unpack(folder, files):
    with tarfile.open(folder / ARCHIVE) as tar:
        tar.extractall(files, filter="data")
    return json.loads((folder / "pack.json").read_text())
