#!/usr/bin/env python3
"""Builds lora-drop, installs a small model and a small data set, and has `lora-drop compare` train LoRA and LoRA-drop beside each
other and prune an adapter.

What is done stays done: downloads lie checksummed in .cache (or in $LORA_DROP_CACHE), finished runs in runs/quickstart.
Started again, it goes on where it stopped, and needs no network once the cache is filled.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import assets
import reuters
from assets import Problem

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "target" / "release" / ("lora-drop.exe" if os.name == "nt" else "lora-drop")

# Documents drawn from Reuters R8's train and test files.
TRAIN_DOCUMENTS, DEV_DOCUMENTS = 400, 400
REFERENCE = "LoRA, rank 8"

# Every run makes the same number of optimiser steps; within five epochs none has converged. docs/compare.md explains the table.
TABLE = """\
name = "Quickstart: MiniLM on Reuters R8"
output = {output}
seeds = [0]
reference = "LoRA, rank 8"
# A point of accuracy.
tolerance = 0.01

[options]
model = {model}
dtype = {dtype}
max-length = 128
batch-size = 8
epochs = 12
learning-rate = 2e-3

[[tasks]]
name = "Reuters R8"
data = {data}

[[methods]]
name = "LoRA, rank 8"
method = "lora"

# A quarter of the parameters by a lower rank, with the same alpha / rank.
[[methods]]
name = "LoRA, rank 2"
method = "lora"
rank = 2
alpha = 4

# A quarter of the parameters by LoRA-drop, which goes on from its sample stage.
[[methods]]
name = "LoRA-drop, a quarter"
method = "lora-drop"
budget = 0.25
restart = "continue"

# A quarter of LoRA's trained adapter, in closed form, without training.
[[methods]]
name = "LoRA, pruned to a quarter"
prune = {{ of = "LoRA, rank 8", budget = 0.25 }}
"""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **options):
    """Runs a command in the project's folder; its failure is ours, with its own message already shown."""
    try:
        subprocess.run([str(part) for part in command], cwd=ROOT, check=True, **options)
    except subprocess.CalledProcessError as e:
        shown = " ".join(str(part) for part in command[:2])
        raise Problem(f"{shown} failed (exit status {e.returncode}); its message stands above", e.returncode)
    except FileNotFoundError:
        raise Problem(f"{command[0]} was not found")


def build():
    if shutil.which("cargo") is None:
        raise Problem("cargo was not found; install Rust (https://rustup.rs) and run this again")
    say("== Build (the first time takes a few minutes)")
    # The binary is run from this clone's own target folder, whatever the environment or a configuration says.
    run(["cargo", "build", "--release", "--locked", "--bin", "lora-drop", "--target-dir", ROOT / "target"])


def dtype():
    """bf16 where the processor multiplies it; elsewhere it is rounded and no faster."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "f32"
    return "bf16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16")) else "f32"


def verdict(findings, lines):
    """What the runs say, and what they cannot say."""
    entries = {lines[entry["line"]]: entry for entry in findings["entries"]}
    lora = entries.pop(REFERENCE)
    said = []
    for name, entry in entries.items():
        mine, other = entry["score"]["mean"], lora["score"]["mean"]
        mean = (mine + other) / 2
        error = math.sqrt(2 * mean * (1 - mean) / DEV_DOCUMENTS)
        if abs(mine - other) <= 2 * error:
            judged = "no difference that so few documents can show"
        else:
            judged = f"{'above' if mine > other else 'below'} by more than chance explains"
        share = 100 * entry["parameters"] / lora["parameters"]
        said.append(f"{name}: {share:.0f} % of the parameters, accuracy {mine:.3f} against {other:.3f}: {judged}")
    said.append(f"(one seed; the standard error of a difference on {DEV_DOCUMENTS} documents is about {error:.3f})")
    return "\n".join(said)


def shown(path):
    """A path as one would type it in the project's folder, where the commands run."""
    try:
        return path.relative_to(ROOT)
    except ValueError:
        return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quickstart", help="folder of all runs")
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with; 0 is all")
    args = parser.parse_args()
    cache = Path(os.environ.get("LORA_DROP_CACHE") or ROOT / ".cache").resolve()
    output = args.output.resolve()

    build()
    say("== Model and data")
    model = assets.install(assets.MINILM, cache, say)
    tables = assets.install(assets.REUTERS, cache, say)
    data = reuters.prepare(tables, cache, TRAIN_DOCUMENTS, DEV_DOCUMENTS)
    say("== LoRA, LoRA of a lower rank, LoRA-drop, and a pruned adapter")
    table = output.parent / f"{output.name}.toml"
    # JSON's strings are TOML's.
    paths = {name: json.dumps(str(shown(path))) for name, path in
             {"output": output, "model": model, "data": data}.items()}
    assets.write_whole(table, TABLE.format(dtype=json.dumps(dtype()), **paths))
    # Two small runs at a time use two processors better than one after the other.
    jobs = max(1, min(2, (args.threads or os.cpu_count() or 1)))
    run([BINARY, "compare", shown(table), "--threads", args.threads, "--jobs", jobs])
    sys.stdout.flush()
    found = json.loads((output / "compare.json").read_text(encoding="utf-8"))
    print("\n" + verdict(found["findings"], found["lines"]))
    print(f"\nCurves, importance and all numbers: {shown(output / 'compare.html')} (open it in a browser)")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        say(f"quickstart: {problem}")
        sys.exit(problem.status)
    except KeyboardInterrupt:
        say("quickstart: interrupted; started again, it goes on from here")
        sys.exit(130)
