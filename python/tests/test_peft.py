"""LoRA-drop on small random PEFT models: scores, choices, ties, files."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import lora_drop.peft as drop
from small import LAYERS, batches, bert, grown, llama


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


@pytest.mark.parametrize("call, words", [
    (lambda m, b: m(b["input_ids"], b["attention_mask"]), "by name"),
    (lambda m, b: m(input_ids=b["input_ids"], attention_mask=b["attention_mask"][:, None]), "expected .rows, tokens."),
    (lambda m, b: m.get_base_model()(**b), "no pass"),
])
def test_passes_that_cannot_be_scored_are_named(call, words):
    with pytest.raises(drop.LoraDropError, match=words):
        drop.score(bert(), batches(1, labels=False), forward=call)


def test_copies_of_nn_dataparallel_are_refused():
    model = bert()
    model._is_replica = True
    with pytest.raises(drop.LoraDropError, match="nn.DataParallel"):
        drop.score(model, batches())


@pytest.mark.parametrize("key", ["lora_bias", "use_dora"])
def test_other_kinds_of_lora_are_refused(key):
    if key not in peft.LoraConfig.__dataclass_fields__:
        pytest.skip(f"PEFT {peft.__version__} has no {key}")
    with pytest.raises(drop.LoraDropError, match=key):
        drop.score(bert(**{key: True}), batches())


def test_other_adapters_are_refused():
    settings = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    with pytest.raises(drop.LoraDropError, match="IA3"):
        drop.score(peft.get_peft_model(bert().unload(), settings), batches())


def test_a_lora_that_does_not_run_is_named():
    model = bert()
    model.merge_adapter()
    with pytest.raises(drop.LoraDropError, match="layer 0 query did not run"):
        drop.score(model, batches())


def test_pairs_that_were_tied_are_chosen_among_anew():
    model = bert()
    drop.apply(model, drop.score(model, batches()), top_k=0)
    report = drop.apply(model, drop.score(model, batches()), top_k=2)
    layers = drop._lora_layers(model, None)
    for kind in report.kept:
        pairs = [module.lora_A[name] for (_, other), (name, module) in layers.items() if other == kind]
        assert len({id(pair) for pair in pairs}) == 3
    assert sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) == report.parameters


@pytest.mark.parametrize("unselected", ["share", "drop"])
def test_an_adapter_among_several_is_scored_tied_and_saved(tmp_path, unselected):
    model = bert()
    model.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "key"], task_type="SEQ_CLS"))
    grown(model)
    before = drop.score(model, batches())
    with pytest.raises(drop.LoraDropError, match="not active"):
        drop.score(model, batches(), adapter="other")
    model.set_adapter("other")
    report = drop.apply(model, drop.score(model, batches()), budget=0.5, unselected=unselected)
    assert set(report.kept) == {"query", "key"}
    weights, compact = drop.save(model, tmp_path)
    assert weights.is_file() and compact.is_file() and weights.parent == tmp_path / "other"
    batch = next(batches(labels=False))
    loaded = peft.PeftModel.from_pretrained(bert().unload(), tmp_path / "other").eval()
    assert torch.allclose(loaded(**batch).logits, model.eval()(**batch).logits, atol=1e-6)
    # Nothing of the first one has changed.
    model.set_adapter("default")
    assert drop.score(model, batches()) == before


@pytest.mark.parametrize("unselected", ["share", "drop"])
def test_tied_pairs_are_merged(unselected):
    model = bert()
    drop.apply(model, drop.score(model, batches()), budget=0.5, unselected=unselected)
    batch = next(batches(labels=False))
    expected = model.eval()(**batch).logits
    assert torch.allclose(model.merge_and_unload()(**batch).logits, expected, atol=1e-6)


@pytest.mark.parametrize("more", [
    {"bias": "lora_only"}, {"modules_to_save": ["word_embeddings"]}, {"init_lora_weights": "pissa"},
])
def test_what_the_compact_file_has_no_place_for_is_in_peft_form_alone(tmp_path, more):
    model = bert(**more)
    weights, compact = drop.save(model, tmp_path)
    assert weights.is_file() and compact is None
    assert not (tmp_path / "adapter_compact.safetensors").exists()
