#!/usr/bin/env python3
"""PEFT's side of versus_peft: training steps of a fixed shape, one epoch of a data set, or text written greedily, in a
process of its own. A model is a folder, for a decoder with a GGUF file too, which transformers widens to f32.

Prints one JSON object. The configuration is the fastest found for PEFT on a CPU: one thread a core, for bf16 autocast
(frozen weights have the type of --weights), sdpa attention where transformers has it, no padding where the shape is
fixed, and else batches of similar length padded to their longest row.
"""

import argparse
import gzip
import json
import os
import random
import resource
import time

STARTED = time.perf_counter()

import torch
from peft import LoraConfig, get_peft_model
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer,
                          get_linear_schedule_with_warmup)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

WEIGHT_DECAY, LEARNING_RATE, WARMUP_RATIO = 0.1, 1e-3, 0.06
WEIGHTS = {"f32": torch.float32, "bf16": torch.bfloat16}


def is_decoder(folder):
    """A decoder's folder has a GGUF file, or a configuration that says so."""
    if gguf_of(folder):
        return True
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        return any(name.endswith("ForCausalLM") for name in json.load(f).get("architectures") or [])


def gguf_of(folder):
    names = sorted(n for n in os.listdir(folder) if n.endswith(".gguf"))
    return {"gguf_file": names[0]} if names else {}


def load_base(folder, dtype=torch.float32):
    disable_progress_bar()
    set_verbosity_error()  # the head is new
    # transformers takes sdpa attention by itself where the architecture has it (MPNet has eager only).
    if is_decoder(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **gguf_of(folder))
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=dtype)


