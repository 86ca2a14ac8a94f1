"""A training loop written by hand in PyTorch, to be as fast as PyTorch allows, on the files of a run of `warpfit train`: unpadded, with
torch.nn.attention.varlen, query, key and value in one product, the last layer for [CLS] alone, compiled, with AdamW fused and whole steps
in CUDA graphs. varlen_attn has no dropout: the loop drops nothing within attention.

loop.py --model FOLDER --train-file reviews.parquet --max-steps 300 [--precision bf16] [--no-compile] [--no-graphs] [--dropout 0]
"""

import argparse
import contextlib
import json
import time

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import texts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="a DistilBERT")
parser.add_argument("--from-scratch", action="store_true", help="draw all weights from the seed")
parser.add_argument("--train-file", required=True)
parser.add_argument("--max-steps", type=int, default=300)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--max-length", type=int, default=512)
parser.add_argument("--learning-rate", type=float, default=2e-5)
parser.add_argument("--weight-decay", type=float, default=0.01)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16", help="varlen_attn has no fp32: that is for a CPU")
parser.add_argument("--dropout", type=float, help="the rate everywhere [default: those of the config]")
parser.add_argument("--no-compile", action="store_true")
parser.add_argument("--no-graphs", action="store_true")
parser.add_argument("--bucket", type=int, default=256, help="a batch is filled to a multiple of this many tokens, so that few graphs serve all")
parser.add_argument("--json")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def attention(q, k, v, cu_q, cu_k, longest_q, longest_k):
    """(tokens, heads, head) of each sequence on its own."""
    if CUDA:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, cu_q, cu_k, longest_q, longest_k)
    # To check the loop on a machine without a GPU.
    out = []
    for (q0, q1), (k0, k1) in zip(*(zip(cu.tolist(), cu.tolist()[1:]) for cu in (cu_q, cu_k))):
        one = [x.transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1])]
        out.append(F.scaled_dot_product_attention(*one).transpose(0, 1))
    return torch.cat(out)


class Layer(nn.Module):
    """A layer of DistilBERT, with query, key and value in one product."""

    def __init__(self, of, heads, dropout):
        super().__init__()
        parts = [of.attention.q_lin, of.attention.k_lin, of.attention.v_lin]
        dim = parts[0].in_features
        self.qkv = nn.Linear(dim, 3 * dim)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        self.out, self.norm = of.attention.out_lin, of.sa_layer_norm
        self.up, self.down, self.ffn_norm = of.ffn.lin1, of.ffn.lin2, of.output_layer_norm
        self.heads, self.dropout = heads, dropout

    def forward(self, x, cu, longest, first=None):
        """The states of all tokens, or those of `first` alone."""
        dim, head = x.shape[1], x.shape[1] // self.heads
        if first is None:
            q, k, v = self.qkv(x).view(-1, 3, self.heads, head).unbind(1)
            attended = attention(q, k, v, cu, cu, longest, longest)
        else:
            k, v = F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).view(-1, 2, self.heads, head).unbind(1)
            x = x[first]
            q = F.linear(x, self.qkv.weight[:dim], self.qkv.bias[:dim]).view(-1, self.heads, head)
            each = torch.arange(len(first) + 1, device=x.device, dtype=torch.int32)
            attended = attention(q, k, v, each, cu, 1, longest)
        x = self.norm(x + self.out(attended.reshape(-1, dim)))
        y = self.down(F.gelu(self.up(x)))
        return self.ffn_norm(x + F.dropout(y, self.dropout, self.training))


class Classifier(nn.Module):
    """DistilBERT on a packed batch: the loss."""

    def __init__(self, of, longest):
        super().__init__()
        config, embeddings = of.config, of.distilbert.embeddings
        self.words, self.positions, self.norm = embeddings.word_embeddings, embeddings.position_embeddings, embeddings.LayerNorm
        layers = of.distilbert.transformer.layer
        self.layers = nn.ModuleList(Layer(layer, config.n_heads, config.dropout) for layer in layers)
        self.dense, self.classifier = of.pre_classifier, of.classifier
        self.dropout, self.head_dropout, self.longest = config.dropout, config.seq_classif_dropout, longest

    def forward(self, ids, positions, cu, labels):
        x = self.norm(self.words(ids) + self.positions(positions))
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers[:-1]:
            x = layer(x, cu, self.longest)
        # The last sequence fills the batch up, and has no label.
        x = self.layers[-1](x, cu, self.longest, cu[:-1])[:-1]
        x = F.dropout(F.relu(self.dense(x)), self.head_dropout, self.training)
        return F.cross_entropy(self.classifier(x).float(), labels.long())


