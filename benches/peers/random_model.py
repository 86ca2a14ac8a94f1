"""A DistilBERT-base with random weights and the tokenizer of another folder, to time runs without trained weights:
random_model.py TOKENIZER_FOLDER OUT"""

import json
import os
import shutil
import sys

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

source, out = sys.argv[1:]
torch.manual_seed(42)
DistilBertForSequenceClassification(DistilBertConfig(id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1})).save_pretrained(out)
for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]:
    if os.path.exists(f"{source}/{name}"):
        shutil.copy(f"{source}/{name}", out)
config = f"{out}/tokenizer_config.json"
settings = json.load(open(config)) if os.path.exists(config) else {}
json.dump(settings | {"model_max_length": 512}, open(config, "w"), indent=1)
