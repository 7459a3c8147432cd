//! Any text as a chat template: it is refused with a message, or renders a conversation within its limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_drop::data::text::{ChatTemplate, Message, Role, SpecialTokens};

fuzz_target!(|source: &str| {
    let special =
        SpecialTokens(vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
    let Ok(template) = ChatTemplate::parse(source, special) else { return };
    // A fixed time, so that a finding repeats.
    let template = template.at_time(0);
    let conversation =
        [(Role::System, "Be brief."), (Role::User, "What is 2 + 2?"), (Role::Assistant, "4 \u{e9}")];
    let messages = conversation.map(|(role, text)| Message::new(role, text));
    let Ok((text, turns)) = template.render_marked(&messages, true) else { return };
    assert!(text.len() < 2 << 20);
    let mut end = 0;
    for turn in turns {
        assert!(end <= turn.start && turn.start < turn.end && text.get(turn.clone()).is_some());
        end = turn.end;
    }
});
