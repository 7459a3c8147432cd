"""Texts, and the numbers that the Python packages give them: sacrebleu, rouge-score, NLTK's NIST, pycocoevalcap's CIDEr.

Without options it writes tests/golden/text_metrics.json, of sentences that it makes up itself. With --real DATA it takes
the references of E2E's dev and DialogSum's test split and GSM8K's answers from that folder, perturbs and crosses them
into system outputs, and writes the same form, for the check that README.md describes.
"""

import argparse
import gzip
import json
import random
import re
from pathlib import Path

from nltk.translate.nist_score import corpus_nist
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
CAPTION_PUNCTUATION = set(".,;:!?'`\"-()[]{}")

NAMES = ["Alba", "Blue Heron", "Café Ünal", "The Old Mill", "東京食堂", "Zoë's", "№ 9", "O'Neill & Sons", "Łódź-Bar"]
FOODS = ["soup", "pasta", "crème brûlée", "fish & chips", "寿司", "tea", "non-dairy cake"]
PLACES = ["the river", "the city centre", "Straße 12", "a park", "Mount K\u0130rk"]
PRICES = ["£20-25", "$1,234.50", "less than €20", "3.5", "cheap", "100%", "1,000,000 ¥", "\u212a9"]
TEMPLATES = [
    "{name} serves {food} near {place}.",
    "Near {place}, there is a restaurant called {name}; its {food} costs {price}.",
    "For {price} you get {food} at {name}, {name} and {name}!",
    '"{name}" (by {place}) isn\'t bad... is it? {food}, {food} & more: {price}',
    "{name} is {price}.\nIt offers {food}.\nIt lies by {place}.",
    "{name}\u3000{food}。{place}、{price}！",
    "well-\nknown <skipped> {name} &quot;{food}&quot; &amp; {price} &lt;{place}&gt;",
    "the the the {food} the the {food} the",
    "{food}",
]
ODD = ["", " ", "\n\n", "...", "a..b,,c", ".5,6.", "1-2-3 -4 x-5", "tab\tand\x0bmore\x1cspaces\x85here\u00a0\u2003end \n",
       "&amp;lt; &quot &quot;&gt;", "no_split @home #1 [x]{y}~z^`|\\/", "-\n-\n", "5.,5 ,.", "ΣΑΣ ΟΔΟΣ. İI ﬁ", "..5.."]


def sentence(rng):
    slots = {"name": NAMES, "food": FOODS, "place": PLACES, "price": PRICES}
    text = rng.choice(TEMPLATES)
    return re.sub(r"{(\w+)}", lambda slot: rng.choice(slots[slot[1]]), text)


