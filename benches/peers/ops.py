"""PyTorch's times of the ops and steps that `cargo bench` times: the same shapes, the same way of timing (benches/measure.rs),
the same names in the JSON. `--beside FILE`, the JSON of `cargo bench`, adds a table of both.

The dense ops run on packed rows, as in warpfit; attention and the model run padded to the longest review, as in Hugging Face,
and attention also without padding if a kernel for that is installed.
"""

import argparse
import datetime
import json
import subprocess
import time

import torch
import torch.nn.functional as F

LENGTHS = [74, 105, 128, 149, 170, 193, 212, 235, 260, 288, 321, 360, 409, 477, 512, 512]
COLD = 256 << 20
SAMPLE = 4e-3

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("filters", nargs="*", help="only those with one of these in their name")
parser.add_argument("--device", default="cuda")
parser.add_argument("--precision", default=None, help="separated by commas; default: all on a GPU, fp32 on a CPU")
parser.add_argument("--batch", default="16,64", help="reviews per batch, separated by commas")
parser.add_argument("--samples", type=int, default=50)
parser.add_argument("--compile", action="store_true", help="the model also through torch.compile")
parser.add_argument("--small", action="store_true", help="a smoke test with short reviews and narrow layers")
parser.add_argument("--json")
parser.add_argument("--beside")
args = parser.parse_args()

cuda = args.device.startswith("cuda")
precisions = (args.precision or ("fp32,tf32,bf16" if cuda else "fp32")).split(",")
dim, ffn, heads, head_dim, vocab, layers = (64, 128, 2, 32, 1000, 2) if args.small else (768, 3072, 12, 64, 30522, 6)
rows = []


def reviews(count):
    lengths = [LENGTHS[i % 16] // (32 if args.small else 1) for i in range(count)]
    generator = torch.Generator().manual_seed(count)
    ids = [(vocab ** torch.rand(n, generator=generator).pow(1.8)).long().clamp(max=vocab - 1) for n in lengths]
    return lengths, ids


def wait():
    if cuda:
        torch.cuda.synchronize()


def timed(call):
    """Microseconds of call(i): median, 10 % and 90 % quantile."""

    def clock(n):
        start = time.perf_counter()
        for i in range(n):
            call(i)
        wait()
        return time.perf_counter() - start

    for _ in range(3):
        clock(1)
    n = 1
    while clock(n) < SAMPLE:
        n *= 2
    times = sorted(clock(n) / n * 1e6 for _ in range(args.samples))
    at = lambda q: times[round((len(times) - 1) * q)]
    return {"median": at(0.5), "p10": at(0.1), "p90": at(0.9)}


def add(op, shape, count, precision, counterpart, cold, warm=None, **more):
    us = cold or warm
    print(f"{op:<22}{shape:<22}{precision:<6}{us['median']:>12.1f} us ({us['p10']:.1f}-{us['p90']:.1f})  {counterpart}", flush=True)
    row = dict(op=op, shape=shape, reviews=count, precision=precision, counterpart=counterpart, us_cold=cold, us_warm=warm)
    rows.append(row | more)
    write()


def write():
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"hardware": hardware(), "rows": rows}, file, indent=1)


def hardware():
    driver = None
    if cuda:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        except OSError:
            pass
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%FT%TZ"),
    }


def wanted(name):
    return not args.filters or any(part in name for part in args.filters)


