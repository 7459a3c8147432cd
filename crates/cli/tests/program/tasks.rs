//! Rows of several classes and words with tags, through the program: training, measuring,
//! prediction, merging, the forms of rows, weights of classes.

use std::sync::Arc;

use crate::common::{Fixture, Outcome, QUICK, Random, result_of_run};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

/// Words that say a row's classes, and what their tags are.
const MARKS: [(&str, &str); 4] = [("good", "B-POS"), ("fine", "I-POS"), ("bad", "B-NEG"), ("poor", "I-NEG")];
const FILLERS: [&str; 6] = ["the", "film", "was", "it", "story", "music"];
const LORA: &str = "--method lora --epochs 20 --max-length 32";

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| row.to_string() + "\n").collect()
}

fn predictions(outcome: &Outcome) -> Vec<Value> {
    outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Words with their tags; every third row has no entity.
fn tagged(random: &mut Random, number: usize) -> Vec<(String, String)> {
    let filler = |random: &mut Random| (FILLERS[random.below(FILLERS.len())].to_string(), "O".to_string());
    let mut words: Vec<_> = (0..2 + random.below(4)).map(|_| filler(random)).collect();
    if !number.is_multiple_of(3) {
        let first = 2 * random.below(2);
        let entity = &MARKS[first..first + 1 + random.below(2)];
        let at = random.below(words.len() + 1);
        words.splice(at..at, entity.iter().map(|(word, tag)| (word.to_string(), tag.to_string())));
    }
    words
}

/// Data sets of the tiny BERT: `words` has tags, `sets` rows of several classes.
pub fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let mut random = Random(3);
    for (split, count) in [("train", 96), ("dev", 24)] {
        let rows: Vec<_> = (0..count).map(|number| tagged(&mut random, number)).collect();
        let words = rows.iter().map(|row| {
            let (tokens, tags): (Vec<_>, Vec<_>) = row.iter().cloned().unzip();
            json!({ "id": "0", "tokens": tokens, "ner_tags": tags })
        });
        fixture.write(&format!("words/{split}.jsonl"), lines(words));
        let sets = rows.iter().map(|row| {
            let text: Vec<&str> = row.iter().map(|(word, _)| word.as_str()).collect();
            let has = |mark: &&(&str, &str)| text.contains(&mark.0);
            let mut labels: Vec<&str> = MARKS.iter().filter(has).map(|(word, _)| *word).collect();
            labels.sort_unstable();
            json!({ "text": text.join(" "), "labels": labels })
        });
        fixture.write(&format!("sets/{split}.jsonl"), lines(sets));
    }
    fixture
}

fn metric(found: &Value, name: &str) -> f64 {
    found["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {found}"))
}

#[track_caller]
fn close(a: &Value, b: &Value, tolerance: f64) {
    for (a, b) in a.as_array().unwrap().iter().zip(b.as_array().unwrap()) {
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= tolerance, "{a} and {b}");
    }
}

