//! The chat formats of well-known families of models: the tokens of a conversation as transformers
//! makes them, and what is learned as it masks what the assistant says.

use std::ops::Range;

use lora_drop::data::text::{
    ChatTemplate, Conversation, SpecialTokens, Targets, TextColumns, TextContent, TextDataset, TextEncoder,
    TextKind, TextOptions, TextRow,
};
use lora_drop::data::{Row, Tokens};
use serde_json::{Map, Value, json};

use super::fixture::Folder;

/// A conversation of the fixture as a row of a file.
fn row(conversation: &Value) -> TextRow {
    let fields = json!({ "messages": conversation["messages"], "tools": conversation["tools"] });
    let row = Row { line: 1, fields: fields.as_object().unwrap().clone() };
    let columns =
        TextColumns { tools: Some("tools".into()), ..TextColumns::new(TextKind::Messages, "messages") };
    TextRow::read(&row, &columns, Targets::Optional, 0).unwrap()
}

fn learned(learn: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, _) in learn.iter().enumerate().filter(|(_, learn)| **learn) {
        match runs.last_mut().filter(|run| run.end == i) {
            Some(run) => run.end += 1,
            None => runs.push(i..i + 1),
        }
    }
    runs
}

struct Family {
    template: ChatTemplate,
    special: Map<String, Value>,
    cases: Map<String, Value>,
}

/// What the fixture has, by the families' names.
fn fixture() -> (Tokens, Value, Vec<(String, Family)>) {
    let mut fixture: Value =
        serde_json::from_str(include_str!("../../../../../tests/golden/chat_families.json")).unwrap();
    let folder = Folder::new();
    folder.write("tokenizer.json", fixture["tokenizer"].to_string());
    let time = fixture["time"].as_i64().unwrap();
    let families = fixture["families"].take();
    let family = |(name, family): (&String, &Value)| {
        let special = family["special"].as_object().unwrap().clone();
        let texts = special.iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().into()));
        let source = family["template"].as_str().unwrap();
        let template = ChatTemplate::parse(source, SpecialTokens(texts.collect())).unwrap().at_time(time);
        (name.clone(), Family { template, special, cases: family["cases"].as_object().unwrap().clone() })
    };
    let families = families.as_object().unwrap().iter().map(family).collect();
    (folder.tokens(), fixture["conversations"].take(), families)
}

#[test]
fn every_family_is_tokenized_and_masked_as_in_transformers() {
    let (tokens, conversations, families) = fixture();
    assert!(families.len() >= 15);
    let shown = |ids: &[u32]| tokens.tokenizer().decode(ids, false).unwrap();
    let mut compared = 0;
    for (name, Family { mut template, special, cases }) in families {
        for (conversation, expected) in &cases {
            let place = format!("{name}, {conversation}");
            let found = &conversations[conversation];
            template = template.with_variables(found["variables"].as_object().cloned().unwrap_or_default());
            let end = special.get("eos_token").and_then(|token| tokens.special(token.as_str().unwrap()));
            let options = TextOptions { max_length: 8000, ..TextOptions::new(4096, end) };
            let encoder = TextEncoder::new(&tokens, Some(&template), &options).unwrap();
            let row = row(found);
            let TextContent::Messages(Conversation { turns, tools }) = &row.content else {
                panic!("{place}")
            };
            let ask = found["messages"].as_array().unwrap().last().unwrap()["role"] == "user";
            let rendered = template.render(turns, tools.as_ref(), ask);
            if expected.is_null() {
                assert!(rendered.is_err(), "{place}: {rendered:?}");
                continue;
            }
            compared += 1;
            let text = expected["text"].as_str().unwrap();
            assert_eq!(rendered.unwrap_or_else(|e| panic!("{place}: {e}")), text, "{place}");
            let count = expected["tokens"].as_u64().unwrap() as usize;
            let runs: Vec<Range<usize>> =
                serde_json::from_value::<Vec<[usize; 2]>>(expected["learned"].clone())
                    .unwrap()
                    .into_iter()
                    .map(|[start, end]| start..end)
                    .collect();
            if ask {
                let ids = encoder.encode_prompt(&row, 8000).unwrap();
                assert_eq!((shown(&ids), ids.len()), (text.to_string(), count), "{place}");
                continue;
            }
            let rows = || vec![row.content.clone()];
            let data = TextDataset::new(rows(), rows(), &tokens, Some(&template), &options).unwrap();
            let example = &data.train.examples[0];
            assert_eq!(example.ids.len(), count, "{place}");
            let texts = |runs: &[Range<usize>]| -> Vec<String> {
                runs.iter().map(|run| shown(&example.ids[run.clone()])).collect()
            };
            assert_eq!(texts(&learned(&example.learn)), texts(&runs), "{place}: {:?}", data.warnings);
            assert_eq!(learned(&example.learn), runs, "{place}");
        }
    }
    assert!(compared > 120, "{compared}");
}
