"""LoRA-drop for models that train in PyTorch with PEFT, on any device and with any training loop.

Score the modules of a LoRA model while it trains on a sample, or afterwards on some batches; tie or drop the pairs of
the unimportant ones in place; and go on training::

    importance = lora_drop.peft.score(model, batches)
    lora_drop.peft.apply(model, importance, budget=0.5)
    Trainer(model, ...).train()
    lora_drop.peft.save(model, "adapter")

The score of a module is the paper's (Zhou et al., COLING 2025): the squared norm of its LoRA's output over all real
tokens x, g = sum of ||s B A x||^2. With z = A x it is s^2 trace(B^T B sum z z^T), so an r x r matrix for each module is
all that is collected. The numbers are those of `lora-drop score` on the same weights and rows.

Needs torch and peft, which are only imported when a function is used.
"""

import copy
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Importance", "ModuleScore", "Report", "Scorer", "apply", "choose", "save", "score"]

# Forgives rounding: of the running sum of shares, and of fractions such as 7/12, which no float holds exactly.
_ROUNDING_OF_THRESHOLD = 1e-12
_ROUNDING_OF_BUDGET = 1e-9

# The module types of the compact file by the names that architectures give them, in the order in which types that
# have the same share are kept.
_KINDS = {
    "query": ("query", "q_proj", "q"),
    "key": ("key", "k_proj", "k"),
    "value": ("value", "v_proj", "v"),
    "attention_output": ("attention.output.dense", "o_proj", "o"),
    "intermediate": ("intermediate.dense", "up_proj"),
    "output": ("output.dense", "down_proj"),
    "gate": ("gate_proj",),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_ORDER = {name: place for place, name in enumerate(_KIND_OF)}
# The compact file's name of an architecture by `model_type`; those of decoders have the same modules.
_ARCHITECTURES = {
    "bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta", "mpnet": "mpnet",
    "gemma3_text": "gemma3", "llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "llama",
}
# The heads that the compact file takes from `modules_to_save`.
_HEADS = {"classifier", "pooler", "score"}


class LoraDropError(ValueError):
    """A model, scores or options that LoRA-drop cannot use; the message says what to do."""


@dataclass
class ModuleScore:
    """The score of one adapted module."""

    layer: int
    #: The module's type by its name in the model: `query`, `v_proj`, `output.dense`.
    module: str
    #: g, the sum of squared output norms.
    score: float
    #: The share of its type's scores; the shares of a type add up to 1.
    importance: float = 0.0


@dataclass
class Importance:
    """The scores of a model's modules, as importance.json has them."""

    modules: list
    #: Rows (sequences) and tokens that the sums cover.
    rows: int = 0
    tokens: int = 0
    #: Steps that were scored; 0 for an adapter that is scored as it is.
    steps: int = 0
    #: The choice that was made by :func:`apply`: the rule, what others get, and the layers that keep their pair.
    selection: dict = field(default_factory=lambda: {"threshold": 0.9})
    unselected: str = "share"
    kept: dict = None

    def __post_init__(self):
        for name, modules in _by_type(self.modules).items():
            total = sum(m.score for m in modules)
            for m in modules:
                if not (m.score >= 0.0 and m.score < float("inf")):
                    raise LoraDropError(f"the score of layer {m.layer} {name} is {m.score}; training has diverged")
                m.importance = m.score / total if total > 0.0 else 0.0

    def save(self, path):
        """Writes importance.json, which `lora-drop train --scores` reads."""
        kept = self.kept if self.kept is not None else choose(self, **self.selection)
        document = {
            "criterion": "output",
            "scope": "module",
            "selection": {key.replace("_", "-"): value for key, value in self.selection.items()},
            "unselected": self.unselected,
            "sample": {"rows": self.rows, "tokens": self.tokens, "steps": self.steps, "settled": True, "history": []},
            "modules": [{"layer": m.layer, "module": m.module, "score": m.score, "importance": m.importance,
                         "kept": m.layer in kept[m.module]} for m in self.modules],
            "kept": kept,
        }
        _write_text(Path(path), json.dumps(document, indent=2) + "\n")

    @classmethod
    def load(cls, path):
        """Reads the scores of an importance.json, of this package or of lora-drop."""
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        modules = [ModuleScore(m["layer"], m["module"], m["score"]) for m in document["modules"]]
        sample = document["sample"]
        return cls(modules, sample["rows"], sample["tokens"], sample["steps"], kept=document.get("kept"))


@dataclass
class Report:
    """What :func:`apply` did."""

    #: For each module type the layers that keep their own pair.
    kept: dict
    #: Values in the unique pairs, and in those of plain LoRA.
    parameters: int
    parameters_full: int

    @property
    def retained_ratio(self):
        """The share of plain LoRA's parameters that is left."""
        return self.parameters / self.parameters_full


class Scorer:
    """Collects what scores need while a model runs, in training or without::

        with lora_drop.peft.Scorer(model) as scorer:
            trainer.train()
        importance = scorer.importance()

    Scores are about the model at the end: B is read by :meth:`importance`. To score a part of the training alone, such
    as its last epoch on a sample, call :meth:`reset` where it begins. Padding is left out by the model's
    `attention_mask`; in training, LoRA's dropout is part of the output, as in `lora-drop`.

    training: count only passes that train (training mode, with gradients), so evaluations between them have no part in
    the scores; False counts every pass. What gradient checkpointing computes again is never counted.
    """

    def __init__(self, model, adapter=None, training=True):
        self._model = model
        self._training = training
        self._layers = _lora_layers(model, adapter)
        self._hooks = []
        self._counts = False
        self.reset()

    def reset(self):
        """Forgets everything collected so far."""
        self._moments = {}
        self._rows = self._tokens = self._passes = 0

    def __enter__(self):
        self._hooks.append(self._model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._hooks.append(self._model.register_forward_hook(self._end, always_call=True))
        # Modules may share an A, so the layer says whose output it is.
        downs = {}
        for place, (name, layer) in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._entering(place)))
            downs[id(layer.lora_A[name])] = layer.lora_A[name]
        self._hooks += [down.register_forward_hook(self._collect) for down in downs.values()]
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._counts = False

    def _begin(self, model, args, kwargs):
        """Notes which tokens of the pass are real."""
        import torch

        self._counts = not self._training or (model.training and torch.is_grad_enabled())
        if not self._counts:
            return
        if getattr(model, "_is_replica", False):
            raise LoraDropError("nn.DataParallel runs copies of the model at once; use one process per device "
                                "(torchrun, accelerate launch), or let CUDA_VISIBLE_DEVICES name a single device")
        if len(args) > 1:
            raise LoraDropError("the model was called with several positional arguments; pass attention_mask by name")
        mask = kwargs.get("attention_mask")
        given = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args]
        inputs = next((value for value in given if value is not None), None)
        if inputs is None:
            raise LoraDropError("the model was called without input_ids, so its tokens are unknown")
        self._shape = tuple(inputs.shape[:2])
        if mask is not None and tuple(mask.shape) != self._shape:
            raise LoraDropError(f"attention_mask is {tuple(mask.shape)}, expected (rows, tokens), {self._shape}")
        self._padding = None if mask is None else ~mask.bool().reshape(-1, 1)
        self._rows += self._shape[0]
        # A tensor, since a number would wait for the device.
        self._tokens = self._tokens + (self._shape[0] * self._shape[1] if mask is None else mask.bool().sum())
        self._passes += 1

    def _end(self, *_):
        self._counts = False

    def _entering(self, place):
        def enter(_, args):
            if self._counts and tuple(args[0].shape[:2]) != self._shape:
                raise LoraDropError(f"layer {place[0]} {place[1]} sees {tuple(args[0].shape)}, expected rows and "
                                    f"tokens {self._shape} first; models that rearrange tokens are not supported")
            self._place = place

        return enter

    def _collect(self, _, args, z):
        """Adds z z^T over the real tokens of the layer that was entered."""
        if not self._counts:
            return
        z = z.detach().reshape(-1, z.shape[-1])
        z = _double(z if self._padding is None else z.masked_fill(self._padding.to(z.device), 0.0))
        known = self._moments.get(self._place)
        self._moments[self._place] = z.T @ z if known is None else known + z.T @ z

    def importance(self):
        """The scores of all modules. In a distributed run, every process has to call it: the passes of all of them
        count, and all get the same scores.

        Raises LoraDropError if no pass was seen, or a module's LoRA did not run in them.
        """
        import torch

        if not self._passes:
            where = "that trains was seen; use the scorer around training, or with training=False around evaluation"
            raise LoraDropError(f"no pass {where if self._training else 'of the model was seen'}")
        modules = []
        for (layer, kind), (name, module) in self._layers.items():
            if (layer, kind) not in self._moments:
                raise LoraDropError(f"the LoRA of layer {layer} {kind} did not run: its adapter is not active, or "
                                    "merged, or the model was compiled before the scorer was entered")
            moment = _over_processes(self._moments[layer, kind])
            up = _double(module.lora_B[name].weight.detach())
            g = module.scaling[name] ** 2 * float((up.T @ up * moment.to(up.device)).sum())
            modules.append(ModuleScore(layer, kind, g))
        rows, tokens = _over_processes(torch.tensor([self._rows, int(self._tokens)], device=moment.device)).tolist()
        return Importance(modules, rows, tokens, self._passes)


