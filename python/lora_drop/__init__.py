"""Fine-tune language models with LoRA and LoRA-drop on CPUs::

    import lora_drop

    summary = lora_drop.train(model="models/minilm", data=rows, dev=dev_rows, output="runs/mine", budget=0.5)
    print(summary.metrics, summary.kept)
    for prediction in lora_drop.predict(["a fine play"], adapter="runs/mine"):
        print(prediction.label)

Settings have the names of the program's options, with underscores: `learning_rate`, `batch_size`, `budget`;
`lora_drop.settings()` lists them. The program is on the PATH as `lora-drop`.

`lora_drop.peft` has the method for models that train in PyTorch with PEFT; it needs torch and peft, and nothing else of
this package does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (DataError, FileError, InputError, Interrupted, LoraDropError, ModelError, NotFiniteError,
                     UsageError)

if TYPE_CHECKING:
    from ._models import Evaluation, Generation, Generator, Prediction, Predictions, Predictor
    from ._models import evaluate, generate, merge, predict
    from ._program import compare, export, prune
    from ._runs import Event, Run, Setting, Summary, score, settings, start, train
    from .peft import Importance, ModuleScore

# Imported when used, so that `lora_drop.peft` works where the compiled module was not built.
_PLACES = {
    "_models": ("Evaluation", "Generation", "Generator", "Prediction", "Predictions", "Predictor", "evaluate",
                "generate", "merge", "predict"),
    "_program": ("compare", "export", "prune"),
    "_runs": ("Event", "Run", "Setting", "Summary", "score", "settings", "start", "train"),
    "peft": ("Importance", "ModuleScore"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = sorted(["DataError", "FileError", "InputError", "Interrupted", "LoraDropError", "ModelError",
                  "NotFiniteError", "UsageError", *_PLACE_OF])


def __getattr__(name: str):
    import importlib

    if name in ("peft", "errors"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
