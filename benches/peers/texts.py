"""The texts of a run of `warpfit train`, read and tokenized for PyTorch."""

from transformers import PreTrainedTokenizerFast


def read(path):
    """Texts and labels."""
    if path.endswith(".txt"):
        lines = [line.rstrip("\n").rsplit(";", 1) for line in open(path, encoding="utf-8")]
        rows = lines[1:] if lines[0][0] == "text" else lines
        return [text for text, _ in rows], [label for _, label in rows]
    if path.endswith(".parquet"):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
    else:
        import pyarrow.csv

        table = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))
    column = lambda *names: next(table[name].to_pylist() for name in names if name in table.column_names)
    return column("text", "review", "sentence"), column("label", "sentiment")


def tokenizer(folder, max_length):
    """The tokenizer of a model's folder, without truncation and padding of its own."""
    found = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]", model_max_length=max_length)
    found._tokenizer.no_truncation()
    found._tokenizer.no_padding()
    return found


def encode(tokenizer, path, names):
    """The rows of a file; `names` are the classes, found in the first file."""
    texts, labels = read(path)
    if not names:
        names.extend(sorted(set(labels)))
    ids = tokenizer(texts, truncation=True, max_length=tokenizer.model_max_length, return_token_type_ids=False)["input_ids"]
    return [{"input_ids": row, "labels": names.index(label)} for row, label in zip(ids, labels)]