def score(model, batches, adapter=None, forward=None):
    """Scores every LoRA module of a PEFT model on some batches, without training and without dropout.

    model: a PeftModel with LoRA on linear layers. batches: an iterable of what the model takes as keyword arguments,
    such as a DataLoader; tensors are moved to the model's device. adapter: the adapter's name, by default the active
    one. forward: a function of model and batch, for models that are called in another way.

    Returns an Importance. Raises LoraDropError if there is no LoRA to score.
    """
    import torch

    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), Scorer(model, adapter, training=False) as scorer:
            for batch in batches:
                batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
                forward(model, batch) if forward else model(**batch)
    finally:
        for module, mode in modes:
            module.training = mode
    importance = scorer.importance()
    importance.steps = 0
    return importance


def choose(importance, budget=None, threshold=None, top_k=None, unselected="share", sizes=None):
    """The layers that keep their own pair, for each module type, as `lora-drop` chooses them.

    Give one of: threshold, the share of its type's importance that the kept modules add up to (0.9 if none is given);
    top_k, the number of layers of each type; budget, the share of plain LoRA's parameters that is left, over all types
    in one order. sizes: the number of values of a pair for each type, by default the same for all.
    """
    given = [rule for rule in (budget, threshold, top_k) if rule is not None]
    if len(given) > 1:
        raise LoraDropError("budget, threshold and top_k exclude each other; give one")
    if unselected not in ("share", "drop"):
        raise LoraDropError(f"unselected is {unselected!r}, expected 'share' or 'drop'")
    types = _by_type(importance.modules)
    for name, modules in types.items():
        if sum(m.score for m in modules) == 0.0:
            raise LoraDropError(f"the scores of every {name} are zero: train before scoring, as B is zero at first")
    ranked = {name: sorted(modules, key=lambda m: (-m.importance, m.layer)) for name, modules in types.items()}
    kept = {name: [] for name in types}
    if top_k is not None:
        least, most = (0 if unselected == "share" else 1), min(len(r) for r in ranked.values())
        if not least <= top_k <= most:
            raise LoraDropError(f"top_k is {top_k}, expected {least} to {most}")
        for name, ranking in ranked.items():
            kept[name] = [m.layer for m in ranking[:top_k]]
    elif budget is not None:
        _check_fraction("budget", budget)
        sizes = sizes or {name: 1 for name in types}
        order = sorted((m for ranking in ranked.values() for m in ranking),
                       key=lambda m: (-m.importance, m.layer, _place(m.module)))
        full = sum(sizes[name] * len(modules) for name, modules in types.items())

        def cost(length):
            count = {name: 0 for name in types}
            for m in order[:length]:
                count[m.module] += 1
            shared = {name: unselected == "share" and count[name] < len(types[name]) for name in types}
            return sum(sizes[name] * (count[name] + shared[name]) for name in types)

        least = 0 if unselected == "share" else 1
        fits = [n for n in range(least, len(order) + 1) if cost(n) <= budget * full * (1.0 + _ROUNDING_OF_BUDGET)]
        if not fits:
            raise LoraDropError(f"budget {budget} cannot be met; the smallest is {cost(least) / full:.4f}")
        for m in order[:fits[-1]]:
            kept[m.module].append(m.layer)
    else:
        threshold = 0.9 if threshold is None else threshold
        _check_fraction("threshold", threshold)
        for name, ranking in ranked.items():
            total = 0.0
            for m in ranking:
                if threshold < 1.0 and total >= threshold - _ROUNDING_OF_THRESHOLD:
                    break
                total += m.importance
                kept[name].append(m.layer)
    return {name: sorted(layers) for name, layers in kept.items()}


