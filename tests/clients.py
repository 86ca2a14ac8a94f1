#!/usr/bin/env python3
"""Python's huggingface_hub and openai, against `warpfit serve` and the model card of `warpfit train`.

    clients.py [--warpfit target/release/warpfit]

Needs `pip install huggingface_hub openai numpy safetensors` and `cargo build --release`.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import openai
from huggingface_hub import InferenceClient, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/golden/text/hf"
TEXTS = ["A good movie.", "A boring one, and a long one.", ""]
KEY = "sesame"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--warpfit", default=str(ROOT / "target/release/warpfit"))
args = parser.parse_args()


@contextlib.contextmanager
def serve(model, *flags):
    """The address of a server that ends with the block."""
    command = [args.warpfit, "serve", "--model", str(model), "--port", "0", "--device", "cpu", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait() == 0


def post(url, body):
    """The answer to a plain request, to compare with."""
    headers = {"authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as response:
        return json.load(response)


def check_refused(call, error, named):
    try:
        call()
    except error as refused:
        assert named in str(refused), refused
    else:
        raise AssertionError(f"{named} is not refused")


def check_classification(url):
    client = InferenceClient(model=url, token=KEY)
    logits = {label["label"]: label["score"] for label in post(f"{url}/predict", {"inputs": TEXTS[0], "raw_scores": True})}
    total = sum(np.exp(logit) for logit in logits.values())
    functions = {
        None: lambda logit: np.exp(logit) / total,
        "softmax": lambda logit: np.exp(logit) / total,
        "sigmoid": lambda logit: 1 / (1 + np.exp(-logit)),
        "none": lambda logit: logit,
    }
    for name, function in functions.items():
        for top_k in (None, 1, 2):
            labels = client.text_classification(TEXTS[0], function_to_apply=name, top_k=top_k)
            assert len(labels) == (top_k or 2) and labels[0].score == max(label.score for label in labels), labels
            for label in labels:
                assert abs(label.score - function(logits[label.label])) < 1e-5, (name, labels, logits)
    check_refused(lambda: client.text_classification("a", function_to_apply="tanh"), HfHubHTTPError, "422")
    check_refused(lambda: InferenceClient(model=url, token="no").text_classification("a"), HfHubHTTPError, "401")


def check_feature_extraction(url, vectors):
    client = InferenceClient(model=url, token=KEY)
    np.testing.assert_allclose(client.feature_extraction(TEXTS), vectors, atol=1e-6)
    np.testing.assert_allclose(client.feature_extraction(TEXTS[0]), vectors[:1], atol=1e-6)
    normalized = client.feature_extraction(TEXTS, normalize=True, truncate=True, truncation_direction="right")
    np.testing.assert_allclose(normalized, vectors, atol=1e-6)
    lengths = np.linalg.norm(client.feature_extraction(TEXTS, normalize=False), axis=1)
    assert (abs(lengths - 1) > 0.01).all(), lengths
    for option in ({"prompt_name": "query"}, {"dimensions": 8}):
        check_refused(lambda: client.feature_extraction(TEXTS, **option), HfHubHTTPError, "422")


def check_openai(url, vectors):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    tokens = post(f"{url}/tokenize", {"inputs": TEXTS})
    ids = [[token["id"] for token in text] for text in tokens]
    # Without encoding_format the client asks for base64, and decodes it.
    for options in ({}, {"encoding_format": "float"}):
        for texts, wanted in ((TEXTS, vectors), (TEXTS[1], vectors[1:2]), (ids, vectors), (ids[1], vectors[1:2])):
            reply = client.embeddings.create(input=texts, model="text-embedding-3-small", user="me", **options)
            np.testing.assert_allclose([item.embedding for item in reply.data], wanted, atol=1e-6)
            assert [item.index for item in reply.data] == list(range(len(wanted)))
        assert reply.usage.prompt_tokens == reply.usage.total_tokens == len(ids[1]), reply.usage
    encoded = client.embeddings.create(input=TEXTS, model="m", encoding_format="base64")
    assert all(isinstance(item.embedding, str) for item in encoded.data)
    check_refused(lambda: client.embeddings.create(input="a", model="m", dimensions=8), openai.UnprocessableEntityError, "dimensions")
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="no", max_retries=0)
    check_refused(lambda: stranger.embeddings.create(input="a", model="m"), openai.AuthenticationError, "key")


def check_card(folder):
    """The card of a run, with names that YAML has other meanings for, read as the hub reads it."""
    golden = ROOT / "tests/golden/train"
    model, test, out = folder / "model", folder / "null: # [x].csv", folder / "no"
    shutil.copytree(golden / "hf_init", model)
    shutil.copy(golden / "test.csv", test)
    (model / "README.md").write_bytes(b"---\r\nlicense: 'MIT'\r\n---\r\n")
    command = [args.warpfit, "train", "--model", model, "--train-file", golden / "train.csv", "--validation-split", "0.2"]
    command += ["--test-file", test, "--output-dir", out, "--max-steps", "4", "--device", "cpu", "--quiet", "--label-names=- a,{b}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.model_name) == ("mit", "no"), card.data
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification"), card.data
    results = json.loads((out / "all_results.json").read_text())
    for split, prefix, name in (("validation", "eval", "train.csv"), ("test", "test", test.name)):
        found = [result for result in card.data.eval_results if result.dataset_split == split]
        assert {result.metric_type for result in found} >= {"loss", "accuracy", "precision", "recall", "f1", "roc_auc"}, found
        for result in found:
            assert (result.task_type, result.dataset_name, result.dataset_type) == ("text-classification", name, "csv"), result
            assert result.metric_value == results[f"{prefix}_{result.metric_type}"], result
    # The parsed results make the same card again.
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


with serve(MODEL, "--api-key", KEY) as url:
    vectors = np.array(post(f"{url}/embed", {"inputs": TEXTS}), dtype=np.float32)
    check_classification(url)
    check_feature_extraction(f"{url}/embed", vectors)
    check_openai(url, vectors)

with tempfile.TemporaryDirectory() as folder:
    base = Path(folder) / "base"
    shutil.copytree(MODEL, base)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "classifier" not in name}, base / "model.safetensors")
    with serve(base, "--api-key", KEY) as url:
        check_feature_extraction(url, vectors)

with tempfile.TemporaryDirectory() as folder:
    check_card(Path(folder))

print("huggingface_hub and openai: every check passed")
