#!/usr/bin/env python3
"""Writes the golden numbers of tests/golden: tiny random models, and what PyTorch + PEFT compute with them.

Everything is computed in float64 from values that are exact in float32, sequence by sequence without padding,
with eager attention and no dropout, and then stored as float32. README.md beside this file has the layout.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (BertConfig, BertForSequenceClassification, MPNetConfig, MPNetForSequenceClassification,
                          RobertaConfig, RobertaForSequenceClassification, get_linear_schedule_with_warmup)
from transformers.utils.logging import disable_progress_bar

from golden_ops import all_operations

LAYERS, CLASSES, VOCAB = 3, 3, 100
RANK, ALPHA = 4, 8
LENGTHS = [3, 12, 30, 7, 1, 19]
LABELS = [0, 2, 1, 1, 0, 2]
TARGETS = [0.5, -1.25, 3.0, 2.0, 0.0, 4.75]
KINDS = ["query", "key", "value", "attention_output", "intermediate", "output"]
COMMON = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
              intermediate_size=64, num_labels=CLASSES, attn_implementation="eager", hidden_act="gelu")
STEPS, WARMUP, LEARNING_RATE, WEIGHT_DECAY = 10, 2, 1e-3, 0.1


class Architecture:
    """One model class, with the names of the six linear layers of a block and of its head."""

    def __init__(self, name, cls, config, modules, frozen_head=()):
        self.name, self.cls, self.config, self.modules, self.frozen_head = name, cls, config, modules, frozen_head

    def path(self, layer, kind):
        return f"{self.name}.encoder.layer.{layer}.{self.modules[kind]}"


FEED_FORWARD = {"intermediate": "intermediate.dense", "output": "output.dense"}
SELF_ATTENTION = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
                  "attention_output": "attention.output.dense", **FEED_FORWARD}
MPNET_ATTENTION = {"query": "attention.attn.q", "key": "attention.attn.k", "value": "attention.attn.v",
                   "attention_output": "attention.attn.o", **FEED_FORWARD}
ARCHITECTURES = [
    Architecture("bert", BertForSequenceClassification,
                 BertConfig(max_position_embeddings=40, pad_token_id=0, **COMMON), SELF_ATTENTION),
    Architecture("roberta", RobertaForSequenceClassification,
                 RobertaConfig(max_position_embeddings=42, pad_token_id=1, type_vocab_size=1,
                               layer_norm_eps=1e-5, **COMMON), SELF_ATTENTION),
    Architecture("mpnet", MPNetForSequenceClassification,
                 MPNetConfig(max_position_embeddings=42, pad_token_id=1, layer_norm_eps=1e-5, **COMMON),
                 MPNET_ATTENTION),
]


def randomise(model, generator):
    """Weights large enough that every gradient is well away from zero; norms and biases random too."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            if "LayerNorm.weight" in name:
                p.copy_(1.0 + 0.2 * draw)
            else:
                p.copy_((0.3 if "bias" in name else 0.25) * draw)


def make_inputs(arch, generator):
    tokens = sum(LENGTHS)
    ids = torch.randint(5, VOCAB, (tokens,), generator=generator)
    types = torch.zeros(tokens, dtype=torch.long)
    offsets = [0]
    for n in LENGTHS:
        if arch.name == "bert":  # the second half is the second sentence
            types[offsets[-1] + (n + 1) // 2:offsets[-1] + n] = 1
        offsets.append(offsets[-1] + n)
    return {"ids": ids, "types": types, "offsets": offsets}


def run(model, arch, inputs):
    """Logits (sequences, classes), one sequence at a time, so that no padding exists."""
    rows = []
    for start, end in zip(inputs["offsets"], inputs["offsets"][1:]):
        arguments = {"input_ids": inputs["ids"][None, start:end]}
        if arch.name == "bert":
            arguments["token_type_ids"] = inputs["types"][None, start:end]
        rows.append(model(**arguments).logits)
    return torch.cat(rows)


def load(arch, folder):
    model = arch.cls.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.double().eval()


def with_lora(arch, folder, pairs, kinds):
    """The model under PEFT, with `pairs[layer, kind]` = (A, B) on the modules of these kinds."""
    names = "|".join(arch.modules[k].replace(".", r"\.") for k in kinds)
    config = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                        target_modules=rf".*encoder\.layer\.\d+\.({names})", modules_to_save=["classifier"])
    model = get_peft_model(load(arch, folder), config).double().eval()
    found = {}
    for layer in range(LAYERS):
        for kind in kinds:
            module = model.base_model.model.get_submodule(arch.path(layer, kind))
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(pairs[layer, kind][0])
                module.lora_B["default"].weight.copy_(pairs[layer, kind][1])
            found[layer, kind] = module
    return model, found


