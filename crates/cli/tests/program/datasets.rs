//! The data sets that people fine-tune on most: made-up rows in the layout of each, read without an
//! option, or with the options that the error names. docs/data.md has the same list.

use lora_drop::Cancel;
use lora_drop::inspect::{DataView, data};
use lora_drop::settings::RunSettings;
use serde_json::{Value, json};

/// Reads rows, which are train and dev, with settings by name.
fn read(rows: &[Value], options: &[(&str, &str)]) -> Result<DataView, String> {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    for split in ["train", "dev"] {
        std::fs::write(folder.path().join(format!("{split}.jsonl")), &lines).unwrap();
    }
    let mut settings = RunSettings::new("", folder.path(), "");
    let table = options.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect();
    settings.apply(&table).unwrap();
    data(&settings, &[], &Cancel::new(), &mut |_| {}).map_err(|error| error.to_string())
}

/// What the first row is read as: each part with its role, what is learned in brackets, the label
/// last.
fn first_row(view: &DataView) -> String {
    let row = &view.rows[0];
    let parts = row.parts.iter().map(|part| match part.learned {
        true => format!("{}: [{}]", part.role, part.text),
        false => format!("{}: {}", part.role, part.text),
    });
    let label = row.label.iter().map(|label| format!("label: {label}"));
    parts.chain(label).collect::<Vec<_>>().join(" | ")
}

struct DataSet {
    /// As docs/data.md names it.
    name: &'static str,
    rows: Vec<Value>,
    /// Settings, without which there is an error that has these words.
    options: &'static [(&'static str, &'static str)],
    words: &'static [&'static str],
    /// What rows are called, and what the first one is read as.
    layout: &'static str,
    first: &'static str,
}

impl DataSet {
    fn new(name: &'static str, rows: Vec<Value>, layout: &'static str, first: &'static str) -> Self {
        DataSet { name, rows, options: &[], words: &[], layout, first }
    }

