//! Every setting of a run, defined once. What the fields' comments say is also their help text:
//! other settings are written there as `field` or `field = value`.

use std::path::PathBuf;

use super::definition::{Definition, Range, Setting, kebab_case, settings};
use super::situation::Need;
use super::{
    BadRows, Budget, ClassWeights, CriterionName, DataSources, Dtype, LogTo, Method, OverLength, Quantize,
    Restart, SampleEpochs, ScheduleShape, Scope, Size, SparseBy, Task, Unselected,
};
use crate::evaluate::metrics::Metric;

/// Range of a rank. Near a layer's width a rank is no longer low.
const RANKS: Range = Range::Whole(1, 16_384);
/// Counts beyond this are typing errors, and would overflow step and token counts later.
const MAX_COUNT: usize = 1_000_000;
const COUNTS: Range = Range::Whole(1, MAX_COUNT);

settings! {
    /// Where a run's inputs are and its files go.
    Place "" (settings => settings.place) {
        /// The pre-trained model: a folder in Hugging Face's format (config.json, model.safetensors,
        /// tokenizer.json), a decoder's GGUF file, or a name on the hub (org/name, or
        /// org/name:file.gguf), which is downloaded into Hugging Face's cache
        model: String = String::new(), "DIR|ORG/NAME", also ["model-name-or-path", "base-model"];
        /// The data, labelled rows or, for a decoder, texts: a folder with train and dev files
        /// (.jsonl, .json, .csv, .tsv, .parquet, also gzipped), one file, or a name on the hub
        /// (org/name), whose files are downloaded into Hugging Face's cache. Given several times,
        /// rows of all of them, which have to be of one kind; with weights, as in `data = a=0.7` and
        /// `data = b=0.3`, each has that share of an epoch's rows
        data: DataSources = DataSources::default(), "DIR|FILE|ORG/NAME[=WEIGHT]", also ["dataset", "data-path", "train-file"];
        /// The configuration of a data set on the hub, or a folder or files in it: the error for a data
        /// set that has several lists them
        data_config: Option<String> = None, "NAME", or "the only one", also ["dataset-config-name"];
        /// The folder for the run's files
        output: PathBuf = PathBuf::new(), "DIR", also ["output-dir"];
        /// Replace the run in the output folder, or with `score` its importance.json; nothing else
        /// is removed
        overwrite: bool = false, "", also ["overwrite-output-dir"];
        /// Minutes between checkpoints, from which `train --resume` continues a run that was stopped;
        /// there is also one after each evaluation. 0 turns them off
        checkpoint_minutes: f64 = 10.0, "MINUTES" in Range::FromZero, reads [FineTunes];
        /// Keep this number of checkpoints, the latest, also when the run has finished, so that it
        /// can be continued with more `epochs`
        save_total: Option<usize> = None, "N" in COUNTS, reads [FineTunes],
            or "one, and none when the run has finished", also ["save-total-limit"];
        /// Log steps and evaluations, besides metrics.jsonl, in an event file in the output folder that
        /// TensorBoard reads
        log_to: Vec<LogTo> = Vec::new(), "WHERE", reads [FineTunes], also ["report-to"];
        /// Write the run's state to this file, at most once a second, as gauges in Prometheus's text
        /// format: step, loss, time left, metrics on dev. node_exporter's textfile collector reads files
        /// that end in .prom
        metrics_file: Option<PathBuf> = None, "FILE", reads [FineTunes];
    }
}