#[test]
fn tags_are_learned_and_predicted() {
    let fixture = fixture();
    let sample = "--sample-ratio 0.5 --sample-epochs 2 --budget 0.7";
    let trained = fixture.train(&format!("--data words --epochs 8 {sample} --json")).ok();
    let summary = trained.json();
    assert_eq!(summary["metric"], "f1");
    assert!(metric(&summary, "f1") > 0.8, "{}", summary["metrics"]);
    assert!(fixture.read("out/recipe.toml").contains("task = \"token-classification\""));
    let config = fixture.read_json("out/adapter_config.json");
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"]),
        (&json!("TOKEN_CLS"), &json!(["classifier"]))
    );
    let report = fixture.read("out/report.html");
    for part in [
        "Words from <code>tokens</code>, tags from",
        "Entities on dev",
        "Precision, recall and F1 by type",
        "Confusion matrix",
        ">POS<",
    ] {
        assert!(report.contains(part), "{part}");
    }

    let adapted = fixture.run("eval --adapter out --data words --json").ok().json();
    assert_eq!(adapted["metrics"], summary["metrics"]);
    let compact = "--model model --adapter out/adapter_compact.safetensors";
    assert_eq!(
        fixture.run(&format!("eval {compact} --data words --json")).ok().json()["loss"],
        adapted["loss"]
    );

    // Words of a list, and of a text.
    let rows =
        [json!({ "tokens": ["it", "was", "good", "fine"], "tags": 1 }), json!({ "text": " bad  story" })];
    fixture.write("rows.jsonl", lines(rows));
    let found = predictions(&fixture.run("predict --adapter out --input rows.jsonl").ok());
    assert_eq!(found[0]["tags"], json!(["O", "O", "B-POS", "I-POS"]));
    assert_eq!((&found[0]["input_tags"], found[0].get("words")), (&json!(1), None));
    let entity = json!([{ "type": "POS", "start": 2, "end": 4, "text": "good fine" }]);
    assert_eq!(found[0]["entities"], entity);
    assert_eq!((&found[1]["words"], &found[1]["tags"]), (&json!(["bad", "story"]), &json!(["B-NEG", "O"])));
    assert!(found[1]["scores"][0].as_f64().unwrap() > 0.5);

    fixture.run("merge --model model --adapter out --output merged").ok();
    let config = fixture.read_json("merged/config.json");
    assert_eq!(config["architectures"], json!(["BertForTokenClassification"]));
    assert_eq!((&config["label2id"]["O"], config.get("problem_type")), (&json!(4), None));
    let merged = predictions(&fixture.run("predict --model merged --input rows.jsonl").ok());
    for (row, merged) in found.iter().zip(&merged) {
        assert_eq!(row["tags"], merged["tags"]);
        close(&row["scores"], &merged["scores"], 1e-4);
    }
    assert!(fixture.run("inspect merged").ok().stdout.contains("token classification, B-NEG"));
    assert!(
        fixture
            .run("inspect out/adapter_compact.safetensors")
            .ok()
            .stdout
            .contains("5 classes of words: B-NEG")
    );
    let score = "score --model model --max-length 32 --adapter out --output scores --json";
    let scores = fixture.run(&format!("{score} --data words")).ok().json();
    assert_eq!(scores["modules"].as_array().unwrap().len(), 6);
    fixture.run(&format!("{score} --data data --overwrite")).fails(2, &["--task token-classification"]);
    let pruned = fixture.run("prune --adapter out --data words --budgets 0.5 --json").ok().json();
    assert_eq!(pruned["metric"], "f1");
    assert!(pruned["standard_error"].is_number(), "{pruned}");
}

#[test]
fn several_classes_of_a_row_are_learned_and_predicted() {
    let fixture = fixture();
    let trained = fixture.train("--data sets --method lora --epochs 12 --json").ok();
    let summary = trained.json();
    assert_eq!(summary["metric"], "micro_f1");
    assert!(metric(&summary, "micro_f1") > 0.8 && metric(&summary, "subset_accuracy") > 0.5, "{summary}");
    assert_eq!(fixture.read_json("out/adapter_config.json")["task_type"], "SEQ_CLS");
    let report = fixture.read("out/report.html");
    assert!(report.contains("Precision, recall and F1 by class") && !report.contains("Confusion matrix"));
    let adapted = fixture.run("eval --adapter out --data sets --json").ok().json();
    assert_eq!(adapted["metrics"], summary["metrics"]);

    let rows = predictions(&fixture.run("predict --adapter out --input sets/dev.jsonl").ok());
    let right = rows.iter().filter(|row| row["labels"] == row["input_labels"]).count();
    assert_eq!(right as f64 / rows.len() as f64, metric(&adapted, "subset_accuracy"));
    let sum: f64 = rows[0]["scores"].as_object().unwrap().values().map(|score| score.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() > 1e-3, "each class has a probability of its own: {}", rows[0]);

    fixture.run("merge --model model --adapter out --output merged").ok();
    let config = fixture.read_json("merged/config.json");
    assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(config["problem_type"], "multi_label_classification");
    assert_eq!(config["id2label"], json!({ "0": "bad", "1": "fine", "2": "good", "3": "poor" }));
    let merged = fixture.run("eval --model merged --data sets --json").ok().json();
    assert_eq!(merged["metrics"], adapted["metrics"]);
    fixture
        .train("--data sets --label-smoothing 0.1 --output no")
        .fails(2, &["--label-smoothing", "several classes"]);
    fixture.train("--data sets --metric accuracy --output no").fails(2, &["choose from micro_f1, macro_f1"]);
}