def perturbed(text, others, rng):
    """What a system may write instead of `text`: words left out, doubled, moved or taken from elsewhere, or another text."""
    kind = rng.random()
    if kind < 0.03:
        return ""
    if kind < 0.15:
        return rng.choice(others)
    if kind < 0.25:
        return text
    words = re.split(r"(?<=\s)", text)
    for _ in range(rng.randint(1, 1 + len(words) // 4)):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        change = rng.randrange(6)
        if change == 0:
            words[i] = ""
        elif change == 1:
            words.insert(i, words[j])
        elif change == 2:
            words[i], words[j] = words[j], words[i]
        elif change == 3:
            words[i] = words[i].swapcase()
        elif change == 4:
            words[i] = rng.choice(re.split(r"(?<=\s)", rng.choice(others)))
        else:
            del words[max(1, len(words) - rng.randint(0, 3)):]
    return "".join(words)


def caption(text):
    """The words that CIDEr is given on both sides; see docs/metrics.md."""
    words = Tokenizer13a()(text.rstrip()).split()
    return " ".join(w.lower() for w in words if not set(w) <= CAPTION_PUNCTUATION)


def numbers(hypotheses, references):
    """What the packages say of these rows; without those that they fail at."""
    most = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    bleu = BLEU().corpus_score(hypotheses, streams)
    out = {"bleu": {"score": bleu.score, "precisions": bleu.precisions, "brevity_penalty": bleu.bp,
                    "hypothesis_length": bleu.sys_len, "reference_length": bleu.ref_len}}

    scorer = RougeScorer(ROUGE)
    rows = [scorer.score_multi(refs, hyp) for hyp, refs in zip(hypotheses, references)]
    for kind in ROUGE:
        out[kind] = sum(row[kind].fmeasure for row in rows) / len(rows)

    words = Tokenizer13a()
    try:
        out["nist"] = corpus_nist([[words(r.rstrip()).split() for r in refs] for refs in references],
                                  [words(h.rstrip()).split() for h in hypotheses], n=5)
    except ZeroDivisionError:
        pass
    gts = {i: [caption(r) for r in refs] for i, refs in enumerate(references)}
    res = {i: [caption(h)] for i, h in enumerate(hypotheses)}
    if any(any(refs) for refs in gts.values()):
        out["cider"] = float(Cider().compute_score(gts, res)[0])
    return out


def case(name, hypotheses, references):
    return {"name": name, "hypotheses": hypotheses, "references": references, "numbers": numbers(hypotheses, references)}


def made_up():
    rng = random.Random(20)
    references = [[sentence(rng) for _ in range(rng.randint(1, 3))] for _ in range(24)]
    pool = [text for row in references for text in row]
    hypotheses = [perturbed(rng.choice(row), pool, rng) for row in references]
    references[3].append("")
    hypotheses[5] = ""
    hypotheses[7] = "the " * 30
    references[7] = ["the cat " * 12, "a cat"]
    odd = list(ODD)
    rng.shuffle(odd)
    cases = [
        case("mixed", hypotheses, references),
        case("odd marks", odd, [[a, b] for a, b in zip(ODD, odd[1:] + odd[:1])]),
        case("one row", hypotheses[:1], references[:1]),
        case("equal", ["a b c d e f", "g h i j k"], [["a b c d e f"], ["g h i j k"]]),
        case("nothing in common", ["a b c d e", "f g h i j"], [["k l m n o"], ["p q r s t"]]),
        case("single words in common", ["a x b y c z", "d u e v f w"], [["a b c q r s"], ["t d e f"]]),
        case("pairs at most", ["a b", "c"], [["a b c"], ["c d", "c"]]),
        case("nothing said", ["", ""], [["a b c d e"], ["f g"]]),
        case("two references as near", ["a b c d e f"], [["a b c d e f g h", "a b c d", "x"]]),
        case("lines", ["c d e\na b\n\nb a x", "one\ntwo"], [["a b c\nd e a b", "x\na"], ["two\none", "one two"]]),
    ]
    return {"cases": cases, "words": words_of(ODD + pool[:12])}


def words_of(texts):
    words, rouge = Tokenizer13a(), DefaultTokenizer()
    return [{"text": t, "mteval_13a": words(t.rstrip()).split(), "rouge": rouge.tokenize(t)} for t in texts]


def rows(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def real(data):
    rng = random.Random(20)
    cases = []
    for name, path in (("e2e dev", "e2e/dev.jsonl.gz"), ("dialogsum test", "dialogsum/test.jsonl.gz")):
        references = [row["references"] for row in rows(data / path)]
        pool = [text for row in references for text in row]
        for part in range(3):
            hypotheses = [perturbed(rng.choice(row), pool, rng) for row in references]
            cases.append(case(f"{name}, outputs {part + 1}", hypotheses, references))
        left_out = [row[1:] for row in references if len(row) > 1]
        cases.append(case(f"{name}, its first reference", [row[0] for row in references if len(row) > 1], left_out))
        lines = [[text.replace(". ", ".\n") for text in row] for row in references]
        hypotheses = [rng.choice(row).replace(" and ", "\n") for row in references]
        cases.append(case(f"{name}, lines", hypotheses, lines))
        cases.append(case(f"{name}, the prompt", [row["prompt"] for row in rows(data / path)], references))
    answers = [row["completion"] for split in ("train", "test") for row in rows(data / f"gsm8k/{split}.jsonl.gz")]
    # GSM8K's own way to read an answer
    found = [re.search(r"#### (\-?[0-9\.\,]+)", text)[1].replace(",", "") for text in answers]
    return {"cases": cases,
            "final_numbers": [{"text": t, "number": float(n)} for t, n in zip(answers, found)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    golden = Path(__file__).resolve().parents[2] / "tests" / "golden" / "text_metrics.json"
    parser.add_argument("--real", type=Path, metavar="DATA", help="a folder with e2e, dialogsum and gsm8k")
    parser.add_argument("--output", type=Path, help="the file to write; with --real it has to be given")
    args = parser.parse_args()
    if args.real and not args.output:
        parser.error("--real holds others' texts and does not belong in the repository: give --output")
    out = real(args.real) if args.real else made_up()
    # one case or text a line, so that a change can be read
    parts = [json.dumps(key) + ": [\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]"
             for key, items in out.items()]
    path = args.output or golden
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
    for c in out["cases"]:
        n = c["numbers"]
        print(f"  {c['name']}: BLEU {n['bleu']['score']:.3f}, " +
              ", ".join(f"{k} {n[k]:.4f}" for k in [*ROUGE, "nist", "cider"] if k in n))


if __name__ == "__main__":
    main()
