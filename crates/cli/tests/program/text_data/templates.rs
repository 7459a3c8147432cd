//! Chat templates: rendered as transformers renders them, read from a model's files, and held to
//! their limits.

use lora_drop::data::text::{
    ChatTemplate, Message, SpecialTokens, Targets, TextColumns, TextContent, TextKind, TextRow,
};
use serde_json::{Value, json};

use super::fixture::*;

/// A conversation through the reading of rows, so that its other keys come along.
fn conversation(value: &Value) -> Vec<Message> {
    let row = json!({ "messages": value });
    let row = lora_drop::data::Row { line: 1, fields: row.as_object().unwrap().clone() };
    let columns = TextColumns::new(TextKind::Messages, "messages");
    let row = TextRow::read(&row, &columns, Targets::Optional, 0).unwrap();
    match row.content {
        TextContent::Messages(conversation) => conversation.turns,
        other => panic!("{other:?}"),
    }
}

fn user(content: &str) -> Vec<Message> {
    conversation(&json!([{"role": "user", "content": content}]))
}

#[test]
fn renders_as_transformers() {
    let fixture: Value =
        serde_json::from_str(include_str!("../../../../../tests/golden/chat_templates.json")).unwrap();
    let special = fixture["special"].as_object().unwrap().iter();
    let special =
        SpecialTokens(special.map(|(name, text)| (name.clone(), text.as_str().unwrap().into())).collect());
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = fixture["templates"][name].as_str().unwrap();
        let template = ChatTemplate::parse(source, special.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let template = template.at_time(fixture["time"].as_i64().unwrap());
        let turns = conversation(&fixture["conversations"][case["conversation"].as_str().unwrap()]);
        let rendered = template.render_marked(&turns, None, case["ask"].as_bool().unwrap());
        let expected = &case["expected"];
        let place = format!("{name}, {}", case["conversation"]);
        if expected.is_null() {
            let message = rendered.expect_err(&place).to_string();
            assert!(message.contains("refuses the conversation"), "{place}: {message}");
            continue;
        }
        let (text, places) = rendered.unwrap_or_else(|e| panic!("{place}: {e}"));
        assert_eq!(text, expected["text"].as_str().unwrap(), "{place}");
        // transformers counts characters.
        let count = |bytes: usize| text[..bytes].chars().count();
        let places: Vec<[usize; 2]> = places.iter().map(|p| [count(p.start), count(p.end)]).collect();
        assert_eq!(json!(places), expected["places"], "{place}");
        assert_eq!(template.marks_turns(), name == "generation");
    }
}

#[test]
fn is_found_in_a_models_folder() {
    let folder = Folder::new();
    assert!(ChatTemplate::read(folder.path()).unwrap().is_none());
    let render =
        || ChatTemplate::read(folder.path()).unwrap().unwrap().render(&user("x"), None, false).unwrap();
    let config = |template: Value| {
        let config = json!({"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": template});
        folder.write("tokenizer_config.json", config.to_string());
    };
    config(json!("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"));
    assert_eq!(render(), "<s>x</s>");
    config(json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]));
    assert_eq!(render(), "d");
    folder.write("chat_template.jinja", "own\r\n{{ pad_token }}!\n");
    folder.write("special_tokens_map.json", "{\"pad_token\": \"<pad>\", \"bos_token\": \"other\"}");
    assert_eq!(render(), "own\n<pad>!");
    assert_eq!(SpecialTokens::read(folder.path()).unwrap().get("bos_token"), Some("<s>"));
}

#[test]
fn odd_files_are_named() {
    let folder = Folder::new();
    let message = |config: &str| {
        folder.write("tokenizer_config.json", config);
        ChatTemplate::read(folder.path()).err().expect(config).to_string()
    };
    for (config, part) in [
        ("{\"chat_template\": 3}", "neither a text nor a list"),
        (
            "{\"chat_template\": [{\"name\": \"a\", \"template\": \"x\"}]}",
            "no template named `default`, but a",
        ),
        ("{\"chat_template\": \"{% for %}\"}", "line 1 of the template: syntax error"),
        ("[1]", "not a JSON object"),
    ] {
        let message = message(config);
        assert!(message.contains(part) && message.contains("tokenizer_config.json"), "{message}");
    }
    folder.write("tokenizer_config.json", "{}");
    folder.write("chat_template.jinja", "a\nb\n{% endfor %}");
    let message = ChatTemplate::read(folder.path()).err().unwrap().to_string();
    assert!(message.contains("chat_template.jinja") && message.contains("line 3"), "{message}");
}

#[test]
fn failures_name_the_line() {
    for (source, parts) in [
        ("a\n{{ raise_exception('no system') }}", &["line 2", "refuses the conversation: no system"][..]),
        ("\n\n{{ messages[0].a.b }}", &["line 3", "undefined"]),
        ("\n{{ messages[0].content.nothing() }}", &["line 2", "nothing"]),
        ("{{ messages | nothing }}", &["line 1", "nothing"]),
        ("\n{{ strftime_now('%Q') }}", &["line 2", "%Q"]),
        ("\n{{ messages[0].content + 1 }}", &["line 2"]),
        ("{% generation %}a", &["line 1"]),
        ("\n{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x[:1] }}", &["generation blocks"]),
    ] {
        let message = match ChatTemplate::parse(source, SpecialTokens::default()) {
            Ok(template) => template.render(&user("x"), None, false).expect_err(source).to_string(),
            Err(e) => e.to_string(),
        };
        assert!(parts.iter().all(|part| message.contains(part)), "{source}: {message}");
    }
}

