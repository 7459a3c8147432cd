//! The words that other trainers have for settings, and what to do about those that have no option here.

/// An option's name, and what else it is called.
pub const ALIASES: &[(&str, &[&str])] = &[
    ("model", &["model-name-or-path", "base-model"]),
    ("data", &["dataset", "data-path", "train-file"]),
    ("output", &["output-dir"]),
    ("overwrite", &["overwrite-output-dir"]),
    ("task", &["task-type"]),
    ("rank", &["r", "lora-r", "lora-rank"]),
    ("alpha", &["lora-alpha"]),
    ("target-modules", &["lora-target-modules", "lora-target"]),
    ("epochs", &["num-train-epochs", "num-epochs"]),
    ("learning-rate", &["lr"]),
    ("head-learning-rate", &["head-lr"]),
    ("batch-size", &["per-device-train-batch-size", "train-batch-size"]),
    ("batch", &["batch-size"]),
    ("grad-accumulation", &["gradient-accumulation-steps", "grad-accumulation-steps"]),
    ("max-length", &["max-seq-length", "max-seq-len", "cutoff-len"]),
    ("warmup-ratio", &["lr-warmup-ratio"]),
    ("schedule", &["lr-scheduler-type", "lr-scheduler", "lr-schedule"]),
    ("max-grad-norm", &["gradient-clipping", "clip-grad-norm"]),
    ("hidden-dropout", &["hidden-dropout-prob"]),
    ("attention-dropout", &["attention-probs-dropout-prob"]),
    ("label-smoothing", &["label-smoothing-factor"]),
    ("metric", &["metric-for-best-model"]),
    ("recompute", &["gradient-checkpointing"]),
    ("threads", &["num-threads"]),
    ("max-new-tokens", &["max-tokens", "n-predict"]),
    ("temperature", &["temp"]),
    ("num-beams", &["beams"]),
];

/// Words of other trainers without an option here, and what to use instead.
const ADVICE: &[(&str, &str)] = &[
    ("warmup-steps", "the warm-up is --warmup-ratio, a fraction of the steps"),
    ("eval-steps", "dev is measured after each epoch"),
    ("eval-strategy", "dev is measured after each epoch"),
    ("evaluation-strategy", "dev is measured after each epoch"),
    ("save-steps", "the best epoch is saved; each epoch that is better than those before replaces it"),
    ("save-strategy", "the best epoch is saved; each epoch that is better than those before replaces it"),
    ("save-total-limit", "the best epoch is saved and no other"),
    ("load-best-model-at-end", "it is always so: the best epoch is what is saved; see --metric"),
    ("logging-steps", "metrics.jsonl has every step"),
    ("report-to", "metrics.jsonl has every step, and report.html shows them"),
    ("per-device-eval-batch-size", "passes that measure are cut by the program"),
    ("eval-batch-size", "passes that measure are cut by the program"),
    ("optim", "the optimiser is AdamW"),
    ("adam-beta1", "AdamW's constants are fixed: 0.9, 0.999 and 1e-8"),
    ("adam-beta2", "AdamW's constants are fixed: 0.9, 0.999 and 1e-8"),
    ("adam-epsilon", "AdamW's constants are fixed: 0.9, 0.999 and 1e-8"),
    ("bf16", "give --dtype bf16"),
    ("fp16", "give --dtype bf16"),
    ("torch-dtype", "give --dtype f32 or --dtype bf16"),
    ("load-in-8bit", "give --quantize q8_0"),
    ("load-in-4bit", "give --quantize q4_0"),
    ("device", "lora-drop computes on the CPU; see --threads"),
    ("gpus", "lora-drop computes on the CPU; see --threads"),
    ("resume-from-checkpoint", "a run cannot be continued; its recipe.toml repeats it"),
    ("early-stopping-patience", "a run makes all its --epochs, and the best one is saved"),
    ("lora-bias", "biases stay as they are in the model"),
    ("bias", "biases stay as they are in the model"),
    ("modules-to-save", "the head trains beside the LoRA wherever there is one"),
    ("use-rslora", "the scale is --alpha / --rank"),
    ("use-dora", "it is a method of its own: --method dora"),
    ("do-sample", "texts are drawn where --temperature is above 0"),
    ("validation-file", "--data names a folder with train and dev files"),
    ("dev-file", "--data names a folder with train and dev files"),
    ("eval-file", "--data names a folder with train and dev files"),
    ("text-field", "give --text-column"),
    ("dataset-text-field", "give --text-column"),
];

/// The option that a word of other trainers stands for.
pub fn option_of(word: &str) -> Option<&'static str> {
    let word = word.replace('_', "-");
    ALIASES.iter().find(|(_, aliases)| aliases.contains(&word.as_str())).map(|(name, _)| *name)
}

/// What to do instead of a word that has no option here.
pub fn advice(word: &str) -> Option<&'static str> {
    let word = word.replace('_', "-");
    ADVICE.iter().find(|(name, _)| *name == word).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::super::TrainSettings;
    use super::*;

    #[test]
    fn no_word_means_two_things() {
        let aliases = ALIASES.iter().flat_map(|(_, aliases)| aliases.iter());
        // `bench` calls a setting by another name.
        let mut words: Vec<&str> = aliases
            .chain(ADVICE.iter().map(|(word, _)| word))
            .copied()
            .filter(|w| *w != "batch-size")
            .collect();
        words.extend(TrainSettings::keys());
        words.sort_unstable();
        let twice = words.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None);
    }
}