def apply(model, importance, budget=None, threshold=None, top_k=None, unselected="share", restart="continue",
          adapter=None):
    """Ties the pairs of unimportant modules, in place: all of a type that are not kept use one pair.

    model: the PEFT model that was scored. budget, threshold, top_k: see :func:`choose`. unselected: "share", or "drop"
    to remove their pairs. restart: "continue" keeps the kept pairs, and starts a shared pair as the best common one of
    its layers (the truncated SVD of the mean of their s B A); "fresh" initialises all pairs anew, as PEFT does. Either
    way, a head keeps its values.

    Call it before the optimizer is created. Tied modules hold the same Parameter, so any optimizer updates it once, and
    its gradient is the sum over its layers. Pairs that an earlier call tied are chosen among anew. Returns a Report.
    """
    layers = _lora_layers(model, adapter)
    missing = {(m.layer, m.module) for m in importance.modules} ^ set(layers)
    if missing:
        layer, name = sorted(missing)[0]
        raise LoraDropError(f"the scores and the model's LoRA differ in {len(missing)} modules, such as layer {layer} "
                            f"{name}; score this model")
    if restart not in ("continue", "fresh"):
        raise LoraDropError(f"restart is {restart!r}, expected 'continue' or 'fresh'")
    groups = {}
    for (layer, kind), (name, module) in layers.items():
        groups.setdefault(kind, {})[layer] = (name, module)
    for kind, group in groups.items():
        shapes = {(m.lora_A[name].weight.shape, m.lora_B[name].weight.shape, m.scaling[name])
                  for name, m in group.values()}
        if len(shapes) > 1:
            raise LoraDropError(f"the modules {kind} differ in shape, rank or scale, so they cannot share a pair")
    sizes = {kind: _size(*next(iter(group.values()))) for kind, group in groups.items()}
    rule = {"budget": budget, "threshold": threshold, "top_k": top_k}
    kept = choose(importance, unselected=unselected, sizes=sizes, **rule)
    count, is_tied = 0, False
    _untie(layers.values())
    for kind, group in groups.items():
        others = {layer: found for layer, found in group.items() if layer not in kept[kind]}
        if restart == "fresh":
            for name, module in group.values():
                module.reset_lora_parameters(name, True)
        count += sizes[kind] * len(kept[kind])
        if not others:
            continue
        if unselected == "drop":
            for name, module in others.values():
                for pairs in (module.lora_A, module.lora_B, module.lora_dropout):
                    del pairs[name]
            continue
        count += sizes[kind]
        (name, first), *rest = others.values()
        if restart == "continue":
            _start_common(name, [module for _, module in others.values()])
        for other, module in rest:
            module.lora_A[other] = first.lora_A[name]
            module.lora_B[other] = first.lora_B[name]
            is_tied = True
    if is_tied:
        model.register_forward_pre_hook(_CheckpointingCheck())
    if unselected == "drop":
        # So that what is saved, here or by a Trainer, is read without pairs where there are none.
        name = adapter or model.active_adapter
        model.peft_config[name].target_modules = {
            path for path, module in _all_layers(model).items() if name in module.lora_A}
    importance.kept, importance.unselected = kept, unselected
    given = {key: value for key, value in rule.items() if value is not None}
    importance.selection = given or {"threshold": 0.9}
    return Report(kept, count, sum(sizes[kind] * len(group) for kind, group in groups.items()))


