#!/usr/bin/env python3
"""Exchanges folders between warpfit and Hugging Face transformers: what either has fine-tuned, the other loads without a
missing or unexpected key, with the same logits, and fine-tunes further. Small models with random weights, on the CPU.

    cargo build --release && python tests/back_and_forth.py [WORD...]     only those with one of the words

Needs torch and transformers; about two minutes.
"""

import copy
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "tests/golden/text/hf"
LOGITS = 5e-5
# Two runs of some updates in f32.
CONTINUED = 5e-4
BATCH, LEARNING_RATE, DECAY = 8, 5e-4, 0.01
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
EMOTIONS = ["sadness", "joy", "love", "anger", "fear", "surprise"]
SENTIMENTS = ["NEGATIVE", "POSITIVE"]
SHAPE = {"vocab_size": 299, "max_position_embeddings": 64, "initializer_range": 0.1}
DISTILBERT = dict(SHAPE, dim=48, n_layers=3, n_heads=4, hidden_dim=96, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
BERT = dict(SHAPE, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0)  # fmt: skip


def run(command, *arguments):
    command = [str(ROOT / "target/release/warpfit"), command, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def texts(count, seed):
    words = [word for word in (TOKENIZER / "vocab.txt").read_text().split() if word.isalpha() and len(word) > 2]
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(words, k=chooser.randint(1, 70))) for _ in range(count)]


def logits_of_warpfit(folder, file):
    lines = run("predict", "--model", folder, "--input", file, "--raw-scores", "--top-k", 0, "--max-length", 64, "--device", "cpu")
    return [{score["label"]: score["score"] for score in json.loads(line)["scores"]} for line in lines.splitlines()]


def load(folder):
    """The model loaded by transformers; no key may be missing or unexpected."""
    model, about = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    for what in ["missing_keys", "unexpected_keys", "mismatched_keys"]:
        assert not about[what], f"{folder}: {what} {about[what]}"
    return model.eval()


def encode(tokenizer, batch):
    return tokenizer(batch, truncation=True, max_length=64, padding=True, return_tensors="pt")


def compare(folder, tokenizer, rows, tolerance, reference=None):
    """The largest difference between the logits of warpfit and of transformers for a folder."""
    model = reference or load(folder)
    file = Path(folder) / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    got = logits_of_warpfit(folder, file)
    file.unlink()
    with torch.no_grad():
        want = model(**encode(tokenizer, rows)).logits
    names = [model.config.id2label[i] for i in range(want.shape[1])]
    difference = max(abs(got[r][name] - want[r, c].item()) for r in range(len(rows)) for c, name in enumerate(names))
    assert difference <= tolerance, f"{folder}: logits differ by {difference:.1e}"
    return difference


def train_warpfit(model, out, rows, epochs):
    file = out.with_suffix(".jsonl")
    names = list(json.loads((model / "config.json").read_text())["id2label"].values())
    file.write_text("".join(json.dumps({"text": text, "label": names[label]}) + "\n" for text, label in rows))
    run("train", "--model", model, "--train-file", file, "--output-dir", out, "--epochs", epochs, "--batch-size", BATCH,
        "--learning-rate", LEARNING_RATE, "--weight-decay", DECAY, "--lr-scheduler-type", "constant", "--no-shuffle",
        "--max-length", 64, "--device", "cpu", "--save-strategy", "no")  # fmt: skip


def train_transformers(model, tokenizer, rows, epochs):
    """The same settings in plain PyTorch."""
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1]
    rest = [p for n, p in model.named_parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    for _ in range(epochs):
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            labels = torch.tensor([label for _, label in batch])
            model(**encode(tokenizer, [text for text, _ in batch]), labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def save(model, folder, **how):
    model.save_pretrained(folder, **how)
    for name in TOKENIZER_FILES:
        shutil.copy(TOKENIZER / name, folder)


def back_and_forth(folder, name, config, dtype, how):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    # A copy, as saving writes the dtype into it.
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config)).eval()
    labels = random.Random(1)
    rows = [(text, labels.randrange(config.num_labels)) for text in texts(40, 2)]
    unseen = texts(20, 3)

    # transformers -> warpfit: fine-tuned and saved there, the same logits here; then both fine-tune further.
    train_transformers(model, tokenizer, rows, 1)
    theirs = folder / f"{name}-transformers"
    save(model.to(dtype), theirs, **how)
    # The saved weights, not those before rounding.
    model = load(theirs)
    taken = compare(theirs, tokenizer, unseen, LOGITS)
    ours = folder / f"{name}-warpfit"
    train_warpfit(theirs, ours, rows, 2)
    before = json.loads((ours / "trainer_state.json").read_text())["log_history"]
    train_transformers(model, tokenizer, rows, 2)
    same = compare(ours, tokenizer, unseen, CONTINUED, reference=model)

    # warpfit -> transformers: loaded, the same logits, and both fine-tune further.
    given = compare(ours, tokenizer, unseen, LOGITS)
    model = load(ours)
    train_transformers(model, tokenizer, rows, 2)
    further = folder / f"{name}-further"
    train_warpfit(ours, further, rows, 2)
    onward = compare(further, tokenizer, unseen, CONTINUED, reference=model)
    assert before, "no loss was logged"
    print(f"{name:<24} logits {taken:.1e} from transformers, {given:.1e} to it; after further fine-tuning {same:.1e} and {onward:.1e}", flush=True)


def labelled(config, names):
    return config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **(BERT if config is BertConfig else DISTILBERT))


def main():
    with tempfile.TemporaryDirectory() as folder:
        distilbert = labelled(DistilBertConfig, SENTIMENTS)
        for name, config, dtype, how in [
            ("distilbert", distilbert, torch.float32, {}),
            ("distilbert-f16", distilbert, torch.float16, {}),
            ("distilbert-bf16", distilbert, torch.bfloat16, {}),
            ("distilbert-sharded", distilbert, torch.float32, {"max_shard_size": "40KB"}),
            ("distilbert-six-labels", labelled(DistilBertConfig, EMOTIONS), torch.float32, {}),
            ("bert", labelled(BertConfig, SENTIMENTS), torch.float32, {}),
            ("bert-six-labels-f16", labelled(BertConfig, EMOTIONS), torch.float16, {}),
        ]:
            if any(word in name for word in sys.argv[1:] or [""]):
                back_and_forth(Path(folder), name, config, dtype, how)


if __name__ == "__main__":
    sys.exit(main())
