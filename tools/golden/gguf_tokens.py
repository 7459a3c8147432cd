"""Compares the tokens of GGUF tokenizers here and in transformers, on real lines and on hard ones.

    python tools/golden/gguf_tokens.py MODEL.gguf DATA_FILE.jsonl[.gz]...

First the model as it is, then its vocabulary under every other kind of splitting, then a SentencePiece vocabulary that
is trained on the lines. Builds and runs the example gguf_tokens. Exits with 1 if any line differs.

transformers leaves out some things that a kind of splitting means, in the models' own tokenizer.json files and in
llama.cpp. They are set in its tokenizer before comparing: smollm splits digits off before everything else (seen where
two white spaces stand before a digit), qwen2 composes text (NFC), llama-bpe and tekken take a word that is a token
whole. For the model itself the comparison with transformers as it is stands beside that, for information.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]

HARD = [
    "", " ", "  ", "   two", "a  12", "\n\n12", "tab\t\tx", "line\r\n\r\nend", "1234567", "x=1;y=22", "IT'S we'll THEY'RE",
    "HelloWorld iPhone", "naïve café", "cafe\u0301", "東京タワー", "Ünïcödé", "🙂🙂 👩‍💻", "\u00a0nbsp", "a.//b//", "!!!???...",
    "<|im_start|>user\nhi<|im_end|>", "<s>x</s>", "<unk>", "١٢٣", "ǅ ǈ", "\u2028x", "été 3½", "\x00\x7f", "▁x ▁▁y",
]


def lines_of(paths, count):
    """`count` texts, taken evenly from all text fields of all files."""
    texts = []
    for path in paths:
        opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
        with opened as rows:
            texts += [v for row in rows for v in json.loads(row).values() if isinstance(v, str) and v]
    if len(texts) < count:
        raise SystemExit(f"the files have {len(texts)} texts, {count} are asked for")
    return [texts[i * len(texts) // count] for i in range(count)]


def ours(path, lines):
    command = ["cargo", "run", "--release", "--quiet", "-p", "lora-drop", "--example", "gguf_tokens", "--", str(path)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"gguf_tokens on {path}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(path, lines, change=None):
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if change:
        change(tokenizer.backend_tokenizer)
    return [tokenizer(line)["input_ids"] for line in lines]


def compare(what, path, lines, change=None):
    seen, expected = ours(path, lines), theirs(path, lines, change)
    assert len(seen) == len(expected) == len(lines)
    wrong = [i for i in range(len(lines)) if seen[i] != expected[i]]
    tokens = sum(map(len, expected))
    print(f"{what}: {len(lines)} texts, {tokens} tokens, {len(wrong)} texts differ", flush=True)
    for i in wrong[:5]:
        print(f"  {lines[i]!r:.200}\n    here         {seen[i][:40]}\n    transformers {expected[i][:40]}")
    return len(wrong)


def digits_first(tokenizer):
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


def composed(tokenizer):
    tokenizer.normalizer = normalizers.NFC()


def whole_words(tokenizer):
    tokenizer.model.ignore_merges = True


def with_pre(source, target, pre):
    """A file with the source's tokenizer under another `tokenizer.ggml.pre`, and without tensors."""
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in gguf.GGUFReader(source).fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "tokenizer.ggml.pre"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_string("tokenizer.ggml.pre", pre)
    write(writer)


def sentence_piece(lines, target, folder):
    """A SentencePiece BPE vocabulary of 2,000 pieces, trained on the lines, written as llama.cpp's converter does."""
    text = folder / "lines.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "sp"), vocab_size=2000, model_type="bpe", byte_fallback=True,
        character_coverage=0.999, minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))
    tokens, scores, kinds = [], [], []
    for i in range(model.get_piece_size()):
        tokens.append(model.id_to_piece(i))
        scores.append(model.get_score(i))
        kinds.append(2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1)
    writer = gguf.GGUFWriter(target, "llama")
    for key, value in {"block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 32}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.scores", scores)
    writer.add_array("tokenizer.ggml.token_type", kinds)
    for name, i in (("unknown", 0), ("bos", 1), ("eos", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i)
    writer.add_string("general.name", "sentencepiece")
    write(writer)
    return model


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--lines", type=int, default=1000)
    arguments = parser.parse_args()
    model, lines = arguments.model.resolve(), lines_of(arguments.data, arguments.lines)
    fix = {"smollm": digits_first, "qwen2": composed, "llama-bpe": whole_words, "tekken": whole_words}
    pre = gguf.GGUFReader(model).fields["tokenizer.ggml.pre"].contents()

    compare(f"{model.name} ({pre}), transformers as it is (for information)", model, lines)
    wrong = compare(f"{model.name} ({pre})", model, lines, fix.get(pre))
    wrong += compare(f"{model.name} ({pre}), hard texts", model, HARD, fix.get(pre))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for other in ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"):
            path = folder / f"{other}.gguf"
            with_pre(model, path, other)
            wrong += compare(f"its vocabulary under {other}", path, lines + HARD, fix.get(other))
        path = folder / "sentencepiece.gguf"
        reference = sentence_piece(lines, path, folder)
        wrong += compare("SentencePiece", path, lines + HARD)
        # SentencePiece itself squeezes white space and normalises; the real lines are compared where it did not.
        kept = [line for line in lines if reference.normalize(line)[1:].replace("▁", " ") == line]
        same = sum(a == [1, *reference.encode(b)] for a, b in zip(ours(path, kept), kept))
        print(f"SentencePiece's own library: {same} of {len(kept)} equal")
        wrong += len(kept) - same
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
