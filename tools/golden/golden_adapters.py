#!/usr/bin/env python3
"""Writes the golden numbers of adapters with shared halves and vectors of their own, for the tiny BERT and Llama of make_golden.py
and golden_decoders.py: Tied-LoRA and ShareLoRA in PyTorch, VeRA and AdaLoRA under PEFT, and steps of AdaLoRA through the fall of
its budget. README.md beside this file has the layout.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import AdaLoraConfig, VeraConfig, get_peft_model
from transformers.utils.logging import disable_progress_bar

from make_golden import ALPHA, RANK, to_file
from tiny import ROOT, Tiny

SCALE = ALPHA / RANK
# AdaLoRA's course: the first mask behind step 3, the last behind step 9.
STEPS, TINIT, TFINAL, EVERY, FIRST, TARGET = 12, 2, 3, 1, 3, 2


class Scaled(torch.nn.Module):
    """y = base(x) + s · v ⊙ (B (u ⊙ A x))"""

    def __init__(self, base, a, b, u, v):
        super().__init__()
        self.base, self.halves, self.vectors = base, [a, b], [u, v]

    def forward(self, x):
        (a, b), (u, v) = self.halves, self.vectors
        return self.base(x) + SCALE * v * F.linear(u * F.linear(x, a), b)


def leaf(tensor):
    return tensor.double().clone().requires_grad_()


def vectors(tiny, generator):
    """u (rank) and v (out) of every module."""
    found = {}
    for key in tiny.keys:
        out = tiny.pair(*key)[1].shape[0]
        around = [1.0 + 0.3 * torch.randn(size, generator=generator) for size in (RANK, out)]
        found[key] = [x.float() for x in around]
    return found


def pytorch_case(tiny, shared_b, of):
    """Layer 0's A of each kind in every layer; with `shared_b` its B as well, and vectors `of` each module."""
    model = tiny.load()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("classifier."):
            parameter.requires_grad_(True)
    common = {kind: [leaf(x) for x in tiny.pair(0, kind)] for kind in tiny.kinds}
    own, used = {}, {}
    for key in tiny.keys:
        path, (a, b) = tiny.path(*key), common[key[1]]
        if not shared_b:
            b = own[key] = leaf(tiny.pair(*key)[1])
        base = model.get_submodule(path)
        used[key] = [leaf(x) for x in of[key]] if shared_b else [torch.ones(n).double() for n in (RANK, b.shape[0])]
        model.set_submodule(path, Scaled(base, a, b, *used[key]))
    out = tiny.outputs(model)
    for kind in tiny.kinds:
        out[f"grad.shared.{kind}.lora_A"] = common[kind][0].grad
        if shared_b:
            out[f"grad.shared.{kind}.lora_B"] = common[kind][1].grad
    for layer, kind in tiny.keys:
        if shared_b:
            out[f"grad.layers.{layer}.{kind}.inner"], out[f"grad.layers.{layer}.{kind}.outer"] = \
                (x.grad for x in used[layer, kind])
        else:
            out[f"grad.layers.{layer}.{kind}.lora_B"] = own[layer, kind].grad
    return out | tiny.head(model)


def vera_case(tiny, of):
    """Under PEFT, with the vectors of each module and PEFT's own projections."""
    config = VeraConfig(r=RANK, projection_prng_key=7, target_modules=tiny.names(tiny.keys), **tiny.peft_options())
    model = get_peft_model(tiny.load(), config)
    projections = {half: getattr(model.base_model, f"vera_{half}")["default"].clone() for half in "AB"}
    model = model.double().eval()
    found = {key: model.base_model.model.get_submodule(tiny.path(*key)) for key in tiny.keys}
    for key, module in found.items():
        with torch.no_grad():
            module.vera_lambda_d["default"].copy_(of[key][0])
            module.vera_lambda_b["default"].copy_(of[key][1])
    out = tiny.outputs(model)
    for (layer, kind), module in found.items():
        out[f"grad.layers.{layer}.{kind}.inner"] = module.vera_lambda_d["default"].grad
        out[f"grad.layers.{layer}.{kind}.outer"] = module.vera_lambda_b["default"].grad
    return out | {f"vera_{half}": tensor for half, tensor in projections.items()} | tiny.head(model)


