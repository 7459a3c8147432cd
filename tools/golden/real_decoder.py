#!/usr/bin/env python3
"""Compares a real decoder's numbers with those of transformers' reading of the same GGUF file, on real text.

Each text gives the logits behind its last token and the losses of all its tokens but the first. The exit status says
whether every logit is within 1e-3 and the perplexity over all texts is equal to four digits.

Example:
  cargo build --release -p lora-drop --example decoder_numbers
  tools/golden/real_decoder.py --gguf models/smollm2/model.gguf --rows data/tinystories/dev.jsonl
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3


def ours(binary, gguf, texts):
    lines = "".join(json.dumps(ids) + "\n" for ids in texts)
    done = subprocess.run([str(binary), str(gguf)], input=lines, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"decoder_numbers failed with exit status {done.returncode}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if len(found) != len(texts):
        sys.exit(f"decoder_numbers printed {len(found)} lines for {len(texts)} texts")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines with text, or with prompt and completion")
    parser.add_argument("--count", type=int, default=32, help="number of rows (default: 32)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a row (default: 256)")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "examples" / "decoder_numbers",
                        help="(default: %(default)s)")
    args = parser.parse_args()
    disable_progress_bar()
    where = {"pretrained_model_name_or_path": args.gguf.parent, "gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()

    with open(args.rows, encoding="utf-8") as f:
        rows = [json.loads(line) for _, line in zip(range(args.count), f)]
    texts = [tokenizer(r["text"] if "text" in r else r["prompt"] + r["completion"])["input_ids"] for r in rows]
    texts = [ids[:args.max_length] for ids in texts]
    worst, sums, tokens = 0.0, [0.0, 0.0], 0
    for ids, found in zip(texts, ours(args.binary, args.gguf, texts)):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="sum")
        worst = max(worst, (torch.tensor(found["logits"]) - logits[-1]).abs().max().item())
        sums = [sums[0] + sum(found["losses"]), sums[1] + losses.item()]
        tokens += len(ids) - 1
    perplexities = [math.exp(s / tokens) for s in sums]
    print(f"{len(texts)} texts, {tokens} tokens: largest difference of a logit {worst:.2e} (allowed {TOLERANCE:.0e}); "
          f"perplexity {perplexities[0]:.6g}, transformers' {perplexities[1]:.6g}")
    equal = f"{perplexities[0]:.4g}" == f"{perplexities[1]:.4g}"
    sys.exit(0 if worst <= TOLERANCE and equal else 1)


if __name__ == "__main__":
    main()