settings! {
    /// What trains.
    AdapterSettings "LoRA" (settings => settings.train.adapter) {
        /// What is trained: LoRA-drop's adapter, an adapter of another kind in every target module,
        /// all weights (full), or the head alone
        method: Method = Method::default(), "METHOD", reads [FineTunes];
        /// Train this adapter further, from lora-drop or PEFT, with its head, ranks and sharing. With
        /// `scores` or `keep_layers`, modules are chosen anew, and continue from their pairs
        init_adapter: Option<PathBuf> = None, "DIR|FILE", reads [FineTunes, Adapter];
        /// Rank of each LoRA
        rank: usize = 8, "R" in RANKS, reads [Trains, Adapter, NewPairs], also ["r", "lora-r", "lora-rank"];
        /// The output of a LoRA is scaled by alpha / rank
        alpha: f64 = 16.0, "F" in Range::Positive, reads [Trains, Adapter, NewPairs, Alpha], also ["lora-alpha"];
        /// Dropout on the input of each LoRA
        lora_dropout: f64 = 0.0, "P" in Range::BelowOne, reads [Trains, Adapter];
        /// Linear layers that get a LoRA, by the names that PEFT uses for the architecture,
        /// separated by commas; all-linear for all linear layers of the blocks
        target_modules: Vec<String> = Vec::new(), "NAMES", reads [Trains, Adapter, NewPairs], or "query and value",
            also ["lora-target-modules", "lora-target"];
        /// AdaLoRA: fraction of the steps before the ranks begin to fall from 1.5 times `rank`
        tinit: f64 = 0.15, "F" in Range::BelowOne, reads [FineTunes, AdaLora];
        /// AdaLoRA: fraction of the steps at the end, when ranks no longer change and are `rank` on
        /// average
        tfinal: f64 = 0.5, "F" in Range::BelowOne, reads [FineTunes, AdaLora];
        /// SparseAdapter: the values of A and B to keep: the largest (magnitude), those that matter
        /// most to the loss by |w·g| (snip), or random ones; `budget` is their fraction
        sparse_by: SparseBy = SparseBy::default(), "SCORE", reads [FineTunes, SparseAdapter];
    }
}

settings! {
    /// The sample stage, and how modules are chosen by its scores.
    SelectionSettings "LoRA-drop: sample, score, choose" (settings => settings.train.selection) {
        /// How modules are scored. With training on the sample: by the LoRA's output as in the paper
        /// (output), the size of s·B·A (size) or Σ|w·∂L/∂w| (gradient). Without training: by the
        /// energy of the first gradients (page), the norm of a block's output (activation) or how
        /// much a block changes its input (cka). Or in a fixed order: first, last, random
        criterion: CriterionName = CriterionName::default(), "NAME", reads [LoraDrop, Scores, OwnScores];
        /// Fraction of the training set that is the sample, drawn from each class in proportion
        sample_ratio: f64 = 0.1, "F" in Range::Fraction, reads [Samples, Scores, OwnScores, Sample];
        /// Epochs of training on the sample before scoring; auto stops once the ranking is stable
        sample_epochs: SampleEpochs = SampleEpochs::Auto, "N|auto" in COUNTS,
            reads [Trains, Samples, Scores, OwnScores, SampleTraining];
        /// Keep the most important modules until their importance adds up to this fraction
        threshold: Option<f64> = None, "F" in Range::Fraction, reads [LoraDrop, Chooses], or "0.9";
        /// Keep this number of layers, instead of using a threshold; with 0 all modules of a type
        /// share one LoRA
        top_k: Option<usize> = None, "N" in Range::Whole(0, MAX_COUNT), reads [LoraDrop, Chooses];
        /// Keep as many modules as fit into this fraction of plain LoRA's parameters, instead of
        /// using a threshold; auto finds the smallest fraction that does not raise the loss on rows
        /// outside the sample. For SparseAdapter: the fraction of its values, 0.5 by default
        budget: Option<Budget> = None, "F|auto" in Range::Fraction, reads [Samples, Chooses];
        /// Keep these layers, numbered from 0 and separated by commas, without a sample stage or
        /// scores
        keep_layers: Option<Vec<usize>> = None, "LAYERS" in Range::Whole(0, MAX_COUNT),
            reads [LoraDrop, NoScoresAsked];
        /// Choose modules by the scores in this importance.json, of an earlier run or of `score`,
        /// without a sample stage
        scores: Option<PathBuf> = None, "FILE", reads [LoraDrop, FineTunes, Scores];
        /// Rank the layers for each module type on its own, or rank whole layers
        scope: Scope = Scope::default(), "SCOPE", reads [LoraDrop, Scores, Chooses];
        /// What modules get that are not kept: one shared LoRA for each type (share), the same scaled
        /// by two vectors of each module's own (scale), or none (drop)
        unselected: Unselected = Unselected::default(), "WAY", reads [LoraDrop, Chooses];
        /// Rank of the shared LoRAs; their scale is the same as the others'
        shared_rank: Option<usize> = None, "R" in RANKS, reads [LoraDrop, Shares, Chooses], or "`rank`";
    }
}