def with_adalora(tiny, keys, of, rank):
    """The first `rank` triplets of the pairs, with E from `of`."""
    config = AdaLoraConfig(init_r=rank, target_r=TARGET, tinit=TINIT, tfinal=TFINAL, deltaT=EVERY, total_step=STEPS,
                           lora_alpha=ALPHA, lora_dropout=0.0, target_modules=tiny.names(keys), **tiny.peft_options())
    model = get_peft_model(tiny.load(), config).double().eval()
    found = {}
    for key in keys:
        module = found[key] = model.base_model.model.get_submodule(tiny.path(*key))
        a, b = tiny.pair(*key)
        with torch.no_grad():
            module.lora_A["default"].copy_(a[:rank])
            module.lora_B["default"].copy_(b[:, :rank])
            module.lora_E["default"].copy_(of[key][0][:rank].view(-1, 1))
    return model, found


def adalora_case(tiny, of):
    model, found = with_adalora(tiny, tiny.keys, of, RANK)
    out = tiny.outputs(model)
    for (layer, kind), module in found.items():
        for name, half in (("lora_A", module.lora_A), ("lora_B", module.lora_B), ("inner", module.lora_E)):
            gradient = half["default"].grad
            out[f"grad.layers.{layer}.{kind}.{name}"] = gradient.view(-1) if name == "inner" else gradient
    return out | tiny.head(model)


def adalora_steps(tiny, of):
    """Optimiser steps on the whole batch, query and value adapted, E from `of`: rate 2e-3, decay 0.1 but on the bias, gradients
    clipped to 1."""
    keys = [key for key in tiny.keys if key[1] in ("query", "value")]
    model, found = with_adalora(tiny, keys, of, FIRST)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = [p for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    decayed = [p for p in trained if all(p is not other for other in plain)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    norms, out = [], {}
    for step in range(1, STEPS + 1):
        # The regularisation is in each sequence's loss, so it is in their mean once.
        total = 0.0
        for number, (a, b) in enumerate(zip(tiny.inputs["offsets"], tiny.inputs["offsets"][1:])):
            ids, types = (tiny.inputs[name][None, a:b] for name in ("ids", "types"))
            total = total + model(input_ids=ids, token_type_ids=types, labels=tiny.labels[number:number + 1]).loss
        loss = total / len(tiny.labels)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0))
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        for (layer, kind), module in found.items():
            out[f"steps.{step}.layers.{layer}.{kind}.inner"] = module.lora_E["default"].view(-1).clone()
    out["steps.grad_norms"] = torch.stack(norms)
    for (layer, kind), module in found.items():
        out[f"steps.final.layers.{layer}.{kind}.lora_A"] = module.lora_A["default"]
        out[f"steps.final.layers.{layer}.{kind}.lora_B"] = module.lora_B["default"]
    kept = [int((out[f"steps.{s}.layers.{i}.{k}.inner"] != 0).sum()) for s in range(1, STEPS + 1) for i, k in keys]
    print("  kept of AdaLoRA:", [sum(kept[i:i + len(keys)]) for i in range(0, len(kept), len(keys))])
    return out


def make(name, root, seed):
    tiny = Tiny(name)
    generator = torch.Generator().manual_seed(seed)
    of, out, found = vectors(tiny, generator), {}, {}
    for (layer, kind), (inner, outer) in of.items():
        out[f"vectors.layers.{layer}.{kind}.inner"], out[f"vectors.layers.{layer}.{kind}.outer"] = inner, outer
    cases = {"tied": pytorch_case(tiny, True, of), "share": pytorch_case(tiny, False, of), "vera": vera_case(tiny, of),
             "adalora": adalora_case(tiny, of)}
    for case, tensors in cases.items():
        found[case] = tensors["loss"].item()
        out |= {f"{case}.{key}": tensor for key, tensor in tensors.items()}
    if tiny.arch:
        # Of either sign, and near nothing, where all begin in a run.
        start = {key: [of[key][0] - of[key][0].mean()] for key in tiny.keys}
        out |= {f"adalora.{key}": tensor for key, tensor in adalora_steps(tiny, start).items()}
        out |= {f"adalora.start.layers.{i}.{kind}.inner": start[i, kind][0] for i, kind in tiny.keys
                if kind in ("query", "value")}
    (root / name).mkdir(parents=True, exist_ok=True)
    to_file(out, root / name / "adapters.safetensors")
    print(f"{name}: losses {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT)
    root = parser.parse_args().output
    disable_progress_bar()
    torch.set_num_threads(1)
    for seed, name in enumerate(["bert", "llama"], start=31):
        make(name, root, seed)


if __name__ == "__main__":
    main()
