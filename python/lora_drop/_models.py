"""Models in use: predicting, evaluating, writing text, merging."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from . import _native
from ._rows import Data, _plain, as_files
from ._runs import Event, PathLike, _listener, _names, _path
from .errors import UsageError

if TYPE_CHECKING:
    import numpy

#: A text, a pair of texts, a list of words, or a dict of columns.
Row = Union[str, "tuple[str, str]", "list[str]", Mapping[str, Any]]
#: A text to continue, or the turns of a conversation: dicts with `role` and `content`.
Prompt = Union[str, "list[dict[str, str]]"]


@dataclass(frozen=True)
class Prediction:
    """The prediction for a row; what a task does not have is None."""

    #: The class's name.
    label: str | None = None
    #: The names of a row's classes, where it may have several.
    labels: list[str] | None = None
    #: The value of a regression.
    value: float | None = None
    #: Each class with its probability; for words, each word's tag's probability.
    scores: Any = None
    #: The words of a text, and each word's tag; None for a word that the model does not see.
    words: list[str] | None = None
    tags: list[str | None] | None = None
    #: The entities that the tags mark.
    entities: list[dict[str, Any]] | None = None


class Predictions(Sequence[Prediction]):
    """The predictions for rows, in their order."""

    def __init__(self, found: list[Prediction], logits: bytes, counts: list[int], outputs: int) -> None:
        self._found, self._logits, self._counts, self._outputs = found, logits, counts, outputs

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: Any) -> Any:
        return self._found[index]

    @property
    def logits(self) -> numpy.ndarray | list[numpy.ndarray]:
        """The head's outputs in float32: an array (rows, outputs) that shares memory with this object; for words a
        list of arrays (words with a tag, outputs). Needs numpy."""
        import numpy

        values = numpy.frombuffer(self._logits, dtype=numpy.float32)
        if all(count == self._outputs for count in self._counts):
            return values.reshape(len(self._counts), self._outputs)
        ends = numpy.cumsum(self._counts)
        return [values[end - count:end].reshape(-1, self._outputs) for end, count in zip(ends, self._counts)]

    def __repr__(self) -> str:
        return f"Predictions({len(self)} rows)"


@dataclass(frozen=True)
class Evaluation:
    """A model's results on a split."""

    #: By name, the task's default metric first.
    metrics: dict[str, float]
    #: Mean over the rows, without label smoothing.
    loss: float
    rows: int
    tokens: int
    seconds: float
    #: The generated texts, where metrics of generated text were asked for.
    texts: list[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Generation:
    """The continuation of a prompt."""

    text: str
    #: `end_of_text`, `stop` or `length`.
    finish: str
    #: The new tokens.
    tokens: list[int] = field(repr=False)
    #: Of a beam search: log-probability over length to the power of length_penalty.
    score: float | None = None


class Predictor:
    """A model that predicts and evaluates: with an adapter, or with a head of its own.

    adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors. model: its base model; by default the
    one that the run in the adapter's folder was trained from. settings: `dtype`, `quantize`, `threads`, `max_length`
    and how rows are read, such as `text_column`; what is not given is as in the run.

    Raises UsageError, ModelError, InputError, FileError. A Predictor can be used from several threads, one at a time.
    """

    def __init__(self, adapter: PathLike | None = None, model: PathLike | None = None, *,
                 on_event: Callable[[Event], Any] | None = None, **settings: Any) -> None:
        given = _names({"model": model, **settings})
        self._native = _native.Predictor(given, _path(adapter), _listener(on_event), _native.Cancel())
        about = json.loads(self._native.about())
        self.model: str = about["model"]
        #: `classification`, `regression`, `multi-label`, `token-classification`, or `text` for a decoder.
        self.task: str = about["task"]
        #: Names of the classes in the order of the logits.
        self.labels: list[str] = about["labels"]
        #: Most tokens of a row.
        self.max_length: int = about["max_length"]

    def predict(self, rows: Iterable[Row]) -> Predictions:
        """Predicts rows: texts, pairs (tuples), lists of words, or dicts of columns, as `lora-drop predict` does.

        Raises UsageError for a model without a head for labels, DataError for a row that cannot be read.
        """
        encoded = json.dumps([_encoded(row) for row in rows])
        found, logits, counts = self._native.predict(encoded, None, _native.Cancel())
        objects = [Prediction(**one) for one in json.loads(found)]
        return Predictions(objects, logits, counts, max(len(self.labels), 1))

    def evaluate(self, data: Data, split: str = "dev", *, metrics: Sequence[str] | None = None,
                 limit: int | None = None, on_event: Callable[[Event], Any] | None = None,
                 **decoding: Any) -> Evaluation:
        """Evaluates rows by the task's metrics, as `lora-drop eval` does.

        data: a folder, a file or a name on the hub, or rows as :func:`lora_drop.train` takes them. metrics: of a
        decoder's generated texts, such as `bleu` and `rougeL`; then limit is the most prompts, and decoding has the
        options of :meth:`Generator.generate`.

        Raises UsageError, DataError.
        """
        if metrics is None and (limit is not None or decoding):
            raise UsageError("`limit` and options of decoding go with `metrics`")
        wanted = None if metrics is None else json.dumps({"metrics": list(metrics), "limit": limit, **decoding})
        with as_files(data if _has_splits(data) else {split: data}) as place:
            if not isinstance(place, str):
                raise UsageError("`data` is one folder, file or name on the hub, or rows")
            found = self._native.evaluate(place, split, wanted, _listener(on_event), _native.Cancel())
            return Evaluation(**json.loads(found))


class Generator:
    """A decoder that writes text. Arguments are those of :class:`Predictor`; with chat=True prompts are a user's turns,
    written by the model's chat template."""

    def __init__(self, adapter: PathLike | None = None, model: PathLike | None = None, *,
                 on_event: Callable[[Event], Any] | None = None, **settings: Any) -> None:
        given = _names({"model": model, **settings})
        self._native = _native.Generator(given, _path(adapter), _listener(on_event), _native.Cancel())

    def generate(self, prompts: Prompt | Sequence[Prompt], *, on_text: Callable[[int, str], Any] | None = None,
                 max_new_tokens: int | None = None, temperature: float | None = None, top_k: int | None = None,
                 top_p: float | None = None, repetition_penalty: float | None = None, num_beams: int | None = None,
                 length_penalty: float | None = None, early_stopping: bool | None = None,
                 stop: Sequence[str] | None = None, seed: int | None = None,
                 batch_size: int | None = None) -> list[Generation]:
        """Continues prompts, one or several, in their order; greedily unless temperature is above 0.

        A prompt is a text, or the turns of a conversation as dicts with `role` and `content`, which the chat template
        writes. on_text is called with a prompt's index and each piece of its text as it comes; if it returns False,
        or raises, the generation ends. Defaults are those of `lora-drop generate`.

        Raises UsageError for options that are out of range, InputError for a prompt that is too long.
        """
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                   "repetition_penalty": repetition_penalty, "num_beams": num_beams, "length_penalty": length_penalty,
                   "early_stopping": early_stopping, "stop": None if stop is None else list(stop), "seed": seed,
                   "batch_size": batch_size}
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))
        encoded = json.dumps([prompts] if one else list(prompts))

        def listen(kind: str, values: str) -> Any:
            if kind == "text" and on_text is not None:
                found = json.loads(values)
                return on_text(found["row"], found["text"])
            return None

        found = self._native.generate(encoded, json.dumps(options), listen, _native.Cancel())
        return [Generation(**text) for text in json.loads(found)]


