"""Tied adapters under what trains them: transformers' Trainer, TRL's, gradient checkpointing, several processes."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import lora_drop.peft as drop
from small import batches, bert, llama, tokenizer


class Rows(torch.utils.data.Dataset):
    """Rows of random tokens with a label."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(5)
        self.ids = torch.randint(3, 60, (count, 9), generator=generator)
        self.labels = torch.randint(0, 2, (count,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": torch.ones(9, dtype=torch.long), "labels": self.labels[i]}


def trainer(model, folder, **settings):
    settings = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=8, num_train_epochs=3, learning_rate=1e-2, report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="steps", logging_steps=1, eval_strategy="epoch", **settings)
    return transformers.Trainer(model, settings, train_dataset=Rows(24), eval_dataset=Rows(16))


def losses(trained):
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def tied(unselected="share"):
    model = bert()
    return model, drop.apply(model, drop.score(model, batches()), budget=0.5, unselected=unselected)


def lora_values(model):
    return sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("unselected", ["share", "drop"])
def test_trainer_saves_resumes_and_loads_the_best(tmp_path, unselected):
    model, report = tied(unselected)
    settings = dict(save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="loss")
    whole = trainer(model, tmp_path, **settings)
    whole.train()
    assert lora_values(model) == report.parameters
    model.eval()
    batch = next(batches(labels=False))
    expected = model(**batch).logits

    # The best checkpoint in PEFT, which has pairs where the model has some.
    base = bert().unload()
    loaded = peft.PeftModel.from_pretrained(base, whole.state.best_model_checkpoint).eval()
    assert torch.allclose(loaded(**batch).logits, expected, atol=1e-6)
    assert set(drop._lora_layers(loaded, None)) == set(drop._lora_layers(model, None))

    # The last two epochs from the first one's checkpoint, with the optimizer's state.
    again, _ = tied(unselected)
    resumed = trainer(again, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_saved_adapter_is_tied_again_by_the_same_scores(tmp_path):
    model, report = tied()
    importance = drop.score(model, batches())
    drop.save(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(bert().unload(), tmp_path, is_trainable=True).eval()
    assert lora_values(loaded) == report.parameters_full
    for m in importance.modules:
        m.score = 1.0 if m.layer in report.kept[m.module] else 0.0
    drop.apply(loaded, drop.Importance(importance.modules), top_k=1)
    batch = next(batches(labels=False))
    assert lora_values(loaded) == report.parameters
    assert torch.allclose(loaded(**batch).logits, model.eval()(**batch).logits, atol=1e-6)


def test_evaluations_have_no_part_in_the_scores(tmp_path):
    def scored(**settings):
        model = bert()
        with drop.Scorer(model) as scorer:
            trainer(model, tmp_path, save_strategy="no", **settings).train()
        return scorer.importance()

    found = scored()
    assert (found.rows, found.tokens, found.steps) == (3 * 24, 3 * 24 * 9, 9)
    for settings in ({"use_reentrant": False}, {"use_reentrant": True}):
        # What is computed again counts once.
        again = scored(gradient_checkpointing=True, gradient_checkpointing_kwargs=settings)
        assert (again.rows, again.tokens) == (found.rows, found.tokens)
        assert [m.score for m in again.modules] == pytest.approx([m.score for m in found.modules], rel=1e-5)


def test_halves_are_scored_and_tied():
    expected = [m.importance for m in drop.score(bert(), batches()).modules]
    for kind in (torch.bfloat16, torch.float16):
        model = bert().to(kind)
        importance = drop.score(model, batches())
        assert [m.importance for m in importance.modules] == pytest.approx(expected, abs=2e-3)
        drop.apply(model, importance, budget=0.5)
        assert all(value.dtype == kind for value in model.parameters())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = drop.score(bert(), batches())
        assert [m.importance for m in found.modules] == pytest.approx(expected, abs=2e-3)


def test_sft_trainer_scores_and_trains(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"input_ids": row.tolist()[:4 + i % 5]} for i, row in enumerate(Rows(16).ids)])

    def train(model, name):
        settings = trl.SFTConfig(
            output_dir=str(tmp_path / name), per_device_train_batch_size=4, num_train_epochs=1, learning_rate=1e-2,
            report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, packing=False, save_strategy="epoch",
            logging_steps=1, gradient_checkpointing=False)
        trained = trl.SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer())
        trained.train()
        return trained

    model = llama()
    with drop.Scorer(model) as scorer:
        train(model, "sample")
    importance = scorer.importance()
    assert importance.rows == 16 and importance.tokens == sum(len(row["input_ids"]) for row in rows)
    report = drop.apply(model, importance, budget=0.5)
    trained = train(model, "tied")
    assert lora_values(trained.model) == report.parameters
    model.eval()
    batch = next(batches(labels=False))
    torch.manual_seed(1)
    base = llama().unload()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "tied" / "checkpoint-4").eval()
    assert torch.allclose(loaded(**batch).logits, model(**batch).logits, atol=1e-6)


def without_padding():
    return [{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])} for batch in batches(2)]


def steps(model, run, rows, optimizer):
    for batch in rows:
        run(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [value.detach().clone() for value in model.parameters() if value.requires_grad]


def one_process(rank, folder, checkpointing):
    """Scores its own batch, ties, and trains on it beside the other process."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, rows = bert().train(), [without_padding()[rank]]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with drop.Scorer(model) as scorer:
        torch.nn.parallel.DistributedDataParallel(model)(**rows[0]).loss.backward()
    importance = scorer.importance()
    model.zero_grad()
    report = drop.apply(model, importance, budget=0.5)
    if checkpointing:
        model.enable_input_require_grads()
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
        with pytest.raises(drop.LoraDropError, match="reentrant"):
            model(**rows[0])
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = steps(model, torch.nn.parallel.DistributedDataParallel(model), rows * 3, optimizer)
    torch.save({"importance": importance, "kept": report.kept, "values": values}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_processes_choose_and_train_alike(tmp_path, checkpointing):
    torch.multiprocessing.spawn(one_process, (str(tmp_path), checkpointing), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}", weights_only=False) for rank in range(2))
    assert first["importance"] == second["importance"] and first["kept"] == second["kept"]
    assert all(torch.equal(a, b) for a, b in zip(first["values"], second["values"], strict=True))

    # One process with the rows of both.
    model = bert()
    both = {key: torch.cat([batch[key] for batch in without_padding()]) for key in without_padding()[0]}
    importance = drop.score(model, [both])
    assert (importance.rows, importance.tokens) == (first["importance"].rows, first["importance"].tokens)
    expected = [m.score for m in importance.modules]
    assert [m.score for m in first["importance"].modules] == pytest.approx(expected, rel=1e-5)
    drop.apply(model, importance, budget=0.5)
    values = steps(model.eval(), model, [both] * 3, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first["values"], values, strict=True))
