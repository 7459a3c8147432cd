//! What of each kind of row is learned, how rows are cut, and what generation starts from.

use lora_drop::data::SplitName;
use lora_drop::data::text::{
    Message, Role, TextColumnNames, TextEncoder, TextExample, TextOptions, TextRow, TextSplit,
};
use lora_drop::settings::OverLength;
use serde_json::json;

use super::fixture::*;

/// The only train example's text with what is learned in braces.
fn one(row: &str, template: Option<&str>, options: &TextOptions) -> String {
    let data =
        Folder::with("train.jsonl", row, row).load(template, options).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(data.train.examples.len(), 1);
    marked(&data.train.examples[0])
}

pub fn marked(example: &TextExample) -> String {
    assert_eq!(example.ids.len(), example.learn.len());
    let mut text = String::new();
    let mut learning = false;
    for (id, &learn) in example.ids.iter().zip(&example.learn) {
        if learn != learning {
            text.push(if learn { '{' } else { '}' });
            learning = learn;
        }
        text.push_str(&show(&[*id]));
    }
    if learning { text + "}" } else { text }
}

#[test]
fn a_completion_and_its_end_are_learned() {
    let row = r#"{"prompt": "a b:", "completion": " b c"}"#;
    assert_eq!(one(row, None, &options()), "<s>a b:{ b c</s>}");
    let lines = TextOptions { prompt_template: Some("Q: {prompt}\n".into()), ..options() };
    assert_eq!(one(row, None, &lines), "<s>Q: a b:\n{ b c</s>}");
}

#[test]
fn completions_by_their_usual_names() {
    for (row, expected) in [
        (json!({"Question": "q", "answer": "a", "id": 1}), "<s>q{a</s>}"),
        (json!({"instruction": "i", "input": "", "output": "o"}), "<s>i{o</s>}"),
        (json!({"instruction": "i", "input": "x", "output": "o"}), "<s>i\nx{o</s>}"),
        (json!({"document": "d", "summary": "s"}), "<s>d{s</s>}"),
        (json!({"dialogue": "d", "summary": "s", "topic": "t"}), "<s>d{s</s>}"),
        (json!({"source": "s", "target": "t"}), "<s>s{t</s>}"),
        (json!({"input": "i", "output": "o"}), "<s>i{o</s>}"),
    ] {
        assert_eq!(one(&row.to_string(), None, &options()), expected);
    }
}

#[test]
fn named_columns_win() {
    let row = json!({"prompt": "p", "completion": "c", "text": "t", "z": "zz"}).to_string();
    let with = |columns| one(&row, None, &TextOptions { columns, ..options() });
    let names = TextColumnNames::default;
    let named = TextColumnNames { prompt: Some("z".into()), completion: Some("TEXT".into()), ..names() };
    assert_eq!(with(named), "<s>zz{t</s>}");
    let named = TextColumnNames { prompt: Some("prompt".into()), ..names() };
    assert_eq!(with(named), "<s>p{c</s>}");
    let named = TextColumnNames { text: Some("z".into()), ..names() };
    assert_eq!(with(named), "<s>{zz</s>}");
}

#[test]
fn assistant_turns_are_learned_up_to_their_end() {
    let turns = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                       {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},
                       {"role": "assistant", "content": "c"}]);
    let expected = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n{a<|im_end|>}\n\
                    <|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n{c<|im_end|>}\n";
    assert_eq!(one(&json!({ "messages": turns }).to_string(), Some(CHATML), &options()), expected);
    let shared = json!([{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"},
                        {"from": "human", "value": "v"}, {"from": "gpt", "value": "c"}]);
    assert_eq!(one(&json!({ "conversations": shared }).to_string(), Some(CHATML), &options()), expected);
    // The template's own blocks say the same.
    let marks = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\
                 {% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}";
    assert_eq!(one(&json!({ "messages": turns }).to_string(), Some(marks), &options()), expected);
}

#[test]
fn templates_with_and_without_special_tokens() {
    let row =
        json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a b"}]})
            .to_string();
    let llama = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}\
                 {% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}";
    assert_eq!(one(&row, Some(llama), &options()), "<s>[INST] u [/INST]{ a b </s>}");
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' }}{% endfor %}\
                 {% if add_generation_prompt %}assistant: {% endif %}";
    let data = Folder::with("train.jsonl", &row, &row).load(Some(plain), &options()).unwrap();
    assert_eq!(marked(&data.train.examples[0]), "user: u\nassistant: {a b\n}");
    assert!(data.warnings.iter().any(|w| w.contains("does not learn to stop")), "{:?}", data.warnings);
    assert!(data.warnings.iter().all(|w| !w.contains("reaches back")), "{:?}", data.warnings);
}