    fn with(self, options: &'static [(&'static str, &'static str)], words: &'static [&'static str]) -> Self {
        DataSet { options, words, ..self }
    }
}

fn data_sets() -> Vec<DataSet> {
    let alpaca = |extra: bool| {
        let row = |input: &str| {
            let mut row = json!({"instruction": "Name a colour.", "input": input, "output": "Blue."});
            if extra {
                row["text"] = "Below is an instruction. Name a colour. Blue.".into();
            }
            row
        };
        vec![row(""), row("Of the sky.")]
    };
    let turns = |key: &str, from: [&str; 3]| json!([{from[0]: from[1], key: "Hello."}, {from[0]: from[2], key: "Good day!"}]);
    let classes = |row: &dyn Fn(Value) -> Value, labels: [Value; 2]| labels.map(row).to_vec();
    let numbers = || [json!(0), json!(1)];
    let answer = "prompt with a completion";
    let instruction = "instruction with its answer";
    let (single, pair) = ("text with a label", "pair of texts with a label");
    vec![
        DataSet::new("alpaca", alpaca(false), instruction, "prompt: Name a colour. | completion: [Blue.]"),
        DataSet::new("alpaca", alpaca(true), instruction, "prompt: Name a colour. | completion: [Blue.]")
            .with(
                &[("prompt-column", "instruction")],
                &["\"instruction\" with \"output\", \"text\"", "`prompt_column`"],
            ),
        DataSet::new(
            "dolly",
            vec![json!({"instruction": "When was it?", "context": "It was in 1848.", "response": "In 1848.",
                        "category": "closed_qa"})],
            instruction,
            "prompt: When was it?\nIt was in 1848. | completion: [In 1848.]",
        ),
        DataSet::new(
            "oasst1",
            vec![
                json!({"message_id": "a", "parent_id": null, "text": "Hello.", "role": "prompter", "lang": "en",
                       "labels": {"name": ["spam"], "value": [0.0]}}),
                json!({"message_id": "b", "parent_id": "a", "text": "Good day!", "role": "assistant", "lang": "en",
                       "labels": {"name": ["spam"], "value": [0.0]}}),
            ],
            "",
            "each row is one message of a tree; follow `parent_id`",
        ),
        DataSet::new(
            "ultrachat_200k",
            vec![
                json!({"prompt": "Hello.", "prompt_id": "0", "messages": turns("content", ["role", "user", "assistant"])}),
            ],
            "conversation",
            "user: Hello. | assistant: [Good day!]",
        ),
        DataSet::new(
            "ShareGPT",
            vec![json!({"id": "0", "conversations": turns("value", ["from", "human", "gpt"])})],
            "conversation",
            "user: Hello. | assistant: [Good day!]",
        ),
        DataSet::new(
            "gsm8k",
            vec![json!({"question": "2 and 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"})],
            "question with its answer",
            "prompt: 2 and 2? | completion: [2 + 2 = <<2+2=4>>4\n#### 4]",
        ),
        DataSet::new(
            "squad",
            vec![
                json!({"id": "0", "title": "Revolution", "context": "It was in 1848.", "question": "When was it?",
                        "answers": {"text": ["in 1848", "1848"], "answer_start": [7, 10]}}),
            ],
            "question about a context, with its answers",
            "prompt: When was it?\nIt was in 1848. | completion: [in 1848]",
        ),
        DataSet::new(
            "xsum",
            vec![json!({"document": "It rained all day.", "summary": "Rain.", "id": "0"})],
            "document with its summary",
            "prompt: It rained all day. | completion: [Rain.]",
        ),
        DataSet::new(
            "dialogsum",
            vec![
                json!({"id": "0", "dialogue": "#Person1#: Hello.", "summary": "A greeting.", "topic": "greeting"}),
            ],
            "dialogue with its summary",
            "prompt: #Person1#: Hello. | completion: [A greeting.]",
        ),
        DataSet::new(
            "e2e_nlg",
            vec![
                json!({"meaning_representation": "name[The Mill]", "human_reference": "The Mill is a pub."}),
            ],
            "data with its description",
            "prompt: name[The Mill] | completion: [The Mill is a pub.]",
        ),
        DataSet::new(
            "glue/cola",
            classes(&|label| json!({"sentence": "It rained.", "label": label, "idx": 0}), numbers()),
            single,
            "text: It rained. | label: 0",
        ),
        DataSet::new(
            "glue/sst2",
            classes(&|label| json!({"sentence": "a fine film", "label": label, "idx": 0}), numbers()),
            single,
            "text: a fine film | label: 0",
        ),
        DataSet::new(
            "glue/mrpc",
            classes(
                &|label| json!({"sentence1": "A.", "sentence2": "B.", "label": label, "idx": 0}),
                numbers(),
            ),
            pair,
            "first text: A. | second text: B. | label: 0",
        ),
        DataSet::new(
            "glue/qqp",
            classes(
                &|label| json!({"question1": "A?", "question2": "B?", "label": label, "idx": 0}),
                numbers(),
            ),
            pair,
            "first text: A? | second text: B? | label: 0",
        ),
        DataSet::new(
            "glue/stsb",
            classes(
                &|label| json!({"sentence1": "A.", "sentence2": "B.", "label": label, "idx": 0}),
                [json!(4.2), json!(1.0)],
            ),
            pair,
            "first text: A. | second text: B. | label: 4.2",
        ),
        DataSet::new(
            "glue/mnli",
            classes(
                &|label| json!({"premise": "A.", "hypothesis": "B.", "label": label, "idx": 0}),
                numbers(),
            ),
            pair,
            "first text: A. | second text: B. | label: 0",
        ),
        DataSet::new(
            "glue/qnli",
            classes(
                &|label| json!({"question": "A?", "sentence": "B.", "label": label, "idx": 0}),
                numbers(),
            ),
            pair,
            "first text: A? | second text: B. | label: 0",
        ),
        DataSet::new(
            "glue/rte",
            classes(
                &|label| json!({"sentence1": "A.", "sentence2": "B.", "label": label, "idx": 0}),
                numbers(),
            ),
            pair,
            "first text: A. | second text: B. | label: 0",
        ),
        DataSet::new(
            "glue/wnli",
            classes(
                &|label| json!({"sentence1": "A.", "sentence2": "B.", "label": label, "idx": 0}),
                numbers(),
            ),
            pair,
            "first text: A. | second text: B. | label: 0",
        ),
        DataSet::new(
            "ag_news",
            classes(&|label| json!({"text": "Shares rose.", "label": label}), [json!(2), json!(3)]),
            single,
            "text: Shares rose. | label: 2",
        ),
        DataSet::new(
            "conll2003",
            [3, 1]
                .map(|tag| {
                    json!({"id": "0", "tokens": ["EU", "rejects"], "pos_tags": [22, 42], "chunk_tags": [11, 21],
                           "ner_tags": [tag, 0]})
                })
                .to_vec(),
            "words with their tags",
            "words: EU rejects | label: [3, 0]",
        )
        .with(&[("label-column", "ner_tags")], &["several columns could be the tags", "label_column"]),
        DataSet::new(
            "imdb",
            classes(&|label| json!({"text": "A fine film.<br />", "label": label}), numbers()),
            single,
            "text: A fine film.<br /> | label: 0",
        ),
        DataSet::new(
            "hh-rlhf",
            vec![
                json!({"chosen": "\n\nHuman: Hello.\n\nAssistant: Good day!\n\nHuman: Thanks.\n\nAssistant: Bye.",
                        "rejected": "\n\nHuman: Hello.\n\nAssistant: What?"}),
            ],
            "preferred conversation",
            "user: Hello. | assistant: [Good day!] | user: Thanks. | assistant: [Bye.]",
        ),
        DataSet::new(
            "OpenOrca",
            vec![json!({"id": "0", "system_prompt": "Be brief.", "question": "2 and 2?", "response": "4"})],
            "question with its answer",
            "system: Be brief. | user: 2 and 2? | assistant: [4]",
        ),
        DataSet::new(
            "code_alpaca",
            alpaca(false),
            instruction,
            "prompt: Name a colour. | completion: [Blue.]",
        ),
        DataSet::new(
            "tulu-3-sft-mixture",
            vec![
                json!({"id": "0", "source": "x", "messages": turns("content", ["role", "user", "assistant"])}),
            ],
            "conversation",
            "user: Hello. | assistant: [Good day!]",
        ),
        DataSet::new(
            "self_instruct",
            vec![json!({"prompt": "Name a colour.\nOutput:", "completion": " Blue.\n"})],
            answer,
            "prompt: Name a colour.\nOutput: | completion: [ Blue.\n]",
        ),
        DataSet::new(
            "seed_tasks.jsonl",
            vec![
                json!({"id": "0", "name": "colours", "instruction": "Name a colour.", "is_classification": false,
                        "instances": [{"input": "", "output": "Blue."}]}),
            ],
            "",
            "each row has a list of instances; write each of them as a row",
        ),
        DataSet::new(
            "wikitext",
            vec![json!({"text": " = Rain = \n"}), json!({"text": ""}), json!({"text": " It rained . \n"})],
            "plain text",
            "text: [ = Rain = \n]",
        ),
    ]
}

#[test]
fn data_sets_are_read_as_they_are() {
    const PAGE: &str = include_str!("../../../../docs/data.md");
    for set in data_sets() {
        let name = set.name;
        assert!(PAGE.contains(&format!("| {name} ")), "{name} is not in the table of docs/data.md");
        if !set.words.is_empty() {
            let message = read(&set.rows, &[]).unwrap_err();
            assert!(set.words.iter().all(|word| message.contains(word)), "{name}: {message}");
        }
        match read(&set.rows, set.options) {
            Ok(view) => assert_eq!((view.layout, &*first_row(&view)), (set.layout, set.first), "{name}"),
            Err(message) => {
                assert!(set.layout.is_empty() && message.contains(set.first), "{name}: {message}");
            }
        }
    }
}

#[test]
fn answers_beside_a_completion_are_references() {
    let row = |answers: Value| json!({"question": "When?", "context": "In 1848.", "answers": answers});
    let found = read(&[row(json!({"text": [], "answer_start": []}))], &[]).unwrap_err();
    assert!(found.contains("\"answers\" has no text") && found.contains("`bad_rows = skip`"), "{found}");
    let found = read(&[row(json!("1848"))], &[]).unwrap();
    assert_eq!(first_row(&found), "prompt: When?\nIn 1848. | completion: [1848]");
    // A context beside a question with one answer is not read, and the warning says so.
    let found = read(&[json!({"question": "When?", "context": "In 1848.", "answer": "1848"})], &[]).unwrap();
    assert_eq!(first_row(&found), "prompt: When? | completion: [1848]");
    assert!(found.warnings[0].contains("the column context is not read"), "{:?}", found.warnings);
}

#[test]
fn preferred_answers_count_where_nothing_else_does() {
    let chosen = json!([{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]);
    let found = read(&[json!({"chosen": chosen, "rejected": chosen, "messages": chosen})], &[]).unwrap();
    assert_eq!(found.columns[0].name, "messages");
    let found = read(&[json!({"chosen": chosen, "rejected": chosen})], &[]).unwrap();
    assert_eq!(first_row(&found), "user: A? | assistant: [B.]");
    let row = json!({"prompt": "A?", "chosen": "B.", "rejected": "C."});
    let message = read(std::slice::from_ref(&row), &[]).unwrap_err();
    assert!(message.contains("\"chosen\"") && message.contains("list of turns"), "{message}");
    let found = read(&[row], &[("prompt-column", "prompt"), ("completion-column", "chosen")]).unwrap();
    assert_eq!(first_row(&found), "prompt: A? | completion: [B.]");
}
