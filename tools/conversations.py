#!/usr/bin/env python3
"""Writes a small set of conversations, for a look at how a chat template writes them: with and without a system turn,
with one answer and with several, and with an answer that is not learned.

Example:
  tools/conversations.py data/errands
"""

import argparse
import json
import random
from pathlib import Path

PLACES = ["the bakery", "the library", "the post office", "the pharmacy", "the market", "the bicycle shop", "the museum"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
QUESTIONS = ["When does {place} open on {day}?", "Is {place} open on {day}?", "Until when is {place} open on {day}?"]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def conversation(draw):
    place, day, other = draw.choice(PLACES), draw.choice(DAYS), draw.choice(DAYS)
    opens, closes = draw.randint(7, 10), draw.randint(16, 20)
    answer = f"{place.capitalize()} is open from {opens} to {closes} o’clock on {day}."
    turns = [turn("user", draw.choice(QUESTIONS).format(place=place, day=day)), turn("assistant", answer)]
    if draw.random() < 0.4:
        turns.insert(0, turn("system", "You know the opening hours of the town. Answer in one sentence."))
    if draw.random() < 0.4:
        turns += [turn("user", f"And on {other}?"), turn("assistant", f"On {other} it opens an hour later.")]
    if draw.random() < 0.2:
        turns[-1:] = [turn("assistant", "I do not know.", weight=0), turn("user", "Look it up."), turns[-1]]
    return {"messages": turns}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where train.jsonl and dev.jsonl are written")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, rows in (("train", 400), ("dev", 40)):
        lines = [json.dumps(conversation(draw), ensure_ascii=False) + "\n" for _ in range(rows)]
        (args.folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
