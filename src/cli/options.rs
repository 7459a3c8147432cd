//! The options that end up in `TrainSettings`. All are optional here: what is given lies above the recipe, which lies
//! above the defaults (`settings::Recipe`). The names are the recipe's keys. Whole numbers are signed here, so that the
//! range check sees a negative one.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use lora_drop::settings::{CriterionName, METRICS, Method, Recipe, Size};
use lora_drop::{Error, Result};
use serde::Serialize;
use toml::{Table, Value};

/// Model, data, output.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Place {
    /// The pre-trained model: a folder as Hugging Face has them (config.json, model.safetensors, tokenizer.json), a
    /// decoder's GGUF file, or a hub name (org/name), which is downloaded into the usual cache
    #[arg(long, value_name = "DIR|ORG/NAME", value_parser = not_empty)]
    model: Option<String>,
    /// The rows, labelled for a head, texts for a decoder without one: a folder with train and dev files (.jsonl, .json, .csv,
    /// .tsv, .parquet, also gzipped), or one file
    #[arg(long, value_name = "DIR|FILE")]
    data: Option<PathBuf>,
    /// The folder for what comes out
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace what the output folder holds of the same command: a run, or of `score` importance.json alone; nothing else is ever
    /// removed
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    overwrite: bool,
}

/// How rows are read.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Data")]
pub struct Reading {
    /// What is learned: the texts (decoders), each row's class, or each row's number [default: text for a decoder; for an
    /// encoder what the labels are]
    #[arg(long, value_name = "TASK", value_parser = ["text", "classification", "regression"])]
    task: Option<String>,
    /// Column of the text, or of the first text of a pair [default: found by the usual names]
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column of the second text of a pair [default: found by the usual names]
    #[arg(long, value_name = "NAME")]
    pair_column: Option<String>,
    /// Column of the label [default: label]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Decoders: column of the prompt [default: found by the usual names]
    #[arg(long, value_name = "NAME")]
    prompt_column: Option<String>,
    /// Decoders: column of the completion [default: found by the usual names]
    #[arg(long, value_name = "NAME")]
    completion_column: Option<String>,
    /// Decoders: what is made of a prompt, with {prompt} in its place [default: the prompt as it is]
    #[arg(long, value_name = "TEXT")]
    prompt_template: Option<String>,
    /// Decoders: prompts and completions are turns of user and assistant, written by the model's chat template
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    chat: bool,
    /// Tokens of a row at most, special tokens counted [default: 256, or what the model takes if that is less]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<i64>,
    /// What happens to longer rows, but for plain text, which becomes several sequences; they are counted and reported
    /// [default: truncate]
    #[arg(long, value_name = "WAY", value_parser = ["truncate", "drop", "error"])]
    over_length: Option<String>,
    /// Gigabytes that the tokens of this and earlier runs may take in the user's cache folder, from which the same rows are
    /// read the next time; 0 keeps none. LORA_DROP_CACHE names another folder [default: 1]
    #[arg(long, value_name = "GB")]
    token_cache: Option<f64>,
}

/// Speed and memory.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Speed and memory")]
pub struct Memory {
    /// What linear layers multiply in: bf16 rounds their factors, keeps their sums in f32, and is about twice as fast where
    /// the processor has instructions for it (AMX, AVX512-BF16) [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16"])]
    dtype: Option<String>,
    /// Decoders: store the frozen matrices in 8 or 4 bits a value [default: as their file has them]
    #[arg(long, value_name = "TYPE", value_parser = ["q8_0", "q4_0"])]
    quantize: Option<String>,
    /// Keep only the blocks' inputs in the forward pass and compute the rest again on the way back, to the same bits: less
    /// memory, and a third to a half more time
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    recompute: bool,
    /// Tokens of a micro-batch: a step's rows are cut into such parts, and the activations of one, or of those that run side by
    /// side, are in memory at a time; a longer row has a part to itself [default: 256 to 1024, by the model, or fewer by --memory-limit]
    #[arg(long, value_name = "TOKENS")]
    micro_tokens: Option<i64>,
    /// Choose --micro-tokens and --recompute, where they are not given, how many micro-batches run side by side and whether
    /// weights are packed once, so that the run's memory is foreseen to stay below this: a number with its unit, such as 600MB,
    /// 1.5GB or 512MiB. What cannot be is an error that says what could
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_limit: Option<Size>,
}

