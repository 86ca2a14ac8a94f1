"""`serve` of warpfit compared with the same model behind FastAPI and transformers, on loopback, in one run: texts per second
and latency with 1, 8 and 64 clients; then ten times as many clients as places in the queue, three rounds, with recovery and memory.

serve.py --model FOLDER --file reviews.parquet [--seconds 20] [--json serve.json]

Needs torch, transformers, fastapi, uvicorn and pyarrow; `cargo build --release` first. Each client sends one
text at a time over a connection of its own and waits for the response.
"""

import argparse
import asyncio
import datetime
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--file", help="Parquet with a column text")
parser.add_argument("--warpfit", default=str(Path(__file__).parents[2] / "target/release/warpfit"))
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
parser.add_argument("--crowd", type=int, default=2000, help="clients of the overload")
parser.add_argument("--places", type=int, default=200, help="--max-concurrent-requests of serve under the overload")
parser.add_argument("--seconds", type=float, default=20, help="seconds per measurement")
parser.add_argument("--json", help="write the results to this file")
parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
args = parser.parse_args()


def peer(port):
    """A typical first version: a route, a pipeline's steps, one text at a time on FastAPI's threads."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{args.model}/tokenizer.json", pad_token="[PAD]")
    tokenizer._tokenizer.no_padding()
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
    length = min(512, model.config.max_position_embeddings)
    app = FastAPI()

    class Request(BaseModel):
        inputs: str

    @app.post("/predict")
    def predict(request: Request):
        ids = tokenizer(request.inputs, truncation=True, max_length=length, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            scores = model(**ids.to(args.device)).logits[0].float().softmax(-1).tolist()
        rows = [{"label": model.config.id2label[i], "score": score} for i, score in enumerate(scores)]
        return sorted(rows, key=lambda row: -row["score"])

    uvicorn.run(app, port=port, log_level="warning")


def start(command, port):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    async def until_up():
        while process.poll() is None:
            try:
                await Client(port).predict("a film")
                return
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.2)
        sys.exit(f"{command[0]} ended with {process.returncode}")

    asyncio.run(until_up())
    return process


class Client:
    """A client with a persistent connection."""

    def __init__(self, port):
        self.port, self.writer = port, None

    async def predict(self, text):
        """Returns status and body."""
        if not self.writer:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"inputs": text}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        body = await self.reader.readexactly(int(re.search(r"content-length: (\d+)", head, re.I)[1]))
        return int(head.split()[1]), json.loads(body)

    def close(self):
        if self.writer:
            self.writer.close()


async def load(port, clients, seconds, warm):
    """Counts of each status, and sorted latencies of successful requests, in the `seconds` after `warm`."""
    begin = time.perf_counter() + warm
    statuses, took = {}, []

    async def client(number):
        draw, client = random.Random(number), Client(port)
        await asyncio.sleep(draw.random() * min(warm, 1))
        while (start := time.perf_counter()) < begin + seconds:
            try:
                status, _ = await client.predict(draw.choice(texts))
            except OSError as error:
                status = type(error).__name__
                client.close()
                client = Client(port)
            except asyncio.IncompleteReadError:
                status = "closed"
                client.close()
                client = Client(port)
            end = time.perf_counter()
            if status != 200:
                await asyncio.sleep(0.1)
            if begin <= end < begin + seconds:
                statuses[status] = statuses.get(status, 0) + 1
                if status == 200:
                    took.append(end - start)
        client.close()

    await asyncio.gather(*map(client, range(clients)))
    return statuses, sorted(took)


def megabytes(process):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def figures(clients, statuses, took):
    quantile = lambda q: took[min(len(took) - 1, int(q * len(took)))] * 1e3 if took else float("nan")
    return {"clients": clients, "texts_per_second": len(took) / args.seconds, "p50_ms": quantile(0.5), "p99_ms": quantile(0.99),
            "statuses": {str(status): count for status, count in statuses.items()}}


def measure(name, port, clients, warm=2.0):
    row = {"server": name, **figures(clients, *asyncio.run(load(port, clients, args.seconds, warm)))}
    others = {status: count for status, count in row["statuses"].items() if status != "200"}
    print(f"{name:<10}{clients:>8} clients {row['texts_per_second']:>9.1f} texts/s   p50 {row['p50_ms']:>8.1f} ms   p99 {row['p99_ms']:>8.1f} ms   {others or ''}", flush=True)
    return row


if args.peer:
    peer(args.peer)
    sys.exit()

import pyarrow.parquet  # noqa: E402

resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
texts = random.Random(0).sample(pyarrow.parquet.read_table(args.file)["text"].to_pylist(), 1000)
ours = [args.warpfit, "serve", "--model", args.model, "--device", args.device, "--precision", args.precision, "--port"]
theirs = [sys.executable, __file__, "--model", args.model, "--device", args.device, "--precision", args.precision, "--peer"]
print(f"{len(texts)} texts of {sum(map(len, texts)) / len(texts):.0f} characters on average; {os.cpu_count()} cores, {args.device}, {args.precision}")
cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
hardware = {"cpu": cpu, "cores": os.cpu_count(), "device": args.device, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
if args.device == "cuda":
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    hardware["gpu"] = subprocess.check_output(query, text=True).strip()
versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "fastapi", "uvicorn")}
versions["warpfit"] = subprocess.check_output([args.warpfit, "--version"], text=True).split()[1]
print(f"{cpu}; {', '.join(f'{name} {version}' for name, version in versions.items())}")
rows = []
for name, command, port in [("warpfit", ours, 3917), ("fastapi", theirs, 3918)]:
    process = start([*command, str(port)], port)
    rows += [measure(name, port, clients) for clients in args.clients]
    process.terminate()
    process.wait()

process = start([*ours, "3919", "--max-concurrent-requests", str(args.places)], 3919)
print(f"\n{args.crowd} clients at {args.places} places, three times; between them one client alone")
rows.append(measure("warpfit", 3919, 1))
for _ in range(3):
    print(f"memory {megabytes(process):.0f} MB")
    rows += [measure("warpfit", 3919, clients) for clients in (args.crowd, 1)]
    rows[-1]["megabytes"] = megabytes(process)
print(f"memory {megabytes(process):.0f} MB")
process.terminate()
print("exit code", process.wait())
if args.json:
    settings = {name: getattr(args, name) for name in ("precision", "clients", "crowd", "places", "seconds")}
    everything = {"hardware": hardware, "versions": versions, "settings": settings, "results": rows}
    Path(args.json).write_text(json.dumps(everything, indent=1) + "\n")
