#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_files.json: a tokenizer's folder in the ways that models have it, and the tokens that
transformers (5.x) makes with it; and prompts with completions as one text. README.md beside this file has the layout.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", "▁a", "▁b", "ab", "▁ab",
              "d", "▁▁", "▁c", ":", "a:"]
MERGES = ["▁ a", "▁ b", "a b", "▁a b", "▁ ab", "▁ ▁", "▁ c", "a :"]
IDS = {token: number for number, token in enumerate(VOCABULARY)}
NEXT = len(VOCABULARY)
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEXTS = ["ab c", "x<new>y  <s> b", " <new>  <two> a<new>", "<s>ab</s>", "ab<new>ab <two>c"]
PROMPTS = [["a:", " b"], ["a:", "b"], ["a: ", "b"], ["ab", "c ab"], ["a\n", "  b"], ["a b", "d"], ["a <s>", "b"]]


def rules(content, special, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": not special, "single_word": False,
            "special": special} | flags


def tokenizer(added=("<unk>", "<s>", "</s>"), bos=True, normalizer="prepend", pre_tokenizer=None):
    prepend = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": IDS[token], **rules(token, True)} for token in added],
        "normalizer": prepend if normalizer == "prepend" else None,
        "pre_tokenizer": pre_tokenizer, "post_processor": template if bos else None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": IDS, "merges": [merge.split(" ") for merge in MERGES]}}


def cases():
    """Name, the files, and whether the class reads tokenizer.json as it is."""
    fast = NAMED | {"tokenizer_class": "PreTrainedTokenizerFast"}
    two = {str(NEXT + 1): rules("<two>", False, lstrip=True, rstrip=True, normalized=False), str(NEXT): rules("<new>", True)}
    yield "nothing", {"tokenizer_config.json": fast}
    yield "decoder", {"tokenizer_config.json": fast | {"added_tokens_decoder": two}}
    yield "decoder_other_numbers", {"tokenizer_config.json": fast | {"added_tokens_decoder": {
        "3": rules("<new>", True), "4000": rules("<two>", True, lstrip=True)}}}
    yield "decoder_normalized", {"tokenizer_config.json": fast | {"added_tokens_decoder": {
        str(NEXT): rules("<new>", False)}}}
    yield "decoder_words", {"tokenizer_config.json": fast | {"added_tokens_decoder": {
        str(NEXT): rules("<new>", True, single_word=True), str(IDS["ab"]): rules("ab", True)}}}
    yield "decoder_changes", {"tokenizer_config.json": fast | {"added_tokens_decoder": {
        "1": rules("<s>", False, lstrip=True, rstrip=True, normalized=False)}}}
    yield "decoder_and_named", {"tokenizer_config.json": fast | {"pad_token": "<two>", "added_tokens_decoder": {
        str(NEXT): rules("<new>", False, normalized=False)}, "sep_token": "<new>"}}
    yield "added_tokens", {"tokenizer_config.json": fast, "added_tokens.json": {"<new>": NEXT, "<two>": NEXT + 1}}
    yield "added_tokens_special", {"tokenizer_config.json": fast, "added_tokens.json": {"<two>": NEXT, "<new>": NEXT + 1},
                                   "special_tokens_map.json": {"pad_token": "<new>"}}
    yield "special_tokens_map", {"tokenizer_config.json": fast, "special_tokens_map.json": {
        "pad_token": {k: v for k, v in rules("<new>", True, lstrip=True).items() if k != "special"}}}
    yield "map_beside_decoder", {"tokenizer_config.json": fast | {"added_tokens_decoder": {}},
                                 "special_tokens_map.json": {"pad_token": "<new>"}}
    yield "named", {"tokenizer_config.json": fast | {"pad_token": "<new>", "image_token": "<two>", "cls_token": None}}
    yield "extra", {"tokenizer_config.json": fast | {"extra_special_tokens": ["<new>", "<two>"]}}
    yield "extra_names", {"tokenizer_config.json": fast | {"extra_special_tokens": {"image_token": "<new>"}}}
    yield "additional", {"tokenizer_config.json": fast | {"additional_special_tokens": ["<new>", {"__type": "AddedToken", **rules("<two>", True, lstrip=True)}]}}
    yield "in_vocabulary", {"tokenizer_config.json": fast, "tokenizer.json": tokenizer(added=())}
    for name in ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"]:
        flags = NAMED | {"tokenizer_class": name, "add_bos_token": True, "add_eos_token": True}
        yield f"flags_{name}", {"tokenizer_config.json": flags, "tokenizer.json": tokenizer(bos=False)}
    yield "flags_off", {"tokenizer_config.json": fast | {"add_bos_token": False}}


def prompt_cases():
    """Name and tokenizer.json of tokenizers with and without a space before a text."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
    yield "prepend", tokenizer()
    yield "first", tokenizer(normalizer=None, pre_tokenizer=metaspace | {"prepend_scheme": "first"})
    yield "always", tokenizer(normalizer=None, pre_tokenizer=metaspace | {"prepend_scheme": "always"})
    yield "words", tokenizer(normalizer=None, pre_tokenizer=metaspace | {"prepend_scheme": "first", "split": True})
    yield "never", tokenizer(normalizer=None, pre_tokenizer=metaspace | {"prepend_scheme": "never"})


def load(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ({"tokenizer.json": tokenizer()} | files).items():
            (Path(folder) / name).write_text(json.dumps(content))
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return AutoTokenizer.from_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "tokenizer_files.json")
    output = parser.parse_args().output
    logging.set_verbosity_error()
    found = {"tokenizer": tokenizer(), "files": [], "prompts": []}
    for name, files in cases():
        loaded = load(copy.deepcopy(files))
        texts = [[text, loaded(text).input_ids] for text in TEXTS]
        if name == "flags_LlamaTokenizer" or name == "flags_LlamaTokenizerFast":
            texts = texts[:1]  # the class has normalisation of its own after special tokens
        found["files"].append({"name": name, "files": files, "texts": texts, "tokens": len(loaded)})
    for name, file in prompt_cases():
        config = {"tokenizer_config.json": NAMED | {"tokenizer_class": "PreTrainedTokenizerFast"}}
        loaded = load({"tokenizer.json": file} | config)
        rows = [[p, c, loaded(p).input_ids, loaded(p + c).input_ids, loaded(c, add_special_tokens=False).input_ids]
                for p, c in PROMPTS]
        found["prompts"].append({"name": name, "tokenizer": file, "rows": rows})
    output.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(found['files'])} folders, {len(found['prompts'])} tokenizers")


if __name__ == "__main__":
    main()
