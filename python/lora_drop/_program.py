"""The program `lora-drop`, which the package has in it, and commands that run it as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Union

from .errors import InputError, UsageError

PathLike = Union[str, "os.PathLike[str]"]

# What starts the program again, in a process of its own.
_COMMAND = [sys.executable, str(Path(__file__).with_name("__main__.py"))]


def main() -> int:
    """Runs the program with this process's arguments; its exit code."""
    from . import _native

    return _native.program(_COMMAND, sys.argv[1:])


def compare(table: PathLike, *, output: PathLike | None = None, jobs: int = 1, threads: int = 0,
            summary: bool = False) -> dict[str, Any]:
    """Runs a table of tasks, methods and seeds, and summarises it, as `lora-drop compare` does.

    table: a TOML file. output: the folder for runs, tables and compare.html, by default the table's own. jobs: runs at
    a time. threads: of all together, 0 for all cores. summary: whether to run nothing and summarise what has finished.

    Finished runs are used again, so an interrupted call is repeated to continue. Progress is written to standard error.
    Returns compare.json's object. Raises UsageError, InputError.
    """
    options = ["--jobs", str(jobs), "--threads", str(threads)]
    options += ["--output", os.fspath(output)] if output is not None else []
    options += ["--summary"] if summary else []
    return _run("compare", os.fspath(table), *options)


def prune(adapter: PathLike, data: PathLike, *, output: PathLike | None = None, budget: float | str | None = None,
          **options: Any) -> dict[str, Any]:
    """Prunes a trained adapter in closed form, as `lora-drop prune` does; without a budget, tries several.

    adapter: a run's folder or a PEFT adapter. data: a folder, a file, or a data set's name on the hub. budget: the
    share of its parameters to keep, or "auto". options: those of the command, with underscores.

    Returns the object of `--json`. Raises UsageError, InputError.
    """
    given = {"adapter": adapter, "data": data, "output": output, "budget": budget, **options}
    return _run("prune", *_arguments(given))


def export(adapter: PathLike, output: PathLike, **options: Any) -> dict[str, Any]:
    """Writes an adapter in another format, as `lora-drop export` does.

    Returns the object of `--json`. Raises UsageError, InputError.
    """
    return _run("export", *_arguments({"adapter": adapter, "output": output, **options}))


def _arguments(options: dict[str, Any]) -> list[str]:
    arguments = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value is not None and value is not False:
            values = value if isinstance(value, (list, tuple)) else [value]
            arguments += [f"{option}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for v in values]
    return arguments


def _run(*arguments: str) -> dict[str, Any]:
    """Runs a command with --json, shows what it writes to standard error, and returns its object."""
    said = bytearray()
    with subprocess.Popen([*_COMMAND, *arguments, "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        reader = threading.Thread(target=_show, args=(process.stderr, said), daemon=True)
        reader.start()
        try:
            assert process.stdout is not None
            found = process.stdout.read()
            code = process.wait()
            reader.join()
        except KeyboardInterrupt:
            # A terminal has sent it to both; a notebook only to this process.
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        text = said.decode("utf-8", "replace")
        error = text[text.rindex("error: ") + len("error: "):].strip() if "error: " in text else f"exit code {code}"
        raise (UsageError if code == 2 else InputError)(error)
    return json.loads(found)


def _show(pipe: Any, said: bytearray) -> None:
    """Passes messages on as they come. The last of them is the error, if there is one."""
    for piece in iter(lambda: pipe.read1(4096), b""):
        said.extend(piece)
        sys.stderr.write(piece.decode("utf-8", "replace"))
        sys.stderr.flush()