#[test]
fn an_answer_that_reaches_back_into_the_prompt_is_told() {
    // "\n\n" is one token, and so is " b": neither begins where the answer does.
    let said = |content: &str, template| {
        let row = json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": content}]});
        let row = row.to_string();
        let data = Folder::with("train.jsonl", &row, &row).load(Some(template), &options()).unwrap();
        (marked(&data.train.examples[0]), data.warnings.iter().filter(|w| w.contains("reaches back")).count())
    };
    let (text, told) = said("\n\na", CHATML);
    assert!(text.ends_with("assistant{\n\n\na<|im_end|>}\n"), "{text}");
    assert_eq!(told, 2, "train and dev");
    let space = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}\
                 {% if add_generation_prompt %}assistant: {% endif %}";
    let (text, told) = said("b", space);
    assert_eq!((text.as_str(), told), ("user: u</s>assistant:{ b</s>}", 2));
    assert_eq!(said("a", CHATML).1, 0);
}

#[test]
fn prompts_can_be_turns() {
    let row = r#"{"prompt": "p", "completion": "c"}"#;
    let options = TextOptions { chat: true, prompt_template: Some("{prompt}!".into()), ..options() };
    let expected = "<|im_start|>user\np!<|im_end|>\n<|im_start|>assistant\n{c<|im_end|>}\n";
    assert_eq!(one(row, Some(CHATML), &options), expected);
}

