//! Rows as people have them: the layouts of public data sets, with holes, turns of all kinds, and
//! columns that are not read.

use lora_drop::data::text::{TextColumnNames, TextDataset, TextOptions};
use lora_drop::settings::BadRows;
use serde_json::{Value, json};

use super::encoding::marked;
use super::fixture::*;

/// A template that writes tools, system turns, calls and answers.
const TOOLS: &str = "{% if tools %}[{% for t in tools %}{{ t.name }}{% endfor %}]{% endif %}\
                     {% for m in messages %}{{ m.role[0] }}:{% if m.content %}{{ m.content }}{% endif %}\
                     {% if 'tool_calls' in m %}{% for c in m.tool_calls %}!{{ c.function | tojson }}{% endfor %}{% endif %}</s>{% endfor %}\
                     {% if add_generation_prompt %}a:{% endif %}";

fn load(rows: &[Value], template: Option<&str>, options: &TextOptions) -> Result<TextDataset, String> {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let folder = Folder::with("train.jsonl", &lines, &lines);
    folder.load(template, options).map_err(|e| e.to_string())
}

/// The texts of train's rows with what is learned in braces.
#[track_caller]
fn texts(rows: &[Value], template: Option<&str>, options: &TextOptions) -> Vec<String> {
    let data = load(rows, template, options).unwrap_or_else(|e| panic!("{e}"));
    data.train.examples.iter().map(marked).collect()
}

fn chat_options() -> TextOptions {
    TextOptions { chat: true, ..options() }
}

#[test]
fn an_absent_key_is_null_and_a_later_one_counts() {
    let with = json!({"instruction": "i", "input": "x", "output": "o"});
    let without = json!({"instruction": "j", "output": "p"});
    let null = json!({"instruction": "k", "input": null, "output": "q"});
    let blank = json!({"instruction": "l", "input": " ", "output": "r"});
    let expected = ["<s>j{p</s>}", "<s>i\nx{o</s>}", "<s>k{q</s>}", "<s>l{r</s>}"];
    let rows = [without.clone(), with.clone(), null, blank];
    assert_eq!(texts(&rows, None, &options()), expected);
    assert_eq!(texts(&[with, without], None, &options()), ["<s>i\nx{o</s>}", "<s>j{p</s>}"]);
    // The same of references, of a test split's completions and of labels.
    let folder = Folder::with(
        "train.jsonl",
        r#"{"prompt": "p", "completion": "c"}"#,
        r#"{"prompt": "p", "completion": "c"}"#,
    );
    let rows = [
        json!({"prompt": "a"}),
        json!({"prompt": "b", "completion": "c"}),
        json!({"prompt": "d", "references": ["e", "f"]}),
    ];
    folder.write("test.jsonl", rows.map(|row| format!("{row}\n")).concat());
    let test = folder.load(None, &options()).unwrap().test.unwrap();
    assert_eq!(test.examples.len(), 1);
    let references: Vec<_> = test.rows.iter().map(|row| row.references.join("|")).collect();
    assert_eq!(references, ["", "c", "e|f"]);
    // A completion by a name of the user's, in a split whose first row has none.
    let columns =
        TextColumnNames { prompt: Some("q".into()), completion: Some("a".into()), ..Default::default() };
    let row = r#"{"q": "p", "a": "c"}"#;
    let folder = Folder::with("train.jsonl", row, row);
    folder.write("test.jsonl", format!("{{\"q\": \"p\"}}\n{row}\n"));
    let test = folder.load(None, &TextOptions { columns, ..options() }).unwrap().test.unwrap();
    assert_eq!(test.examples.len(), 1);
}

#[test]
fn context_is_the_input() {
    let row = json!({"instruction": "i", "context": "ctx", "response": "o", "category": "open_qa"});
    assert_eq!(texts(&[row], None, &options()), ["<s>i\nctx{o</s>}"]);
}