#[test]
fn decoders_have_heads_for_tokens_and_sets_too() {
    let fixture = fixture();
    fixture.write_decoder("decoder");
    let row = |i: usize| {
        let words: Vec<String> = (0..4).map(|k| format!("w{}", 3 + (i * 7 + k * 5) % 20)).collect();
        let tag = |word: &String| if word.ends_with('3') { "X" } else { "Y" };
        let (tags, has): (Vec<_>, _) =
            (words.iter().map(tag).collect(), words.iter().any(|w| w.ends_with('3')));
        json!({ "words": words, "tags": tags, "text": words.join(" "), "label": if has { vec!["x"] } else { vec![] } })
    };
    for split in ["train", "dev"] {
        fixture.write(&format!("rows/{split}.jsonl"), lines((0..32).map(row)));
    }
    let train =
        format!("train --model decoder --data rows --learning-rate 2e-2 --batch-size 8 {LORA} --output");
    fixture.run(&format!("{train} out")).fails(2, &["--task"]);
    let summary = fixture.run(&format!("{train} out --task token-classification --json")).ok().json();
    // X and Y mark no entities.
    assert_eq!(summary["metric"], "accuracy");
    assert!(metric(&summary, "macro_f1") > 0.9, "{}", summary["metrics"]);
    assert_eq!(fixture.read_json("out/adapter_config.json")["modules_to_save"], json!(["score"]));
    fixture.run("merge --model decoder --adapter out --output merged").ok();
    assert_eq!(
        fixture.read_json("merged/config.json")["architectures"],
        json!(["LlamaForTokenClassification"])
    );
    let merged = fixture.run("eval --model merged --data rows --json").ok().json();
    assert_eq!(merged["metrics"], summary["metrics"]);
    // One class, which a row has or has not.
    fixture.run(&format!("{train} labels --task multi-label")).fails(1, &["x is the only class"]);

    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gemma3");
    for file in ["config.json", "model.safetensors"] {
        fixture.write(&format!("gemma/{file}"), std::fs::read(golden.join(file)).unwrap());
    }
    fixture.write("gemma/tokenizer.json", fixture.read("decoder/tokenizer.json"));
    let refused = train.replace("--model decoder", "--model gemma");
    let told = ["gemma3_text has no head for tokens", "bert"];
    fixture.run(&format!("{refused} no --task token-classification")).fails(2, &told);
}

#[cfg(unix)]
#[test]
fn threads_recomputing_and_resuming_change_no_bit() {
    let fixture = fixture();
    for data in ["words", "sets"] {
        let options = format!(
            "--data {data} --method lora --epochs 6 --hidden-dropout 0.2 --lora-dropout 0.1 --class-weights balanced"
        );
        fixture.train(&format!("{options} --output {data}-a")).ok();
        fixture.train(&format!("{options} --output {data}-b --threads 1 --recompute")).ok();
        let of = |run: &str| result_of_run(&fixture.path(&format!("{data}-{run}")));
        assert!(of("a") == of("b"), "{data}");
        let train = format!("train --model model {QUICK} {options} --output {data}-c");
        let told = fixture.interrupt(&train, "epoch  1");
        assert_eq!(told.code, Some(130), "{}", told.stderr);
        fixture.run(&format!("train --resume {data}-c")).ok();
        assert!(of("a") == of("c"), "{data}, resumed");
    }
}