#[test]
fn methods_as_pythons() {
    for (expression, expected) in [
        ("'a b  c '.rsplit()", "['a', 'b', 'c']"),
        ("'a b  c '.rsplit(none, 1)", "['a b', 'c']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("'a,b,c'.rsplit(',', maxsplit=1)[-1]", "c"),
        ("' a b'.rsplit(' ')", "['', 'a', 'b']"),
        ("'x</think>y</think>z'.rsplit('</think>', 1)[0]", "x</think>y"),
        ("'k=v=w'.partition('=')[2]", "v=w"),
        ("'k=v=w'.rpartition('=')[0]", "k=v"),
        ("'kv'.rpartition('=')[2]", "kv"),
        ("'<s>a'.removeprefix('<s>')", "a"),
        ("'a</s>'.removesuffix('</s>')", "a"),
        ("'äbc'.index('b')", "1"),
        ("'abcb'.rindex('b')", "3"),
        ("['a', 'b'].index('b')", "1"),
        ("'aBc'.swapcase()", "AbC"),
        ("'ABC'.casefold()", "abc"),
        ("'-7'.zfill(4)", "-007"),
        ("'ab'.ljust(4, '.') + 'ab'.rjust(4)", "ab..  ab"),
        ("'ab'.center(5, '.') + 'abc'.center(6, '.')", "..ab..abc.."),
        ("'abc'[::-1] + 'abc'[-2:]", "cbabc"),
    ] {
        let template = chat(&format!("{{{{ {expression} }}}}"));
        let text = template.render(&user("x"), None, false).unwrap_or_else(|e| panic!("{expression}: {e}"));
        assert_eq!(text.replace('"', "'"), expected, "{expression}");
    }
    for (expression, part) in
        [("'a'.index('b')", "not there"), ("'a'.ljust(100000000)", "a width of 100000000")]
    {
        let message = chat(&format!("{{{{ {expression} }}}}")).render(&user("x"), None, false).unwrap_err();
        assert!(message.to_string().contains(part), "{message}");
    }
}

#[test]
fn templates_that_loop_end() {
    const MANY: &str = "range(100000)";
    for source in [
        format!("{{% for a in {MANY} %}}{{% for b in {MANY} %}}{{% endfor %}}{{% endfor %}}"),
        format!("{{% for a in {MANY} %}}{{{{ messages[0].content }}}}{{% endfor %}}"),
        "{{ 'abcdefgh' * 10000000 }}".into(),
        format!(
            "{{% set n = namespace(x='aa') %}}{{% for a in {MANY} %}}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}"
        ),
        "{% set n = namespace(x=[1]) %}{% for a in range(9000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x|tojson }}".into(),
        format!(
            "{{% set n = namespace(x=[1]) %}}{{% for a in {MANY} %}}{{% for b in {MANY} %}}{{% set n.x = [n.x] %}}{{% endfor %}}{{% endfor %}}"
        ),
        format!(
            "{{% set n = namespace(x=[1]) %}}{{% for a in {MANY} %}}{{% set n.x = {}n.x{} %}}{{% endfor %}}",
            "[".repeat(50),
            "]".repeat(50)
        ),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(),
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}".into(),
    ] {
        // The threads of the pool, in which rows are rendered, have small stacks.
        let ended = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
            let template = ChatTemplate::parse(&source, SpecialTokens::default()).unwrap();
            (template.render(&user(&"long text ".repeat(100_000)), None, false).expect_err(&source), source)
        });
        let (error, source) = ended.unwrap().join().unwrap();
        let message = error.to_string();
        let known = ["does it loop", "recursion", "too large", "nested lists"];
        assert!(known.iter().any(|word| message.contains(word)), "{source}: {message}");
    }
}

#[test]
fn lists_within_lists_do_not_overflow_the_stack() {
    let (open, close) = ("[".repeat(50), "]".repeat(50));
    for (count, use_it) in [1000, 3000, 5000, 7000].into_iter().flat_map(|n| {
        ["{{ n.x }}", "{{ n.x|tojson }}", "{{ n.x == n.y }}", "{{ n.x|string|length }}"]
            .map(|use_it| (n, use_it))
    }) {
        let source = format!(
            "{{% set n = namespace(x=[1], y=[1]) %}}{{% for a in range({count}) %}}\
             {{% set n.x = {open}n.x{close} %}}{{% set n.y = {open}n.y{close} %}}{{% endfor %}}{use_it}"
        );
        // The test is that it returns at all; whether within its limits is up to the engine.
        let template = ChatTemplate::parse(&source, SpecialTokens::default()).unwrap();
        let _ = template.render(&user(&"long text ".repeat(100_000)), None, false);
    }
}

#[test]
fn conversations_cannot_forge_marks() {
    let template = chat("{% generation %}{{ messages[0].content }}{% endgeneration %}");
    let (text, places) = template.render_marked(&user("xü"), None, false).unwrap();
    assert_eq!((text.as_str(), places.len(), &places[0]), ("xü", 1, &(0..3)));
    let message = template.render(&user("a\u{10fffe}b"), None, false).unwrap_err().to_string();
    assert!(message.contains("U+10FFFE"), "{message}");
}