/// The LoRA pairs.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "LoRA")]
pub struct Lora {
    /// Rank of every LoRA pair [default: 8]
    #[arg(long, value_name = "R")]
    rank: Option<i64>,
    /// Strength: a pair's output is scaled by alpha / rank [default: 16]
    #[arg(long)]
    alpha: Option<f64>,
    /// Dropout on what goes into a LoRA pair [default: 0]
    #[arg(long, value_name = "P")]
    lora_dropout: Option<f64>,
    /// Linear layers with a LoRA, under the architecture's own names as PEFT has them, separated by commas; all-linear
    /// for all of the blocks [default: query and value]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    target_modules: Option<Vec<String>>,
}

/// The sample stage and the choice of modules.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "LoRA-drop: sample, score, choose")]
pub struct Choice {
    /// What modules are scored by: the output of a LoRA that trains on the sample (the paper), the size of s B A, Σ|w·∂L/∂w|; without
    /// training the energy of the first gradients (page), the norm of a block's output (activation) or how much a block changes
    /// (cka); or an order: first, last, random [default: output]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(CriterionName::ALL.map(CriterionName::name)))]
    criterion: Option<String>,
    /// Fraction of the training set that the sample draws, class by class [default: 0.1]
    #[arg(long, value_name = "F")]
    sample_ratio: Option<f64>,
    /// Epochs of training on the sample before the scoring; auto goes on until the ranking settles [default: auto]
    #[arg(long, value_name = "N|auto", value_parser = sample_epochs)]
    sample_epochs: Option<Value>,
    /// Keep the most important modules until their importance adds up to this fraction [default: 0.9]
    #[arg(long, value_name = "F")]
    threshold: Option<f64>,
    /// Keep this many layers, instead of a threshold; with 0 all modules of a type share one LoRA
    #[arg(long, value_name = "N")]
    top_k: Option<i64>,
    /// Keep as many as fit into this fraction of plain LoRA's parameters, instead of a threshold; auto finds the smallest that
    /// costs nothing that rows outside the sample would show. Of a SparseAdapter's values 0.5 where it is not given
    #[arg(long, value_name = "F|auto", value_parser = budget)]
    budget: Option<Value>,
    /// Keep these layers, numbered from 0 and separated by commas, without a sample stage and a score
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    keep_layers: Option<Vec<i64>>,
    /// One ranking for each module type, or one ranking of whole layers [default: module]
    #[arg(long, value_name = "SCOPE", value_parser = ["module", "layer"])]
    scope: Option<String>,
    /// What the modules get that are not kept: one shared LoRA a type, the same with two vectors of each module's own that
    /// scale it, or none [default: share]
    #[arg(long, value_name = "WAY", value_parser = ["share", "scale", "drop", "neighbours"])]
    unselected: Option<String>,
    /// Experimental
    #[arg(long, value_name = "WHAT", value_parser = ["modules", "added", "directions"])]
    keep: Option<String>,
    /// Rank of the shared LoRAs, whose scale stays that of the others [default: that of --rank]
    #[arg(long, value_name = "R")]
    shared_rank: Option<i64>,
}