#[test]
fn a_system_text_is_the_first_turn_and_a_history_comes_before() {
    let end = "<|im_end|>\n";
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}{end}");
    let learned = |text: &str| format!("<|im_start|>assistant\n{{{text}<|im_end|>}}\n");
    let asked = [turn("user", "u"), learned("a")].concat();
    let shared = json!([{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]);
    for (row, expected) in [
        (json!({"conversations": shared, "system": "s"}), [turn("system", "s"), asked.clone()].concat()),
        (json!({"conversations": shared, "system": ""}), asked.clone()),
        (json!({"conversations": shared, "system": null}), asked.clone()),
        (
            json!({"conversations": shared, "history": [["h", "i"]]}),
            [turn("user", "h"), learned("i"), asked.clone()].concat(),
        ),
        // A system turn of its own goes before the column.
        (
            json!({"conversations": [{"from": "system", "value": "t"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
                   "system": "s"}),
            [turn("system", "t"), asked.clone()].concat(),
        ),
        (
            json!({"instruction": "u", "input": "", "output": "a", "system": "s", "history": [["h", "i"]]}),
            [turn("system", "s"), turn("user", "h"), learned("i"), asked.clone()].concat(),
        ),
        (
            json!({"question": "u", "answer": "a", "system_prompt": "s"}),
            [turn("system", "s"), asked.clone()].concat(),
        ),
    ] {
        assert_eq!(texts(std::slice::from_ref(&row), Some(CHATML), &options()), [expected], "{row}");
    }
    // Some rows are turns, and others would be written without the template.
    let rows = [
        json!({"instruction": "i", "output": "o", "history": []}),
        json!({"instruction": "u", "output": "a", "system": "s"}),
    ];
    let message = load(&rows, Some(CHATML), &options()).unwrap_err();
    assert!(message.contains("line 2: a conversation") && message.contains("give `chat`"), "{message}");
    let expected = [[turn("user", "i"), learned("o")].concat(), [turn("system", "s"), asked].concat()];
    assert_eq!(texts(&rows, Some(CHATML), &chat_options()), expected);
    let wrapped = TextOptions { prompt_template: Some("{prompt}:".into()), ..chat_options() };
    let message = load(&rows, Some(CHATML), &wrapped).unwrap_err();
    assert!(message.contains("line 2: ") && message.contains("`prompt_template`"), "{message}");
    let odd = json!({"instruction": "u", "output": "a", "history": [["h"]]});
    let message = load(&[odd], Some(CHATML), &options()).unwrap_err();
    assert!(message.contains("\"history\" is") && message.contains("pairs"), "{message}");
}

#[test]
fn prompts_and_completions_may_be_turns() {
    let row = json!({
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "b"},
                   {"role": "user", "content": "v"}],
        "completion": [{"role": "assistant", "content": "A"}]
    });
    let expected = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
                    <|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n{A<|im_end|>}\n";
    assert_eq!(texts(std::slice::from_ref(&row), Some(CHATML), &options()), [expected]);
    // A template that marks what the assistant says marks both answers.
    let marks = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\
                 {% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}";
    assert_eq!(texts(&[row], Some(marks), &options()), [expected]);
    // One of them may be a text, and a test split's rows a prompt.
    let row = json!({"prompt": [{"role": "user", "content": "u"}], "completion": "A"});
    let expected = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n{A<|im_end|>}\n";
    assert_eq!(texts(&[row], Some(CHATML), &options()), [expected]);
}

#[test]
fn columns_that_look_like_a_part_of_the_prompt_are_named() {
    let said = |row: Value| {
        let lines = format!("{row}\n");
        let data = Folder::with("train.jsonl", &lines, &lines).load(Some(CHATML), &options()).unwrap();
        data.warnings.join("\n")
    };
    let messages = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]);
    let warning = said(json!({"question": "q", "context": "c", "choices": ["a"], "answer": "a", "id": 3}));
    assert!(warning.contains("train: the columns context, choices are not read"), "{warning}");
    assert!(said(json!({"messages": messages, "context": "c"})).contains("the column context is not read"));
    for row in [
        json!({"question": "q", "context": "", "choices": [], "answer": "a", "id": 3, "topic": "t"}),
        json!({"messages": messages, "prompt": "u", "prompt_id": "1"}),
        json!({"text": "t", "title": "u"}),
    ] {
        assert_eq!(said(row), "");
    }
}

