"""Steps in PyTorch beside lora-drop's, on small random models; the environment variable LORA_DROP names the program."""

import os
import random
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from small import WORDS, bert_config, llama_config, tokenizer

PROGRAM = os.environ.get("LORA_DROP", "")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="the variable LORA_DROP does not name the program, such as "
                                "target/release/lora-drop")


def verify_training():
    loader = SourceFileLoader("verify_training", str(ROOT / "tools" / "verify_training"))
    module = module_from_spec(spec_from_loader("verify_training", loader))
    loader.exec_module(module)
    return module


def texts(count):
    chosen = random.Random(0)
    return [" ".join(str(chosen.randrange(3, WORDS)) for _ in range(chosen.randrange(4, 12))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_twenty_steps_are_those_of_lora_drop(tmp_path, kind):
    tool, folder = verify_training(), tmp_path / "model"
    transformers.set_seed(0)
    if kind == "encoder":
        transformers.BertForSequenceClassification(bert_config()).save_pretrained(folder)
        rows = [{"text": text, "label": int(text.split()[0]) % 2} for text in texts(8)]
    else:
        transformers.LlamaForCausalLM(llama_config()).save_pretrained(folder)
        rows = [{"text": text} for text in texts(8)]
    tokenizer().save_pretrained(folder)
    case = (tool.Encoder if kind == "encoder" else tool.Decoder)(folder, rows)
    table = tool.Table()
    tool.verify(case, table, Path(PROGRAM).resolve(), tmp_path / "work", 20)
    assert (table.count, table.failed) == (14, 0)
