"""The package lora_drop with its compiled module, on small random models."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import native

lora_drop = native.lora_drop()

QUICK = {"learning_rate": 1e-2, "batch_size": 8, "threads": 1, "token_cache": 0}


class Models(unittest.TestCase):
    """With an encoder and an adapter for it, which are made once."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.encoder, cls.decoder = native.encoder(cls.folder / "encoder"), native.decoder(cls.folder / "decoder")
        cls.events = []
        cls.run_folder = cls.folder / "run"
        cls.summary = lora_drop.train(cls.encoder, native.labelled(64), cls.run_folder, dev=native.labelled(16),
                                      budget=0.5, epochs=8, on_event=cls.events.append, **QUICK)

    def test_a_summary_has_what_the_run_found(self):
        summary = self.summary
        self.assertEqual((summary.status, summary.metric, summary.output), ("finished", "accuracy", self.run_folder))
        self.assertEqual(summary.metrics["accuracy"], 1.0)
        self.assertLessEqual(summary.retained_ratio, 0.5)
        self.assertEqual(summary.retained_ratio, summary.lora_parameters / summary.lora_parameters_full)
        self.assertEqual(set(summary.kept), {"query", "value"})
        written = json.loads((self.run_folder / "summary.json").read_text())
        self.assertEqual(summary.raw["metrics"], written["metrics"])
        self.assertTrue((self.run_folder / "report.html").exists())

    def test_events_come_in_order(self):
        kinds = [event.kind for event in self.events]
        self.assertEqual(kinds.count("stage_start"), 2)
        self.assertLess(kinds.index("importance"), kinds.index("evaluation"))
        steps = [event for event in self.events if event.kind == "step" and event.stage == "train"]
        self.assertEqual([event.step for event in steps], list(range(1, 65)))
        logged = [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in logged if line.get("stage") == "train" and "learning_rate" in line]
        self.assertEqual([event.loss for event in steps], losses)
        with self.assertRaisesRegex(AttributeError, "an event 'step' has stage, "):
            steps[0].nothing

    def test_rows_and_files_give_the_same_bits(self):
        data = self.folder / "data"
        data.mkdir()
        for split, count in (("train", 64), ("dev", 16)):
            rows = "".join(json.dumps(row) + "\n" for row in native.labelled(count))
            (data / f"{split}.jsonl").write_text(rows)
        again = lora_drop.train(self.encoder, data, self.folder / "files", budget=0.5, epochs=8,
                                **{**QUICK, "threads": 2})
        self.assertEqual(again.kept, self.summary.kept)
        for name in ("adapter_model.safetensors", "adapter_compact.safetensors", "metrics.jsonl"):
            first, second = ((folder / name).read_bytes() for folder in (self.run_folder, again.output))
            if name == "metrics.jsonl":
                drop = ("tokens_per_second", "seconds")
                first, second = ([{k: v for k, v in json.loads(line).items() if k not in drop}
                                  for line in text.splitlines()] for text in (first, second))
            self.assertEqual(first, second, name)

    def test_splits_by_name(self):
        rows = {"train": native.labelled(32), "validation": native.labelled(8), "test": native.labelled(6)}
        summary = lora_drop.train(self.encoder, rows, self.folder / "splits", method="lora", epochs=1, **QUICK)
        self.assertEqual(summary.retained_ratio, 1.0)
        with self.assertRaisesRegex(lora_drop.UsageError, "a split 'valdation', expected some of train"):
            lora_drop.train(self.encoder, {"valdation": []}, self.folder / "no")
        with self.assertRaisesRegex(lora_drop.UsageError, "`dev` is given twice"):
            lora_drop.train(self.encoder, rows, self.folder / "no", dev=native.labelled(8))

    def test_predictions_evaluations_and_the_program_agree(self):
        predictor = lora_drop.Predictor(self.run_folder)
        self.assertEqual((predictor.task, predictor.labels), ("classification", ["no", "yes"]))
        rows = native.labelled(16)
        found = predictor.predict(rows)
        texts = predictor.predict([row["text"] for row in rows])
        self.assertEqual([p.label for p in found], [row["label"] for row in rows])
        self.assertEqual([p.scores for p in found], [p.scores for p in texts])
        self.assertEqual(found[0].label, "no")
        self.assertAlmostEqual(sum(found[3].scores.values()), 1.0, places=6)
        self.assertEqual(predictor.predict([]).__len__(), 0)
        evaluation = predictor.evaluate(rows)
        self.assertEqual((evaluation.rows, evaluation.metrics["accuracy"]), (16, 1.0))
        self.assertEqual(evaluation.metrics, lora_drop.evaluate(rows, self.run_folder).metrics)
        input_file = self.folder / "rows.jsonl"
        input_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = self.program("predict", "--adapter", self.run_folder, "--input", input_file, "--quiet")
        lines = [json.loads(line) for line in said.stdout.splitlines()]
        self.assertEqual([line["label"] for line in lines], [p.label for p in found])
        for line, prediction in zip(lines, found):
            self.assertEqual(line["scores"], prediction.scores)

    def test_pairs_words_and_regression(self):
        pair = lora_drop.predict([("w10 w30", "w5")], self.run_folder)[0]
        columns = lora_drop.predict([{"text": "w10 w30", "text2": "w5"}], self.run_folder, pair_column="text2")[0]
        self.assertEqual(pair.scores, columns.scores)
        rows = [{"tokens": ["w10", f"w{20 + i}"], "tags": ["O", "B-X"]} for i in range(24)]
        output = self.folder / "tags"
        lora_drop.train(self.encoder, rows, output, dev=rows[:6], task="token-classification", method="lora", epochs=2,
                        **QUICK)
        words = lora_drop.predict([["w10", "w25"]], output)[0]
        self.assertEqual(len(words.tags), 2)
        rows = [{"text": f"w{5 + i}", "label": i / 10} for i in range(30)]
        output = self.folder / "numbers"
        lora_drop.train(self.encoder, rows, output, dev=rows[:8], task="regression", method="lora", epochs=1, **QUICK)
        value = lora_drop.predict(["w7"], output)[0]
        self.assertIsInstance(value.value, float)
        self.assertIsNone(value.label)

    def test_logits_are_arrays(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("numpy is not installed")
        found = lora_drop.predict(["w10 w30", "w20 w31", "w10"], self.run_folder)
        logits = found.logits
        self.assertEqual((logits.shape, logits.dtype), ((3, 2), numpy.float32))
        exp = numpy.exp(logits - logits.max(axis=1, keepdims=True))
        scores = [list(p.scores.values()) for p in found]
        numpy.testing.assert_allclose(exp / exp.sum(axis=1, keepdims=True), scores, rtol=1e-5)

    def test_scores(self):
        importance = lora_drop.score(self.encoder, native.labelled(64), dev=native.labelled(16), budget=0.5, **QUICK)
        shares = {}
        for module in importance.modules:
            shares[module.module] = shares.get(module.module, 0.0) + module.importance
        for total in shares.values():
            self.assertAlmostEqual(total, 1.0)
        self.assertEqual(importance.kept, self.summary.kept)
        # The run's adapter, scored as it is.
        of_adapter = lora_drop.score(self.encoder, native.labelled(64), dev=native.labelled(8),
                                     adapter=self.run_folder, sample_ratio=1.0, threads=1)
        self.assertEqual((of_adapter.steps, of_adapter.rows), (0, 64))

    def test_a_decoder_is_trained_and_writes(self):
        output = self.folder / "texts"
        lora_drop.train(self.decoder, native.reversed_words(80), output, dev=native.reversed_words(8), epochs=1,
                        budget=0.5, **QUICK)
        generator = lora_drop.Generator(output)
        pieces = []
        prompts = ["w3 w10", "w4 w5"]
        found = generator.generate(prompts, max_new_tokens=4, on_text=lambda row, text: pieces.append((row, text)))
        self.assertEqual(len(found), 2)
        for row, generation in enumerate(found):
            self.assertEqual("".join(text for at, text in pieces if at == row), generation.text)
            self.assertLessEqual(len(generation.tokens), 4)
            self.assertIn(generation.finish, ("end_of_text", "length"))
        self.assertEqual(generator.generate(prompts[0], max_new_tokens=4)[0].tokens, found[0].tokens)
        sampled = [generator.generate("w3", max_new_tokens=6, temperature=5.0, seed=seed)[0].tokens for seed in range(4)]
        self.assertGreater(len({tuple(tokens) for tokens in sampled}), 1)
        evaluation = lora_drop.Predictor(output).evaluate(native.reversed_words(8), metrics=["exact_match"], limit=3,
                                                          max_new_tokens=3)
        self.assertEqual(len(evaluation.texts), 3)
        self.assertLessEqual({"perplexity", "exact_match"}, set(evaluation.metrics))
        with self.assertRaisesRegex(lora_drop.UsageError, "`temperature` is -1"):
            generator.generate("w3", temperature=-1.0)
        with self.assertRaisesRegex(lora_drop.UsageError, "needs a content, and a role among"):
            generator.generate([[{"role": "boss", "content": "w3"}]])

    def test_a_merged_model_predicts_the_same(self):
        merged = lora_drop.merge(self.run_folder, self.folder / "merged")
        self.assertEqual(merged["modules"], 6)
        rows = ["w10 w30", "w20 w31"]
        expected = lora_drop.predict(rows, self.run_folder)
        for found, before in zip(lora_drop.predict(rows, model=self.folder / "merged"), expected):
            self.assertAlmostEqual(found.scores["yes"], before.scores["yes"], places=5)
        with self.assertRaisesRegex(lora_drop.UsageError, "`gguf` is 'q3'|`gguf` is \"q3\""):
            lora_drop.merge(self.run_folder, self.folder / "x.gguf", gguf="q3")

    def test_pruning_and_a_comparison_run_the_program(self):
        data = self.folder / "prune-data"
        data.mkdir()
        for split, count in (("train", 64), ("dev", 16)):
            (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in native.labelled(count)))
        pruned = lora_drop.prune(self.run_folder, data, budget=0.5, output=self.folder / "pruned")
        self.assertTrue((self.folder / "pruned/adapter_model.safetensors").exists())
        before, after = ((folder / "adapter_model.safetensors").stat().st_size
                         for folder in (self.run_folder, self.folder / "pruned"))
        self.assertLess(after, before)
        self.assertEqual((pruned["metric"], pruned["dev_rows"]), ("accuracy", 16))
        table = self.folder / "table.toml"
        table.write_text(f'output = "{self.folder / "table"}"\nseeds = [0]\n[options]\nmodel = "{self.encoder}"\n'
                         f'batch-size = 8\nepochs = 1\n[[tasks]]\nname = "words"\ndata = "{data}"\n'
                         '[[methods]]\nname = "LoRA"\nmethod = "lora"\n')
        found = lora_drop.compare(table)
        self.assertEqual(found["counts"], {"finished": 1, "failed": 0, "of": 1})
        self.assertTrue((self.folder / "table/compare.html").exists())
        with self.assertRaisesRegex(lora_drop.InputError, "nothing.toml: No such file"):
            lora_drop.compare(self.folder / "nothing.toml")

    def test_errors_are_typed_and_name_rows(self):
        rows = native.labelled(32)
        def train(data=rows, **settings):
            lora_drop.train(self.encoder, data, self.folder / "failed", **settings)
        for error, text, call in [
            (lora_drop.UsageError, "no setting `learning_rat`; did you mean `learning_rate`", lambda: train(learning_rat=1)),
            (lora_drop.UsageError, "`learning_rate` is -1", lambda: train(learning_rate=-1)),
            (lora_drop.UsageError, "`model` is missing", lambda: lora_drop.train(data=rows, output=self.folder / "x")),
            (lora_drop.UsageError, "in use: the folder is not empty", lambda: lora_drop.train(self.encoder, rows, self.folder)),
            (lora_drop.DataError, "row 3 of train: .text. has no text", lambda: train([*rows[:2], {"text": "", "label": "no"}, *rows])),
            (lora_drop.DataError, "row 1 of train is a int", lambda: train([1, 2])),
            (lora_drop.DataError, "train has no rows", lambda: train([])),
            (lora_drop.DataError, "row 1 of train: Object of type object", lambda: train([{"text": object()}])),
            (lora_drop.FileError, "nothing: No such file", lambda: train("nothing")),
            (lora_drop.LoraDropError, "no such folder", lambda: lora_drop.Predictor(model="./no-model")),
            (lora_drop.DataError, "row.*1", lambda: lora_drop.predict([{"x": 1}], self.run_folder)),
            (lora_drop.UsageError, "3 is no row", lambda: lora_drop.predict([3], self.run_folder)),
            (lora_drop.UsageError, "`resume`", lambda: train(resume="x")),
        ]:
            with self.subTest(text), self.assertRaisesRegex(error, text) as raised:
                call()
            self.assertNotIn("lora-drop-", str(raised.exception))
        self.assertTrue(issubclass(lora_drop.FileError, OSError))
        self.assertTrue(issubclass(lora_drop.UsageError, ValueError))
        self.assertFalse((self.folder / "failed").exists())

    def test_missing_values_and_numbers_of_other_libraries(self):
        class Scalar:
            def tolist(self):
                return 1

        rows = [{"text": "w10", "label": Scalar(), "note": float("nan")}, {"text": "w20", "label": 0, "note": 2.0}] * 16
        summary = lora_drop.train(self.encoder, rows, self.folder / "scalars", method="lora", epochs=1, **QUICK)
        self.assertEqual(summary.status, "finished")

    def test_tables_of_other_libraries(self):
        try:
            import datasets
            import pandas
        except ImportError:
            self.skipTest("datasets and pandas are not installed")
        rows = native.labelled(32)
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
        table = datasets.Dataset.from_list(rows, features=features)
        both = datasets.DatasetDict({"train": table, "validation": table.select(range(8))})
        frame = pandas.DataFrame([{**row, "note": None if i % 2 else 1.5} for i, row in enumerate(rows)])
        adapters = []
        for name, data, dev in [("set", table, rows[:8]), ("sets", both, None), ("frame", frame, frame[:8]),
                                ("rows", rows, rows[:8])]:
            lora_drop.train(self.encoder, data, self.folder / name, dev=dev, method="lora", epochs=1, **QUICK)
            adapters.append((self.folder / name / "adapter_model.safetensors").read_bytes())
            self.assertEqual(lora_drop.Predictor(self.folder / name).labels, ["no", "yes"])
        self.assertEqual(len(set(adapters)), 1)

    def test_a_listener_ends_a_run(self):
        def train(listen, name):
            return lora_drop.train(self.encoder, native.labelled(64), self.folder / name, method="lora", epochs=500,
                                   on_event=listen, **QUICK)

        def fail(event):
            if event.kind == "evaluation":
                raise KeyError("mine")

        with self.assertRaisesRegex(KeyError, "mine"):
            train(fail, "fail")
        self.assertTrue((self.folder / "fail/adapter_model.safetensors").exists())
        summary = train(lambda event: event.kind != "evaluation", "stop")
        self.assertEqual((summary.status, summary.best_epoch), ("interrupted", 1))
        with self.assertRaisesRegex(lora_drop.Interrupted, "interrupted"):
            train(lambda event: event.kind != "step", "early")

    def test_a_run_is_iterated_over_and_cancelled(self):
        with lora_drop.start(self.encoder, native.labelled(64), self.folder / "started", method="lora", epochs=500,
                             **QUICK) as run:
            steps = 0
            for event in run:
                steps += event.kind == "step"
                if event.kind == "evaluation":
                    run.cancel()
        self.assertGreaterEqual(steps, 8)
        self.assertTrue(run.done())
        self.assertEqual(run.result().status, "interrupted")
        self.assertEqual(list(run), [])
        failed = lora_drop.start(self.encoder, "nothing", self.folder / "none")
        with self.assertRaises(lora_drop.FileError):
            failed.result()

    def test_other_threads_run_and_ctrl_c_ends_a_run(self):
        script = f"""
import sys, threading, time, _thread
sys.path[:0] = {sys.path!r}
import native
lora_drop = native.lora_drop()
beats = []
def beat():
    while True:
        beats.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=beat, daemon=True).start()
def listen(event):
    if event.kind == "evaluation":
        print("epoch", flush=True)
try:
    lora_drop.train({self.encoder!r}, native.labelled(64), {str(self.folder / "long")!r}, method="lora", epochs=100000,
                    on_event=listen, **{QUICK!r})
except KeyboardInterrupt:
    print("stopped", len(beats) > 5, flush=True)
"""
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), "epoch\n")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        self.assertIn("stopped True", said)
        self.assertEqual(json.loads((self.folder / "long/summary.json").read_text())["status"], "interrupted")

    def test_settings_are_those_of_the_program(self):
        names = {setting.name for setting in lora_drop.settings()}
        self.assertLessEqual({"model", "data", "output", "rank", "budget", "learning_rate"}, names)
        options = self.program("train", "--help").stdout
        for name in names - {"model", "data"}:
            self.assertIn(f"--{name.replace('_', '-')}", options)
        # Other trainers' names are understood.
        with self.assertRaisesRegex(lora_drop.UsageError, "`batch_size` is 0"):
            lora_drop.train(self.encoder, native.labelled(8), self.folder / "alias", per_device_train_batch_size=0)

    def test_the_program(self):
        self.assertRegex(self.program("--version").stdout, r"^lora-drop \d")
        self.assertEqual(self.program("train", "--nothing").returncode, 2)
        self.assertEqual(self.program("inspect", self.folder / "nowhere").returncode, 1)

    def program(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        script = "import sys, native; native.lora_drop(); from lora_drop._program import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                              env=environment, timeout=120)


if __name__ == "__main__":
    unittest.main()
