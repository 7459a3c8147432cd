#!/usr/bin/env python3
"""Writes the golden numbers of the decoders: tiny random Llama, Mistral, Qwen2, Qwen3 and Gemma 3 models, and what
PyTorch, transformers and PEFT compute with them. README.md beside this file has the layout.

As in make_golden.py everything is computed in float64 from values that are exact in float32, text by text without
padding, with eager attention, and stored as float32.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)
from transformers.utils.logging import disable_progress_bar

from make_golden import ALPHA, RANK, ten_steps, to_file

LAYERS, VOCAB, HIDDEN, INNER, HEADS, KV_HEADS = 3, 96, 32, 48, 4, 2
LENGTHS = [3, 12, 30, 7, 2, 19]
PROMPTS = [4, 9]
MODULES = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
           "attention_output": "self_attn.o_proj", "gate": "mlp.gate_proj", "intermediate": "mlp.up_proj",
           "output": "mlp.down_proj"}
KINDS = list(MODULES)
COMMON = dict(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
              num_key_value_heads=KV_HEADS, intermediate_size=INNER, max_position_embeddings=64,
              bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3,
                                            tie_word_embeddings=False, **COMMON)),
    "mistral": (MistralForCausalLM, MistralConfig(sliding_window=5, tie_word_embeddings=False, **COMMON)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(tie_word_embeddings=True, **COMMON)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(head_dim=16, tie_word_embeddings=True, rope_parameters={
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}, **COMMON)),
    # Sliding, global, sliding; heads are wider than hidden size / heads, and scores are not scaled by their width.
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(head_dim=16, query_pre_attn_scalar=24, sliding_window=5,
                                                   sliding_window_pattern=2,
                                                   rope_scaling={"rope_type": "linear", "factor": 4.0}, **COMMON)),
}
FULL_STEPS = "qwen2"  # biases, norms and embeddings that are the output layer too, so every rule of weight decay


def randomise(model, generator):
    # Gemma's norms add 1 to their weights, and its embeddings are multiplied by √hidden: larger ones would drown the blocks.
    gemma = model.config.model_type == "gemma3_text"
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            spread = 0.3 if "bias" in name else 0.05 if gemma and "embed" in name else 0.25
            p.copy_((not gemma) + 0.2 * draw if "norm" in name else spread * draw)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).double().eval()


def with_lora(folder, pairs, kinds):
    names = "|".join(MODULES[k].replace(".", r"\.") for k in kinds)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                        target_modules=rf".*layers\.\d+\.({names})")
    model = get_peft_model(load(folder), config).double().eval()
    found = {}
    for layer in range(LAYERS):
        for kind in kinds:
            module = model.base_model.model.get_submodule(f"model.layers.{layer}.{MODULES[kind]}")
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(pairs[layer, kind][0])
                module.lora_B["default"].weight.copy_(pairs[layer, kind][1])
            found[layer, kind] = module
    return model, found


def run(model, inputs):
    """Logits (tokens, vocabulary) of the texts, one at a time."""
    ends = zip(inputs["offsets"], inputs["offsets"][1:])
    return torch.cat([model(input_ids=inputs["ids"][None, a:b], use_cache=False).logits[0] for a, b in ends])


def losses(logits, inputs):
    """Cross-entropy of each learned token from the row before it."""
    rows = [i for a, b in zip(inputs["offsets"], inputs["offsets"][1:]) for i in range(a + 1, b) if inputs["learn"][i]]
    rows = torch.tensor(rows)
    return F.cross_entropy(logits[rows - 1], inputs["ids"][rows], reduction="none")


def lora_case(folder, inputs, pairs, kinds):
    model, modules = with_lora(folder, pairs, kinds)
    scores = torch.zeros(LAYERS, len(KINDS), dtype=torch.float64)

    def collect(layer, kind, scale):
        def hook(_module, _inputs, output):
            scores[layer, KINDS.index(kind)] += (scale * output.detach()).square().sum()
        return hook

    for (layer, kind), m in modules.items():
        m.lora_B["default"].register_forward_hook(collect(layer, kind, m.scaling["default"]))
    logits = run(model, inputs)
    each = losses(logits, inputs)
    each.mean().backward()
    out = {"logits": logits, "losses": each, "loss": each.mean().view(1), "scores": scores}
    for (layer, kind), m in modules.items():
        out[f"grad.layers.{layer}.{kind}.lora_A"] = m.lora_A["default"].weight.grad
        out[f"grad.layers.{layer}.{kind}.lora_B"] = m.lora_B["default"].weight.grad
    return out


def shared_case(folder, inputs, pairs, kinds):
    shared = {(layer, kind): pairs[0, kind] for layer in range(LAYERS) for kind in kinds}
    out = lora_case(folder, inputs, shared, kinds)
    for kind in kinds:
        for part in ("lora_A", "lora_B"):
            out[f"grad.shared.{kind}.{part}"] = sum(out.pop(f"grad.layers.{i}.{kind}.{part}") for i in range(LAYERS))
    return out


def lora_steps(folder, inputs, pairs):
    model, modules = with_lora(folder, pairs, KINDS)
    named = {}
    for (layer, kind), m in modules.items():
        named[f"layers.{layer}.{kind}.lora_A"] = m.lora_A["default"].weight
        named[f"layers.{layer}.{kind}.lora_B"] = m.lora_B["default"].weight
    return ten_steps(lambda: losses(run(model, inputs), inputs).mean(), named,
                     lambda n: n.startswith(("layers.1.query", "layers.2.output")))


def full_case(folder, inputs):
    """Every weight trains, no LoRA; tied embeddings are one weight, whose gradient is the sum of both uses."""
    model = load(folder)
    loss = losses(run(model, inputs), inputs).mean()
    loss.backward()
    return {"loss": loss.view(1)} | {f"grad.{n}": p.grad for n, p in model.named_parameters()}


def full_steps(folder, inputs):
    model = load(folder)
    kept = ["layers.1.self_attn.k_proj", "layers.2.input_layernorm", "model.norm"]
    return ten_steps(lambda: losses(run(model, inputs), inputs).mean(), dict(model.named_parameters()),
                     lambda n: any(k in n for k in kept))


def generation_case(folder, pairs, generator):
    """New tokens by transformers' generate for two prompts, greedy and by beams; with eos and without."""
    model, _ = with_lora(folder, pairs, KINDS)
    out = {}
    for i, length in enumerate(PROMPTS):
        prompt = torch.randint(3, VOCAB, (1, length), generator=generator)
        out[f"prompt{i}"] = prompt[0].int()
        settings = {"greedy": {}, "penalty": {"repetition_penalty": 1.3},
                    "beam": {"num_beams": 4, "length_penalty": 0.8},
                    "beam_early": {"num_beams": 3, "length_penalty": 1.5, "early_stopping": True}}
        for name, options in settings.items():
            new = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                 max_new_tokens=16, **options)
            out[f"{name}{i}"] = new[0, length:].int()
    return out