#[test]
fn blank_texts_are_passed_over() {
    let rows = [
        json!({"text": ""}),
        json!({"text": "a"}),
        json!({"text": " \n"}),
        json!({"text": null}),
        json!({"text": "b"}),
    ];
    let data = load(&rows, None, &options()).unwrap();
    let lines: Vec<usize> = data.train.examples.iter().map(|example| example.line).collect();
    assert_eq!(lines, [2, 5]);
    let warning = &data.warnings[0];
    assert!(
        warning.contains("train: 3 rows are blank and passed over: ") && warning.contains("line 1; "),
        "{warning}"
    );
    assert!(load(&rows[..1], None, &options()).unwrap_err().contains("no rows"));
    // A row without the column is not blank.
    let message = load(&[json!({"text": "a"}), json!({"txt": "b"})], None, &options()).unwrap_err();
    assert!(message.contains("line 2: no column \"text\""), "{message}");
}

#[test]
fn wrong_rows_are_an_error_or_left_out() {
    let skip = TextOptions { bad_rows: BadRows::Skip, ..options() };
    let good = json!({"instruction": "i", "output": "o"}).to_string();
    let rows = [
        json!({"instruction": "i"}).to_string(),
        good.clone(),
        json!({"instruction": "i", "output": ""}).to_string(),
        json!({"instruction": "i", "output": null}).to_string(),
        json!({"instruction": 3, "output": "o"}).to_string(),
        "{\"instruction\": \"i\", \"out".into(),
        good.clone(),
        json!({"instruction": "", "output": "o"}).to_string(),
        json!({"output": "o"}).to_string(),
    ];
    let folder = Folder::with("train.jsonl", rows.join("\n"), &good);
    let data = folder.load(None, &skip).unwrap();
    assert_eq!(data.train.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [2, 7]);
    let warning = &data.warnings[0];
    assert!(warning.starts_with("train: 7 rows are left out: "), "{warning}");
    for part in [
        "line 1: no usual columns",
        "line 3: \"output\" has no text: zero length",
        "line 6: bad JSON",
        "; and 2 more",
    ] {
        assert!(warning.contains(part), "{warning}\nhas no {part}");
    }
    for row in &rows[2..6] {
        let folder = Folder::with("train.jsonl", format!("{good}\n{row}"), &good);
        let message = folder.load(None, &options()).unwrap_err().to_string();
        assert!(
            message.contains("line 2: ") && message.ends_with("`bad_rows = skip` leaves out such rows"),
            "{message}"
        );
    }
    let message = Folder::with("train.jsonl", &rows[0], &good).load(None, &skip).unwrap_err().to_string();
    assert!(message.contains("line 1: no usual columns"), "{message}");
}

#[test]
fn only_what_is_learned_needs_text() {
    let user = json!({"role": "user", "content": "u"});
    let answer = json!({"role": "assistant", "content": "a"});
    for (turns, expected) in [
        (json!([{"role": "system", "content": ""}, user, answer]), "s:</s>u:u</s>a:{a</s>}"),
        (json!([{"role": "system"}, user, answer]), "s:</s>u:u</s>a:{a</s>}"),
        (json!([{"role": "user", "content": null}, answer]), "u:</s>a:{a</s>}"),
        // An answer of weight 0 is seen and not learned.
        (
            json!([user, {"role": "assistant", "content": "b", "weight": 0}, user, answer]),
            "u:u</s>a:b</s>u:u</s>a:{a</s>}",
        ),
        (
            json!([user, {"role": "assistant", "content": "", "weight": 0}, user, answer]),
            "u:u</s>a:</s>u:u</s>a:{a</s>}",
        ),
        (json!([user, {"role": "assistant", "content": "a", "weight": 1}]), "u:u</s>a:{a</s>}"),
        // The assistant may begin.
        (json!([{"role": "assistant", "content": "b"}, user, answer]), "a:{b</s>}u:u</s>a:{a</s>}"),
    ] {
        assert_eq!(texts(&[json!({ "messages": turns })], Some(TOOLS), &options()), [expected]);
    }
    let weight =
        |weight: Value| json!({"messages": [user, {"role": "assistant", "content": "a", "weight": weight}]});
    let message = load(&[weight(json!(0))], Some(TOOLS), &options()).unwrap_err();
    assert!(message.contains("no assistant turn that is learned"), "{message}");
    let message = load(&[weight(json!(0.5))], Some(TOOLS), &options()).unwrap_err();
    assert!(message.contains("turn 2: \"weight\" is 0.5, expected 0 or 1"), "{message}");
}

