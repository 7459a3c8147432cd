#!/usr/bin/env python3
"""Writes the golden numbers of heads for tokens and for several classes a row, and of weighted classes: what
transformers and PEFT compute with the models, inputs and pairs that make_golden.py and golden_decoders.py wrote.
README.md beside this file has the layout.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from golden_decoders import MODULES
from make_golden import ALPHA, ARCHITECTURES, LAYERS, RANK, to_file

KINDS = ["query", "value"]
PATHS = {arch.name: {kind: arch.path("{}", kind) for kind in KINDS} for arch in ARCHITECTURES}
PATHS["llama"] = {kind: f"model.layers.{{}}.{MODULES[kind]}" for kind in KINDS}
HEADS = ("classifier", "score")
TASKS = {"multi_label": ("SEQ_CLS", AutoModelForSequenceClassification, 4),
         "token": ("TOKEN_CLS", AutoModelForTokenClassification, 5)}


def model_of(folder, golden, task, generator):
    """PEFT's model in float64 with a new head, and its trained tensors by our names."""
    kind_of_task, cls, outputs = TASKS[task]
    base = cls.from_pretrained(folder, num_labels=outputs, attn_implementation="eager", dtype=torch.float32,
                               ignore_mismatched_sizes=True)
    paths = PATHS[folder.name]
    targets = "|".join(path.replace(".", r"\.").format(r"\d+") for path in paths.values())
    model = get_peft_model(base, LoraConfig(task_type=kind_of_task, r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                                            target_modules=targets)).double().eval()
    inner = model.base_model.model
    marker = ".modules_to_save.default."
    named = {n.replace("base_model.model.", "").replace(marker, "."): p
             for n, p in model.named_parameters() if marker in n}
    assert all(name.startswith(HEADS) for name in named)
    with torch.no_grad():
        for p in named.values():
            p.copy_(0.25 * torch.randn(p.shape, generator=generator))
        for layer in range(LAYERS):
            for kind, path in paths.items():
                module = inner.get_submodule(path.format(layer))
                for half in ("lora_A", "lora_B"):
                    name = f"layers.{layer}.{kind}.{half}"
                    named[name] = getattr(module, half)["default"].weight
                    named[name].copy_(golden[f"lora.{name}"])
    assert {id(p) for p in named.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    return model, named


def run(model, golden):
    """Logits, one sequence at a time."""
    ids, offsets = golden["input.ids"].long(), golden["input.offsets"].tolist()
    types = golden.get("input.token_types")
    rows = []
    for start, end in zip(offsets, offsets[1:]):
        arguments = {"input_ids": ids[None, start:end]}
        if types is not None and types.any():
            arguments["token_type_ids"] = types.long()[None, start:end]
        logits = model(**arguments).logits
        rows.append(logits[0] if logits.dim() == 3 else logits)
    return torch.cat(rows)


def case(model, named, golden, loss_of):
    for p in named.values():
        p.grad = None
    logits = run(model, golden)
    loss = loss_of(logits)
    loss.backward()
    return {"loss": loss.view(1)} | {f"grad.{name}": p.grad.clone() for name, p in named.items()}


def make(name, seed, root):
    generator = torch.Generator().manual_seed(seed)
    folder = root / name
    golden = load_file(folder / "golden.safetensors")
    sequences, tokens = len(golden["input.offsets"]) - 1, len(golden["input.ids"])
    out = {}
    for task, (_, _, outputs) in TASKS.items():
        model, named = model_of(folder, golden, task, generator)
        weights = 0.25 + torch.rand(outputs, generator=generator)
        with torch.no_grad():
            logits = run(model, golden)
        if task == "token":
            truth = torch.randint(outputs, (tokens,), generator=generator)
            # About half of the tokens have no label.
            truth[torch.rand(tokens, generator=generator) < 0.5] = -100
            logits = logits[truth != -100]
            losses = {
                "plain": lambda x: F.cross_entropy(x, truth),
                "weighted": lambda x: F.cross_entropy(x, truth, weights.double(), label_smoothing=0.1),
            }
        else:
            truth = torch.randint(2, (sequences, outputs), generator=generator)
            losses = {
                "plain": lambda x: F.binary_cross_entropy_with_logits(x, truth.double()),
                "weighted": lambda x: F.binary_cross_entropy_with_logits(x, truth.double(),
                                                                         pos_weight=weights.double()),
            }
        out |= {f"{task}.truth": truth.int(), f"{task}.weights": weights, f"{task}.logits": logits}
        out |= {f"{task}.head.{n}": p for n, p in named.items() if n.startswith(HEADS)}
        for loss, loss_of in losses.items():
            found = case(model, named, golden, loss_of)
            out |= {f"{task}.{loss}.{n}": t for n, t in found.items()}
            print(f"{name} {task}, {loss}: loss {found['loss'].item():.6f}")
    to_file(out, folder / "heads.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    root = parser.parse_args().output
    disable_progress_bar()
    set_verbosity_error()
    torch.set_num_threads(1)
    for seed, name in enumerate(["bert", "roberta", "mpnet", "llama"], start=61):
        make(name, seed, root)


if __name__ == "__main__":
    main()