def make(name, seed, root):
    generator = torch.Generator().manual_seed(seed)
    cls, config = MODELS[name]
    folder = root / name
    model = cls(config)
    randomise(model, generator)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)

    offsets = [0]
    for n in LENGTHS:
        offsets.append(offsets[-1] + n)
    ids = torch.randint(3, VOCAB, (offsets[-1],), generator=generator)
    learn = torch.rand(offsets[-1], generator=generator) < 0.6
    learn[offsets[3]:offsets[4]] = False  # a text of which nothing is learned
    learn[torch.tensor(offsets[:-1])] = False
    inputs = {"ids": ids, "offsets": offsets, "learn": learn}

    pairs = {}
    for layer in range(LAYERS):
        for kind in KINDS:
            linear = model.get_submodule(f"model.layers.{layer}.{MODULES[kind]}")
            a = torch.empty(RANK, linear.in_features)
            torch.nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
            pairs[layer, kind] = (a, 0.3 * torch.randn(linear.out_features, RANK, generator=generator))
    out = {"input.ids": ids.int(), "input.offsets": torch.tensor(offsets, dtype=torch.int32),
           "input.learn": learn.int()}
    for (layer, kind), (a, b) in pairs.items():
        out[f"lora.layers.{layer}.{kind}.lora_A"] = a
        out[f"lora.layers.{layer}.{kind}.lora_B"] = b
    base = run(load(folder), inputs)
    cases = {
        "base": {"logits": base, "losses": losses(base, inputs)},
        "lora_all": lora_case(folder, inputs, pairs, KINDS),
        "lora_qv": lora_case(folder, inputs, pairs, ["query", "value"]),
        "lora_shared": shared_case(folder, inputs, pairs, ["query", "value"]),
        "steps_lora": lora_steps(folder, inputs, pairs),
        "generate": generation_case(folder, pairs, generator),
    }
    for case, tensors in cases.items():
        out |= {f"{case}.{key}": t for key, t in tensors.items() if case != "lora_qv" or key != "logits"}
    to_file(out, folder / "golden.safetensors")
    full = {f"full.{key}": t for key, t in full_case(folder, inputs).items()}
    if name == FULL_STEPS:
        full |= {f"steps_full.{key}": t for key, t in full_steps(folder, inputs).items()}
    to_file(full, folder / "full.safetensors")
    print(f"{name}: loss {out['base.losses'].mean().item():.6f}, with LoRA {out['lora_all.loss'].item():.6f}, ten steps "
          f"{out['steps_lora.losses'][0]:.4f} -> {out['steps_lora.losses'][-1]:.4f}, "
          f"greedy {out['generate.greedy0'].tolist()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    root = parser.parse_args().output
    disable_progress_bar()
    torch.set_num_threads(1)
    for seed, name in enumerate(MODELS, start=11):
        make(name, seed, root)


if __name__ == "__main__":
    main()
