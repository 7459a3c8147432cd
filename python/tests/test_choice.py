"""Which modules are kept, and importance.json: what needs no torch."""

import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lora_drop.peft as drop

SCORES = {"query": [1.0, 4.0, 3.0, 2.0], "value": [1.0, 1.0, 1.0, 7.0]}


def importance():
    modules = [drop.ModuleScore(layer, kind, g) for kind, scores in SCORES.items() for layer, g in enumerate(scores)]
    return drop.Importance(modules, rows=5, tokens=60)


class Choice(unittest.TestCase):
    def test_rules_are_those_of_lora_drop(self):
        found = importance()
        for rule, kept in [
            ({}, {"query": [1, 2, 3], "value": [0, 1, 3]}),
            ({"threshold": 1.0}, {"query": [0, 1, 2, 3], "value": [0, 1, 2, 3]}),
            ({"top_k": 1}, {"query": [1], "value": [3]}),
            # Two shared pairs and two own ones of eight; then query 2 comes before the others.
            ({"budget": 0.5}, {"query": [1], "value": [3]}),
            ({"budget": 0.63}, {"query": [1, 2], "value": [3]}),
            ({"budget": 0.25}, {"query": [], "value": []}),
            ({"budget": 0.25, "unselected": "drop"}, {"query": [1], "value": [3]}),
        ]:
            with self.subTest(rule):
                self.assertEqual(drop.choose(found, **rule), kept)

    def test_wrong_rules_are_refused(self):
        for rule, words in [
            ({"budget": 0.1}, "the smallest is 0.25"), ({"budget": 2.0}, "budget is 2.0"), ({"top_k": 5}, "0 to 4"),
            ({"threshold": 0.0}, "threshold is 0.0"), ({"budget": 0.5, "top_k": 1}, "exclude each other"),
            ({"unselected": "scale"}, "'share' or 'drop'"),
        ]:
            with self.subTest(rule), self.assertRaisesRegex(drop.LoraDropError, words):
                drop.choose(importance(), **rule)
        with self.assertRaisesRegex(drop.LoraDropError, "diverged"):
            drop.Importance([drop.ModuleScore(0, "query", float("nan"))])

    def test_scores_are_written_and_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "importance.json"
            importance().save(path)
            document = json.loads(path.read_text())
            again = drop.Importance.load(path)
        self.assertEqual(document["kept"], {"query": [1, 2, 3], "value": [0, 1, 3]})
        self.assertEqual(again.modules, importance().modules)
        self.assertEqual((again.rows, again.tokens), (5, 60))

    def test_modules_are_found_by_their_paths(self):
        for path, expected in {
            "bert.encoder.layer.3.attention.self.query": (3, "query"),
            "bert.encoder.layer.11.attention.output.dense": (11, "attention.output.dense"),
            "model.layers.0.mlp.down_proj": (0, "down_proj"),
        }.items():
            self.assertEqual(drop._module_type(path), expected)
        with self.assertRaisesRegex(drop.LoraDropError, "no numbered layer"):
            drop._module_type("model.embed_tokens")


if __name__ == "__main__":
    unittest.main()
