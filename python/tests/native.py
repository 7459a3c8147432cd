"""For tests of the package: the compiled module, and small models.

The module is the installed package's, or the file that LORA_DROP_NATIVE names, such as target/checks/lib_native.so.
"""

import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"


def lora_drop():
    """The package with its compiled module."""
    named = os.environ.get("LORA_DROP_NATIVE")
    if named:
        sys.path.insert(0, str(ROOT / "python"))
        import lora_drop

        if "lora_drop._native" not in sys.modules:
            loader = importlib.machinery.ExtensionFileLoader("lora_drop._native", os.path.abspath(named))
            module = importlib.util.module_from_spec(importlib.util.spec_from_loader("lora_drop._native", loader))
            loader.exec_module(module)
            sys.modules["lora_drop._native"] = lora_drop._native = module
        return lora_drop
    try:
        import lora_drop._native
    except ImportError:
        raise unittest.SkipTest("install the package, or name the compiled module in LORA_DROP_NATIVE") from None
    return lora_drop


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
