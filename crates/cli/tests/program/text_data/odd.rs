//! Odd rows and options are refused with file and line, what was seen, and the way out.

use lora_drop::data::text::{TextColumnNames, TextOptions};
use serde_json::json;

use super::fixture::*;

const GOOD: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";

/// Checks that a file of one sound row and this one is refused at the second.
#[track_caller]
fn refused(good: &str, row: &str, options: &TextOptions, parts: &[&str]) {
    let folder = Folder::with("train.jsonl", format!("{good}\n{row}\n"), good);
    let message = folder.load(Some(CHATML), options).expect_err(row).to_string();
    assert!(message.contains("train.jsonl, line 2: "), "{message}");
    assert!(parts.iter().all(|part| message.contains(part)), "{message}\nhas not all of {parts:?}");
}

#[test]
fn odd_conversations() {
    let user = "{\"role\": \"user\", \"content\": \"u\"}";
    for (turns, parts) in [
        ("3".into(), &["\"messages\" is a number", "a list of turns"][..]),
        ("null".into(), &["\"messages\" is null"]),
        ("\"hello\"".into(), &["\"messages\" holds text that is not JSON"]),
        ("\"{}\"".into(), &["\"messages\" is an object"]),
        ("[]".into(), &["\"messages\" is an empty list"]),
        (format!("[{user}, \"x\"]"), &["turn 2 is text, expected an object"]),
        (format!("[{user}, {{\"content\": \"a\"}}]"), &["turn 2 has no \"role\"", "keys: content"]),
        (format!("[{user}, {{\"role\": \"assistant\"}}]"), &["turn 2 (assistant) has no text: no content"]),
        (format!("[{user}, {{\"from\": \"gpt\"}}]"), &["turn 2 (assistant) has no text: no content"]),
        (format!("[{user}, {{\"role\": 1, \"content\": \"a\"}}]"), &["turn 2: \"role\" is a number"]),
        (
            format!("[{user}, {{\"role\": \"assistant\", \"content\": [\"a\"]}}]"),
            &["turn 2: part 1 of the content is text, expected {\"type\": \"text\""],
        ),
        (
            format!("[{user}, {{\"role\": \"assistant\", \"content\": null}}]"),
            &["turn 2 (assistant) has no text: null"],
        ),
        (
            format!("[{user}, {{\"role\": \"assistant\", \"content\": \"\"}}]"),
            &["turn 2 (assistant) has no text: zero length"],
        ),
        (
            format!("[{user}, {{\"role\": \"assistant\", \"content\": \" \\n\"}}]"),
            &["turn 2 (assistant)", "white space only"],
        ),
        (
            format!("[{user}, {{\"role\": \"gpt\", \"content\": \"a\"}}]"),
            &["turn 2: the role \"gpt\" is not known", "assistant"],
        ),
        (
            format!("[{user}, {{\"from\": \"robot\", \"value\": \"a\"}}]"),
            &["turn 2: the role \"robot\" is not known"],
        ),
        (format!("[{user}]"), &["no assistant turn"]),
    ] {
        refused(GOOD, &format!("{{\"messages\": {turns}}}"), &options(), parts);
    }
    refused(GOOD, "{\"turns\": []}", &options(), &["no column \"messages\"", "columns: turns"]);
    refused(GOOD, "{\"messages\": [", &options(), &["bad JSON"]);
}

#[test]
fn odd_completions() {
    let good = "{\"prompt\": \"p\", \"completion\": \"c\", \"references\": [\"r\"]}";
    for (row, parts) in [
        (
            json!({"prompt": "p", "completion": "", "references": ["r"]}),
            &["\"completion\" has no text: zero length"][..],
        ),
        (
            json!({"prompt": "p", "completion": " ", "references": ["r"]}),
            &["\"completion\"", "white space only"],
        ),
        (
            json!({"prompt": "p", "completion": null, "references": ["r"]}),
            &["\"completion\" has no text: null"],
        ),
        (
            json!({"prompt": "p", "completion": 72, "references": ["r"]}),
            &["\"completion\" is a number, expected text"],
        ),
        (
            json!({"prompt": ["p"], "completion": "c", "references": ["r"]}),
            &["turn 1 is text, expected an object"],
        ),
        (json!({"prompt": "", "completion": "c", "references": ["r"]}), &["\"prompt\" has no text"]),
        (
            json!({"prompt": "p", "references": ["r"]}),
            &["no column \"completion\"", "columns: prompt, references"],
        ),
        (json!({"prompt": "p", "completion": "c", "references": []}), &["\"references\" is an empty list"]),
        (
            json!({"prompt": "p", "completion": "c", "references": 3}),
            &["\"references\" is a number", "a list of texts"],
        ),
        (
            json!({"prompt": "p", "completion": "c", "references": ["r", 3]}),
            &["reference 2 in \"references\" is a number"],
        ),
        (json!({"prompt": "p", "completion": "c", "references": ["", "r"]}), &["reference 1", "empty"]),
    ] {
        refused(good, &row.to_string(), &options(), parts);
    }
}