def packed(rows, bucket):
    """A batch as one tensor: ids, positions, where sequences start and end, labels. One more sequence fills it up."""
    tokens = sum(len(row["input_ids"]) for row in rows)
    filled = (tokens // bucket + 1) * bucket
    lengths = [len(row["input_ids"]) for row in rows] + [filled - tokens]
    ids = [word for row in rows for word in row["input_ids"]] + [0] * lengths[-1]
    positions = [position for length in lengths for position in range(length)]
    cu = [0]
    for length in lengths:
        cu.append(cu[-1] + length)
    batch = torch.tensor(ids + positions + cu + [row["labels"] for row in rows], dtype=torch.int32)
    return (batch.pin_memory() if CUDA else batch), filled


class Trainer:
    def __init__(self, args, model, updates):
        self.args, self.model = args, model
        self.step_of = model if args.no_compile else torch.compile(model, dynamic=True)
        decays = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() == 1]
        self.rate = torch.tensor(args.learning_rate, device=DEVICE)
        groups = [{"params": decays, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, fused=True, capturable=CUDA)
        self.scaler = torch.amp.GradScaler(enabled=args.precision == "fp16")
        self.loss = torch.zeros((), device=DEVICE)
        self.updates, self.graphs, self.inputs, self.pool = updates, {}, {}, None

    def step(self, batch, tokens):
        """One update, with the loss in `self.loss`."""
        rows = self.args.batch_size
        ids, positions, cu, labels = batch.split([tokens, tokens, rows + 2, rows])
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.args.precision)
        with torch.autocast(DEVICE, kind) if kind else contextlib.nullcontext():
            loss = self.step_of(ids, positions, cu, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss.copy_(loss.detach())

    def prepare(self, batches):
        """Compiles, and captures a graph for each size of a batch; then everything is as it was before."""
        before = [p.detach().clone() for p in self.model.parameters()]
        sizes = {tokens: batch for batch, tokens in batches}
        stream = torch.cuda.Stream() if CUDA else None
        for tokens, batch in sizes.items():
            self.inputs[tokens] = batch.to(DEVICE, copy=True)
            if CUDA:
                stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream) if CUDA else contextlib.nullcontext():
                for _ in range(3 if CUDA else 1):
                    self.step(self.inputs[tokens], tokens)
            if not CUDA:
                continue
            torch.cuda.synchronize()
            if not self.args.no_graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    self.step(self.inputs[tokens], tokens)
                self.pool, self.graphs[tokens] = graph.pool(), graph
        with torch.no_grad():
            for p, start in zip(self.model.parameters(), before):
                p.copy_(start)
                for state in self.optimizer.state[p].values():
                    state.zero_()

    def train(self, batches):
        """The loss of each update, and the seconds of all."""
        losses = torch.zeros(len(batches), device=DEVICE)
        if CUDA:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for update, (batch, tokens) in enumerate(batches):
            self.rate.fill_(self.args.learning_rate * (1 - update / self.updates))
            self.inputs[tokens].copy_(batch, non_blocking=True)
            if tokens in self.graphs:
                self.graphs[tokens].replay()
            else:
                self.step(self.inputs[tokens], tokens)
            losses[update].copy_(self.loss)
        losses = losses.tolist()
        return losses, time.perf_counter() - begin


def main():
    args = parser.parse_args()
    if args.precision == "fp16":
        # Its host waits for the scale in each update.
        args.no_graphs = True
    begin, names = time.perf_counter(), []
    rows = texts.encode(texts.tokenizer(args.model, args.max_length), args.train_file, names)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
    starts = range(0, min(args.max_steps * args.batch_size, len(rows) - args.batch_size + 1), args.batch_size)
    batches = [packed([rows[row] for row in order[start : start + args.batch_size]], args.bucket) for start in starts]
    tokenized = time.perf_counter()

    transformers.set_seed(args.seed)
    if args.from_scratch:
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(args.model, num_labels=len(names)))
    else:
        model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names), dtype=torch.float32)
    if args.dropout is not None:
        model.config.dropout = model.config.seq_classif_dropout = args.dropout
    trainer = Trainer(args, Classifier(model, args.max_length).to(DEVICE).train(), len(batches))
    trainer.prepare(batches)
    prepared = time.perf_counter()
    losses, seconds = trainer.train(batches)
    how = [args.precision, "eager" if args.no_compile else "compiled", *([f"{len(trainer.graphs)} CUDA graphs"] if trainer.graphs else [])]
    result = {
        "what": f"PyTorch {torch.__version__} by hand, unpadded, {', '.join(how)}",
        "device": torch.cuda.get_device_name() if CUDA else "CPU",
        "updates": len(batches),
        "tokens": sum(int(batch[2 * tokens + args.batch_size]) for batch, tokens in batches),
        "tokens_filled_up": sum(tokens for _, tokens in batches),
        "train_seconds": seconds,
        "tokenizing_seconds": tokenized - begin,
        "preparing_seconds": prepared - tokenized,
        "losses": losses,
        "peak_bytes": torch.cuda.max_memory_reserved() if CUDA else None,
    }
    print(json.dumps(result))
    if args.json:
        json.dump(result, open(args.json, "w"), indent=1)


if __name__ == "__main__":
    main()
