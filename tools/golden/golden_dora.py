#!/usr/bin/env python3
"""Writes the golden numbers of DoRA: the tiny BERT and Llama of make_golden.py and golden_decoders.py with `use_dora` under
PEFT, on the same inputs and pairs, with magnitudes of its own. README.md beside this file has the layout.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

import golden_decoders as decoders
import make_golden as encoders
from make_golden import ALPHA, RANK, to_file

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"


def with_dora(model, paths, pairs, magnitudes, **options):
    """The model under PEFT, with `pairs[key]` = (A, B) and `magnitudes[key]` on the module `paths[key]`."""
    names = "|".join(path.replace(".", r"\.") for path in paths.values())
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, use_dora=True, target_modules=f"({names})", **options)
    model = get_peft_model(model, config).double().eval()
    found = {}
    for key, path in paths.items():
        module = model.base_model.model.get_submodule(path)
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(pairs[key][0])
            module.lora_B["default"].weight.copy_(pairs[key][1])
            module.lora_magnitude_vector["default"].weight.copy_(magnitudes[key])
        found[key] = module
    return model, found


def gradients(modules, kinds, shared):
    """Of A, B and m by module; with `shared` those of A and B are the sum over a kind's layers."""
    out = {}
    for (layer, kind), module in modules.items():
        own = f"grad.layers.{layer}.{kind}"
        out[f"{own}.lora_A"] = module.lora_A["default"].weight.grad
        out[f"{own}.lora_B"] = module.lora_B["default"].weight.grad
        out[f"{own}.magnitude"] = module.lora_magnitude_vector["default"].weight.grad
    if shared:
        layers = sorted({layer for layer, _ in modules})
        for kind in kinds:
            for part in ("lora_A", "lora_B"):
                out[f"grad.shared.{kind}.{part}"] = sum(out.pop(f"grad.layers.{i}.{kind}.{part}") for i in layers)
    return out


def encoder_case(arch, folder, inputs, labels, pairs, magnitudes, paths, kinds, shared):
    model, modules = with_dora(encoders.load(arch, folder), paths, pairs, magnitudes, task_type="SEQ_CLS",
                               modules_to_save=["classifier"])
    logits = encoders.run(model, arch, inputs)
    out = {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, labels).view(1)}
    out["loss"].backward()
    out |= gradients(modules, kinds, shared)
    return out | {f"grad.{name}": p.grad for name, p in encoders.head_parameters(model).items()}


def decoder_case(folder, inputs, pairs, magnitudes, paths, kinds, shared):
    model, modules = with_dora(decoders.load(folder), paths, pairs, magnitudes, task_type="CAUSAL_LM")
    logits = decoders.run(model, inputs)
    out = {"losses": decoders.losses(logits, inputs)}
    out["loss"] = out["losses"].mean().view(1)
    out["loss"].backward()
    return out | gradients(modules, kinds, shared)


def make(name, root, seed):
    """Magnitudes for every module, and the cases `all` and `shared` (query and value with layer 0's pair in every layer)."""
    folder = ROOT / name
    golden = load_file(folder / "golden.safetensors")
    generator = torch.Generator().manual_seed(seed)
    inputs = {"ids": golden["input.ids"].long(), "offsets": golden["input.offsets"].tolist()}
    arch = next((arch for arch in encoders.ARCHITECTURES if arch.name == name), None)
    if arch:
        inputs["types"] = golden["input.token_types"].long()
        labels, kinds, layers = golden["input.labels"].long(), encoders.KINDS, encoders.LAYERS
        model, path = encoders.load(arch, folder), arch.path
    else:
        inputs["learn"] = golden["input.learn"].bool()
        kinds, layers, model = decoders.KINDS, decoders.LAYERS, decoders.load(folder)

        def path(layer, kind):
            return f"model.layers.{layer}.{decoders.MODULES[kind]}"
    out, cases = {}, {}
    paths = {(layer, kind): path(layer, kind) for layer in range(layers) for kind in kinds}
    pairs = {key: tuple(golden[f"lora.layers.{key[0]}.{key[1]}.lora_{half}"] for half in "AB") for key in paths}
    magnitudes = {}
    for key, module in paths.items():
        norms = model.get_submodule(module).weight.detach().float().norm(dim=1)
        magnitudes[key] = norms * (1.0 + 0.2 * torch.randn(norms.shape, generator=generator))
        out[f"magnitude.layers.{key[0]}.{key[1]}"] = magnitudes[key]
    for case in ("all", "shared"):
        used = kinds if case == "all" else ["query", "value"]
        chosen = {key: module for key, module in paths.items() if key[1] in used}
        of = {key: pairs[0, key[1]] if case == "shared" else pairs[key] for key in chosen}
        if arch:
            found = encoder_case(arch, folder, inputs, labels, of, magnitudes, chosen, used, case == "shared")
        else:
            found = decoder_case(folder, inputs, of, magnitudes, chosen, used, case == "shared")
        cases[case] = found["loss"].item()
        out |= {f"{case}.{key}": tensor for key, tensor in found.items()}
    (root / name).mkdir(parents=True, exist_ok=True)
    to_file(out, root / name / "dora.safetensors")
    print(f"{name}: losses {cases}")


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
