//! Known layouts of rows: the names that public data sets give their columns, and what they mean.
//! To read a new layout, add its line to [`LAYOUTS`].

use super::text::TextKind;

/// Kind of a layout's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    /// A text or a pair of texts, with a label.
    Labelled,
    /// Words, each with a tag.
    Words,
    /// Rows from which a model learns to generate text.
    Texts(TextKind),
}

/// The columns that identify rows of one kind, and the columns that may accompany them. Names are
/// compared without regard to case.
pub(super) struct Layout {
    pub rows: RowKind,
    /// Name of its rows in messages.
    pub name: &'static str,
    /// The text, the first text of a pair, the words, the prompt or the conversation.
    pub text: &'static str,
    /// The second text of a pair, the words' tags, or the completion, by one of these names; empty
    /// if the layout has none.
    pub second: &'static [&'static str],
    /// Columns whose text, if any, follows the prompt on a new line.
    pub input: &'static [&'static str],
    /// Whether it applies only if no other layout fits.
    pub last: bool,
}

const SINGLE: &str = "text with a label";
const WORDS: &str = "words with their tags";
const PAIR: &str = "pair of texts with a label";
const COMPLETION: &str = "prompt with a completion";
const CONVERSATION: &str = "conversation";
const TEXT: &str = "plain text";

const fn single(text: &'static str) -> Layout {
    Layout { rows: RowKind::Labelled, name: SINGLE, text, second: &[], input: &[], last: false }
}

const fn pair(text: &'static str, second: &'static [&'static str]) -> Layout {
    Layout { name: PAIR, second, ..single(text) }
}

const fn words(text: &'static str) -> Layout {
    Layout { rows: RowKind::Words, name: WORDS, second: TAGS, ..single(text) }
}

const fn completion(name: &'static str, prompt: &'static str, second: &'static [&'static str]) -> Layout {
    Layout { rows: RowKind::Texts(TextKind::Completion), name, second, ..single(prompt) }
}

const fn whole(kind: TextKind, name: &'static str, text: &'static str) -> Layout {
    Layout { rows: RowKind::Texts(kind), name, ..single(text) }
}

/// The known layouts.
pub(super) const LAYOUTS: &[Layout] = &[
    // Pairs of texts with a label.
    pair("sentence1", &["sentence2"]),
    pair("text_a", &["text_b"]),
    pair("text1", &["text2"]),
    pair("premise", &["hypothesis"]),
    pair("question", &["passage", "sentence"]),
    pair("question1", &["question2"]),
    pair("query", &["passage", "document"]),
    pair("#1 string", &["#2 string"]),
    // Texts with a label.
    single("text"),
    single("sentence"),
    single("sentence1"),
    single("content"),
    single("review"),
    single("comment"),
    single("tweet"),
    single("document"),
    single("utterance"),
    single("question"),
    single("query"),
    single("body"),
    // Words with tags.
    words("tokens"),
    words("words"),
    // Prompts with completions, as texts or as turns.
    completion(COMPLETION, "prompt", &["completion", "response"]),
    Layout {
        input: &["input", "context"],
        ..completion("instruction with its answer", "instruction", &["output", "response"])
    },
    completion("question with its answer", "question", &["answer", "response"]),
    Layout {
        input: &["context"],
        ..completion("question about a context, with its answers", "question", &["answers"])
    },
    completion("document with its summary", "document", &["summary"]),
    completion("dialogue with its summary", "dialogue", &["summary"]),
    completion("article with its highlights", "article", &["highlights"]),
    completion("source with its target", "source", &["target"]),
    completion("input with its output", "input", &["output"]),
    completion("data with its description", "meaning_representation", &["human_reference", "target"]),
    // Conversations.
    whole(TextKind::Messages, CONVERSATION, "messages"),
    whole(TextKind::Messages, CONVERSATION, "conversations"),
    Layout { last: true, ..whole(TextKind::Messages, "preferred conversation", "chosen") },
    // Plain text.
    whole(TextKind::Text, TEXT, "text"),
];

/// Names of the column with the words' tags.
const TAGS: &[&str] = &[
    "tags",
    "ner_tags",
    "pos_tags",
    "chunk_tags",
    "labels",
    "ner",
    "ner_labels",
    "pos",
    "upos",
    "xpos",
    "fine_ner_tags",
];
/// Names of the label column.
pub(super) const LABELS: &[&str] = &[
    "label",
    "labels",
    "gold_label",
    "score",
    "target",
    "class",
    "category",
    "rating",
    "stars",
    "sentiment",
    "similarity",
    "quality",
];
/// Columns beside a prompt or a conversation: the system's turn, which comes first.
pub(super) const SYSTEM: &[&str] = &["system", "system_prompt"];
/// Columns beside a prompt or a conversation: the turns before it.
pub(super) const HISTORY: &[&str] = &["history"];
/// Columns beside a prompt or a conversation: the tools that the assistant may call.
pub(super) const TOOLS: &[&str] = &["tools"];
/// Columns of reference texts, with which generated texts are compared.
pub(super) const REFERENCES: &[&str] = &["references"];