def save(model, folder, adapter=None):
    """Writes the adapter in PEFT's format, where a shared pair stands once for each of its layers, and, where lora-drop
    reads it, adapter_compact.safetensors, where it stands once.

    folder: where both go; of an adapter that is not called "default", a folder of its name within, as PEFT has it.
    Returns the paths of the two weight files; the second is None for architectures that lora-drop does not know, and
    for adapters with more than LoRA and a head (trained biases, token embeddings or other modules, a changed base).
    """
    from safetensors.torch import save_file

    layers = _lora_layers(model, adapter)
    name = adapter or model.active_adapter
    config = model.peft_config[name]
    model.save_pretrained(str(folder), selected_adapters=[name])
    folder = Path(folder) if name == "default" else Path(folder) / name
    path = folder / "adapter_model.safetensors"
    architecture = _ARCHITECTURES.get(getattr(model.config, "model_type", None))
    if architecture is None or any(kind not in _KIND_OF for _, kind in layers) or _has_more(config):
        return path, None

    groups, tensors, pairs = {}, {}, []
    for (layer, kind), (own, module) in sorted(layers.items()):
        groups.setdefault((kind, id(module.lora_A[own]), id(module.lora_B[own])), []).append((layer, own, module))
    shared_names = set()
    for (kind, _, _), members in groups.items():
        (layer, own, module), is_shared = members[0], len(members) > 1
        stem = f"lora.{_KIND_OF[kind]}.{'shared' if is_shared else layer}"
        if stem in shared_names:
            stem = f"{stem}.{layer}"
        shared_names.add(stem)
        for half, pair in (("A", module.lora_A), ("B", module.lora_B)):
            tensors[f"{stem}.{half}"] = pair[own].weight.detach().float().cpu().contiguous()
        pairs.append({"name": stem, "kind": _KIND_OF[kind], "shared": is_shared, "alpha": float(module.lora_alpha[own]),
                      "layers": [layer for layer, _, _ in members]})
    for path_in_model, module in model.get_base_model().named_modules():
        saved = getattr(module, "modules_to_save", None)
        if saved is not None and name in saved:
            for key, value in saved[name].state_dict().items():
                tensors[f"{path_in_model}.{key}"] = value.detach().float().cpu().contiguous()
    about = {"version": 1, "architecture": architecture, "base": config.base_model_name_or_path or "",
             "rslora": bool(config.use_rslora), "lora_dropout": float(config.lora_dropout), "pairs": pairs}
    compact = folder / "adapter_compact.safetensors"
    temporary = folder / ".adapter_compact.safetensors.tmp"
    save_file(tensors, str(temporary), {"format": "pt", "lora_drop.adapter": json.dumps(about)})
    temporary.replace(compact)
    return path, compact