settings! {
    /// How both stages train.
    Optimisation "Training" (settings => settings.train.optimisation) {
        /// Passes over the training set
        epochs: usize = 3, "N" in COUNTS, reads [Trains, LearningRateSchedule], also ["num-train-epochs", "num-epochs"];
        /// Number of optimiser steps, instead of `epochs`
        max_steps: Option<usize> = None, "N" in Range::Whole(1, 100 * MAX_COUNT), reads [Trains, LearningRateSchedule];
        /// Start fine-tuning with new LoRAs and a new head (fresh), or continue from the sample stage
        /// (continue): its steps then count as the run's, under one learning rate schedule, and a
        /// shared LoRA starts as the best common one of its layers
        restart: Restart = Restart::default(), "WAY", reads [Trains, Samples, Scores, OwnScores];
        /// Schedule of the learning rate after its warm-up
        schedule: ScheduleShape = ScheduleShape::default(), "NAME", reads [Trains, LearningRateSchedule],
            also ["lr-scheduler-type", "lr-scheduler", "lr-schedule"];
        /// Peak learning rate
        learning_rate: f64 = 5e-4, "RATE" in Range::Positive, reads [Trains], also ["lr"];
        /// Learning rate of the head, if there is one
        head_learning_rate: Option<f64> = None, "RATE" in Range::Positive, reads [Trains, Labels],
            or "`learning_rate`", also ["head-lr"];
        /// Sequences in a batch
        batch_size: usize = 32, "N" in COUNTS, reads [Trains],
            also ["per-device-train-batch-size", "train-batch-size"];
        /// Batches whose gradients add up to one optimiser step
        grad_accumulation: usize = 1, "N" in COUNTS, reads [Trains],
            also ["gradient-accumulation-steps", "grad-accumulation-steps"];
        /// AdamW's weight decay, not on biases and norms
        weight_decay: f64 = 0.1, "F" in Range::FromZero, reads [Trains];
        /// Fraction of the steps in which the learning rate rises
        warmup_ratio: f64 = 0.06, "F" in Range::BelowOne, reads [Trains], also ["lr-warmup-ratio"];
        /// Clip gradients to this norm; 0 turns this off
        max_grad_norm: f64 = 1.0, "NORM" in Range::FromZero, reads [Trains],
            also ["gradient-clipping", "clip-grad-norm"];
        /// Encoders: dropout on hidden states
        hidden_dropout: Option<f64> = None, "P" in Range::BelowOne, reads [Trains, Encoder], or "the model's own",
            also ["hidden-dropout-prob"];
        /// Dropout on attention weights
        attention_dropout: Option<f64> = None, "P" in Range::BelowOne, reads [Trains], or "the model's own",
            also ["attention-probs-dropout-prob"];
        /// Classification: share of the target probability that is spread over all classes
        label_smoothing: f64 = 0.0, "F" in Range::BelowOne, reads [Trains, Classes, OneClass], also ["label-smoothing-factor"];
        /// Metric on dev by which the best epoch is chosen
        metric: Option<Metric> = None, "NAME", reads [FineTunes], or "by the data",
            also ["metric-for-best-model"];
        /// Evaluate dev after this number of optimiser steps, and at the end, instead of after each
        /// epoch
        eval_steps: Option<usize> = None, "N" in COUNTS, reads [FineTunes], or "each epoch";
        /// Stop after this number of evaluations in a row without a better result on dev
        early_stopping: Option<usize> = None, "N" in COUNTS, reads [FineTunes], or "never",
            also ["early-stopping-patience"];
        /// Seed of all random numbers: the same seed gives the same result, on any number of
        /// threads
        seed: u64 = 0, "N" in Range::Whole(0, i64::MAX as usize);
    }
}

