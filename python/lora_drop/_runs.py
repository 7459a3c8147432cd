"""Training and scoring."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from . import _native
from ._rows import Data, Rows, as_files
from .errors import UsageError
from .peft import Importance

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    kind is `step`, `evaluation`, `stage_start`, `stage_end`, `importance`, `assignment`, `warning`, `note`, `wrote`,
    `model`, `data`, ...; the values, such as `event.loss` of a step, are attributes.
    """

    kind: str
    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"an event {self.kind!r} has {', '.join(self.values) or 'no values'}") from None

    @classmethod
    def _read(cls, kind: str, values: str) -> Event:
        return cls(kind, json.loads(values))


@dataclass
class Summary:
    """What a run found; `raw` is summary.json's whole object."""

    #: `finished`, `interrupted` or `diverged`; in the last two cases the best epoch so far is in the folder.
    status: str
    output: Path
    method: str
    #: Metrics on dev at the best epoch, by name, and the one that decided which epoch is best.
    metrics: dict[str, float]
    metric: str
    best_epoch: float
    #: The layers that keep a pair of their own, by module type.
    kept: dict[str, list[int]]
    #: Values of unique LoRA pairs, those that plain LoRA would have, and their ratio.
    lora_parameters: int
    lora_parameters_full: int
    retained_ratio: float
    trainable_parameters: int
    steps: int
    train_tokens_per_second: float
    total_seconds: float
    peak_rss_bytes: int
    error: str | None
    raw: dict[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def _read(cls, text: str, output: PathLike) -> Summary:
        raw = json.loads(text)
        names = [f.name for f in dataclasses.fields(cls) if f.name not in ("output", "raw", "error")]
        return cls(output=Path(output), raw=raw, error=raw.get("error"), **{name: raw[name] for name in names})


@dataclass(frozen=True)
class Setting:
    """A setting of a run."""

    name: str
    help: str
    default: Any
    #: Its names in other trainers, which are understood too.
    aliases: list[str]


def settings() -> list[Setting]:
    """All settings of :func:`train`, in the order of the manual."""
    found = json.loads(_native.settings())
    return [Setting(**{**one, "aliases": [name.replace("-", "_") for name in one["aliases"]]}) for one in found]


@functools.lru_cache(maxsize=None)
def _known() -> dict[str, str]:
    """The settings' names by all names that they have."""
    return {name: one.name for one in settings() for name in (one.name, *one.aliases)}


def train(model: PathLike | None = None, data: Data | None = None, output: PathLike | None = None, *,
          dev: Rows | None = None, recipe: PathLike | None = None, resume: PathLike | None = None,
          on_event: Callable[[Event], Any] | None = None, **settings: Any) -> Summary:
    """Trains a model and writes the output folder, as `lora-drop train` does.

    model: a folder in Hugging Face's format, a decoder's GGUF file, or a name on the hub. data: a folder, a file or a
    name on the hub, several of them in a list, or rows: a list of dicts, a datasets.Dataset, a pandas DataFrame, or
    rows by split. Columns are found by the same rules as in files. dev: rows to evaluate on; without them a part of
    the rows is held out. output: the folder for the adapter, the report and summary.json.

    settings: options of the command with underscores, such as `budget=0.5, learning_rate=1e-3, task="regression"`.
    recipe: a TOML file of settings, which the given ones override. resume: the folder of a run that was stopped, which
    is continued to the same result; then only what may change is given (see docs/resume.md).

    on_event is called with each Event, in this thread. If it returns False, the run ends as if it was interrupted;
    if it raises an exception, the run ends and the exception is raised here. Ctrl-C ends the run with
    KeyboardInterrupt. In all these cases the best epoch so far is in the output folder.

    Raises UsageError, DataError, ModelError, FileError, NotFiniteError (diverged before the first evaluation),
    Interrupted (cancelled before it).
    """
    return _train(model, data, output, dev, recipe, resume, on_event, settings, _native.Cancel())


def start(model: PathLike | None = None, data: Data | None = None, output: PathLike | None = None, *,
          dev: Rows | None = None, recipe: PathLike | None = None, resume: PathLike | None = None,
          **settings: Any) -> Run:
    """Starts :func:`train` in a thread of its own and returns the Run, whose events can be iterated over."""
    return Run((model, data, output, dev, recipe, resume), settings)


class Run:
    """A run in a thread of its own::

        run = lora_drop.start(model="models/minilm", data="data/mrpc", output="runs/mrpc")
        for event in run:
            if event.kind == "step":
                print(event.step, event.loss)
        summary = run.result()
    """

    def __init__(self, arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
        self._cancel = _native.Cancel()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._summary: Summary | None = None
        self._error: BaseException | None = None

        def work() -> None:
            model, data, output, dev, recipe, resume = arguments
            try:
                self._summary = _train(model, data, output, dev, recipe, resume, self._events.put, settings,
                                       self._cancel)
            except BaseException as error:  # noqa: BLE001, raised again by `result`
                self._error = error
            finally:
                self._events.put(None)

        self._thread = threading.Thread(target=work, name="lora-drop", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Event]:
        """The events, until the run has ended. To leave the loop cancels nothing."""
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)

    def cancel(self) -> None:
        """Ends the run within a fraction of a step; the best epoch so far is kept."""
        self._cancel.cancel()

    def done(self) -> bool:
        """Whether the run has ended."""
        return not self._thread.is_alive()

    def result(self) -> Summary:
        """Waits for the end. Ctrl-C while waiting cancels the run. Raises what :func:`train` raises."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.1)
        except KeyboardInterrupt:
            self.cancel()
            self._thread.join()
            raise
        if self._error is not None:
            raise self._error
        assert self._summary is not None
        return self._summary

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *failure: object) -> None:
        """Waits for the end; if the block has failed, cancels first."""
        if failure[0] is not None:
            self.cancel()
        self._thread.join()


def score(model: PathLike | None = None, data: Data | None = None, *, output: PathLike | None = None,
          dev: Rows | None = None, adapter: PathLike | None = None, recipe: PathLike | None = None,
          on_event: Callable[[Event], Any] | None = None, **settings: Any) -> Importance:
    """Trains LoRA briefly on a sample of the rows and scores every module; with adapter, scores that adapter as it is.

    Arguments are those of :func:`train`. output: a folder for importance.json, if it is to be kept.

    Returns an Importance, whose `kept` is what the selection's settings (`threshold`, `top_k` or `budget`) would keep.
    Raises what :func:`train` raises.
    """
    with tempfile.TemporaryDirectory(prefix="lora-drop-") as folder, as_files(data, dev) as place:
        output = os.path.join(folder, "scores") if output is None else output
        given = _names({"model": model, "data": place, "output": output, **settings})
        _native.score(given, _path(recipe), _path(adapter), _listener(on_event), _native.Cancel())
        return Importance.load(os.path.join(output, "importance.json"))


def _train(model: Any, data: Any, output: Any, dev: Any, recipe: Any, resume: Any,
           on_event: Callable[[Event], Any] | None, settings: dict[str, Any], cancel: _native.Cancel) -> Summary:
    if resume is not None and (recipe is not None or output is not None):
        raise UsageError("`resume` is a run's folder, which has its recipe and its output; give neither")
    with as_files(data, dev) as place:
        given = _names({"model": model, "data": place, "output": output, **settings})
        return Summary._read(*_native.train(given, _path(recipe), _path(resume), _listener(on_event), cancel))


def _names(given: dict[str, Any]) -> str:
    """Settings as JSON, by the names of options."""
    named = {}
    for name, value in given.items():
        if name not in _known():
            near = difflib.get_close_matches(name, _known(), 1)
            hint = f"did you mean `{near[0]}`?" if near else "lora_drop.settings() lists them"
            raise UsageError(f"there is no setting `{name}`; {hint}")
        if value is not None:
            named[_known()[name].replace("_", "-")] = _value(value)
    try:
        return json.dumps(named, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"settings: {error}") from None


def _value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_value(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _path(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _listener(on_event: Callable[[Event], Any] | None) -> Callable[[str, str], Any] | None:
    return None if on_event is None else lambda kind, values: on_event(Event._read(kind, values))