def _by_type(modules):
    types = {}
    for m in modules:
        types.setdefault(m.module, []).append(m)
    return types


def _place(module):
    """The order of types among modules of the same share and layer."""
    return (_ORDER.get(module, len(_ORDER)), module)


def _check_fraction(name, value):
    if not 0.0 < value <= 1.0:
        raise LoraDropError(f"{name} is {value}, expected a number above 0, at most 1")


def _module_type(path):
    """(layer, type) of a module by its path, such as (3, "query") of `bert.encoder.layer.3.attention.self.query`: the
    last number is the layer, and the type is the name's last part, or all behind the layer if that is `dense`."""
    found = re.match(r"(?:.*\.)?(\d+)\.(.+)$", path)
    if not found:
        raise LoraDropError(f"{path} has a LoRA and is in no numbered layer; LoRA-drop chooses among layers")
    layer, rest = int(found[1]), found[2]
    return layer, rest if rest.endswith(".dense") else rest.rsplit(".", 1)[-1]


def _all_layers(model):
    """The LoRA layers of a PEFT model by path, whichever adapters they have."""
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {path: module for path, module in base.named_modules() if isinstance(module, LoraLayer)}


def _has_more(config):
    """Whether an adapter has trained values that the compact file has no place for, or changed its base."""
    return (config.bias != "none" or config.init_lora_weights not in (True, False, "gaussian", "orthogonal", "eva")
            or not set(config.modules_to_save or ()) <= _HEADS
            or any(getattr(config, key, None) for key in ("trainable_token_indices", "layer_replication")))