def op(name, shape, count, precision, counterpart, make, passes=("fwd", "bwd")):
    """Times forward and backward of make()'s result: a function of no arguments, and the tensors whose gradients are computed.
    The gradients come through autograd, without the accumulation into .grad."""
    names = [f"{name} {one}".strip() for one in passes]
    if not any(map(wanted, names)):
        return
    try:
        torch.manual_seed(1)
        before = torch.cuda.memory_allocated() if cuda else 0
        copies = [make()]
        one = torch.cuda.memory_allocated() - before if cuda else COLD
        copies += [make() for _ in range(min(COLD // max(one, 1), 256) - 1)]
        if wanted(names[0]):
            with torch.no_grad():
                add(names[0], shape, count, precision, counterpart, timed(lambda i: copies[i % len(copies)][0]()))
        if len(names) > 1 and wanted(names[1]):
            graphs = []
            for forward, inputs in copies:
                y = forward()
                graphs.append((y, inputs, torch.randn_like(y) if y.dim() else torch.ones_like(y)))

            def backward(i):
                y, inputs, dy = graphs[i % len(graphs)]
                torch.autograd.grad(y, inputs, dy, retain_graph=True)

            add(names[1], shape, count, precision, counterpart, timed(backward))
    except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
        print(f"{name:<22}{shape:<22}{precision:<6} {counterpart}: {str(error).splitlines()[0]}", flush=True)


def random(*shape, dtype):
    return torch.randn(*shape, device=args.device, dtype=dtype, requires_grad=True)


def dense(count, precision):
    lengths, ids = reviews(count)
    tokens, dtype = sum(lengths), torch.bfloat16 if precision == "bf16" else torch.float32

    def linear(k, n):
        def make():
            x, w, b = random(tokens, k, dtype=dtype), random(n, k, dtype=dtype), random(n, dtype=dtype)
            return lambda: F.linear(x, w, b), (x, w, b)

        return make

    for name, k, n in [("qkv", dim, 3 * dim), ("out", dim, dim), ("up", dim, ffn), ("down", ffn, dim)]:
        op(f"linear {name}", f"{tokens} x {k} -> {n}", count, precision, "F.linear", linear(k, n))
    if precision == "tf32":
        return

    def add_norm(drop):
        def make():
            x, skip = random(tokens, dim, dtype=dtype), random(tokens, dim, dtype=dtype)
            gamma, beta = random(dim, dtype=dtype), random(dim, dtype=dtype)
            if not drop:
                return lambda: F.layer_norm(x, (dim,), gamma, beta, 1e-12), (x, gamma, beta)
            return lambda: F.layer_norm(F.dropout(x, 0.1) + skip, (dim,), gamma, beta, 1e-12), (x, skip, gamma, beta)

        return make

    def of(function, *shape):
        def make():
            x = random(*shape, dtype=dtype)
            return lambda: function(x), (x,)

        return make

    op("add_norm", f"{tokens} x {dim}", count, precision, "F.dropout, +, F.layer_norm", add_norm(True))
    op("norm", f"{tokens} x {dim}", count, precision, "F.layer_norm", add_norm(False))
    op("gelu", f"{tokens} x {ffn}", count, precision, "F.gelu", of(F.gelu, tokens, ffn))
    op("dropout", f"{tokens} x {dim}", count, precision, "F.dropout", of(lambda x: F.dropout(x, 0.1), tokens, dim))
    first = torch.tensor([sum(lengths[:i]) for i in range(count)], device=args.device)
    op("first_row", f"{count} x {dim}", count, precision, "index_select", of(lambda x: x.index_select(0, first), tokens, dim))
    labels = torch.arange(count, device=args.device) % 2

    def classifier():
        x, w, b = random(count, dim, dtype=dtype), random(2, dim, dtype=dtype), random(2, dtype=dtype)
        return lambda: F.cross_entropy(F.linear(F.dropout(F.relu(x), 0.1), w, b).float(), labels), (x, w, b)

    calls = "F.relu, F.dropout, F.linear, F.cross_entropy"
    op("classifier", f"{count} x {dim} -> 2", count, precision, calls, classifier)
    words = torch.cat(ids).to(args.device)
    positions = torch.cat([torch.arange(n) for n in lengths]).to(args.device)

    def embed():
        word, position = random(vocab, dim, dtype=torch.float32), random(512, dim, dtype=torch.float32)
        return lambda: (F.embedding(words, word, 0) + F.embedding(positions, position)).to(dtype), (word, position)

    op("embed", f"{tokens} x {dim}", count, precision, "F.embedding x 2, +", embed)
    attention(count, precision, lengths, dtype)


def attention(count, precision, lengths, dtype):
    tokens, longest = sum(lengths), max(lengths)
    shape = f"{tokens} x {heads} x {head_dim}"
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None])[:, None, None].to(args.device)

    def padded():
        q, k, v = (random(count, heads, longest, head_dim, dtype=dtype) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1), (q, k, v)

    op("attn", shape, count, precision, "SDPA padded, mask", padded)
    if not cuda or precision != "bf16":
        return
    cu = torch.tensor([sum(lengths[:i]) for i in range(count + 1)], device=args.device, dtype=torch.int32)
    packed = lambda: [random(tokens, heads, head_dim, dtype=dtype) for _ in range(3)]
    try:
        from flash_attn import flash_attn_varlen_func

        def flash():
            q, k, v = packed()
            return lambda: flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, dropout_p=0.1), (q, k, v)

        op("attn", shape, count, precision, "flash_attn varlen", flash)
    except ImportError:
        print("flash_attn is not installed")
    try:
        from torch.nn.attention.varlen import varlen_attn

        def varlen():
            q, k, v = packed()
            return lambda: varlen_attn(q, k, v, cu, cu, longest, longest), (q, k, v)

        op("attn", shape, count, precision, "torch varlen_attn, no dropout", varlen)
    except ImportError:
        print("this torch has no varlen_attn")


