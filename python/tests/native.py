"""For tests of the package: the compiled module, and small models.

The module is the installed package's, or the file that LORA_DROP_NATIVE names, such as target/checks/lib_native.so.
"""

import atexit
import functools
import json
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"


def lora_drop():
    """The package with its compiled module."""
    # Other tests import the package from the source tree, which has no compiled module.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT / "python"]
    for name in [name for name in sys.modules if name.split(".")[0] == "lora_drop"]:
        del sys.modules[name]
    named = os.environ.get("LORA_DROP_NATIVE")
    if named:
        sys.path.insert(0, _installed(named))
    try:
        import lora_drop._native
    except ImportError:
        raise unittest.SkipTest("install the package, or name the compiled module in LORA_DROP_NATIVE") from None
    return lora_drop


@functools.lru_cache(maxsize=None)
def _installed(named):
    """A folder with the package as it is installed: commands of the package start it again in processes of their own."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    package = Path(folder.name, "lora_drop")
    shutil.copytree(ROOT / "python/lora_drop", package, ignore=shutil.ignore_patterns("__pycache__", "_native*.so"))
    (package / f"_native{'.pyd' if os.name == 'nt' else '.abi3.so'}").symlink_to(os.path.abspath(named))
    return folder.name


def encoder(folder):
    """A random BERT whose words are w5 to w99."""
    return _model(folder, "bert", {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}, 100)


def decoder(folder):
    """A random Llama whose words are w3 to w95."""
    return _model(folder, "llama", {"<pad>": 0, "<s>": 1, "</s>": 2}, 96)


def _model(folder, name, special, size):
    folder = Path(folder)
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name / file, folder)
    vocabulary = {**special, **{f"w{i}": i for i in range(len(special), size)}}
    unknown = list(special)[min(1, len(special) - 1)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "decoder": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [{"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for word, i in special.items()],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    }
    if "[CLS]" in special:
        tokenizer["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return str(folder)


def labelled(count, words=("w10", "w20")):
    """Rows whose label is in their first word."""
    return [{"text": f"{words[i % 2]} w{30 + i % 40}", "label": ("no", "yes")[i % 2]} for i in range(count)]


def reversed_words(count):
    return [{"prompt": f"w{3 + i * 7 % 40} w{3 + i * 13 % 40}", "completion": f"w{3 + i * 13 % 40} w{3 + i * 7 % 40}"}
            for i in range(count)]
