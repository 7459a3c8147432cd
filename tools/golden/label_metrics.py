#!/usr/bin/env python3
"""Writes label_metrics.json: rows of several classes and words with tags, labels and predictions drawn at random, with
the metrics of scikit-learn and seqeval. README.md beside this file has the layout.
"""

import argparse
import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import accuracy_score as words_accuracy
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

SCHEMES = {"iob": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
           "bioes": ["O", "B-A", "I-A", "E-A", "S-A", "B-B-C", "I-B-C", "E-B-C", "S-B-C"]}
WORDS = ["NOUN", "VERB", "ADJ", "X"]


def sets(draw, rows, classes, share):
    """Rows of several classes; the last class never occurs."""
    labels = [sorted(draw.sample(range(classes - 1), draw.randint(0, 3))) for _ in range(rows)]
    predicted = [row if draw.random() < share else sorted(draw.sample(range(classes - 1), draw.randint(0, 3)))
                 for row in labels]
    truth, guess = (MultiLabelBinarizer(classes=range(classes)).fit_transform(x) for x in (labels, predicted))
    values = {"micro_f1": f1_score(truth, guess, average="micro", zero_division=0),
              "macro_f1": f1_score(truth, guess, average="macro", zero_division=0),
              "subset_accuracy": accuracy_score(truth, guess)}
    return {"names": [str(c) for c in range(classes)], "labels": labels, "predicted": predicted, "metrics": values}


def tags(draw, names, rows, share):
    """Rows of tags that may follow each other in any order."""
    labels = [[draw.choice(range(len(names))) for _ in range(draw.randint(1, 12))] for _ in range(rows)]
    predicted = [[tag if draw.random() < share else draw.choice(range(len(names))) for tag in row] for row in labels]
    truth, guess = ([[names[tag] for tag in row] for row in x] for x in (labels, predicted))
    if names is WORDS:
        flat = [sum(x, []) for x in (truth, guess)]
        values = {"accuracy": accuracy_score(*flat), "macro_f1": f1_score(*flat, average="macro")}
    else:
        values = {"f1": entity_f1(truth, guess), "precision": precision_score(truth, guess),
                  "recall": recall_score(truth, guess), "accuracy": words_accuracy(truth, guess)}
    return {"names": names, "labels": labels, "predicted": predicted, "metrics": values}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "tests" / "golden")
    output = parser.parse_args().output
    warnings.simplefilter("ignore")  # entities that are never predicted
    draw = random.Random(5)
    cases = {"multi-label": [sets(draw, 40, 6, share) for share in (0.0, 0.5, 0.9, 1.0)],
             "token-classification": [tags(draw, names, 30, share)
                                      for names in [*SCHEMES.values(), WORDS] for share in (0.0, 0.6, 0.9, 1.0)]}
    # Nothing but the tag outside of entities is predicted.
    never = tags(draw, SCHEMES["iob"], 8, 0.0)
    never["predicted"] = [[0] * len(row) for row in never["labels"]]
    values = [[[never["names"][tag] for tag in row] for row in never[part]] for part in ("labels", "predicted")]
    never["metrics"] = {"f1": entity_f1(*values), "precision": precision_score(*values),
                        "recall": recall_score(*values), "accuracy": words_accuracy(*values)}
    cases["token-classification"].append(never)
    text = json.dumps({task: [{k: v if k != "metrics" else {n: float(x) for n, x in v.items()} for k, v in case.items()}
                              for case in found] for task, found in cases.items()}, separators=(",", ":"))
    (output / "label_metrics.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
