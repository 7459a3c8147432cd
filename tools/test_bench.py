"""What the measuring scripts reckon, apart from what they measure."""

import argparse
import json
import sys
import tempfile
import unittest
import xml.dom.minidom
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from unittest import mock

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import plot
import runs


def script(name):
    loader = SourceFileLoader(name, str(BENCH / name))
    module = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


class Runs(unittest.TestCase):
    def test_rounds_alternate_in_their_order(self):
        order = []
        with mock.patch.object(runs, "say"):
            found = runs.interleaved([("a",), ("b",)], 2, lambda work: order.append(work) or len(order))
        self.assertEqual(order, [("a",), ("b",), ("b",), ("a",)])
        self.assertEqual(found, {("a",): [1, 4], ("b",): [2, 3]})

    def test_seconds_follow_from_the_log(self):
        with tempfile.TemporaryDirectory() as folder:
            lines = [{"event": "step", "stage": stage, "tokens": tokens, "tokens_per_second": speed}
                     for stage, tokens, speed in [("sample", 10, 5.0), ("train", 30, 10.0), ("train", 30, 15.0)]]
            lines.insert(2, {"event": "evaluation", "epoch": 1})
            (Path(folder) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.assertEqual([step["seconds"] for step in runs.steps_of(Path(folder), "train")], [3.0, 4.0])
            self.assertEqual(len(runs.steps_of(Path(folder), "sample")), 1)

    def test_first_rows_are_written_as_they_are(self):
        with tempfile.TemporaryDirectory() as folder:
            for split in ("train", "dev"):
                (Path(folder) / f"{split}.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
            out = runs.first_rows(Path(folder), Path(folder) / "out", 1, None)
            self.assertEqual((out / "train.jsonl").read_text(), '{"text": "a"}\n')
            self.assertEqual((out / "dev.jsonl").read_text(), '{"text": "a"}\n{"text": "b"}\n')

    def test_tables_are_markdown(self):
        self.assertEqual(runs.markdown(["a", "b"], [[1, "x"]]), "| a | b |\n|---|---|\n| 1 | x |")


class Pictures(unittest.TestCase):
    def test_a_picture_is_sound_and_has_every_point(self):
        dots = plot.Curve("a & b", "#111", [(1, 3.0), (4, 5.0)], False)
        line = plot.Curve("line", "#222", [(1, 2.0), (4, 5.5)], True)
        panel = plot.Panel("<title>", "x", "y", [(1, "1", "5%"), (4, "4", "")], [dots, line])
        drawn = xml.dom.minidom.parseString(plot.picture([panel, panel]).encode())
        # Two of each panel's circles are points, one is the legend's.
        self.assertEqual(len(drawn.getElementsByTagName("circle")), 2 * 3)
        self.assertEqual(len(drawn.getElementsByTagName("polyline")), 2)
        for circle in drawn.getElementsByTagName("circle"):
            self.assertTrue(0 < float(circle.getAttribute("cy")) < plot.TOP + plot.HEIGHT + plot.BOTTOM)

    def test_grid_lines_are_few_and_round(self):
        for most in (0.9, 1.0, 7.3, 95, 420, 8200):
            self.assertTrue(2 <= most / plot.step_of(most) <= 6, most)


class Scaling(unittest.TestCase):
    def test_expected_times_rise_with_attention_alone(self):
        scaling = script("scaling")
        points = [{"model": "m", "dtype": "f32", "axis": "length", "microseconds_per_token": time, "attention_share": share}
                  for time, share in [(100.0, 0.0), (125.0, 0.2), (400.0, 0.5)]]
        scaling.expect(points)
        self.assertEqual([p["expected"] for p in points], [100.0, 125.0, 200.0])

    def test_lengths_have_the_same_tokens_in_a_step(self):
        scaling = script("scaling")
        args = argparse.Namespace(minilm="m", smollm2="s", dtypes=["f32"], largest=64, longest=None, tokens=None)
        works = scaling.works(args)
        self.assertEqual({batch * length for model, _, axis, batch, length in works if (model, axis) == ("smollm2", "length")}, {2048})
        self.assertEqual(max(length for *_, length in works), 2048)
        self.assertEqual([batch for model, _, axis, batch, _ in works if (model, axis) == ("minilm", "batch")], [1, 2, 4, 8, 16, 32, 64])


class LowerBlocks(unittest.TestCase):
    def test_jobs_are_set_against_lora_on_all_layers(self):
        job = lambda *epochs: {"epochs": list(epochs), "job": sum(epochs) + 1.0}
        lines = script("lower_blocks").compared({("m", "all"): [job(10.0, 10.0, 10.0)], ("m", 5): [job(8.0, 2.0, 4.0)]})
        self.assertEqual((lines[1]["first_of_lora"], lines[1]["later_of_lora"]), (0.8, 0.3))
        self.assertEqual(lines[0]["job_of_lora"], 1.0)


class Precision(unittest.TestCase):
    def test_a_difference_is_judged_by_the_seeds(self):
        precision = script("precision")
        of = lambda dtype, values: [{"task": "rte", "dtype": dtype, "metrics": {"accuracy": value}} for value in values]
        near = precision.compared(of("f32", [0.5, 0.6, 0.7]) + of("bf16", [0.55, 0.65, 0.75]), "rte", "accuracy")
        self.assertAlmostEqual(near["difference"], 0.05)
        self.assertAlmostEqual(near["standard_error"], 0.1 * (2 / 3) ** 0.5)
        self.assertTrue(near["within_noise"])
        far = precision.compared(of("f32", [0.5, 0.5, 0.51]) + of("bf16", [0.7, 0.7, 0.71]), "rte", "accuracy")
        self.assertFalse(far["within_noise"])
        self.assertNotIn("within_noise", precision.compared(of("f32", [0.5]) + of("bf16", [0.5]), "rte", "accuracy"))


if __name__ == "__main__":
    unittest.main()
