"""Hugging Face Trainer on the files of a run of `warpfit train`, with the same settings: seconds, losses, accuracy.

trainer.py --model FOLDER --train-file reviews.parquet [--validation-file ...] [--precision bf16] [--attention sdpa]
"""

import argparse
import json
import tempfile
import time

import numpy as np
import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoConfig, AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

import texts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--from-scratch", action="store_true", help="draw all weights from the seed")
parser.add_argument("--train-file", required=True)
parser.add_argument("--validation-file")
parser.add_argument("--epochs", type=float, default=2)
parser.add_argument("--max-steps", type=int, default=-1)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--eval-batch-size", type=int, default=64)
parser.add_argument("--max-length", type=int, default=512)
parser.add_argument("--learning-rate", type=float, default=2e-5)
parser.add_argument("--weight-decay", type=float, default=0.01)
parser.add_argument("--class-weights", choices=["balanced"])
parser.add_argument("--label-smoothing-factor", type=float, default=0.0)
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("--logging-steps", type=int, default=100)
parser.add_argument("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="bf16")
parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--json")
args = parser.parse_args()
begin = time.perf_counter()


def metrics(prediction):
    predicted, labels = np.argmax(prediction.predictions, -1), prediction.label_ids
    f1 = {"f1": "binary" if len(names) == 2 else "macro", "f1_weighted": "weighted"}
    scores = {name: f1_score(labels, predicted, average=average) for name, average in f1.items()}
    return {"accuracy": accuracy_score(labels, predicted)} | scores


def loss(outputs, labels, num_items_in_batch=None):
    """Smoothing and weights combined as in torch; Trainer's own smoothing ignores weights."""
    weight = None
    if args.class_weights:
        counts = np.bincount([row["labels"] for row in rows], minlength=len(names))
        weight = torch.tensor(len(rows) / (len(names) * counts), dtype=torch.float32, device=labels.device)
    return torch.nn.functional.cross_entropy(outputs.logits, labels, weight, label_smoothing=args.label_smoothing_factor)


names, tokenizer = [], texts.tokenizer(args.model, args.max_length)
rows = texts.encode(tokenizer, args.train_file, names)
validation = texts.encode(tokenizer, args.validation_file, names) if args.validation_file else None
tokenized = time.perf_counter()
if args.from_scratch:
    transformers.set_seed(args.seed)
    config = AutoConfig.from_pretrained(args.model, num_labels=len(names))
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=args.attention)
else:
    # Weights stored in f16 or bf16 are still trained in f32.
    load = {"num_labels": len(names), "attn_implementation": args.attention, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(args.model, **load)
with tempfile.TemporaryDirectory() as out:
    settings = TrainingArguments(
        output_dir=out,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.eval_batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        seed=args.seed,
        bf16=args.precision == "bf16",
        fp16=args.precision == "fp16",
        tf32=True if args.precision == "tf32" else None,
        torch_compile=args.compile,
        logging_steps=args.logging_steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=rows,
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics,
        compute_loss_func=loss if args.class_weights or args.label_smoothing_factor else None,
    )
    trained = trainer.train()
    evaluated = trainer.evaluate() if validation else {}
result = {
    "what": f"transformers {transformers.__version__} Trainer, torch {torch.__version__}, {args.attention}, {args.precision}"
    + (", compiled" if args.compile else ""),
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    "rows": len(rows),
    "updates": trained.global_step,
    "train_seconds": trained.metrics["train_runtime"],
    "seconds_from_text": time.perf_counter() - begin,
    "tokenizing_seconds": tokenized - begin,
    "train_loss": trained.training_loss,
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "eval_loss": evaluated.get("eval_loss"),
    "eval_accuracy": evaluated.get("eval_accuracy"),
    "eval_f1": evaluated.get("eval_f1"),
    "eval_f1_weighted": evaluated.get("eval_f1_weighted"),
    "peak_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None,
}
print(json.dumps(result))
if args.json:
    json.dump(result, open(args.json, "w"), indent=1)
