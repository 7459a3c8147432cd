"""Rows of sentences through a transformers model: what the scripts that compare with PyTorch have in common."""

import gzip
import json
import sys
from pathlib import Path

import torch


def read_rows(path, limit=None):
    """The first `limit` rows of a JSON Lines file, or of the same name gzipped."""
    rows = []
    packed = Path(f"{path}.gz")
    opened, path = (gzip.open, packed) if packed.is_file() and not Path(path).is_file() else (open, path)
    with opened(path, "rt", encoding="utf-8") as f:
        for number, line in enumerate(f, start=1):
            if limit is not None and len(rows) == limit:
                break
            try:
                rows.append(json.loads(line))
            except ValueError as e:
                sys.exit(f"{path}:{number}: {e}")
    if not rows:
        sys.exit(f"{path}: no rows")
    return rows


def write_rows(path, rows):
    Path(path).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def texts(row):
    """(first, second or None), under the names that the project's data sets use."""
    for first, second in (("sentence1", "sentence2"), ("text", None), ("sentence", None)):
        if first in row:
            return row[first], row.get(second) if second else None
    sys.exit(f"no sentence1, text or sentence among the fields {sorted(row)}")


def encode(tokenizer, rows, max_length, **options):
    pairs = [texts(r) for r in rows]
    second = [b for _, b in pairs] if pairs[0][1] is not None else None
    return tokenizer([a for a, _ in pairs], second, truncation=True, max_length=max_length, **options)


@torch.no_grad()
def logits_of(model, tokenizer, rows, max_length, batch=32):
    """Logits (rows, classes) in evaluation mode."""
    model.eval()
    out = []
    for i in range(0, len(rows), batch):
        inputs = encode(tokenizer, rows[i:i + batch], max_length, padding=True, return_tensors="pt")
        out.append(model(**inputs).logits)
    return torch.cat(out)


def metrics(labels, predicted):
    """Accuracy, and for two classes F1 of class 1 and Matthews correlation, as lora-drop names them."""
    pairs = list(zip(labels, predicted))
    out = {"accuracy": sum(a == b for a, b in pairs) / len(pairs)}
    if set(labels) | set(predicted) <= {0, 1}:
        tp, tn, fp, fn = (pairs.count(p) for p in ((1, 1), (0, 0), (0, 1), (1, 0)))
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        out["f1"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
        out["mcc"] = (tp * tn - fp * fn) / product**0.5 if product else 0.0
    return out
