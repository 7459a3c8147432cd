//! Settings in messages, rewritten as the program's options, and advice on options of other
//! trainers that have no counterpart here.

use std::ops::Range;

use super::definition;

/// Words of other trainers without an option here, and what to use instead.
const ADVICE: &[(&str, &str)] = &[
    ("warmup-steps", "give `warmup_ratio`, a fraction of the steps"),
    ("eval-strategy", "give `eval_steps`, or nothing for an evaluation after each epoch"),
    ("evaluation-strategy", "give `eval_steps`, or nothing for an evaluation after each epoch"),
    ("save-steps", "the best epoch is saved; each epoch that is better than those before replaces it"),
    ("save-strategy", "the best epoch is saved; each epoch that is better than those before replaces it"),
    ("load-best-model-at-end", "the best epoch is always the one that is saved; see `metric`"),
    ("logging-steps", "metrics.jsonl has every step"),
    ("logging-dir", "`log_to` writes into the output folder"),
    ("per-device-eval-batch-size", "passes that measure are cut by the program"),
    ("eval-batch-size", "passes that measure are cut by the program"),
    ("optim", "the optimiser is AdamW"),
    ("adam-beta1", "AdamW's constants are fixed: 0.9, 0.999 and 1e-8"),
    ("adam-beta2", "AdamW's constants are fixed: 0.9, 0.999 and 1e-8"),
    ("adam-epsilon", "AdamW's constants are fixed: 0.9, 0.999 and 1e-8"),
    ("bf16", "give `dtype = bf16`"),
    ("fp16", "give `dtype = bf16`"),
    ("torch-dtype", "give `dtype = f32` or `dtype = bf16`"),
    ("load-in-8bit", "give `quantize = q8_0`"),
    ("load-in-4bit", "give `quantize = q4_0`"),
    ("device", "lora-drop computes on the CPU; see `threads`"),
    ("gpus", "lora-drop computes on the CPU; see `threads`"),
    ("resume-from-checkpoint", "give --resume and the run's folder"),
    ("lora-bias", "biases stay as they are in the model"),
    ("bias", "biases stay as they are in the model"),
    ("modules-to-save", "the head always trains with the LoRA if the model has one"),
    ("use-rslora", "the scale is `alpha` / `rank`"),
    ("use-dora", "it is a method of its own: `method = dora`"),
    ("do-sample", "texts are drawn with a temperature above 0"),
    ("validation-file", "`data` names a folder with train and dev files"),
    ("dev-file", "`data` names a folder with train and dev files"),
    ("eval-file", "`data` names a folder with train and dev files"),
    ("text-field", "give `text_column`"),
    ("dataset-text-field", "give `text_column`"),
];

/// Options that are not settings of a run but occur in the library's messages: those of `train`, of
/// `push`, and of generating text.
const OTHERS: [&str; 11] = [
    "resume",
    "base_model",
    "revision",
    "max_new_tokens",
    "temperature",
    "top_p",
    "repetition_penalty",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "stop",
];

/// What to do instead of an option that does not exist here.
pub fn advice(word: &str) -> Option<&'static str> {
    let word = word.replace('_', "-");
    ADVICE.iter().find(|(name, _)| *name == word).map(|(_, advice)| *advice)
}

/// Rewrites the settings that a text names, `` `field` `` or `` `field = value` ``, as options of
/// the program.
pub fn as_options(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((place, option)) = reference(rest) {
        out.push_str(&rest[..place.start]);
        out.push_str(&option);
        rest = &rest[place.end..];
    }
    out + rest
}

/// Finds the first setting that is named in backticks; returns its range in the text and its
/// option.
fn reference(text: &str) -> Option<(Range<usize>, String)> {
    let mut start = 0;
    loop {
        let open = start + text[start..].find('`')?;
        let close = open + 1 + text[open + 1..].find('`')?;
        let (field, value) = match text[open + 1..close].split_once(" = ") {
            Some((field, value)) => (field, Some(value)),
            None => (&text[open + 1..close], None),
        };
        let option = field.replace('_', "-");
        let known = definition(&option).is_some_and(|setting| setting.field == field);
        if known || OTHERS.contains(&field) {
            let value = value.map(|value| format!(" {value}")).unwrap_or_default();
            return Some((open..close + 1, format!("--{option}{value}")));
        }
        start = close;
    }
}

#[cfg(test)]
mod tests {
    use super::super::definitions;
    use super::*;

    #[test]
    fn no_word_means_two_things() {
        let named = definitions().flat_map(|setting| setting.aliases.iter().chain([&setting.name]));
        let mut words: Vec<&str> = named.chain(ADVICE.iter().map(|(word, _)| word)).copied().collect();
        words.sort_unstable();
        let twice = words.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None);
    }

    #[test]
    fn settings_in_texts_become_options() {
        for (text, expected) in [
            ("`max_length` is 2", "--max-length is 2"),
            ("give `hidden_dropout = 0` or `rank`", "give --hidden-dropout 0 or --rank"),
            ("the column `name` and `max-length`", "the column `name` and `max-length`"),
            ("a lone ` and `rank`", "a lone ` and --rank"),
            ("", ""),
        ] {
            assert_eq!(as_options(text), expected);
        }
    }
}