def predict(rows: Iterable[Row], adapter: PathLike | None = None, model: PathLike | None = None,
            **settings: Any) -> Predictions:
    """Predicts rows with a model that is opened for this call: see :class:`Predictor`."""
    return Predictor(adapter, model, **settings).predict(rows)


def evaluate(data: Data, adapter: PathLike | None = None, model: PathLike | None = None, split: str = "dev",
             **settings: Any) -> Evaluation:
    """Evaluates rows with a model that is opened for this call: see :class:`Predictor`."""
    return Predictor(adapter, model, **settings).evaluate(data, split)


def generate(prompts: Prompt | Sequence[Prompt], adapter: PathLike | None = None, model: PathLike | None = None, *,
             settings: dict[str, Any] | None = None, **decoding: Any) -> list[Generation]:
    """Continues prompts with a model that is opened for this call: see :class:`Generator`, whose settings are given as
    a dict."""
    return Generator(adapter, model, **(settings or {})).generate(prompts, **decoding)


def merge(adapter: PathLike, output: PathLike, *, model: PathLike | None = None, dtype: str | None = None,
          gguf: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Merges an adapter into its model and writes a checkpoint that transformers loads, or a GGUF file.

    output: a folder, or with gguf (`f32`, `f16`, `q8_0`) a file. model: by default the one of the adapter's run.
    dtype: the type of the checkpoint's weights, by default as the model stores each.

    Returns a dict with the number of merged `modules`, `parameters` and `bytes`. Raises UsageError, InputError.
    """
    cancel = _native.Cancel()
    place = os.fspath(output)
    return json.loads(_native.merge(_path(model), os.fspath(adapter), place, dtype, gguf, overwrite, None, cancel))


def _encoded(row: Any) -> Any:
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping):
        return {"row": _plain(row)}
    if isinstance(row, tuple) and len(row) == 2 and all(isinstance(text, str) for text in row):
        return {"pair": list(row)}
    if isinstance(row, (list, tuple)) and all(isinstance(word, str) for word in row):
        return {"words": list(row)}
    raise UsageError(f"{row!r} is no row: give a text, a pair of texts, a list of words or a dict of columns")


def _has_splits(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike, Mapping)) or isinstance(data, list) and not _are_rows(data)


def _are_rows(data: list[Any]) -> bool:
    return not data or isinstance(data[0], Mapping)