/// Optimisation, of both training stages.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Training")]
pub struct Optimise {
    /// Passes over the training set [default: 3]
    #[arg(long, value_name = "N")]
    epochs: Option<i64>,
    /// Optimiser steps of the run, whatever --epochs says
    #[arg(long, value_name = "N")]
    max_steps: Option<i64>,
    /// Start from new LoRA and head, or go on from the sample's: its steps are then among the run's, in one course of the
    /// learning rate, and a shared pair starts as the best common one [default: fresh]
    #[arg(long, value_name = "WAY", value_parser = ["fresh", "continue"])]
    restart: Option<String>,
    /// Course of the learning rate after its rise [default: linear]
    #[arg(long, value_name = "COURSE", value_parser = ["linear", "cosine", "constant"])]
    schedule: Option<String>,
    /// Highest learning rate [default: 0.0005]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Learning rate of the head, where there is one [default: the same]
    #[arg(long, value_name = "RATE")]
    head_learning_rate: Option<f64>,
    /// Sequences in a batch [default: 32]
    #[arg(long, value_name = "N")]
    batch_size: Option<i64>,
    /// Batches whose gradients add up to one optimiser step [default: 1]
    #[arg(long, value_name = "N")]
    grad_accumulation: Option<i64>,
    /// AdamW's weight decay, not on biases and norms [default: 0.1]
    #[arg(long, value_name = "F")]
    weight_decay: Option<f64>,
    /// Fraction of the steps in which the learning rate rises [default: 0.06]
    #[arg(long, value_name = "F")]
    warmup_ratio: Option<f64>,
    /// Gradients of a greater norm are scaled down to it; 0 leaves them as they are [default: 1]
    #[arg(long, value_name = "NORM")]
    max_grad_norm: Option<f64>,
    /// Encoders: dropout on hidden states [default: the model's own]
    #[arg(long, value_name = "P")]
    hidden_dropout: Option<f64>,
    /// Dropout on attention weights [default: the model's own]
    #[arg(long, value_name = "P")]
    attention_dropout: Option<f64>,
    /// Classification: part of the target that is spread over all classes [default: 0]
    #[arg(long, value_name = "F")]
    label_smoothing: Option<f64>,
    /// Same seed, same result, whatever the number of threads [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<i64>,
    /// Threads to compute with; 0 is all [default: 0]
    #[arg(long, value_name = "N")]
    threads: Option<i64>,
}

/// What only stage 3 reads.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Fine-tuning")]
pub struct Tune {
    /// What trains: LoRA-drop, adapters in every target module (named by their kind), every weight, or the head alone [default: lora-drop]
    #[arg(long, value_name = "METHOD", value_parser = PossibleValuesParser::new(Method::ALL.map(Method::name)))]
    method: Option<String>,
    /// AdaLoRA: fraction of the steps before its budget falls from one and a half times --rank [default: 0.15]
    #[arg(long, value_name = "F")]
    tinit: Option<f64>,
    /// AdaLoRA: fraction of the steps behind the fall, in which the modules keep their ranks, --rank on average [default: 0.5]
    #[arg(long, value_name = "F")]
    tfinal: Option<f64>,
    /// SparseAdapter: keep the values of A and B that are largest, that matter most to the loss (|w·g|), or any; --budget says how
    /// many [default: snip]
    #[arg(long, value_name = "SCORE", value_parser = ["magnitude", "snip", "random"])]
    sparse_by: Option<String>,
    /// Metric on dev that decides which epoch is kept [default: by data]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(METRICS))]
    metric: Option<String>,
    /// Where the lower blocks have neither LoRA (--unselected drop, --method head) nor dropout, keep their output on disk
    /// from the first epoch on, up to this number of gigabytes; 0 computes it in every step [default: 4]
    #[arg(long, value_name = "GB", help_heading = "Speed and memory")]
    activation_cache: Option<f64>,
}

/// Everything of `score`.
#[derive(Args, Serialize)]
pub struct ScoreOptions {
    #[command(flatten)]
    #[serde(flatten)]
    place: Place,
    #[command(flatten)]
    #[serde(flatten)]
    stages: Stages,
}

/// Everything of `train`.
#[derive(Args, Serialize)]
pub struct TrainOptions {
    #[command(flatten)]
    #[serde(flatten)]
    place: Place,
    #[command(flatten)]
    #[serde(flatten)]
    tune: Tune,
    #[command(flatten)]
    #[serde(flatten)]
    stages: Stages,
}