settings! {
    /// How rows are read.
    RowSettings "Data" (settings => settings.rows) {
        /// What is learned: the texts (decoders), each row's class, any number of classes of a row, a
        /// tag for each word, or each row's number
        task: Option<Task> = None, "TASK", or "text for a decoder; for an encoder by the labels", also ["task-type"];
        /// Column of the text, or of the first text of a pair
        text_column: Option<String> = None, "NAME", or "found by the usual names";
        /// Column of the second text of a pair
        pair_column: Option<String> = None, "NAME", reads [Labels], or "found by the usual names";
        /// Column of the label
        label_column: Option<String> = None, "NAME", reads [Labels], or "label";
        /// Names of the classes that the numbers 0, 1, 2, ... in the column of the label stand for,
        /// separated by commas
        label_names: Option<Vec<String>> = None, "NAMES", reads [Trains, Classes],
            or "those in train or, for lists of numbers, in a Parquet file";
        /// Of two classes, the one whose F1 is measured
        positive_class: Option<String> = None, "CLASS", reads [FineTunes, Classes],
            or "the second, in the order of their names";
        /// Weights of the classes in the loss: a JSON file with a weight for each name, or balanced,
        /// which gives a class of few rows as much weight as one of many
        class_weights: Option<ClassWeights> = None, "balanced|FILE", reads [Trains, Classes], or "all the same";
        /// Decoders: column of the prompt
        prompt_column: Option<String> = None, "NAME", reads [Texts], or "found by the usual names";
        /// Decoders: column of the completion
        completion_column: Option<String> = None, "NAME", reads [Texts], or "found by the usual names";
        /// Decoders: the text of a prompt, with {prompt} where the column's text goes
        prompt_template: Option<String> = None, "TEXT", reads [Texts, Prompts], or "{prompt}";
        /// Decoders: write prompts and completions as turns of user and assistant, with the model's
        /// chat template
        chat: bool = false, "", reads [Texts, Prompts];
        /// Decoders: do not add the end-of-sequence token to plain texts
        no_eos: bool = false, "", reads [PlainTexts];
        /// Decoders: a value for the model's chat template, such as enable_thinking=false; can be given
        /// several times. What is JSON is read as such (true, 3), all else is a text
        template_var: Vec<String> = Vec::new(), "NAME=VALUE", reads [Texts, Template], or "none";
        /// What happens to rows that are wrong, such as those without a text or a label. Those that are
        /// skipped are counted and reported. Blank rows of plain text are always passed over
        bad_rows: BadRows = BadRows::default(), "WAY";
        /// Most tokens of a row, special tokens included
        max_length: Option<usize> = None, "TOKENS" in Range::Whole(SHORTEST_ROW, MAX_COUNT),
            or "256, or the model's limit if that is lower", also ["max-seq-length", "max-seq-len", "cutoff-len"];
        /// What happens to longer rows, which are counted and reported; plain text is split into
        /// several sequences instead
        over_length: OverLength = OverLength::default(), "WAY", reads [OneSequence];
        /// Most gigabytes of the user's cache folder for the tokens of this and earlier runs; 0 turns
        /// the cache off. The environment variable LORA_DROP_CACHE names another folder
        token_cache: f64 = 1.0, "GB" in Range::FromZero;
    }
}

/// A row that holds one token of text: [CLS] token [SEP].
const SHORTEST_ROW: usize = 3;

settings! {
    /// What a run takes of the machine.
    Compute "Speed and memory" (settings => settings.train.compute) {
        /// Type in which linear layers multiply: bf16 rounds the factors and sums in f32, and is
        /// about twice as fast on processors with instructions for it (AMX, AVX512-BF16)
        dtype: Dtype = Dtype::default(), "TYPE";
        /// Decoders: store the frozen matrices with 8 or 4 bits per value
        quantize: Option<Quantize> = None, "TYPE", reads [Decoder, Frozen], or "as in the model's file";
        /// Save only the blocks' inputs in the forward pass and recompute everything else in the
        /// backward pass, bit-identically: less memory for a third to a half more time
        recompute: bool = false, "", reads [Trains, Blocks], also ["gradient-checkpointing"];
        /// Most tokens of a micro-batch, except for a single longer row. A step is split into
        /// micro-batches, and only the activations of those that run concurrently are in memory
        micro_tokens: Option<usize> = None, "TOKENS" in COUNTS, reads [Trains],
            or "256 to 1024, by the model, or fewer by `memory_limit`";
        /// Keep the estimated memory below this: a number with its unit, such as 600MB, 1.5GB or
        /// 512MiB. It decides `micro_tokens` and `recompute`, unless they are given, the number of
        /// concurrent micro-batches and how weights are packed. If it is impossible, the error says
        /// what is possible
        memory_limit: Option<Size> = None, "SIZE", reads [Trains];
        /// Where the lower blocks have neither LoRA (`unselected = drop`, `method = head`) nor
        /// dropout, save their output on disk in the first epoch and read it in later ones, up to
        /// this number of gigabytes; 0 turns this off
        activation_cache: f64 = 4.0, "GB" in Range::FromZero, reads [FineTunes, ConstantBlocks];
        /// Number of threads; 0 uses all cores
        threads: usize = 0, "N" in Range::Whole(0, 4096), also ["num-threads"];
    }
}