/// Columns of rows that are not examples by themselves, and advice on what to do with them.
const PARTS: &[(&[&str], &str)] = &[
    (
        &["message_id", "parent_id", "text"],
        "each row is one message of a tree; follow `parent_id` from each last message up to its first, and write the \
         messages on the way as one row with `messages`",
    ),
    (
        &["instruction", "instances"],
        "each row has a list of instances; write each of them as a row with `instruction`, `input` and `output`",
    ),
];

/// Returns the advice if rows with these columns are only parts of examples.
pub(super) fn parts_of_examples(is_column: impl Fn(&str) -> bool) -> Option<&'static str> {
    let all = |names: &&[&str]| names.iter().all(|name| is_column(name));
    PARTS.iter().find(|(names, _)| all(names)).map(|(_, advice)| *advice)
}

/// Columns that are not read, although they look as if the model should see them.
const PROMPT_LIKE: &[&str] = &[
    "context",
    "instruction",
    "input",
    "background",
    "knowledge",
    "evidence",
    "passage",
    "document",
    "article",
    "choices",
    "options",
    "persona",
    "title",
    "functions",
    "query",
    "question",
];

impl Layout {
    /// Returns the layouts of rows of this kind.
    pub fn of(rows: RowKind) -> impl Iterator<Item = &'static Layout> + Clone {
        LAYOUTS.iter().filter(move |layout| layout.rows == rows)
    }

    /// Whether `second` can be the second column; `None` if it is not known yet.
    pub fn fits(&self, second: Option<&str>) -> bool {
        second.is_none_or(|name| self.second.iter().any(|known| known.eq_ignore_ascii_case(name)))
    }

    /// Returns the name of rows with these columns: that of a known layout or, if the user named
    /// other columns, that of their kind.
    pub fn name_of(rows: RowKind, text: &str, second: Option<&str>) -> &'static str {
        let known = Layout::of(rows).find(|layout| {
            let same = layout.text.eq_ignore_ascii_case(text) && layout.fits(second);
            same && (second.is_some() || layout.second.is_empty())
        });
        known.map_or_else(
            || match (rows, second) {
                (RowKind::Labelled, None) => SINGLE,
                (RowKind::Labelled, Some(_)) => PAIR,
                (RowKind::Words, _) => WORDS,
                (RowKind::Texts(TextKind::Completion), _) => COMPLETION,
                (RowKind::Texts(TextKind::Messages), _) => CONVERSATION,
                (RowKind::Texts(TextKind::Text), _) => TEXT,
            },
            |layout| layout.name,
        )
    }
}

/// Whether an unread column of this name looks like part of the prompt or of the labelled text.
pub(super) fn looks_read(name: &str, rows: RowKind) -> bool {
    let is = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    match rows {
        RowKind::Words => false,
        RowKind::Labelled => {
            is(PROMPT_LIKE) || Layout::of(rows).any(|layout| is(layout.second) || is(&[layout.text]))
        }
        RowKind::Texts(TextKind::Text) => false,
        // Conversations often have a copy of their first turn in another column.
        RowKind::Texts(TextKind::Messages) => {
            [SYSTEM, HISTORY, TOOLS].into_iter().any(is) || is(&["context", "functions", "knowledge"])
        }
        RowKind::Texts(TextKind::Completion) => [PROMPT_LIKE, SYSTEM, HISTORY, TOOLS].into_iter().any(is),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_layout() {
        const DATA: &str = include_str!("../../../../docs/data.md");
        const CHAT: &str = include_str!("../../../../docs/chat.md");
        for layout in LAYOUTS {
            let page = if matches!(layout.rows, RowKind::Texts(_)) { CHAT } else { DATA }.to_lowercase();
            let names = [&[layout.text][..], layout.second, layout.input].concat();
            for name in names {
                assert!(page.contains(name), "{name} of {}", layout.text);
            }
        }
        for name in [SYSTEM, HISTORY, TOOLS, REFERENCES].concat() {
            assert!(CHAT.contains(&format!("`{name}`")), "{name}");
        }
        assert!(LABELS.iter().all(|name| DATA.contains(name)));
    }
}