def load(args):
    """The model in training mode, its own dropout on, LoRA on query and value, and the optimiser of what trains. The
    frozen weights have the type of --weights, the trained ones are f32."""
    base = load_base(args.model, WEIGHTS[args.weights])
    if is_decoder(args.model):
        task, names = "CAUSAL_LM", ["q_proj", "v_proj"]
        base.config.use_cache = False
    else:
        task, names = "SEQ_CLS", ["q", "v"] if base.config.model_type == "mpnet" else ["query", "value"]
    config = LoraConfig(task_type=task, r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=names)
    model = get_peft_model(base, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, trained, torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def autocast(args):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16")


def step(args, model, trained, optimizer, inputs):
    optimizer.zero_grad()
    with autocast(args):
        loss = model(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


def steps(args):
    """Seconds of each step on random rows of one length, behind `warmup` unmeasured ones."""
    model, trained, optimizer = load(args)
    run = torch.compile(model) if args.compile else model
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for i in range(args.warmup + args.steps):
        ids = torch.randint(1000, model.config.vocab_size, (args.batch, args.length), generator=generator)
        labels = ids if is_decoder(args.model) else torch.randint(0, 2, (args.batch,), generator=generator)
        inputs = {"input_ids": ids, "labels": labels}
        start = time.perf_counter()
        step(args, run, trained, optimizer, inputs)
        if i >= args.warmup:
            seconds.append(time.perf_counter() - start)
    middle = sorted(seconds)[len(seconds) // 2]
    return {"seconds_per_step": middle, "tokens_per_second": args.batch * args.length / middle}


def read(path):
    """Rows of a JSON Lines file, or of the same name packed."""
    opened = open(path, encoding="utf-8") if os.path.exists(path) else gzip.open(path + ".gz", "rt", encoding="utf-8")
    with opened as f:
        return [json.loads(line) for line in f]


def encode(tokenizer, rows, max_length):
    """Unpadded encodings, with token types where the model has them, and labels."""
    second = [r["sentence2"] for r in rows] if "sentence2" in rows[0] else None
    found = tokenizer([r["sentence1"] for r in rows], second, truncation=True, max_length=max_length)
    names = [n for n in ("input_ids", "token_type_ids") if n in found]
    return [{n: found[n][i] for n in names} for i in range(len(rows))], [r["label"] for r in rows]


def grouped(lengths, batch, seed):
    """Batches of similar length in random order, as transformers' Trainer groups them: sorted within 50 batches."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    mega = 50 * batch
    batches = []
    for i in range(0, len(order), mega):
        part = sorted(order[i:i + mega], key=lambda j: lengths[j], reverse=True)
        batches += [part[k:k + batch] for k in range(0, len(part), batch)]
    random.Random(seed + 1).shuffle(batches)
    return batches


def epoch(args):
    """Epochs of training, an evaluation on dev after each, and the adapter saved: the whole job that lora-drop does."""
    model, trained, optimizer = load(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts, labels = encode(tokenizer, read(os.path.join(args.data, "train.jsonl")), args.max_length)
    dev_texts, dev_labels = encode(tokenizer, read(os.path.join(args.data, "dev.jsonl")), args.max_length)

    def inputs_of(all_texts, chosen):
        return dict(tokenizer.pad([all_texts[j] for j in chosen], padding="longest", return_tensors="pt"))

    lengths = [len(t["input_ids"]) for t in texts]
    epochs = [grouped(lengths, args.batch, seed=2 * i) for i in range(args.epochs)]
    total = sum(len(batches) for batches in epochs)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP_RATIO * total), total)
    order = sorted(range(len(dev_texts)), key=lambda j: len(dev_texts[j]["input_ids"]))
    ready = time.perf_counter()
    seconds = 0.0
    for batches in epochs:
        start = time.perf_counter()
        model.train()
        for chosen in batches:
            targets = torch.tensor([labels[j] for j in chosen])
            step(args, model, trained, optimizer, {**inputs_of(texts, chosen), "labels": targets})
            schedule.step()
        seconds += time.perf_counter() - start
        model.eval()
        right = 0
        with torch.inference_mode(), autocast(args):
            for i in range(0, len(order), args.batch):
                chosen = order[i:i + args.batch]
                predicted = model(**inputs_of(dev_texts, chosen)).logits.argmax(1).tolist()
                right += sum(p == dev_labels[j] for p, j in zip(predicted, chosen))
    model.save_pretrained(args.output)
    tokens = args.epochs * sum(lengths)
    return {"train_tokens": tokens, "tokens_per_second": tokens / seconds, "train_seconds": seconds,
            "start_seconds": ready - STARTED, "accuracy": right / len(dev_labels)}


def read_texts(tokenizer, path, limit, max_length):
    """Token ids of prompt, completion and end, and how many of them are the prompt's."""
    rows = []
    for row in read(path)[:limit]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        rest = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append(((prompt + rest)[:max_length], len(prompt)))
    return rows


def texts(args):
    """One epoch on rows of prompt and completion, loss on the completion, batches of similar length padded to their
    longest row, and the adapter saved."""
    model, trained, optimizer = load(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model, **gguf_of(args.model))
    rows = read_texts(tokenizer, os.path.join(args.data, "train.jsonl"), args.rows, args.max_length)
    lengths = [len(ids) for ids, _ in rows]
    batches = grouped(lengths, args.batch, seed=0)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP_RATIO * len(batches)), len(batches))
    ready = time.perf_counter()
    for chosen in batches:
        longest = max(lengths[j] for j in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, j in enumerate(chosen):
            (row, prompt), n = rows[j], lengths[j]
            ids[i, :n], mask[i, :n] = torch.tensor(row), 1
            labels[i, prompt:n] = ids[i, prompt:n]
        step(args, model, trained, optimizer, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        schedule.step()
    trained_at = time.perf_counter()
    model.save_pretrained(args.output)
    tokens = sum(lengths)
    return {"train_tokens": tokens, "tokens_per_second": tokens / (trained_at - ready),
            "train_seconds": trained_at - ready, "start_seconds": ready - STARTED}


def generate(args):
    """Greedy tokens per second, prompts and all, of the same random prompts in one batch, behind one unmeasured call."""
    model = load_base(args.model, WEIGHTS[args.weights]).eval()
    ids = torch.randint(1000, model.config.vocab_size, (args.batch, args.length),
                        generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False,
                "attention_mask": torch.ones_like(ids)}
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + args.times):
            start = time.perf_counter()
            model.generate(ids, **settings)
            seconds.append(time.perf_counter() - start)
    middle = sorted(seconds[1:])[args.times // 2]
    return {"tokens_per_second": args.batch * args.new / middle}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: autocast, of all but generate")
    parser.add_argument("--weights", choices=list(WEIGHTS), default="f32", help="type of the frozen weights")
    modes = parser.add_subparsers(dest="mode", required=True)
    fixed = modes.add_parser("steps")
    fixed.add_argument("--length", type=int, required=True)
    fixed.add_argument("--steps", type=int, required=True)
    fixed.add_argument("--warmup", type=int, default=2)
    fixed.add_argument("--compile", action="store_true")
    whole = modes.add_parser("epoch")
    whole.add_argument("--data", required=True)
    whole.add_argument("--epochs", type=int, default=1)
    whole.add_argument("--output", required=True)
    whole.add_argument("--max-length", type=int, default=256)
    rows = modes.add_parser("texts")
    rows.add_argument("--data", required=True)
    rows.add_argument("--rows", type=int, required=True)
    rows.add_argument("--output", required=True)
    rows.add_argument("--max-length", type=int, default=256)
    written = modes.add_parser("generate")
    written.add_argument("--length", type=int, required=True)
    written.add_argument("--new", type=int, required=True)
    written.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    out = {"steps": steps, "epoch": epoch, "texts": texts, "generate": generate}[args.mode](args)
    # Linux counts it in KiB, macOS in bytes.
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    out["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(out))


if __name__ == "__main__":
    main()
