#!/usr/bin/env python3
"""Writes the golden numbers of decoders with a head: what transformers and PEFT compute for sequence classification and
regression with the models, inputs and pairs that golden_decoders.py wrote. README.md beside this file has the layout.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from golden_decoders import HIDDEN, KINDS, LAYERS, LENGTHS, MODULES
from make_golden import ALPHA, RANK, ten_steps, to_file

MODELS = ["llama", "qwen2", "gemma3"]
FULL = "qwen2"  # the smallest
CLASSES = 3


def base_of(folder, score):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(score),
                                                              attn_implementation="eager", dtype=torch.float32)


def model_of(folder, golden, kinds, score):
    """PEFT's model in float64, and its trained tensors by our names."""
    names = "|".join(MODULES[k].replace(".", r"\.") for k in kinds)
    config = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                        target_modules=rf".*layers\.\d+\.({names})")
    model = get_peft_model(base_of(folder, score), config).double().eval()
    inner = model.base_model.model
    named = {"score.weight": inner.score.modules_to_save["default"].weight}
    for layer in range(LAYERS):
        for kind in kinds:
            module = inner.get_submodule(f"model.layers.{layer}.{MODULES[kind]}")
            for half in ("lora_A", "lora_B"):
                named[f"layers.{layer}.{kind}.{half}"] = getattr(module, half)["default"].weight
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(score if name == "score.weight" else golden[f"lora.{name}"])
    assert {id(p) for p in named.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    return model, named


def run(model, golden):
    """Logits (texts, outputs), one text at a time."""
    ids, offsets = golden["input.ids"].long(), golden["input.offsets"].tolist()
    return torch.cat([model(input_ids=ids[None, a:b], use_cache=False).logits for a, b in zip(offsets, offsets[1:])])


def loss_of(logits, truth):
    if truth.dtype == torch.int32:
        return F.cross_entropy(logits, truth.long())
    return F.mse_loss(logits[:, 0], truth.double())


def case(folder, golden, kinds, score, truth):
    model, named = model_of(folder, golden, kinds, score)
    logits = run(model, golden)
    loss = loss_of(logits, truth)
    loss.backward()
    return {"logits": logits, "loss": loss.view(1)} | {f"grad.{name}": p.grad for name, p in named.items()}


def full_case(folder, golden, score, truth):
    """Every weight trains, no LoRA."""
    model = base_of(folder, score).double().eval()
    with torch.no_grad():
        model.score.weight.copy_(score)
    logits = run(model, golden)
    loss = loss_of(logits, truth)
    loss.backward()
    return {"logits": logits, "loss": loss.view(1)} | {f"grad.{n}": p.grad for n, p in model.named_parameters()}


def lora_steps(folder, golden, kinds, score, truth):
    model, named = model_of(folder, golden, kinds, score)
    return ten_steps(lambda: loss_of(run(model, golden), truth), named,
                     lambda n: n.startswith(("score", "layers.1.query")))


def make(name, seed, root):
    generator = torch.Generator().manual_seed(seed)
    folder = root / name
    golden = load_file(folder / "golden.safetensors")
    inputs = {
        "classification": (KINDS, 0.25 * torch.randn(CLASSES, HIDDEN, generator=generator),
                           torch.randint(CLASSES, (len(LENGTHS),), generator=generator).int()),
        "regression": (["query", "value"], 0.25 * torch.randn(1, HIDDEN, generator=generator),
                       2 * torch.randn(len(LENGTHS), generator=generator)),
    }
    out = {}
    for task, (kinds, score, truth) in inputs.items():
        found = case(folder, golden, kinds, score, truth)
        steps = lora_steps(folder, golden, kinds, score, truth)
        out |= {f"{task}.score": score, f"{task}.truth": truth} | {f"{task}.{n}": t for n, t in found.items()}
        out |= {f"{task}.steps.{n}": t for n, t in steps.items()}
        print(f"{name} {task}: loss {found['loss'].item():.6f}, ten steps -> {steps['losses'][-1].item():.6f}")
    to_file(out, folder / "classifier.safetensors")
    if name == FULL:
        _, score, truth = inputs["classification"]
        full = full_case(folder, golden, score, truth)
        to_file({f"full.{n}": t for n, t in full.items()}, folder / "classifier_full.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    root = parser.parse_args().output
    disable_progress_bar()
    set_verbosity_error()
    torch.set_num_threads(1)
    for seed, name in enumerate(MODELS, start=31):
        make(name, seed, root)


if __name__ == "__main__":
    main()
