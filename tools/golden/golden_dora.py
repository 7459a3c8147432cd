#!/usr/bin/env python3
"""Writes the golden numbers of DoRA: the tiny BERT and Llama of make_golden.py and golden_decoders.py with `use_dora` under
PEFT, on the same inputs and pairs, with magnitudes of its own. README.md beside this file has the layout.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers.utils.logging import disable_progress_bar

from make_golden import ALPHA, RANK, to_file
from tiny import ROOT, Tiny


def with_dora(tiny, keys, pairs, magnitudes):
    """The model under PEFT, with `pairs[key]` = (A, B) and `magnitudes[key]` on each module of `keys`."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, use_dora=True, target_modules=tiny.names(keys),
                        **tiny.peft_options())
    model = get_peft_model(tiny.load(), config).double().eval()
    found = {}
    for key in keys:
        module = model.base_model.model.get_submodule(tiny.path(*key))
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(pairs[key][0])
            module.lora_B["default"].weight.copy_(pairs[key][1])
            module.lora_magnitude_vector["default"].weight.copy_(magnitudes[key])
        found[key] = module
    return model, found


def gradients(modules, shared):
    """Of A, B and m by module; with `shared` those of A and B are the sum over a kind's layers."""
    out = {}
    for (layer, kind), module in modules.items():
        own = f"grad.layers.{layer}.{kind}"
        out[f"{own}.lora_A"] = module.lora_A["default"].weight.grad
        out[f"{own}.lora_B"] = module.lora_B["default"].weight.grad
        out[f"{own}.magnitude"] = module.lora_magnitude_vector["default"].weight.grad
    if shared:
        layers, kinds = (sorted({key[i] for key in modules}) for i in (0, 1))
        for kind in kinds:
            for part in ("lora_A", "lora_B"):
                out[f"grad.shared.{kind}.{part}"] = sum(out.pop(f"grad.layers.{i}.{kind}.{part}") for i in layers)
    return out


def case(tiny, keys, pairs, magnitudes, shared):
    model, modules = with_dora(tiny, keys, pairs, magnitudes)
    out = tiny.outputs(model)
    return out | gradients(modules, shared) | tiny.head(model)


def make(name, root, seed):
    """Magnitudes for every module, and the cases `all` and `shared` (query and value with layer 0's pair in every layer)."""
    tiny = Tiny(name)
    model, generator = tiny.load(), torch.Generator().manual_seed(seed)
    out, magnitudes, losses = {}, {}, {}
    for layer, kind in tiny.keys:
        norms = model.get_submodule(tiny.path(layer, kind)).weight.detach().float().norm(dim=1)
        magnitudes[layer, kind] = norms * (1.0 + 0.2 * torch.randn(norms.shape, generator=generator))
        out[f"magnitude.layers.{layer}.{kind}"] = magnitudes[layer, kind]
    common = [key for key in tiny.keys if key[1] in ("query", "value")]
    cases = {"all": (tiny.keys, {key: tiny.pair(*key) for key in tiny.keys}),
             "shared": (common, {key: tiny.pair(0, key[1]) for key in common})}
    for which, (keys, pairs) in cases.items():
        found = case(tiny, keys, pairs, magnitudes, which == "shared")
        losses[which] = found["loss"].item()
        out |= {f"{which}.{key}": tensor for key, tensor in found.items()}
    (root / name).mkdir(parents=True, exist_ok=True)
    to_file(out, root / name / "dora.safetensors")
    print(f"{name}: losses {losses}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT)
    root = parser.parse_args().output
    disable_progress_bar()
    torch.set_num_threads(1)
    for seed, name in enumerate(["bert", "llama"], start=21):
        make(name, root, seed)


if __name__ == "__main__":
    main()