def distilbert(attention):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=vocab, dim=dim, hidden_dim=ffn, n_heads=heads, n_layers=layers)
    config._attn_implementation = attention
    torch.manual_seed(1)
    return DistilBertForSequenceClassification(config).to(args.device)


def flat():
    """Clipping and AdamW over the model's own tensors, in f32 as in Trainer."""
    if not any(map(wanted, ["grad_norm", "adamw"])):
        return
    model = distilbert("sdpa")
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    shape = str(sum(p.numel() for p in parameters))
    optimizer = torch.optim.AdamW(parameters, lr=2e-5, weight_decay=0.01, fused=cuda)
    for precision in [p for p in precisions if p != "tf32"]:
        if wanted("grad_norm"):
            clip = timed(lambda _: torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            add("grad_norm", shape, None, precision, "clip_grad_norm_, f32", clip)
        if wanted("adamw"):
            add("adamw", shape, None, precision, "AdamW(fused), f32", timed(lambda _: optimizer.step()))


def steps(count, precision):
    lengths, ids = reviews(count)
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(args.device)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long().to(args.device)
    labels = torch.arange(count, device=args.device) % 2
    tokens = sum(lengths)
    for kind in ["eager", "sdpa"] + (["sdpa, compiled"] if args.compile else []):
        if not any(map(wanted, ["train", "infer"])):
            return
        model = distilbert(kind.split(",")[0])
        if "compiled" in kind:
            model = torch.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=cuda)
        cast = lambda: torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=precision == "bf16")

        def train(_):
            model.train()
            with cast():
                loss = model(input_ids=padded, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def infer(_):
            model.eval()
            with torch.inference_mode(), cast():
                model(input_ids=padded, attention_mask=mask).logits.float().cpu()

        for name, step in [("train", train), ("infer", infer)]:
            if wanted(name):
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                us = timed(step)
                peak = torch.cuda.max_memory_reserved() if cuda else None
                speed = {"tokens_per_s": tokens / us["median"] * 1e6, "texts_per_s": count / us["median"] * 1e6}
                add(name, f"{tokens} tokens", count, precision, f"transformers, {kind}", None, us, peak_bytes=peak, **speed)


def beside(path):
    with open(path) as file:
        ours = {(r["op"], r["reviews"], r["precision"]): r for r in json.load(file)["rows"] if "reviews" in r}
    print(f"\n{'op':<18}{'reviews':>8} {'':<6}{'warpfit us':>12}{'torch us':>12}{'ratio':>8}  counterpart")
    for row in rows:
        mine = ours.get((row["op"], row["reviews"], row["precision"]))
        if mine:
            us = lambda r: (r.get("us_cold") or r["us_warm"])["median"]
            row["warpfit_us"], row["ratio"] = us(mine), us(row) / us(mine)
            print(
                f"{row['op']:<18}{row['reviews'] or '':>8} {row['precision']:<6}{us(mine):>12.1f}{us(row):>12.1f}"
                f"{row['ratio']:>8.2f}  {row['counterpart']}"
            )
    write()


print(json.dumps(hardware()))
for precision in precisions:
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    for count in map(int, args.batch.split(",")):
        dense(count, precision)
        steps(count, precision)
flat()
if args.beside:
    beside(args.beside)
