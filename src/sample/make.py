"""Makes every other file of this folder, except the README, from the two Parquet files of the Large Movie Review Dataset.

    pip install pyarrow==26.0.1 tokenizers==0.23.3
    python make.py train-00000-of-00001.parquet test-00000-of-00001.parquet

The draw depends on the texts and SEED alone, not on the order of the rows or on a generator of random numbers.
"""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
SEED = 42
LABELS = ["NEGATIVE", "POSITIVE"]
VOCAB = 4000
POSITIONS = 256
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
FEATURES = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": LABELS, "_type": "ClassLabel"}}


def read(path):
    """The reviews of a file, {text: label}: a repeated text counts once."""
    table = pq.read_table(path, columns=["text", "label"])
    return dict(zip(table["text"].to_pylist(), table["label"].to_pylist()))


def draw(reviews, rows):
    """The first rows / 2 of each label in the order of the hash of SEED and text, in that order: [(text, label)]."""
    order = sorted(reviews, key=lambda text: hashlib.sha256(f"{SEED}:{text}".encode()).digest())
    left = [rows // 2] * 2
    drawn = []
    for text in order:
        if left[reviews[text]] > 0:
            left[reviews[text]] -= 1
            drawn.append((text, reviews[text]))
    return drawn


def write_rows(name, rows):
    texts, labels = zip(*rows)
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata=metadata)
    table = pa.table([texts, labels], schema=schema)
    # Whole texts are useless as dictionary entries or as statistics in the footer.
    compact = {"use_dictionary": False, "write_statistics": False, "data_page_size": 8 << 20}
    pq.write_table(table, HERE / name, compression="zstd", compression_level=19, **compact)


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, indent=2) + "\n")


def word_piece(vocab=None):
    """A lower-casing BERT tokenizer, without special tokens yet."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def train_vocab(texts):
    """The pieces and their ids. The trainer numbers the one-character pieces that continue a word by the order of a hash table,
    which changes from run to run and decides ties between merges. So they are passed in numbered, as special tokens."""
    tokenizer = word_piece()
    inner = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            inner.update(word[1:])
    first = [*SPECIAL.values(), *("##" + letter for letter in sorted(inner))]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=first, show_progress=False))
    return tokenizer.get_vocab()


def write_tokenizer(texts):
    tokenizer = word_piece(train_vocab(texts))
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(HERE / "tokenizer.json"))
    tokenizer.model.save(str(HERE))  # vocab.txt
    write_json("special_tokens_map.json", SPECIAL)
    write_json("tokenizer_config.json", {
        "tokenizer_class": "DistilBertTokenizer",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": POSITIONS,
        **SPECIAL,
    })


def write_config():
    write_json("config.json", {
        "architectures": ["DistilBertForSequenceClassification"],
        "model_type": "distilbert",
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "sinusoidal_pos_embds": False,
        "n_layers": 2,
        "dim": 128,
        "n_heads": 4,
        "hidden_dim": 512,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "id2label": {str(i): name for i, name in enumerate(LABELS)},
        "label2id": {name: i for i, name in enumerate(LABELS)},
    })


def main(train_file, test_file):
    train = read(train_file)
    test = {text: label for text, label in read(test_file).items() if text not in train}
    rows = draw(train, 2000)
    write_rows("train.parquet", rows)
    write_rows("validation.parquet", draw(test, 500))
    write_tokenizer([text for text, _ in rows])
    write_config()


if __name__ == "__main__":
    main(*sys.argv[1:])
