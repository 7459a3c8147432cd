#!/usr/bin/env python3
"""Builds lora-drop, installs a small model and a small data set, trains LoRA and LoRA-drop, and compares them.

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
TRAIN_DOCUMENTS, DEV_DOCUMENTS = 400, 300

# What both runs have in common; `lora-drop train --help` explains each. Within five epochs neither has converged.
COMMON = {
    "max-length": "128",
    "epochs": "12",
    "batch-size": "8",
    "learning-rate": "2e-3",
    "seed": "0",
}
RUNS = {
    "lora": {"method": "lora"},
    "lora-drop": {"method": "lora-drop", "sample-ratio": "0.25", "budget": "0.25", "restart": "continue"},
}


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


def settings(name, model, data):
    """All that a run depends on, to see whether a finished one is still the one that is wanted."""
    version = subprocess.run([str(BINARY), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    options = {**COMMON, **RUNS[name]}
    return {"version": version, "options": options, "model": assets.digest(model / "model.safetensors"),
            "train": assets.digest(data / "train.jsonl"), "dev": assets.digest(data / "dev.jsonl")}


def finished(output, wanted):
    try:
        summary = read_summary(output)
        seen = json.loads((output / "quickstart.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return summary.get("status") == "finished" and seen == wanted


def train(name, model, data, output, threads):
    wanted = settings(name, model, data)
    if finished(output, wanted):
        say(f"== {name}: already trained in {shown(output)}")
        return
    say(f"== {name}: training")
    command = [BINARY, "train", "--model", shown(model), "--data", shown(data), "--output", shown(output),
               "--threads", threads]
    for option, value in wanted["options"].items():
        command += [f"--{option}", value]
    # An older or interrupted run may lie there; the folder is the quickstart's own.
    (output / "quickstart.json").unlink(missing_ok=True)
    run(command + ["--overwrite"], stdout=sys.stderr)
    assets.write_whole(output / "quickstart.json", json.dumps(wanted, indent=2) + "\n")


def read_summary(run):
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def verdict(lora, dropped):
    """What the two runs say, and what they cannot say."""
    share = 100 * dropped["lora_parameters"] / lora["lora_parameters"]
    mine, other = dropped["metrics"]["accuracy"], lora["metrics"]["accuracy"]
    mean = (mine + other) / 2
    error = math.sqrt(2 * mean * (1 - mean) / DEV_DOCUMENTS)
    if abs(mine - other) <= 2 * error:
        said = "no difference that so few documents can show"
    else:
        said = f"LoRA-drop is {'above' if mine > other else 'below'} by more than chance explains"
    return (f"LoRA-drop trained {share:.0f} % of LoRA's parameters and has accuracy {mine:.3f} beside {other:.3f}: {said}\n"
            f"(the standard error of a difference on {DEV_DOCUMENTS} documents is {error:.3f}; one seed each).")


def shown(path):
    """A path as one would type it in the project's folder, where the commands run."""
    try:
        return path.relative_to(ROOT)
    except ValueError:
        return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "quickstart", help="folder of both runs")
    parser.add_argument("--threads", type=int, default=0, help="threads to compute with; 0 is all")
    args = parser.parse_args()
    cache = Path(os.environ.get("LORA_DROP_CACHE") or ROOT / ".cache").resolve()
    output = args.output.resolve()

    build()
    say("== Model and data")
    model = assets.install(assets.MINILM, cache, say)
    tables = assets.install(assets.REUTERS, cache, say)
    data = reuters.prepare(tables, cache, TRAIN_DOCUMENTS, DEV_DOCUMENTS)
    for name in RUNS:
        train(name, model, data, output / name, args.threads)

    say("== LoRA and LoRA-drop side by side")
    run([BINARY, "inspect"] + [shown(output / name) for name in RUNS])
    sys.stdout.flush()
    print("\n" + verdict(*(read_summary(output / name) for name in RUNS)))
    print(f"\nReport: {shown(output / 'lora-drop' / 'report.html')}, and plain LoRA's: "
          f"{shown(output / 'lora' / 'report.html')} (open them in a browser)")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        say(f"quickstart: {problem}")
        sys.exit(problem.status)
    except KeyboardInterrupt:
        say("quickstart: interrupted; started again, it goes on from here")
        sys.exit(130)