#[test]
fn forms_of_several_classes() {
    let fixture = fixture();
    let head = "--method head --epochs 1";
    let classes = |data: &str, options: &str| {
        let facts = fixture
            .train(&format!("--data {data} {head} {options} --output none --dry-run --json"))
            .ok()
            .json();
        facts["data"]["classes"].clone()
    };
    let text = |i: usize| FILLERS[i % FILLERS.len()];
    let rows = |label: &dyn Fn(usize) -> Value| {
        lines((0..30).map(|i| json!({ "text": text(i), "label": label(i) })))
    };
    // Numbers of classes, with and without names.
    fixture.write("numbers.jsonl", rows(&|i| json!((0..i % 3).collect::<Vec<_>>())));
    assert_eq!(classes("numbers.jsonl", ""), json!(["0", "1"]));
    assert_eq!(classes("numbers.jsonl", "--label-names a,b,c"), json!(["a", "b", "c"]));
    fixture.train(&format!("--data numbers.jsonl {head} --label-names a")).fails(2, &["at least two"]);
    // A 0 or 1 for each class, as transformers takes them.
    fixture
        .write("bits.jsonl", rows(&|i| json!([f64::from(i as u32 % 2), 1.0, f64::from(i as u32 % 3 / 2)])));
    assert_eq!(classes("bits.jsonl", ""), json!(["0", "1", "2"]));
    fixture.train(&format!("--data bits.jsonl {head}")).ok();
    // One row alone is read as the training rows were.
    fixture.write("one.jsonl", rows(&|_| json!([0, 1, 0])));
    assert_eq!(fixture.run("eval --adapter out --data one.jsonl --json").ok().json()["rows"], 30);
    // Lists in CSV are JSON.
    let csv = |list: &str| format!("text,label\n{}", format!("the,[]\nit,\"{list}\"\n").repeat(15));
    fixture.write("lists.csv", csv("[\"\"a\"\",\"\"b\"\"]"));
    assert_eq!(classes("lists.csv", ""), json!(["a", "b"]));
    fixture.write("python.csv", csv("['a', 'b']"));
    fixture
        .train(&format!("--data python.csv {head} --output no"))
        .fails(1, &["python.csv, line 3", "not as json"]);
    // One label a row, where several are asked for.
    fixture.write("single.jsonl", rows(&|i| json!(["a", "b", "c"][i % 3])));
    assert_eq!(classes("single.jsonl", "--task multi-label"), json!(["a", "b", "c"]));
    fixture.write("mixed.jsonl", rows(&|i| if i < 5 { json!("a") } else { json!(["a", "b"]) }));
    fixture
        .train(&format!("--data mixed.jsonl {head} --output no"))
        .fails(1, &["line 6", "--task multi-label"]);
    fixture.write("soft.jsonl", rows(&|i| json!([0.5, i % 2])));
    fixture
        .train(&format!("--data soft.jsonl {head} --output no"))
        .fails(1, &["line 1", "0 and 1 for each class"]);
    fixture.write("twice.jsonl", rows(&|i| json!([i % 2, 2, 2])));
    fixture.train(&format!("--data twice.jsonl {head} --output no")).fails(1, &["line 1", "a class twice"]);
}