#[test]
fn bytes_that_are_not_utf8_and_texts_of_another_type() {
    let folder =
        Folder::with("train.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n", "{\"text\": \"b\"}");
    let message = folder.load(None, &options()).unwrap_err().to_string();
    assert!(message.contains("train.jsonl, line 2: not UTF-8: byte 11"), "{message}");
    refused("{\"text\": \"a\"}", "{\"text\": {}}", &options(), &["\"text\" is an object"]);
}

#[test]
fn rows_that_the_template_refuses() {
    let template = "{% for m in messages %}{% if m.role == 'system' %}\n{{ raise_exception('no system turns') }}{% endif %}\
                    {{ m.content }}</s>{% endfor %}";
    let row = "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}";
    let folder = Folder::with("train.jsonl", format!("{GOOD}\n{row}\n"), GOOD);
    let message = folder.load(Some(template), &options()).unwrap_err().to_string();
    assert!(message.contains("line 2: the chat template fails: line 2 of the template"), "{message}");
    assert!(message.contains("no system turns"), "{message}");
}

#[test]
fn blocks_that_mark_nothing_are_reported() {
    let template = "{% for m in messages %}{% if m.content == 'learn' %}{% generation %}{{ m.content }}</s>{% endgeneration %}\
                    {% else %}{{ m.content }}{% endif %}{% endfor %}";
    let row = |content: &str| {
        json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": content}]})
            .to_string()
    };
    let folder = Folder::with("train.jsonl", format!("{}\n{}\n", row("learn"), row("not")), &row("learn"));
    let data = folder.load(Some(template), &options()).unwrap();
    assert_eq!((data.train.examples.len(), data.train.unlearned.len()), (1, 1));
    assert!(
        data.warnings.iter().any(|w| w.contains("1 rows are left out") && w.contains("line 2")),
        "{:?}",
        data.warnings
    );
}

#[test]
fn unclear_columns_name_the_options() {
    let none = TextColumnNames::default;
    let named = |name: &str| TextColumnNames { prompt: Some(name.into()), ..none() };
    for (row, columns, parts) in [
        ("{\"a\": \"x\"}", none(), &["no usual columns", "columns: a", "`prompt_column`"][..]),
        ("{\"prompt\": \"x\"}", none(), &["no usual columns", "columns: prompt"]),
        (
            "{\"prompt\": \"x\", \"completion\": \"y\", \"text\": \"z\"}",
            none(),
            &["\"prompt\" with \"completion\", \"text\"", "`text_column`"],
        ),
        ("{\"dialogue\": \"x\", \"document\": \"y\", \"summary\": \"z\"}", none(), &["several columns"]),
        ("{\"text\": \"x\"}", named("promt"), &["no column \"promt\"", "columns: text"]),
        ("{\"text\": \"x\"}", named("text"), &["no completion column", "`completion_column`"]),
        (
            "{\"text\": \"x\"}",
            TextColumnNames { text: Some("text".into()), ..named("text") },
            &["the named columns are for different kinds of rows: completion, text"],
        ),
        (
            "{\"text\": \"x\"}",
            TextColumnNames { completion: Some("text".into()), ..none() },
            &["no prompt column"],
        ),
    ] {
        let folder = Folder::with("train.jsonl", row, row);
        let options = TextOptions { columns, ..options() };
        let message = folder.load(None, &options).expect_err(row).to_string();
        assert!(message.contains("train.jsonl, line 1"), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}\nhas not all of {parts:?}");
    }
}

#[test]
fn options_that_do_not_fit() {
    let completion = "{\"prompt\": \"p\", \"completion\": \"c\"}";
    let check = |row: &str, template: Option<&str>, options: TextOptions, part: &str| {
        let message =
            Folder::with("train.jsonl", row, row).load(template, &options).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    };
    check(GOOD, None, options(), "the model has no chat template");
    check(completion, None, TextOptions { chat: true, ..options() }, "no chat template");
    check(completion, None, TextOptions { end: None, ..options() }, "no end-of-sequence token");
    check(completion, None, TextOptions { max_length: 2, ..options() }, "`max_length = 2`");
    check(completion, None, TextOptions { vocabulary: 50, ..options() }, "the model's vocabulary has 50");
    for form in ["Q:", "{prompt}{prompt}"] {
        check(
            completion,
            None,
            TextOptions { prompt_template: Some(form.into()), ..options() },
            "must contain {prompt} exactly once",
        );
    }
}