def _lora_layers(model, adapter):
    """(layer, type) → (the adapter's name, the LoRA layer), in the model's order."""
    if not hasattr(model, "peft_config"):
        raise LoraDropError("not a PEFT model; make one with peft.get_peft_model(model, LoraConfig(...))")
    name = adapter or model.active_adapter
    if name not in model.peft_config:
        raise LoraDropError(f"there is no adapter {name!r}; the model has {', '.join(model.peft_config)}")
    config = model.peft_config[name]
    if config.peft_type != "LORA":
        raise LoraDropError(f"LoRA-drop scores plain LoRA, and the adapter is of another type, {config.peft_type}")
    for key in ("use_dora", "lora_bias", "target_parameters"):
        if getattr(config, key, None):
            raise LoraDropError(f"LoRA-drop scores plain LoRA, and the adapter is of another type: it has {key}")
    found = {}
    for path, module in _all_layers(model).items():
        if name in getattr(module, "lora_embedding_A", {}):
            raise LoraDropError(f"{path} has a LoRA on an embedding; LoRA-drop chooses among linear layers")
        if name not in module.lora_A:
            continue
        down, up = module.lora_A[name].weight, module.lora_B[name].weight
        if hasattr(down, "full_tensor") or min(down.dim(), up.dim()) < 2 or not down.numel() or not up.numel():
            raise LoraDropError(f"the LoRA of {path} is split over processes (FSDP, DeepSpeed ZeRO-3); score and tie "
                                "the model before it is split")
        if down.dim() != 2 or name in getattr(module, "lora_variant", {}):
            raise LoraDropError(f"{path} has another LoRA than that of a linear layer")
        place = _module_type(path)
        if place in found:
            raise LoraDropError(f"{path} is a second module {place[1]} in layer {place[0]}")
        found[place] = (name, module)
    if not found:
        raise LoraDropError("the model has no LoRA")
    return found


def _size(name, module):
    return module.lora_A[name].weight.numel() + module.lora_B[name].weight.numel()


class _CheckpointingCheck:
    """A hook that refuses, at the first step, reentrant gradient checkpointing of tied pairs under
    DistributedDataParallel: it averages a parameter's gradient over the processes as soon as one layer has added its
    part, without an error."""

    def __init__(self):
        self.is_done = False

    def __call__(self, model, _):
        import torch
        from torch import distributed

        if self.is_done or not (model.training and torch.is_grad_enabled()):
            return
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                settings = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
                if settings.get("use_reentrant", True):
                    raise LoraDropError("reentrant gradient checkpointing on several processes gives tied pairs wrong "
                                        "gradients; give gradient_checkpointing_kwargs={'use_reentrant': False}")
        self.is_done = True


def _untie(layers):
    """Gives each module a pair of its own."""
    seen = set()
    for name, module in layers:
        for pairs in (module.lora_A, module.lora_B):
            if id(pairs[name]) in seen:
                pairs[name] = copy.deepcopy(pairs[name])
            seen.add(id(pairs[name]))


def _double(values):
    """In f64, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _over_processes(values):
    """The sum over the processes of a distributed run; the values themselves in any other."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def _start_common(name, modules):
    """Sets the first module's pair to the best common pair of all: the truncated SVD of the mean of their s B A, with
    rows of A as long as theirs in the root mean square."""
    import torch

    with torch.no_grad():
        scale, first = modules[0].scaling[name], modules[0]
        down = torch.cat([_double(m.lora_A[name].weight) for m in modules])
        up = torch.cat([_double(m.lora_B[name].weight) for m in modules], dim=1) * (scale / len(modules))
        rank, length = first.lora_A[name].weight.shape[0], down.norm() / down.shape[0] ** 0.5
        # The mean is up @ down, of which only small matrices are decomposed.
        _, triangle = torch.linalg.qr(up)
        _, values, rows = torch.linalg.svd(triangle @ down, full_matrices=False)
        real = min(rank, int((values > values[0] * 1e-7).sum()))
        a = rows[:real] * length
        b = up @ (down @ a.T) / (length**2 * scale)
        # Directions that the mean does not have keep the first layer's rows of A, with zeros in B.
        first.lora_A[name].weight[:real] = a.to(first.lora_A[name].weight)
        first.lora_B[name].weight.zero_()
        first.lora_B[name].weight[:, :real] = b.to(first.lora_B[name].weight)


def _write_text(path, text):
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