def head_parameters(model):
    """The trained head, under the names of an unwrapped model's state dict."""
    marker = "classifier.modules_to_save.default."
    return {"classifier." + n.split(marker)[1]: p for n, p in model.named_parameters() if marker in n}


def loss_numbers(logits, labels):
    return {"logits": logits, "loss": F.cross_entropy(logits, labels).view(1),
            "losses": F.cross_entropy(logits, labels, reduction="none"),
            "losses_smoothed": F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)}


def lora_case(arch, folder, inputs, labels, pairs, kinds):
    """One forward and backward pass under LoRA: losses, gradients, and the scores of docs/method.md's step 3."""
    model, modules = with_lora(arch, folder, pairs, kinds)
    scores = torch.zeros(LAYERS, len(KINDS), dtype=torch.float64)

    def collect(layer, kind, scale):
        def hook(_module, _inputs, output):
            scores[layer, KINDS.index(kind)] += (scale * output.detach()).square().sum()
        return hook

    for (layer, kind), m in modules.items():
        m.lora_B["default"].register_forward_hook(collect(layer, kind, m.scaling["default"]))
    out = loss_numbers(run(model, arch, inputs), labels)
    out["loss"].backward()
    out["scores"] = scores
    for (layer, kind), m in modules.items():
        out[f"grad.layers.{layer}.{kind}.lora_A"] = m.lora_A["default"].weight.grad
        out[f"grad.layers.{layer}.{kind}.lora_B"] = m.lora_B["default"].weight.grad
    for name, p in head_parameters(model).items():
        out[f"grad.{name}"] = p.grad
    return out


def shared_case(arch, folder, inputs, labels, pairs, kinds):
    """Layer 0's pair of each kind in every layer: the shared pair's gradient is the sum over the layers."""
    shared = {(layer, kind): pairs[0, kind] for layer in range(LAYERS) for kind in kinds}
    out = lora_case(arch, folder, inputs, labels, shared, kinds)
    for kind in kinds:
        for part in ("lora_A", "lora_B"):
            out[f"grad.shared.{kind}.{part}"] = sum(out.pop(f"grad.layers.{i}.{kind}.{part}") for i in range(LAYERS))
    return out


def full_case(arch, folder, inputs, labels):
    model = load(arch, folder)
    out = loss_numbers(run(model, arch, inputs), labels)
    out["loss"].backward()
    for name, p in model.named_parameters():
        out[f"grad.{name}"] = p.grad if p.grad is not None else torch.zeros_like(p)
    return out


def regression_case(arch, folder, inputs, generator):
    """One output, mean squared error, base frozen, no LoRA; a head of its own, drawn here."""
    model = load(arch, folder)
    one_output = {"num_labels": 1, "id2label": None, "label2id": None}
    config = arch.cls.config_class.from_dict({**model.config.to_dict(), **one_output})
    config._attn_implementation = "eager"
    regression = arch.cls(config).double().eval()
    head = {n for n in regression.state_dict() if n.startswith("classifier.")}
    regression.load_state_dict({n: t for n, t in model.state_dict().items() if n not in head}, strict=False)
    out = {}
    for name, p in regression.named_parameters():
        p.requires_grad_(name in head)
        if name in head:
            with torch.no_grad():
                p.copy_(0.25 * torch.randn(p.shape, generator=generator))
            out[f"head.{name}"] = p
    logits = run(regression, arch, inputs)
    loss = F.mse_loss(logits.squeeze(1), torch.tensor(TARGETS, dtype=torch.float64))
    loss.backward()
    out |= {"logits": logits, "loss": loss.view(1)}
    out |= {f"grad.{n}": p.grad for n, p in regression.named_parameters() if n in head}
    return out


def decays(name):
    """transformers' Trainer: no decay on biases and norms; `relative_attention_bias` counts as a bias there."""
    return "bias" not in name and "norm" not in name.lower()


def ten_steps(loss_of, named, keep):
    """Losses before each of ten AdamW steps on the same batch, norms before clipping, rates, and final values."""
    groups = [{"params": [p for n, p in named.items() if decays(n)], "weight_decay": WEIGHT_DECAY},
              {"params": [p for n, p in named.items() if not decays(n)], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, rates = [], [], []
    for _ in range(STEPS):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0).item())
        rates.append(schedule.get_last_lr()[0])
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
    losses.append(loss_of().item())
    out = {"losses": losses, "grad_norms": norms, "learning_rates": rates}
    out = {n: torch.tensor(v, dtype=torch.float64) for n, v in out.items()}
    return out | {f"final.{n}": p for n, p in named.items() if keep(n)}