/// What both commands read.
#[derive(Args, Serialize)]
struct Stages {
    #[command(flatten)]
    #[serde(flatten)]
    choice: Choice,
    #[command(flatten)]
    #[serde(flatten)]
    lora: Lora,
    #[command(flatten)]
    #[serde(flatten)]
    optimise: Optimise,
    #[command(flatten)]
    #[serde(flatten)]
    reading: Reading,
    #[command(flatten)]
    #[serde(flatten)]
    memory: Memory,
}

/// The options that were given, as a recipe.
pub fn given(options: &impl Serialize) -> Result<Recipe> {
    let table = Table::try_from(options)
        .map_err(|e| Error::Usage(format!("an option that a recipe cannot hold: {e}")))?;
    Recipe::from_table(table)
}

/// Reads a count.
pub fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("expected a number from 1 up".to_string()),
    }
}

/// Reads a size of memory.
pub fn size(text: &str) -> std::result::Result<Size, String> {
    text.parse()
}

fn not_empty(text: &str) -> std::result::Result<String, String> {
    if text.is_empty() { Err("it is empty".to_string()) } else { Ok(text.to_string()) }
}

fn budget(text: &str) -> std::result::Result<Value, String> {
    match text.parse::<f64>() {
        Ok(share) => Ok(Value::Float(share)),
        Err(_) if text == "auto" => Ok(Value::String(text.to_string())),
        Err(_) => Err("expected auto or a fraction".to_string()),
    }
}

fn sample_epochs(text: &str) -> std::result::Result<Value, String> {
    match text.parse::<i64>() {
        Ok(epochs) => Ok(Value::Integer(epochs)),
        Err(_) if text == "auto" => Ok(Value::String(text.to_string())),
        Err(_) => Err("expected auto or a number of epochs".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches};
    use lora_drop::settings::TrainSettings;

    use super::*;

    fn command() -> Command {
        TrainOptions::augment_args(Command::new("train"))
    }

    fn parse(words: &[&str]) -> TrainOptions {
        let words = std::iter::once("train").chain(words.iter().copied());
        TrainOptions::from_arg_matches(&command().get_matches_from(words)).unwrap()
    }

    #[test]
    fn every_setting_has_its_option_and_the_help_has_its_default() {
        let defaults = Table::try_from(TrainSettings::default()).unwrap();
        let command = command();
        for name in TrainSettings::keys() {
            let option = command.get_arguments().find(|arg| arg.get_long() == Some(name));
            let help = option.unwrap_or_else(|| panic!("no option --{name}")).get_help().unwrap().to_string();
            let expected = match defaults.get(*name) {
                Some(Value::String(text)) if !text.is_empty() => text.clone(),
                Some(Value::Integer(number)) => number.to_string(),
                Some(Value::Float(number)) => number.to_string(),
                _ => continue,
            };
            assert!(help.ends_with(&format!("[default: {expected}]")), "--{name}: {help}");
        }
    }

    #[test]
    fn only_what_was_given_is_in_the_recipe() {
        assert_eq!(given(&parse(&[])).unwrap(), Recipe::default());
        let words = [
            "--rank",
            "4",
            "--alpha=2",
            "--sample-epochs",
            "3",
            "--target-modules",
            "query,key",
            "--overwrite",
        ];
        let expected: Table =
            "rank = 4\nalpha = 2.0\nsample-epochs = 3\ntarget-modules = [\"query\", \"key\"]\noverwrite = true"
                .parse()
                .unwrap();
        assert_eq!(given(&parse(&words)).unwrap(), Recipe::from_table(expected).unwrap());
        let auto = given(&parse(&["--sample-epochs", "auto"])).unwrap();
        assert_eq!(auto, Recipe::from_table("sample-epochs = \"auto\"".parse().unwrap()).unwrap());
    }
}
