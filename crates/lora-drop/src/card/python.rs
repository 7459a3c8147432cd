//! The Python lines in a card that load the model and ask it for one answer. They run unchanged in
//! the card's folder.

use super::escape::quoted;
use super::{Base, Form, PredictionKind};

/// Largest number of class names in an example.
const MOST_NAMES: usize = 40;

/// Returns the lines. `pair` says whether rows have two texts.
pub fn example(
    base: &Base,
    form: Form,
    prediction: &PredictionKind,
    pair: bool,
    max_length: Option<usize>,
) -> String {
    let class = prediction.auto_class();
    let names = prediction.names().filter(|names| names.len() <= MOST_NAMES);
    let peft = form == Form::Peft;
    let place = if peft { "base" } else { "folder" };
    let (mut arguments, mut lines) = (String::from(place), Vec::new());
    let torch = !matches!(prediction, PredictionKind::Text);
    lines.extend(torch.then(|| "import torch".to_string()));
    lines.extend(peft.then(|| "from peft import PeftModel".to_string()));
    lines.push(format!("from transformers import {class}, AutoTokenizer\n"));
    if peft {
        lines.push(format!("base = {}", quoted(&base.place)));
        lines.push(format!("adapter = \".\"{THIS_FOLDER}"));
        for (name, value) in [("revision", &base.revision), ("gguf_file", &base.file)] {
            if let Some(value) = value {
                arguments += &format!(", {name}={}", quoted(value));
            }
        }
    } else {
        lines.push(format!("folder = \".\"{THIS_FOLDER}"));
    }
    if let Some(names) = names {
        let list: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        lines.push(format!("labels = [{}]", list.join(", ")));
    }
    lines.push(format!("tokenizer = AutoTokenizer.from_pretrained({arguments})"));
    if peft && let Some(outputs) = prediction.outputs() {
        let outputs = if names.is_some() { "len(labels)".to_string() } else { outputs.to_string() };
        arguments += &format!(", num_labels={outputs}");
    }
    lines.push(format!("model = {class}.from_pretrained({arguments})"));
    lines.extend(peft.then(|| "model = PeftModel.from_pretrained(model, adapter).eval()".to_string()));
    let length =
        max_length.map(|length| format!("truncation=True, max_length={length}, ")).unwrap_or_default();
    let text = match (prediction, pair) {
        (PredictionKind::Tags(_), _) => r#"["A", "few", "words"], is_split_into_words=True"#,
        (_, true) => r#""A text.", "Another text.""#,
        (_, false) => r#""A text.""#,
    };
    match prediction {
        PredictionKind::Text => {
            lines.push(r#"inputs = tokenizer("A prompt", return_tensors="pt")"#.to_string());
            lines.push("output = model.generate(**inputs, max_new_tokens=64)".to_string());
            lines.push("print(tokenizer.decode(output[0], skip_special_tokens=True))".to_string());
        }
        _ => {
            lines.push(format!("inputs = tokenizer({text}, {length}return_tensors=\"pt\")"));
            lines.push("with torch.no_grad():".to_string());
            lines.push("    logits = model(**inputs).logits[0]".to_string());
            let note = if matches!(prediction, PredictionKind::Tags(_)) { "  # for each token" } else { "" };
            lines.push(format!("print({}){note}", prediction.read(names.is_some())));
        }
    }
    lines.join("\n")
}

/// Comment after the path of the card's own folder.
pub const THIS_FOLDER: &str = "  # this folder";

impl PredictionKind {
    fn auto_class(&self) -> &'static str {
        match self {
            PredictionKind::Text => "AutoModelForCausalLM",
            PredictionKind::Tags(_) => "AutoModelForTokenClassification",
            _ => "AutoModelForSequenceClassification",
        }
    }

    /// Returns an expression in `logits`, and in `labels` if the names are known.
    fn read(&self, named: bool) -> &'static str {
        match (self, named) {
            (PredictionKind::Class(_), true) => "labels[logits.argmax()]",
            (PredictionKind::Class(_), false) => "logits.argmax().item()",
            (PredictionKind::ClassSet(_), true) => {
                "[label for label, p in zip(labels, logits.sigmoid()) if p >= 0.5]"
            }
            (PredictionKind::ClassSet(_), false) => "(logits.sigmoid() >= 0.5).nonzero().flatten().tolist()",
            (PredictionKind::Tags(_), true) => "[labels[i] for i in logits.argmax(-1)]",
            (PredictionKind::Tags(_), false) => "logits.argmax(-1).tolist()",
            (PredictionKind::Value | PredictionKind::Text, _) => "logits.item()",
        }
    }
}