#[test]
fn texts_are_learned_but_for_their_first_token() {
    let row = r#"{"text": "a b b"}"#;
    assert_eq!(one(row, None, &options()), "<s>{a b b</s>}");
    assert_eq!(one(row, None, &TextOptions { text_eos: false, ..options() }), "<s>{a b b}");
    // It is not doubled, and a model may have none.
    assert_eq!(one(r#"{"text": "a</s>"}"#, None, &options()), "<s>{a</s>}");
    let none = TextOptions { end: None, ..options() };
    assert_eq!(one(row, None, &none), "<s>{a b b}");
    let data = Folder::with("train.jsonl", row, row).load(None, &none).unwrap();
    assert!(data.warnings.iter().any(|w| w.contains("no end-of-sequence token")), "{:?}", data.warnings);
}

#[test]
fn end_tokens_of_answers_are_found() {
    let ends = |row: &str, template: Option<&str>| {
        Folder::with("train.jsonl", row, row).load(template, &options()).unwrap().train.ends
    };
    assert_eq!(ends(r#"{"prompt": "p", "completion": "c"}"#, None), [EOS]);
    assert_eq!(ends(r#"{"text": "t"}"#, None), [EOS]);
    let turns = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#;
    assert_eq!(ends(turns, Some(CHATML)), [303]);
    // A block may have the line feed after the turn's end too.
    let marks = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{{ '\n' }}\
                 {% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(ends(turns, Some(marks)), [303]);
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' }}{% endfor %}";
    assert_eq!(ends(turns, Some(plain)), [0; 0]);
    // Of several the most frequent is first.
    let both = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% if m.content == 'a' %}<|im_end|>\
                {% else %}</s>{% endif %}{% else %}{{ m.content }}<s>{% endif %}{% endfor %}";
    let rows = [turns.replace("\"a\"", "\"b\""), turns.into(), turns.into()].join("\n");
    assert_eq!(ends(&rows, Some(both)), [303, EOS]);
}

#[test]
fn long_texts_become_several_sequences() {
    let row = r#"{"text": "abcdefgh"}"#;
    let folder = Folder::with("train.jsonl", row, row);
    let data = folder.load(None, &TextOptions { max_length: 4, ..options() }).unwrap();
    let parts: Vec<String> = data.train.examples.iter().map(marked).collect();
    assert_eq!(parts, ["<s>{abc}", "c{def}", "f{gh</s>}"]);
    assert_eq!((data.train.facts.rows, data.train.facts.over_long, data.train.facts.longest), (3, 1, 10));
    assert_eq!(data.train.examples.iter().map(TextExample::learned).sum::<usize>(), 9);
}

#[test]
fn long_rows_are_cut_dropped_or_refused() {
    let rows = "{\"prompt\": \"pp\", \"completion\": \"c\"}\n{\"prompt\": \"pp\", \"completion\": \"cccc\"}\n\
                {\"prompt\": \"pppppp\", \"completion\": \"c\"}\n";
    let folder = Folder::with("train.jsonl", rows, rows);
    let load = |over_length| folder.load(None, &TextOptions { over_length, max_length: 5, ..options() });
    let data = load(OverLength::Truncate).unwrap();
    let texts: Vec<String> = data.train.examples.iter().map(marked).collect();
    assert_eq!(texts, ["<s>pp{c</s>}", "<s>pp{cc}"]);
    assert_eq!(data.train.facts.over_long, 2);
    let left: Vec<usize> = data.train.unlearned.iter().map(|place| place.line).collect();
    assert_eq!(left, [3]);
    let told = data.warnings.iter().find(|w| w.starts_with("train: 1 rows are left out")).unwrap();
    assert!(told.contains("train.jsonl, line 3"), "{told}");
    let data = load(OverLength::Drop).unwrap();
    assert_eq!(
        (data.train.examples.len(), data.train.facts.over_long, data.train.unlearned.len()),
        (1, 2, 0)
    );
    let message = load(OverLength::Error).unwrap_err().to_string();
    assert!(message.contains("line 2: 8 tokens, but the limit is 5"), "{message}");
    // A tokenizer whose texts lose their start keeps BOS and the completion.
    folder.write("tokenizer_config.json", "{\"truncation_side\": \"left\"}");
    let data = load(OverLength::Truncate).unwrap();
    let texts: Vec<String> = data.train.examples.iter().map(marked).collect();
    assert_eq!(texts, ["<s>pp{c</s>}", "<s>{ccc</s>}", "<s>pp{c</s>}"]);
}

#[test]
fn long_conversations_lose_their_end() {
    let turns = |last: &str| {
        json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
                            {"role": "user", "content": last}, {"role": "assistant", "content": "c"}]})
    };
    let row = turns(&"v".repeat(50)).to_string();
    let folder = Folder::with("train.jsonl", &row, &row);
    let data = folder.load(Some(CHATML), &TextOptions { max_length: 40, ..options() }).unwrap();
    let text = marked(&data.train.examples[0]);
    assert!(text.contains("assistant\n{a<|im_end|>}\n") && text.ends_with("vvv"), "{text}");
    let message =
        folder.load(Some(CHATML), &TextOptions { max_length: 10, ..options() }).unwrap_err().to_string();
    assert!(message.contains("nothing to learn in any of the 1 rows"), "{message}");
}

#[test]
fn generation_starts_from_what_training_saw() {
    let folder = Folder::new();
    let (tokens, template) = (folder.tokens(), chat(CHATML));
    let row = json!({"prompt": "a b", "completion": "c"}).to_string();
    for chat in [false, true] {
        let options = TextOptions { chat, prompt_template: Some("{prompt}:".into()), ..options() };
        let encoder = TextEncoder::new(&tokens, Some(&template), &options).unwrap();
        let ids = encoder.encode_prompt(&TextRow::prompt("a b"), 64).unwrap();
        let data = Folder::with("train.jsonl", &row, &row).load(Some(CHATML), &options).unwrap();
        let example = &data.train.examples[0];
        let asked = example.learn.iter().position(|&learn| learn).unwrap();
        assert_eq!(ids, example.ids[..asked]);
    }
    let options = options();
    let encoder = TextEncoder::new(&tokens, Some(&template), &options).unwrap();
    let asked = vec![Message::new(Role::User, "u")];
    let answered = [asked.clone(), vec![Message::new(Role::Assistant, "a")]].concat();
    let ids = encoder.encode_prompt(&TextRow::conversation(asked), 64).unwrap();
    assert_eq!(show(&ids), "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(encoder.encode_prompt(&TextRow::conversation(answered), 64).unwrap(), ids);
}

#[test]
fn references_are_a_list_or_the_completion() {
    let rows = "{\"prompt\": \"p\", \"completion\": \"c\", \"references\": [\"c\", \"d\"]}\n\
                {\"prompt\": \"p\", \"completion\": \"c\", \"references\": null}\n\
                {\"prompt\": \"p\", \"completion\": \"c\", \"references\": \"[e]\"}\n\
                {\"prompt\": \"p\", \"completion\": null, \"references\": [\"f\"]}\n";
    let folder = Folder::new();
    let file = folder.write("rows.jsonl", rows);
    let load = |file: &std::path::Path, template| {
        TextSplit::load(file, SplitName::Test, &folder.tokens(), template, &options()).unwrap().0
    };
    let split = load(&file, None);
    let references: Vec<Vec<String>> = split.rows.iter().map(|row| row.references.clone()).collect();
    assert_eq!(json!(references), json!([["c", "d"], ["c"], ["[e]"], ["f"]]));
    assert_eq!(
        (split.examples.len(), split.unlearned.len()),
        (3, 0),
        "the last row has no completion to measure"
    );
    // As JSON in a table's field, and a conversation's last turn.
    let file = folder.write("rows.csv", "prompt,completion,references\np,c,\"[\"\"x\"\", \"\"y\"\"]\"\n");
    assert_eq!(load(&file, None).rows[0].references, ["x", "y"]);
    let file = folder.write(
        "turns.tsv",
        "messages\n[{\"role\": \"user\", \"content\": \"u\"}, {\"role\": \"assistant\", \"content\": \"a\"}]\n",
    );
    assert_eq!(load(&file, Some(&chat(CHATML))).rows[0].references, ["a"]);
}

#[test]
fn prompts_alone_will_do_for_generation_and_test() {
    let folder = Folder::with(
        "train.jsonl",
        "{\"prompt\": \"p\", \"completion\": \"c\"}",
        "{\"prompt\": \"p\", \"completion\": \"d\"}",
    );
    folder.write("test.jsonl", "{\"prompt\": \"q\"}\n");
    let data = folder.load(None, &options()).unwrap();
    let test = data.test.unwrap();
    assert_eq!((test.rows.len(), test.examples.len()), (1, 0));
    assert!(data.warnings.is_empty(), "{:?}", data.warnings);
    assert!(data.train.rows.is_empty() && data.dev.rows.len() == 1);
}

#[test]
fn formats_agree_and_threads_do_not_matter() {
    let rows: Vec<_> =
        (0..40).map(|i| json!({"prompt": format!("p {i}"), "completion": format!("c \"{i}\"")})).collect();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let csv: String = (0..40).map(|i| format!("p {i},\"c \"\"{i}\"\"\"\n")).collect();
    let tsv: String = (0..40).map(|i| format!("p {i}\tc \"{i}\"\n")).collect();
    let dev = "{\"prompt\": \"p\", \"completion\": \"d\"}";
    let of = |name: &str, content: String| {
        let data = Folder::with(name, content, dev).load(None, &options()).unwrap();
        data.train.examples.into_iter().map(|example| (example.ids, example.learn)).collect::<Vec<_>>()
    };
    let expected = of("train.jsonl", lines.clone());
    for (name, content) in [
        ("train.json", json!({ "data": rows }).to_string()),
        ("train.csv", format!("prompt,completion\n{csv}")),
        ("train.tsv", format!("prompt\tcompletion\n{tsv}")),
    ] {
        assert_eq!(of(name, content), expected, "{name}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| of("train.jsonl", lines)), expected);
}

#[test]
fn conversations_from_nested_parquet() {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let schema =
        "message rows { REQUIRED group messages (LIST) { REPEATED group list { REQUIRED group element {
                  REQUIRED BYTE_ARRAY content (UTF8); REQUIRED BYTE_ARRAY role (UTF8); } } } }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer =
        parquet::file::writer::SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for values in [["u", "a", "v", "b"], ["user", "assistant", "user", "assistant"]] {
        let mut column = group.next_column().unwrap().unwrap();
        let values = values.map(ByteArray::from);
        // Two rows of two turns.
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1; 4]), Some(&[0, 1, 0, 1])).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    let folder = Folder::new();
    let load = |content: &[u8]| {
        let file = folder.write("turns.parquet", content);
        TextSplit::load(&file, SplitName::Test, &folder.tokens(), Some(&chat(CHATML)), &options())
    };
    let split = load(&bytes).unwrap().0;
    let texts: Vec<String> = split.examples.iter().map(marked).collect();
    let text = |u, a| format!("<|im_start|>user\n{u}<|im_end|>\n<|im_start|>assistant\n{{{a}<|im_end|>}}\n");
    assert_eq!(texts, [text("u", "a"), text("v", "b")]);
    // Damage is an error or other rows, never a panic.
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 0x55;
        let file = folder.write("turns.parquet", changed);
        if let Ok(rows) = lora_drop::data::Rows::open(&file) {
            let _ = rows.take_while(Result::is_ok).take(100).count();
        }
    }
}

#[test]
fn without_dev_a_tenth_is_held_out() {
    let lines: String = (0..50).map(|i| format!("{{\"text\": \"t {i}\"}}\n")).collect();
    let folder = Folder::new();
    let file = folder.write("train.jsonl", lines);
    let data = folder.load(None, &options()).unwrap();
    assert_eq!((data.train.examples.len(), data.dev.examples.len()), (45, 5));
    assert!(data.warnings[0].contains("5 rows of train are held out"), "{:?}", data.warnings);
    let load = |path| TextSplit::load(path, SplitName::Dev, &folder.tokens(), None, &options()).unwrap();
    assert_eq!(load(folder.path()).0.examples, data.dev.examples, "evaluation finds the same rows");
    assert_eq!(load(&file).0.examples.len(), 50, "a file is the split itself");
}