#[test]
fn forms_of_words() {
    let fixture = fixture();
    let head = "--method head --epochs 1";
    let rows = |row: &dyn Fn(usize) -> Value| lines((0..24).map(row));
    let tags = |i: usize| json!(["O", if i.is_multiple_of(2) { "B-X" } else { "B-Y" }]);
    // Rows as those of CoNLL 2003 name the option that they need.
    let several = |i: usize| json!({ "id": "1", "tokens": ["it", "was"], "pos_tags": [1, 2], "chunk_tags": [3, 4], "ner_tags": [0, 1 + i % 2] });
    fixture.write("conll.jsonl", rows(&several));
    let told = ["several columns could be the tags", "\"ner_tags\"", "--label-column"];
    fixture.train(&format!("--data conll.jsonl {head}")).fails(1, &told);
    let found = fixture.train(&format!("--data conll.jsonl {head} --label-column ner_tags")).ok();
    assert!(found.stderr.contains("the tags are numbers without names"), "{}", found.stderr);
    let named = "--label-column ner_tags --label-names O,B-PER,I-PER --output named --json";
    let found = fixture.train(&format!("--data conll.jsonl {head} {named}")).ok().json();
    assert_eq!(found["metric"], "f1");
    // A text beside the words, and rows without words.
    let beside = |i: usize| json!({ "text": "it was", "tokens": ["it", "was"], "tags": tags(i) });
    let empty = json!({ "text": "", "tokens": [], "tags": [] });
    fixture.write("beside.jsonl", rows(&beside) + &lines([empty]));
    let found = fixture.train(&format!("--data beside.jsonl {head} --output beside --json")).ok();
    assert_eq!(found.json()["metric"], "f1");
    assert!(
        found.stderr.contains("1 row is blank and passed over: beside.jsonl, line 25"),
        "{}",
        found.stderr
    );
    // A text that white space separates.
    let split = |i: usize| json!({ "text": "it  was", "label": tags(i) });
    fixture.write("split.jsonl", rows(&split));
    fixture.train(&format!("--data split.jsonl {head} --task token-classification --output split")).ok();
    // Too few tags, words that are none, a tag that is no list, words for whole rows.
    let bad = |row: Value, words: &[&str]| {
        fixture.write("bad.jsonl", rows(&beside) + &lines([row]));
        fixture
            .train(&format!("--data bad.jsonl {head} --output none"))
            .fails(1, &[&["line 25"], words].concat());
        let skipped =
            fixture.train(&format!("--data bad.jsonl {head} --output bad --bad-rows skip --overwrite"));
        assert!(skipped.ok().stderr.contains("1 row is left out"));
    };
    bad(json!({ "tokens": ["it"], "tags": ["O", "O"] }), &["the number of words is 1, that of tags 2"]);
    bad(json!({ "tokens": ["it", 3], "tags": ["O", "O"] }), &["a word in \"tokens\" is a number"]);
    fixture
        .train(&format!("--data words {head} --text-column tokens --task classification --output no"))
        .fails(1, &["line 1"]);
    // Words beyond the limit are counted.
    let long = |i: usize| {
        let mut tags = vec!["O"; 40];
        tags[i] = "B-X";
        json!({ "tokens": vec!["film"; 40], "tags": tags })
    };
    fixture.write("long.jsonl", rows(&long));
    let found = fixture.train(&format!("--data long.jsonl {head} --max-length 32 --output long")).ok();
    assert!(found.stderr.contains("220 of 880 words have a label and no token"), "{}", found.stderr);
    fixture.write("p.jsonl", lines([json!({ "tokens": vec!["film"; 40] })]));
    let found = predictions(&fixture.run("predict --adapter long --input p.jsonl").ok());
    let without = found[0]["tags"].as_array().unwrap().iter().filter(|tag| tag.is_null()).count();
    assert_eq!(without, 10);
}

