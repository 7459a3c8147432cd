"""Rows in memory, as files that the library reads by the same rules as any others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union

from .errors import DataError, LoraDropError, UsageError

Rows = Iterable[Mapping[str, Any]]
#: A folder, a file or a name on the hub, several of them (each with a weight, `path=0.7`), rows, or rows by split.
Data = Union[str, "os.PathLike[str]", "list[str]", Rows, "Mapping[str, Rows]"]

_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}


@contextlib.contextmanager
def as_files(data: Any, dev: Rows | None = None) -> Iterator[str | list[str] | None]:
    """The `data` setting for data in any form. Rows are written into a folder that is removed at the end."""
    if data is None or isinstance(data, (str, os.PathLike)) or _is_paths(data):
        if dev is not None:
            raise UsageError("`dev` goes with rows; a folder has its own dev split")
        yield [os.fspath(one) for one in data] if isinstance(data, list) else None if data is None else os.fspath(data)
        return
    splits = by_split(data)
    if dev is not None:
        if "dev" in splits:
            raise UsageError("`dev` is given twice: alone, and as a split of `data`")
        splits["dev"] = dev
    with tempfile.TemporaryDirectory(prefix="lora-drop-") as folder:
        place = Path(folder, "rows")
        place.mkdir()
        for split, rows in splits.items():
            write(rows, place / f"{split}.jsonl", split)
        try:
            yield str(place)
        except LoraDropError as error:
            # Nobody knows the file, whose lines are the rows.
            text = re.sub(re.escape(str(place)) + r"/(\w+)\.jsonl, line (\d+)", r"row \2 of \1", str(error))
            text = re.sub(re.escape(str(place)) + r"(?:/(\w+)\.jsonl)?", lambda found: found[1] or "the rows", text)
            raise type(error)(text) from None


def by_split(data: Any) -> dict[str, Rows]:
    """Rows by the name of their split; rows alone are train's."""
    if not isinstance(data, Mapping):
        return {"train": data}
    splits = {}
    for name, rows in data.items():
        if name not in _SPLITS:
            raise UsageError(f"`data` has a split {name!r}, expected some of train, dev (or validation), test")
        splits[_SPLITS[name]] = rows
    return splits


def write(rows: Rows, path: Path, split: str) -> None:
    """Writes rows as JSON Lines."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict("records")  # a pandas DataFrame
    names = _class_names(rows)
    with open(path, "w", encoding="utf-8") as file:
        count = 0
        for count, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise DataError(f"row {count} of {split} is a {type(row).__name__}, expected a dict of columns")
            row = {key: _named(value, names.get(key)) for key, value in row.items()}
            try:
                text = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise DataError(f"row {count} of {split}: {error}") from None
            file.write(text.encode("utf-8", "replace").decode("utf-8") + "\n")
        if not count:
            raise DataError(f"{split} has no rows")


def _class_names(rows: Any) -> dict[str, list[str]]:
    """The names of classes that a datasets.Dataset keeps as numbers, by column."""
    features = getattr(rows, "features", None) or {}
    return {key: list(f.names) for key, f in features.items() if getattr(f, "names", None)}


def _named(value: Any, names: list[str] | None) -> Any:
    if names and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value


def _plain(value: Any) -> Any:
    """A value as JSON has it: NumPy's scalars and arrays as Python's, NaN (pandas' missing value) as null."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _is_paths(data: Any) -> bool:
    return isinstance(data, list) and len(data) > 0 and all(isinstance(one, (str, os.PathLike)) for one in data)