#[test]
fn contents_are_joined_from_their_parts() {
    let row = |parts: Value| json!({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]});
    let parts = json!([{"type": "text", "text": "u", "image_url": null}, {"type": "text", "text": "v"}]);
    assert_eq!(texts(&[row(parts)], Some(TOOLS), &options()), ["u:uv</s>a:{a</s>}"]);
    let image = json!([{"type": "text", "text": "u"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    let message = load(&[row(image)], Some(TOOLS), &options()).unwrap_err();
    assert!(message.contains("turn 1: part 2 of the content is of type \"image_url\""), "{message}");
}

#[test]
fn tools_and_calls_reach_the_template() {
    let function = json!({"name": "f", "arguments": {"x": 1}});
    let call = |content: Value| json!({"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": function}]});
    let user = json!({"role": "user", "content": "u", "tool_calls": null});
    let result = json!({"role": "tool", "content": "7", "tool_calls": null});
    let answer = json!({"role": "assistant", "content": "a", "tool_calls": null});
    let tools = json!([{"name": "f"}, {"name": "g"}]);
    let expected = "u:u</s>a:{!{\"name\": \"f\", \"arguments\": {\"x\": 1}}</s>}t:7</s>a:{a</s>}";
    let turns = json!([user, call(Value::Null), result, answer]);
    assert_eq!(texts(&[json!({ "messages": turns })], Some(TOOLS), &options()), [expected]);
    for tools in [tools.clone(), json!(tools.to_string())] {
        let row = json!({"messages": turns, "tools": tools});
        assert_eq!(texts(&[row], Some(TOOLS), &options()), [format!("[fg]{expected}")]);
    }
    for none in [json!([]), Value::Null, json!(""), json!("[]")] {
        let row = json!({"messages": turns, "tools": none});
        assert_eq!(texts(&[row], Some(TOOLS), &options()), [expected]);
    }
    // A null content is left out as in transformers 5, and given where a template fails without it.
    for (template, expected) in [
        (
            "{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in m.tool_calls %}!{% endfor %}</s>{% endfor %}",
            "{assistant!</s>}",
        ),
        (
            "{% for m in messages %}{{ m.role }}{% if m.content is none %}!{% else %}{{ m.content + '' }}{% endif %}</s>{% endfor %}",
            "{assistant!</s>}",
        ),
    ] {
        let row = json!({ "messages": [user, call(Value::Null)] });
        assert_eq!(texts(&[row], Some(template), &options()), [format!("useru</s>{expected}")]);
    }
    // ShareGPT's names for the same.
    let shared = json!([
        {"from": "human", "value": "u"},
        {"from": "function_call", "value": function.to_string()},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "a"}
    ]);
    let row = json!({"conversations": shared, "tools": tools.to_string()});
    assert_eq!(texts(&[row], Some(TOOLS), &options()), [format!("[fg]{expected}")]);
    let row = json!({"conversations": [{"from": "human", "value": "u"}, {"from": "function_call", "value": "f(x)"}]});
    let message = load(&[row], Some(TOOLS), &options()).unwrap_err();
    assert!(message.contains("turn 2: a function_call is JSON"), "{message}");
    // Parquet gives each turn the keys of all: here those of both forms.
    let both = json!([{"role": null, "content": null, "from": "human", "value": "u"},
                      {"role": null, "content": null, "from": "gpt", "value": "a"}]);
    assert_eq!(texts(&[json!({ "conversations": both })], Some(TOOLS), &options()), ["u:u</s>a:{a</s>}"]);
}

