#!/usr/bin/env python3
"""Writes tests/golden/peft_files/CASE: adapters of the tiny decoders as PEFT saves them, and the losses of the golden inputs
under PEFT (losses.safetensors). README.md beside this file has the cases.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers.utils.logging import disable_progress_bar

import golden_decoders as decoders
from make_golden import to_file
from tiny import ROOT, Tiny

# By model, what is targeted, whether embeddings are saved as well, and other options.
CASES = {
    # PEFT saves the base of a targeted output layer unasked.
    "llama_output": ("llama", ["q_proj", "lm_head"], "auto", {}),
    "qwen2_output": ("qwen2", ["q_proj", "lm_head"], "auto", {}),
    "llama_output_dora": ("llama", ["v_proj", "lm_head"], "auto", {"use_dora": True}),
    "llama_saved": ("llama", ["q_proj"], True, {}),
    "qwen2_saved": ("qwen2", ["q_proj"], True, {}),
    # Regular expressions that only Python and engines with look-around read.
    "llama_patterns": ("llama", ["q_proj", "v_proj"], "auto", {
        "rank_pattern": {r"layers\.(?!1\b)\d+\.self_attn\.q_proj": 3, r"(?P<kind>v)_proj": 2},
        "alpha_pattern": {r"(?<=self_attn\.)q_proj": 12}}),
}


def make(name, root, seed):
    model_name, targets, saved, options = CASES[name]
    tiny = Tiny(model_name)
    generator = torch.Generator().manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, **options)
    model = get_peft_model(tiny.load(), config).eval()
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n):
            parameter.copy_((0.2 * torch.randn(parameter.shape, generator=generator)).float())
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    model.float().save_pretrained(folder, save_embedding_layers=saved)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    found = json.loads(path.read_text()) | {"base_model_name_or_path": model_name}
    found["target_modules"] = sorted(found["target_modules"])
    path.write_text(json.dumps({key: found[key] for key in sorted(found)}, indent=2) + "\n")
    losses = decoders.losses(decoders.run(model.double(), tiny.inputs), tiny.inputs)
    to_file({"losses": losses}, folder / "losses.safetensors")
    print(f"{name}: loss {losses.mean().item()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "peft_files")
    root = parser.parse_args().output
    shutil.rmtree(root, ignore_errors=True)
    disable_progress_bar()
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES, start=41):
        make(name, root, seed)


if __name__ == "__main__":
    main()
