//! The model card of a folder: what it says, where it is written, and a README.md that somebody wrote.

use serde_json::json;

use crate::common::{Fixture, LAYERS};

const SHARED: &str =
    "--method lora-drop --top-k 1 --sample-epochs 1 --sample-ratio 0.5 --target-modules query,value";

/// The front matter's lines, and the text below.
fn parts(card: &str) -> (Vec<&str>, &str) {
    let (front, body) = card.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
    (front.lines().collect(), body)
}

#[test]
fn a_runs_card_says_how_it_was_made_and_what_it_can() {
    let fixture = Fixture::new();
    let summary = fixture.train(&format!("{SHARED} --json")).ok().json();
    let card = fixture.read("out/README.md");
    let (front, body) = parts(&card);
    assert_eq!(
        front[..9],
        [
            "library_name: peft",
            "pipeline_tag: text-classification",
            "tags:",
            "- lora",
            "- lora-drop",
            "metrics:",
            "- accuracy",
            "- f1",
            "- matthews_correlation"
        ]
    );
    let accuracy = summary["metrics"]["accuracy"].as_f64().unwrap();
    for line in ["- name: out", "      type: custom", "      split: dev", &format!("      value: {accuracy}")]
    {
        assert!(front.contains(&line), "{line:?} is not in {front:?}");
    }
    // The folder is no name on the hub.
    assert!(!card.contains("base_model:"));
    let model = fixture.path("model").canonicalize().unwrap();
    let own = (2 * (LAYERS - 1)).to_string();
    for text in [
        &format!("the model in the folder `{}`", model.display())[..],
        "# out\n",
        "Of 6 modules (`query`, `value`) 2 have a pair of their own",
        &format!("{own} share one pair per module type."),
        "of plain LoRA.",
        "Measured on the 32 rows of dev after epoch",
        "predicting the most frequent class",
        "| data | `data` |",
        "| top-k | 1 |",
        "labels = [\"negative\", \"positive\"]\n",
        "num_labels=len(labels)",
        "lora-drop predict --model",
        "--adapter adapter_compact.safetensors",
    ] {
        assert!(body.contains(text), "{text:?} is not in {body}");
    }
    let listed = summary["outputs"].as_array().unwrap();
    assert!(listed.contains(&json!("README.md")));
    // The command of the card works.
    let command = body.lines().find(|line| line.starts_with("lora-drop predict")).unwrap();
    fixture.write("out/rows.jsonl", "{\"text\": \"a good film\"}\n");
    let mut words = command.split(' ').skip(1);
    let mut run = fixture.command();
    let output = run.current_dir(fixture.path("out")).args(&mut words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_readme_that_somebody_wrote_is_kept() {
    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 1").ok();
    let first = fixture.read("out/README.md");
    // An unchanged card is replaced with its run.
    fixture.train("--method lora --epochs 2 --overwrite").ok();
    assert_ne!(fixture.read("out/README.md"), first);
    let changed = fixture.read("out/README.md").replace("## Use", "Do not use it for films.\n\n## Use");
    for text in [&changed, "# My own words\n"] {
        fixture.write("out/README.md", text);
        let run = fixture.train("--method lora --epochs 1 --overwrite").ok();
        assert!(run.stderr.contains("warning: ") && run.stderr.contains("stays as it is"), "{}", run.stderr);
        assert_eq!(fixture.read("out/README.md"), *text);
    }
    std::fs::remove_file(fixture.path("out/README.md")).unwrap();
    let run = fixture.train("--method lora --epochs 1 --overwrite").ok();
    assert!(!run.stderr.contains("stays as it is"));
    assert!(fixture.read("out/README.md").starts_with("---\n"));
    // A run that fails before its first epoch leaves the card as it is.
    fixture.train("--method lora --learning-rate 1e30 --overwrite");
    assert!(fixture.read("out/README.md").starts_with("---\n"));
}

#[test]
fn a_fine_tuned_model_is_one_of_transformers() {
    let fixture = Fixture::new();
    fixture.train("--method full --epochs 1").ok();
    let card = fixture.read("out/README.md");
    let (front, body) = parts(&card);
    assert_eq!(front[0], "library_name: transformers");
    assert!(!front.contains(&"- lora"));
    for text in ["every weight was trained", "from_pretrained(folder)", "lora-drop predict --model . --input"]
    {
        assert!(body.contains(text), "{text:?} is not in {body}");
    }
    fixture.train("--method head --epochs 1 --output head").ok();
    let card = fixture.read("head/README.md");
    assert!(card.starts_with("---\nlibrary_name: lora-drop\n") && !card.contains("```python"), "{card}");
}

#[test]
fn names_keep_their_meaning_in_a_card() {
    let fixture = Fixture::new();
    let label = |i: usize| ["yes: \"it\" | is\n---\n<b>", "größe\u{2028}\u{1b}[31m"][i % 2];
    let rows = |n: usize| (0..n).map(|i| json!({ "text": "a film", "label": label(i) }).to_string() + "\n");
    fixture.write("d: a`b|c/train.jsonl", rows(20).collect::<String>());
    fixture.write("d: a`b|c/dev.jsonl", rows(4).collect::<String>());
    let words = "train --model model --output no --method lora --epochs 1 --threads 1 --data";
    let words: Vec<&str> = words.split(' ').chain(["d: a`b|c"]).collect();
    fixture.run_words(&words).ok();
    let card = fixture.read("no/README.md");
    let (front, body) = parts(&card);
    for line in ["- name: \"no\"", "      name: \"d: a`b|c\""] {
        assert!(front.contains(&line), "{line:?} is not in {front:?}");
    }
    assert!(body.contains(r#"labels = ["größe\u2028\u001b[31m", "yes: \"it\" | is\n---\n<b>"]"#), "{body}");
    assert!(body.contains("| data | `` d: a`b\\|c `` |"), "{body}");
    assert!(!card.contains('\u{1b}'));
}

#[test]
fn prune_and_export_write_cards_too() {
    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 2").ok();
    fixture.run("prune --adapter out --data data --budget 0.5 --output half").ok();
    let card = fixture.read("half/README.md");
    for text in ["library_name: peft", "It was pruned from an adapter of", "Measured on the 32 rows of dev."]
    {
        assert!(card.contains(text), "{text:?} is not in {card}");
    }
    fixture.write("half/README.md", "mine");
    let again = fixture.run("prune --adapter out --data data --budget 0.25 --output half --overwrite").ok();
    assert!(again.stderr.contains("stays as it is"), "{}", again.stderr);
    assert_eq!(fixture.read("half/README.md"), "mine");

    let export = "export --adapter out --to peft --output peft";
    fixture.run(export).ok();
    let card = fixture.read("peft/README.md");
    for text in ["library_name: peft", "LoRA parameters.", "--adapter . --input", "| rank | 8 |"] {
        assert!(card.contains(text), "{text:?} is not in {card}");
    }
    assert!(!card.contains("model-index"), "{card}");
    fixture.run(&format!("{export} --overwrite")).ok();
    fixture.write("peft/README.md", "mine");
    let again = fixture.run(&format!("{export} --overwrite")).ok();
    assert!(again.stderr.contains("stays as it is"), "{}", again.stderr);
    assert_eq!(fixture.files("peft"), ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
}