/// Qwen3's rule: thoughts are written behind the last question alone.
const THINKS: &str = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
    {% for m in messages %}{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}\
    {{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last %}{{ '<think>\n' + (parts[0].split('<think>')[-1].strip() if parts|length > 1 else '') + '\n</think>\n\n' }}{% endif %}\
    {{ parts[-1].strip() + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}";

#[test]
fn answers_that_are_written_otherwise_once_others_follow() {
    let template = "{% for m in messages %}{{ m.content if loop.last else m.content[:1] }}</s>{% endfor %}";
    let turns = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "long"},
                       {"role": "user", "content": "v"}, {"role": "assistant", "content": "c"}]);
    assert_eq!(
        texts(&[json!({ "messages": turns })], Some(template), &options()),
        ["u</s>{l</s>}v</s>{c</s>}"]
    );
}

#[test]
fn calls_without_a_text_are_found_too() {
    // It writes calls and no content, and earlier turns in another way.
    let template = "{% for m in messages %}{{ m.role[0] }}:{% if not loop.last %}.{% endif %}\
                    {% if 'tool_calls' in m %}!{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}\
                    {% if add_generation_prompt %}a:{% endif %}";
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
    let turns = json!([{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": call},
                       {"role": "tool", "content": "7"}, {"role": "assistant", "content": "c"}]);
    assert_eq!(
        texts(&[json!({ "messages": turns })], Some(template), &options()),
        ["u:.u</s>a:{.!f</s>}t:.7</s>a:{c</s>}"]
    );
}

/// R1's rule: thoughts are cut out of the conversation, and the generation prompt opens them.
const OPENS: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}{% else %}\
    {{ '<|im_end|>' + m.content.split('</think>')[-1].strip() + '</s>' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_end|><think>\n' }}{% endif %}";

#[test]
fn answers_of_models_that_think_are_found_in_the_whole() {
    let user = |text: &str| json!({"role": "user", "content": text});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let row =
        json!({"messages": [user("u"), answer("<think>t</think>a"), user("v"), answer("<think>w</think>b")]});
    let data = load(std::slice::from_ref(&row), Some(THINKS), &options()).unwrap();
    assert_eq!(
        marked(&data.train.examples[0]),
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n{a<|im_end|>}\n\
         <|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n{<think>\nw\n</think>\n\nb<|im_end|>}\n"
    );
    let told = |data: &TextDataset, part: &str| data.warnings.iter().filter(|w| w.contains(part)).count();
    assert_eq!(
        (told(&data, "leaves out thoughts"), told(&data, "generation prompt")),
        (2, 0),
        "{:?}",
        data.warnings
    );
    // Without thoughts nothing is left out.
    let plain = json!({"messages": [user("u"), answer("a"), user("v"), answer("b")]});
    let data = load(std::slice::from_ref(&plain), Some(THINKS), &options()).unwrap();
    assert!(data.warnings.is_empty(), "{:?}", data.warnings);
    assert!(marked(&data.train.examples[0]).ends_with("assistant\n{<think>\n\n</think>\n\nb<|im_end|>}\n"));

    let data = load(&[row], Some(OPENS), &options()).unwrap();
    assert_eq!(
        marked(&data.train.examples[0]),
        "<|im_start|>u<|im_end|>{a</s>}<|im_start|>v<|im_end|>{b</s>}"
    );
    assert_eq!(
        (told(&data, "leaves out thoughts"), told(&data, "generation prompt")),
        (2, 2),
        "{:?}",
        data.warnings
    );
}

#[test]
fn a_template_may_look_at_the_first_turn() {
    let template = "{% if messages[0].role == 'system' %}S{{ messages[0].content }}{% endif %}\
                    {% for m in messages %}{% if m.role != 'system' %}{{ m.role[0] }}:{{ m.content }}</s>{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}a:{% endif %}";
    let row = json!({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "u"},
                                  {"role": "assistant", "content": "b"}]});
    assert_eq!(texts(&[row], Some(template), &options()), ["a:{a</s>}u:u</s>a:{b</s>}"]);
    // One that refuses a conversation in which the assistant has not answered.
    let strict = "{% if messages|length == 1 %}{{ raise_exception('one turn') }}{% endif %}\
                  {% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}a:{% endif %}";
    let row = json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}]});
    assert_eq!(texts(&[row], Some(strict), &options()), ["u:u</s>a:{b</s>}"]);
}
