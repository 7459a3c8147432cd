"""Every Python script of the project is sound Python, and none of them names a machine's own places."""

import ast
import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def scripts():
    """Python files under tools and bench, by suffix or by their first line."""
    for folder in ("tools", "bench"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.stat().st_size < 1 << 20:
                start = path.read_bytes()[:64].split(b"\n")[0]
                if path.suffix == ".py" or (start.startswith(b"#!") and b"python" in start):
                    yield path


class Scripts(unittest.TestCase):
    def test_there_are_scripts(self):
        self.assertIn(ROOT / "tools" / "golden" / "make_golden.py", list(scripts()))

    def test_each_parses_and_says_what_it_is_for(self):
        for path in scripts():
            with self.subTest(path.name):
                tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
                self.assertTrue(ast.get_docstring(tree))

    def test_none_names_a_place_on_one_machine(self):
        for path in scripts():
            with self.subTest(path.name):
                text = path.read_text(encoding="utf-8")
                self.assertIsNone(re.search(r"[\"'](/home|/root|/tmp|/mnt|[A-Z]:\\)", text))


if __name__ == "__main__":
    unittest.main()
