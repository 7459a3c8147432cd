"""LoRA-drop on small random PEFT models: scores, choices, ties, files."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lora_drop.peft as drop

LAYERS = 4


def bert(**lora):
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2,
                                     intermediate_size=24, max_position_embeddings=32, num_labels=2)
    model = transformers.BertForSequenceClassification(config)
    settings = dict(r=4, lora_alpha=8, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.0)
    return grown(peft.get_peft_model(model, peft.LoraConfig(**{**settings, **lora})))


def llama(**lora):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2,
                                      num_key_value_heads=1, intermediate_size=24, max_position_embeddings=32)
    model = transformers.LlamaForCausalLM(config)
    settings = dict(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return grown(peft.get_peft_model(model, peft.LoraConfig(**{**settings, **lora})))


def grown(model):
    """Gives every B random values, larger ones in higher layers."""
    torch.manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            layer = int([part for part in name.split(".") if part.isdigit()][0])
            value.data.normal_(std=0.05 * (1 + layer))
    return model


def batches(count=3, labels=True):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        ids = torch.randint(3, 60, (5, 9), generator=generator)
        lengths = torch.randint(4, 10, (5,), generator=generator)
        mask = (torch.arange(9) < lengths[:, None]).long()
        batch = {"input_ids": ids, "attention_mask": mask}
        if labels:
            batch["labels"] = torch.randint(0, 2, (5,), generator=generator)
        yield batch


def long_way(model, rows):
    """The scores from whole outputs s B A x."""
    sums, handles, mask = {}, [], None

    def hook(place, name):
        def add(layer, args):
            x = args[0][mask]
            out = layer.lora_B[name](layer.lora_A[name](x)) * layer.scaling[name]
            sums[place] = sums.get(place, 0.0) + float(out.double().square().sum())
        return add

    for place, (name, layer) in drop._lora_layers(model, None).items():
        handles.append(layer.register_forward_pre_hook(hook(place, name)))
    model.eval()
    with torch.no_grad():
        for batch in rows:
            mask = batch["attention_mask"].bool()
            model(**batch)
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("make", [bert, llama])
def test_scores_are_the_norms_of_whole_outputs(make):
    model = make()
    labels = make is bert
    found = drop.score(model, batches(labels=labels))
    expected = long_way(model, batches(labels=labels))
    assert {(m.layer, m.module) for m in found.modules} == set(expected)
    for m in found.modules:
        assert m.score == pytest.approx(expected[m.layer, m.module], rel=1e-5)
    assert found.rows == 15 and found.tokens == sum(int(b["attention_mask"].sum()) for b in batches(labels=labels))
    # Tied pairs are scored for each of their layers.
    drop.apply(model, found, budget=0.5)
    tied, again = drop.score(model, batches(labels=labels)), long_way(model, batches(labels=labels))
    for m in tied.modules:
        assert m.score == pytest.approx(again[m.layer, m.module], rel=1e-5)


def test_scoring_does_not_change_training():
    def losses(scored):
        model = bert(lora_dropout=0.3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(7)
        model.train()
        found = []
        with drop.Scorer(model) as scorer:
            if not scored:
                scorer.__exit__()
            for batch in batches(4):
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
        if scored:
            assert scorer.importance().steps == 4
        return found

    assert losses(True) == losses(False)


def test_tied_pairs_are_one_parameter_with_the_sum_of_gradients():
    model = bert()
    report = drop.apply(model, drop.score(model, batches()), budget=0.5)
    trained = [p for p in model.parameters() if p.requires_grad]
    lora = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert lora == report.parameters and report.parameters_full == 2 * LAYERS * 4 * 32
    assert report.retained_ratio == lora / report.parameters_full <= 0.5
    assert len({id(p) for p in trained}) == len(trained)

    # The same model with a pair for each layer, whose gradients are added up.
    layers = drop._lora_layers(model, None)
    shared = next(kind for kind in report.kept if len(report.kept[kind]) < LAYERS - 1)
    tied = [layer for (layer, kind) in layers if kind == shared and layer not in report.kept[kind]]
    batch = next(batches())
    model.eval()
    model(**batch).loss.backward()
    name, first = layers[tied[0], shared]
    gradient = first.lora_B[name].weight.grad.clone()
    for layer in tied:
        own = layers[layer, shared][1]
        for pairs in (own.lora_A, own.lora_B):
            copy = torch.nn.Linear(pairs[name].in_features, pairs[name].out_features, bias=False)
            copy.weight.data.copy_(pairs[name].weight.data)
            pairs[name] = copy
    model.zero_grad()
    model(**batch).loss.backward()
    parts = sum(layers[layer, shared][1].lora_B[name].weight.grad for layer in tied)
    assert torch.allclose(gradient, parts, atol=1e-7)


def test_a_shared_pair_starts_as_the_best_common_one():
    model = bert()
    layers = drop._lora_layers(model, None)
    products = [layers[layer, "query"][1].get_delta_weight("default").double() for layer in range(LAYERS)]
    mean = sum(products) / LAYERS
    drop.apply(model, drop.score(model, batches()), top_k=0)
    found = layers[2, "query"][1].get_delta_weight("default").double()
    u, s, v = torch.linalg.svd(mean)
    best = u[:, :4] * s[:4] @ v[:4]
    assert torch.allclose(found, best, atol=1e-6)
    assert layers[0, "query"][1].lora_A["default"] is layers[3, "query"][1].lora_A["default"]


def test_fresh_pairs_begin_as_in_peft():
    model = bert()
    drop.apply(model, drop.score(model, batches()), budget=0.5, restart="fresh")
    assert all(bool((p == 0).all()) for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("unselected", ["share", "drop"])
@pytest.mark.parametrize("make", [bert, llama])
def test_files_load_in_peft_with_the_same_outputs(tmp_path, make, unselected):
    model = make()
    labels = make is bert
    importance = drop.score(model, batches(labels=labels))
    report = drop.apply(model, importance, budget=0.5, unselected=unselected)
    model.eval()
    batch = next(batches(labels=False))
    expected = model(**batch).logits
    weights, compact = drop.save(model, tmp_path / "adapter")
    torch.manual_seed(0 if labels else 1)
    base = model.unload()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(loaded(**batch).logits, expected, atol=1e-6)
    from safetensors import safe_open
    with safe_open(compact, "pt") as file:
        about = json.loads(file.metadata()["lora_drop.adapter"])
        values = sum(file.get_tensor(name).numel() for name in file.keys() if name.startswith("lora."))
    assert values == report.parameters
    assert sum(len(pair["layers"]) for pair in about["pairs"]) == (
        len(importance.modules) if unselected == "share" else sum(map(len, report.kept.values())))


def test_importance_is_written_and_read(tmp_path):
    model = bert()
    importance = drop.score(model, batches())
    drop.apply(model, importance, budget=0.5)
    importance.save(tmp_path / "importance.json")
    document = json.loads((tmp_path / "importance.json").read_text())
    assert document["selection"] == {"budget": 0.5} and document["kept"] == importance.kept
    again = drop.Importance.load(tmp_path / "importance.json")
    assert [m.score for m in again.modules] == [m.score for m in importance.modules]


def test_what_cannot_be_used_is_named():
    plain = transformers.BertModel(transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
                                                           num_attention_heads=1, intermediate_size=8))
    with pytest.raises(drop.LoraDropError, match="not a PEFT model"):
        drop.score(plain, [])
    with pytest.raises(drop.LoraDropError, match="no pass"):
        drop.score(bert(), [])
    with pytest.raises(drop.LoraDropError, match="no adapter 'other'"):
        drop.score(bert(), batches(), adapter="other")
    with pytest.raises(drop.LoraDropError, match="another type"):
        drop.score(bert(use_dora=True), batches())
    other = drop.score(llama(), batches(labels=False))
    with pytest.raises(drop.LoraDropError, match="differ in"):
        drop.apply(bert(), other)
    zero = bert()
    for name, value in zero.named_parameters():
        if "lora_B" in name:
            value.data.zero_()
    with pytest.raises(drop.LoraDropError, match="zero"):
        drop.apply(zero, drop.score(zero, batches()))
