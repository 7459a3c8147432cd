"""What the measuring scripts have in common: the program, the JSON it prints, and results with machine and date."""

import datetime
import gzip
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

from machine import cores, machine

ROOT = Path(__file__).resolve().parents[1]


def say(text):
    print(text, file=sys.stderr, flush=True)


def fail(message):
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def add_common(parser, results):
    """The options of all of them; `results` is how the file is called behind the date."""
    parser.add_argument("--program", type=Path, default=ROOT / "target" / "release" / "lora-drop",
                        help="(default: target/release/lora-drop of this checkout)")
    parser.add_argument("--threads", type=int, default=cores(), help="of each process (default: all cores)")
    parser.add_argument("--results", type=Path, help=f"JSON with the results (default: bench/results/DATE-{results}.json)")


def check_common(parser, args):
    if args.threads < 1:
        parser.error("--threads is at least 1")
    if not args.program.is_file():
        parser.error(f"{args.program} is not there; build it with cargo build --release, or give --program")


def output_of(command, what):
    """The JSON object that a command prints on standard output."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail(f"{what} failed (exit status {done.returncode}):\n{done.stderr[-2000:]}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        fail(f"{what} printed no JSON object but {done.stdout[-500:]!r}")


def lines_of(folder, split, count=None):
    """The first rows of a split as lines of JSON."""
    for name, opened in [(f"{split}.jsonl", open), (f"{split}.jsonl.gz", gzip.open)]:
        if (folder / name).is_file():
            with opened(folder / name, "rt", encoding="utf-8") as file:
                return [line.rstrip("\n") + "\n" for line in itertools.islice(file, count)]
    fail(f"{folder} has no {split}.jsonl or {split}.jsonl.gz")


def first_rows(source, folder, train, dev):
    """Writes the first rows of both splits into a new folder; None is all of them."""
    folder.mkdir(parents=True)
    for split, count in [("train", train), ("dev", dev)]:
        (folder / f"{split}.jsonl").write_text("".join(lines_of(source, split, count)), encoding="utf-8")
    return folder


def steps_of(run, stage):
    """The steps of a stage ("sample" or "train") as a run's metrics.jsonl has them, each with the seconds since the stage
    began, measurements on dev left out."""
    steps, tokens = [], 0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] == "step" and record["stage"] == stage:
            tokens += record["tokens"]
            steps.append({**record, "seconds": tokens / record["tokens_per_second"]})
    return steps


def about(args):
    """Date, machine and version: where results come from."""
    version = subprocess.run([str(args.program), "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(args.threads), "version": version}


def results_path(args, name):
    """Where the results go: --results, or a file of today."""
    today = datetime.datetime.now(datetime.timezone.utc)
    return args.results or ROOT / "bench" / "results" / f"{today:%Y-%m-%d}-{name}.json"


def write_json(path, value):
    """Under another name first, so that a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def interleaved(works, rounds, measure):
    """{work: its measurements}: every round measures all works, every other one from the last to the first, so that what
    else the machine does is spread over them all."""
    found = {work: [] for work in works}
    for number in range(rounds):
        for work in works if number % 2 == 0 else works[::-1]:
            found[work].append(measure(work))
            say(f"  {number + 1}/{rounds} {' '.join(str(part) for part in work)}")
    return found


def spread(values, digits=3):
    """Mean, and with several values the standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown(head, rows):
    line = lambda cells: "| " + " | ".join(str(cell) for cell in cells) + " |"
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])