def lora_steps(arch, folder, inputs, labels, pairs):
    model, modules = with_lora(arch, folder, pairs, KINDS)
    named = {}
    for (layer, kind), m in modules.items():
        named[f"layers.{layer}.{kind}.lora_A"] = m.lora_A["default"].weight
        named[f"layers.{layer}.{kind}.lora_B"] = m.lora_B["default"].weight
    named |= head_parameters(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in named.values()}
    return ten_steps(lambda: F.cross_entropy(run(model, arch, inputs), labels), named,
                     lambda n: n.startswith(("layers.1.query", "layers.2.output", "classifier")))


def full_steps(arch, folder, inputs, labels):
    model = load(arch, folder)
    kept = ["classifier.", "embeddings.LayerNorm.weight", f"layer.1.{arch.modules['value']}.weight", "token_type",
            "relative_attention_bias"]
    return ten_steps(lambda: F.cross_entropy(run(model, arch, inputs), labels), dict(model.named_parameters()),
                     lambda n: any(k in n for k in kept))


def buckets():
    """MPNet's bucket of each relative position (key minus query) from -200 to 200."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
    relative = torch.arange(-200, 201)
    return {"relative_position.buckets": MPNetEncoder.relative_position_bucket(relative, num_buckets=32).int()}


def to_file(tensors, path):
    flat = {}
    for name, t in tensors.items():
        t = t.detach()
        flat[name] = (t if t.dtype == torch.int32 else t.float()).contiguous().clone()
    save_file(flat, path, metadata={"format": "pt"})


def make(arch, seed, root):
    generator = torch.Generator().manual_seed(seed)
    folder = root / arch.name
    model = arch.cls(arch.config)
    randomise(model, generator)
    model.save_pretrained(folder)
    # The writer's version would change the file with every upgrade, and says nothing about the model.
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    inputs, labels = make_inputs(arch, generator), torch.tensor(LABELS)
    pairs = {}
    for layer in range(LAYERS):
        for kind in KINDS:
            d_in = 64 if kind == "output" else 32
            d_out = 64 if kind == "intermediate" else 32
            a = torch.empty(RANK, d_in)
            torch.nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
            pairs[layer, kind] = (a, 0.3 * torch.randn(d_out, RANK, generator=generator))

    out = {"input.ids": inputs["ids"].int(), "input.token_types": inputs["types"].int(),
           "input.offsets": torch.tensor(inputs["offsets"], dtype=torch.int32),
           "input.labels": labels.int(), "input.targets": torch.tensor(TARGETS)}
    for (layer, kind), (a, b) in pairs.items():
        out[f"lora.layers.{layer}.{kind}.lora_A"] = a
        out[f"lora.layers.{layer}.{kind}.lora_B"] = b
    cases = {
        "lora_all": lora_case(arch, folder, inputs, labels, pairs, KINDS),
        "lora_qv": lora_case(arch, folder, inputs, labels, pairs, ["query", "value"]),
        "lora_shared": shared_case(arch, folder, inputs, labels, pairs, ["query", "value"]),
        "full": full_case(arch, folder, inputs, labels),
        "regression": regression_case(arch, folder, inputs, generator),
        "steps_lora": lora_steps(arch, folder, inputs, labels, pairs),
        "steps_full": full_steps(arch, folder, inputs, labels),
    }
    for case, tensors in cases.items():
        out |= {f"{case}.{name}": t for name, t in tensors.items()}
    if arch.name == "mpnet":
        out |= buckets()
    to_file(out, folder / "golden.safetensors")
    print(f"{arch.name}: loss {out['full.loss'].item():.6f}, with LoRA {out['lora_all.loss'].item():.6f}, "
          f"ten steps {out['steps_lora.losses'][0]:.4f} -> {out['steps_lora.losses'][-1]:.4f}, "
          f"full {out['steps_full.losses'][-1]:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    root = parser.parse_args().output
    disable_progress_bar()
    torch.set_num_threads(1)  # the order of sums does not depend on the machine
    root.mkdir(parents=True, exist_ok=True)
    to_file(all_operations(), root / "ops.safetensors")
    for seed, arch in enumerate(ARCHITECTURES, start=1):
        make(arch, seed, root)


if __name__ == "__main__":
    main()
