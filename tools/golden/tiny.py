"""One of the small models of make_golden.py and golden_decoders.py as adapters see it, encoder or decoder: its modules, inputs,
pairs, outputs and loss.
"""

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file

import golden_decoders as decoders
import make_golden as encoders

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"


class Tiny:
    """One of the small models, its inputs and what its outputs are called."""

    def __init__(self, name):
        self.name, self.folder = name, ROOT / name
        self.golden = load_file(self.folder / "golden.safetensors")
        self.inputs = {"ids": self.golden["input.ids"].long(), "offsets": self.golden["input.offsets"].tolist()}
        self.arch = next((arch for arch in encoders.ARCHITECTURES if arch.name == name), None)
        if self.arch:
            self.inputs["types"] = self.golden["input.token_types"].long()
            self.labels = self.golden["input.labels"].long()
            self.kinds, self.layers = encoders.KINDS, encoders.LAYERS
        else:
            self.inputs["learn"] = self.golden["input.learn"].bool()
            self.kinds, self.layers = decoders.KINDS, decoders.LAYERS
        self.keys = [(layer, kind) for layer in range(self.layers) for kind in self.kinds]

    def load(self):
        return encoders.load(self.arch, self.folder) if self.arch else decoders.load(self.folder)

    def path(self, layer, kind):
        return self.arch.path(layer, kind) if self.arch else f"model.layers.{layer}.{decoders.MODULES[kind]}"

    def names(self, keys):
        return "(" + "|".join(self.path(*key).replace(".", r"\.") for key in keys) + ")"

    def pair(self, layer, kind):
        return [self.golden[f"lora.layers.{layer}.{kind}.lora_{half}"].double() for half in "AB"]

    def peft_options(self):
        return dict(task_type="SEQ_CLS", modules_to_save=["classifier"]) if self.arch else dict(task_type="CAUSAL_LM")

    def outputs(self, model):
        """Outputs and the loss; the gradients are in the leaves."""
        if self.arch:
            out = {"logits": encoders.run(model, self.arch, self.inputs)}
            out["loss"] = F.cross_entropy(out["logits"], self.labels).view(1)
        else:
            out = {"losses": decoders.losses(decoders.run(model, self.inputs), self.inputs)}
            out["loss"] = out["losses"].mean().view(1)
        out["loss"].backward()
        return out

    def head(self, model):
        """The head's gradients under PEFT, or of an unwrapped model."""
        if not self.arch:
            return {}
        under_peft = encoders.head_parameters(model)
        own = {n: p for n, p in model.named_parameters() if n.startswith("classifier.")}
        return {f"grad.{name}": p.grad for name, p in (under_peft or own).items()}
