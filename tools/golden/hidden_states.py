#!/usr/bin/env python3
"""Writes hidden_states.safetensors beside the golden models: what the embedding and each block give for the golden inputs, and
what two criteria make of it (docs/method.md). README.md beside this file has the layout."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

MODELS = ["bert", "mpnet", "llama", "gemma3"]


def states_of(folder, inputs):
    """The embedding's output and each block's, (tokens, hidden), one sequence at a time. Hooks, because a decoder's last
    `hidden_states` is behind the final norm."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).double().eval()
    blocks = model.encoder.layer if hasattr(model, "encoder") else model.layers
    seen = [[] for _ in range(len(blocks) + 1)]
    first = lambda output: output[0] if isinstance(output, tuple) else output
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda _m, _i, output, i=i: seen[i + 1].append(first(output).reshape(-1, output[0].shape[-1])))
    blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: seen[0].append((args[0] if args else kwargs["hidden_states"])[0]), with_kwargs=True)
    offsets = inputs["input.offsets"].tolist()
    for start, end in zip(offsets, offsets[1:]):
        arguments = {"input_ids": inputs["input.ids"][None, start:end].long()}
        if model.config.model_type == "bert":
            arguments["token_type_ids"] = inputs["input.token_types"][None, start:end].long()
        model(**arguments)
    return [torch.cat(rows) for rows in seen], offsets


def cka(x, y):
    """Linear CKA (Kornblith et al. 2019) by features: ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centred rows."""
    x, y = x - x.mean(0), y - y.mean(0)
    norm = lambda a, b: (a.T @ b).pow(2).sum()
    return norm(x, y) / (norm(x, x) * norm(y, y)).sqrt()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    root = parser.parse_args().output
    disable_progress_bar()
    torch.set_num_threads(1)
    for name in MODELS:
        folder = root / name
        with torch.no_grad():
            states, offsets = states_of(folder, load_file(folder / "golden.safetensors"))
            means = [torch.stack([h[a:b].mean(0) for a, b in zip(offsets, offsets[1:])]) for h in states]
            out = {f"states.{i}": h for i, h in enumerate(states)}
            out["activation"] = torch.stack([h.norm(dim=1).mean() for h in states[1:]])
            out["cka"] = torch.stack([1 - cka(x, y) for x, y in zip(means, means[1:])])
            out["offsets"] = torch.tensor(offsets, dtype=torch.int32)
        floats = {k: (v if v.dtype == torch.int32 else v.float()).contiguous() for k, v in out.items()}
        save_file(floats, folder / "hidden_states.safetensors", metadata={"format": "pt"})
        print(f"{name}: activation {out['activation'].tolist()}, 1 - CKA {out['cka'].tolist()}")


if __name__ == "__main__":
    main()
