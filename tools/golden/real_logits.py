#!/usr/bin/env python3
"""Writes the logits of a real model under a fixed adapter and head for real rows, and compares lora-drop's with them.

The adapter (LoRA of rank 8 on query and value, B not zero) and the head for three classes come from a formula, so
that the numbers depend on the model alone: element k, from 0, of the tensor with number n, from 0 in the order of the
sorted parameter names, is amplitude · sin(12.9898 · (k + 1) + n), computed in float64. The amplitude is 0.1 for lora_B
and biases, 3/√columns for the weight with three rows, and 1/√columns for other weights.

Into the output folder go `rows.jsonl` (the rows without labels), `adapter/` (as PEFT saves it) and `logits.jsonl`: per
row `ids`, `token_types` where the model has them, and `logits`. With --binary, `lora-drop predict` labels the rows and
the exit status says whether all its logits are within 1e-4.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sentences import encode, logits_of, read_rows, texts, write_rows

CLASSES = 3
MAX_LENGTH = 256
TOLERANCE = 1e-4


def by_formula(model):
    trained = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for number, (name, p) in enumerate(trained):
        small = "lora_B" in name or p.dim() == 1
        amplitude = 0.1 if small else (3 if p.shape[0] == CLASSES else 1) * p.shape[1]**-0.5
        k = torch.arange(p.numel(), dtype=torch.float64)
        with torch.no_grad():
            p.copy_((amplitude * torch.sin(12.9898 * (k + 1) + number)).view_as(p))


def compare(binary, model, output, logits):
    command = [binary, "predict", "--model", model, "--adapter", output / "adapter", "--input", output / "rows.jsonl"]
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"lora-drop predict failed with exit status {done.returncode}")
    ours = torch.tensor([json.loads(line)["logits"] for line in done.stdout.splitlines()])
    if ours.shape != logits.shape:
        sys.exit(f"lora-drop predict gave logits of shape {tuple(ours.shape)}, expected {tuple(logits.shape)}")
    worst = (ours - logits).abs().max().item()
    print(f"{len(logits)} rows: largest difference of a logit {worst:.2e} (logits from {logits.min():.3f} to "
          f"{logits.max():.3f}, allowed {TOLERANCE:.0e})")
    return worst <= TOLERANCE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a BERT, RoBERTa or MPNet model")
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines with sentence1 (and sentence2) or text")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=32, help="number of rows (default: 32)")
    parser.add_argument("--binary", type=Path, help="lora-drop, to compare with")
    args = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()  # the head is missing from the checkpoint, and is set here

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=CLASSES, dtype=torch.float32)
    names = ["q", "v"] if base.config.model_type == "mpnet" else ["query", "value"]
    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=names)
    model = get_peft_model(base, config)
    by_formula(model)

    rows = read_rows(args.rows, args.count)
    bare = [dict(zip(("sentence1", "sentence2"), (t for t in texts(r) if t is not None))) for r in rows]
    logits = logits_of(model, tokenizer, bare, MAX_LENGTH)
    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output / "adapter")
    write_rows(args.output / "rows.jsonl", bare)
    encoded = encode(tokenizer, bare, MAX_LENGTH)
    lines = []
    for i, row in enumerate(logits.tolist()):
        types = {"token_types": encoded["token_type_ids"][i]} if "token_type_ids" in encoded else {}
        lines.append({"ids": encoded["input_ids"][i], **types, "logits": row})
    write_rows(args.output / "logits.jsonl", lines)
    print(f"wrote {args.output}: logits of {len(rows)} rows, from {logits.min():.3f} to {logits.max():.3f}")
    if args.binary and not compare(args.binary, args.model, args.output, logits):
        sys.exit(1)


if __name__ == "__main__":
    main()