/// Hugging Face's data sets write the names of a column's classes into a Parquet file.
#[test]
fn names_of_tags_in_parquet() {
    let schema = "message rows {
        REQUIRED group tokens (LIST) { REPEATED group list { REQUIRED BYTE_ARRAY element (UTF8); } }
        REQUIRED group ner_tags (LIST) { REPEATED group list { REQUIRED INT64 element; } } }";
    let features = json!({ "info": { "features": {
        "tokens": { "feature": { "dtype": "string", "_type": "Value" }, "_type": "Sequence" },
        "ner_tags": { "feature": { "names": ["O", "B-LOC", "I-LOC"], "_type": "ClassLabel" }, "_type": "Sequence" } } } });
    let notes = vec![KeyValue::new("huggingface".to_string(), features.to_string())];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(notes)).build();
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    // 24 rows of two words.
    let (defined, repeated) = (vec![1; 48], [0, 1].repeat(24));
    let mut column = group.next_column().unwrap().unwrap();
    let words = (0..48).map(|i| ByteArray::from(["it", "was"][i % 2])).collect::<Vec<_>>();
    column.typed::<ByteArrayType>().write_batch(&words, Some(&defined), Some(&repeated)).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int64Type>()
        .write_batch(&[0, 1, 1, 2].repeat(12), Some(&defined), Some(&repeated))
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let fixture = Fixture::new();
    fixture.write("rows.parquet", &bytes);
    let found = fixture.train("--data rows.parquet --method head --epochs 1 --json").ok();
    assert_eq!(found.json()["metric"], "f1");
    let facts = fixture.train("--data rows.parquet --output other --dry-run --json").ok().json();
    assert_eq!(facts["data"]["classes"], json!(["O", "B-LOC", "I-LOC"]));
    let told = fixture.run("eval --adapter out --data rows.parquet").ok().stderr;
    assert!(!told.contains("the labels are numbers"), "{told}");
    let facts = fixture
        .train("--data rows.parquet --label-names O,B-X,I-X --output other --dry-run --json")
        .ok()
        .json();
    assert_eq!(facts["data"]["classes"], json!(["O", "B-X", "I-X"]));
}

#[test]
fn weights_of_classes() {
    let fixture = fixture();
    let options = "--method lora --epochs 2 --json";
    fixture.write("w.json", r#"{ "bad": 2.0, "good": 0.5 }"#);
    let rows = |i: usize| json!({ "text": FILLERS[i % 6], "label": if i.is_multiple_of(4) { "good" } else { "bad" } });
    fixture.write("few.jsonl", lines((0..40).map(rows)));
    fixture.train(&format!("--data few.jsonl {options}")).ok();
    let balanced =
        fixture.train(&format!("--data few.jsonl {options} --class-weights balanced --output b")).ok();
    assert!(balanced.stderr.contains("weight bad 0.667, good 2.000"), "{}", balanced.stderr);
    assert!(fixture.read("b/recipe.toml").contains("class-weights = \"balanced\""));
    // The adapter has the weights, so that dev's loss is measured as in training.
    let found = fixture.run("eval --adapter b --data few.jsonl --json").ok().json();
    let losses = |run: &str| -> Vec<Value> {
        let log = fixture.read(&format!("{run}/metrics.jsonl"));
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["metrics"].is_object()).map(|line| line["loss"].clone()).collect()
    };
    assert!(losses("b").contains(&found["loss"]), "{:?} and {found}", losses("b"));
    assert!(losses("out").iter().all(|loss| !losses("b").contains(loss)));
    assert!(fixture.read("b/report.html").contains("Weights of the classes in the loss"));
    fixture.train(&format!("--data few.jsonl {options} --class-weights w.json --output f")).ok();
    assert!(fixture.read("f/recipe.toml").contains("w.json\""));
    for data in ["words", "sets"] {
        fixture.train(&format!("--data {data} {options} --class-weights balanced --output {data}-b")).ok();
    }
    let refused = |content: &str, words: &[&str]| {
        fixture.write("w.json", content);
        fixture
            .train(&format!("--data few.jsonl {options} --class-weights w.json --output no"))
            .fails(1, words);
    };
    refused(r#"{ "bad": 2 }"#, &["w.json", "\"good\" has no weight"]);
    refused(r#"{ "bad": 2, "good": 0 }"#, &["\"good\" is 0, expected more than 0"]);
    refused(r#"{ "bad": 2, "good": 1, "ugly": 1 }"#, &["\"ugly\" is not one of the classes: bad, good"]);
    refused("[1, 2]", &["expected an object with a weight for each class"]);
    let missing = "--data few.jsonl --method head --class-weights balance --output no";
    fixture.train(missing).fails(1, &["balance: there is no such file", "balanced"]);
    let values = |i: usize| json!({ "text": FILLERS[i % 6], "label": i as f64 / 3.0 });
    fixture.write("values.jsonl", lines((0..40).map(values)));
    let told = ["--class-weights", "regression"];
    fixture.train("--data values.jsonl --method head --class-weights balanced --output no").fails(2, &told);
}
