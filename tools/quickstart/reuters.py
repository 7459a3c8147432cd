"""Reuters R8 from Orange's tables to JSON Lines: a stratified sample that is the same on every machine."""

import hashlib
import json
from collections import Counter, defaultdict

from assets import Problem, write_whole


def read_table(path):
    """(category, text) of each row of an Orange table: names, types and roles stand in its first three lines."""
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].split("\t") != ["Category", "Text"]:
        raise Problem(f"{path}:1: expected the columns Category and Text, found {lines[0]!r}")
    rows = []
    for number, line in enumerate(lines[3:], start=4):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not fields[0] or not fields[1].strip():
            raise Problem(f"{path}:{number}: expected a category and a text, found {len(fields)} fields")
        rows.append((fields[0], fields[1].strip()))
    return rows


def quotas(counts, total):
    """How many of each class make up `total`: proportional, largest remainders first, at least one of each."""
    rows = sum(counts.values())
    if not len(counts) <= total <= rows:
        raise Problem(f"cannot draw {total} documents from {rows} in {len(counts)} classes")
    exact = {c: total * n / rows for c, n in counts.items()}
    drawn = {c: max(1, int(x)) for c, x in exact.items()}
    order = sorted(counts, key=lambda c: (drawn[c] - exact[c], c))
    for c in order:
        if sum(drawn.values()) < total and drawn[c] < counts[c]:
            drawn[c] += 1
    while sum(drawn.values()) > total:  # rare classes were raised to one: the largest gives way
        drawn[max(drawn, key=lambda c: (drawn[c], c))] -= 1
    return drawn


def sample(rows, total):
    """`total` different documents, class by class in proportion, in an order given by the texts' hashes alone."""
    hashed = sorted({(hashlib.sha256(f"{c}\t{t}".encode()).hexdigest(), c, t) for c, t in rows})
    wanted = quotas(Counter(c for _, c, _ in hashed), total)
    taken = defaultdict(int)
    out = []
    for _, category, text in hashed:
        if taken[category] < wanted[category]:
            taken[category] += 1
            out.append((category, text))
    return out


def prepare(tables, cache, train, dev):
    """The folder with train.jsonl and dev.jsonl; always written anew, which takes less than a second."""
    folder = cache / "data" / f"reuters-r8-{train}-{dev}"
    for split, table, total in (("train", "reuters-r8-train.tab", train), ("dev", "reuters-r8-test.tab", dev)):
        rows = sample(read_table(tables / table), total)
        lines = [json.dumps({"text": t, "label": c}, ensure_ascii=False) + "\n" for c, t in rows]
        write_whole(folder / f"{split}.jsonl", "".join(lines))
    return folder
