//! Options that are impossible, alone or together, and recipes that are wrong.

use super::training_fails;
use crate::common::Fixture;

/// Trains with a recipe of this text.
#[track_caller]
fn recipe_fails(text: &str, words: &[&str]) {
    let fixture = Fixture::new();
    fixture.write("recipe.toml", text);
    fixture.run("train recipe.toml --model model --data data --output out").fails(2, words);
    assert!(!fixture.path("out").exists());
}

#[test]
fn two_ways_of_choosing() {
    training_fails(
        |_| (),
        "--threshold 0.9 --budget 0.5",
        2,
        &["--threshold", "--budget", "exclude each other"],
    );
    training_fails(|_| (), "--top-k 2 --budget 0.5", 2, &["--top-k", "--budget", "exclude each other"]);
    let words = ["--budget", "--keep-layers", "exclude each other"];
    training_fails(|_| (), "--keep-layers 1 --budget 0.5", 2, &words);
}

#[test]
fn choosing_where_nothing_is_chosen() {
    training_fails(|_| (), "--method lora --threshold 0.9", 2, &["--threshold", "method lora", "lora-drop"]);
    training_fails(|_| (), "--method lora --sample-ratio 0.1", 2, &["--sample-ratio", "method lora"]);
    training_fails(|_| (), "--method head --restart continue", 2, &["--restart", "method head"]);
    training_fails(|_| (), "--method lora --keep-layers 1", 2, &["--keep-layers", "method lora"]);
    training_fails(
        |_| (),
        "--keep-layers 1 --restart continue",
        2,
        &["--restart", "--keep-layers", "no scores"],
    );
    let fixture = Fixture::new();
    fixture
        .run("score --model model --data data --output out --keep-layers 1")
        .fails(2, &["--keep-layers", "--top-k"]);
}

#[test]
fn a_rank_where_there_is_no_lora() {
    training_fails(|_| (), "--method full --rank 4", 2, &["--rank", "method full"]);
    training_fails(|_| (), "--method head --target-modules query", 2, &["--target-modules", "method head"]);
}

#[test]
fn numbers_out_of_range() {
    for (option, words) in [
        ("--threshold 1.5", ["--threshold is 1.5", "at most 1"]),
        ("--budget 0", ["--budget is 0", "greater than 0"]),
        ("--top-k -1", ["--top-k is -1", "0 to"]),
        ("--top-k 0 --unselected drop", ["--top-k 0", "--method head"]),
        ("--shared-rank 0", ["--shared-rank is 0", "1 to"]),
        ("--keep-layers 0,3", ["--keep-layers names layer 3", "0 to 2"]),
        ("--rank 0", ["--rank is 0", "1 to"]),
        ("--rank 99999999", ["--rank is 99999999", "1 to"]),
        ("--alpha -1", ["--alpha is -1", "greater than 0"]),
        ("--lora-dropout 1", ["--lora-dropout is 1", "below 1"]),
        ("--sample-ratio 0", ["--sample-ratio is 0", "greater than 0"]),
        ("--warmup-ratio 1", ["--warmup-ratio is 1", "below 1"]),
        ("--max-length 2", ["--max-length is 2", "3 to"]),
        ("--label-smoothing 1", ["--label-smoothing is 1", "below 1"]),
        ("--max-grad-norm -1", ["--max-grad-norm is -1", "0 or greater"]),
        ("--batch-size 0", ["--batch-size is 0", "1 to"]),
        ("--epochs 0", ["--epochs is 0", "1 to"]),
        ("--epochs -1", ["--epochs is -1", "1 to"]),
        ("--seed -5", ["--seed is -5", "0 to"]),
        ("--keep-layers -1", ["--keep-layers is -1", "0 to"]),
        ("--sample-epochs -2", ["--sample-epochs is -2", "1 to"]),
        ("--token-cache -1", ["--token-cache is -1", "0 or greater"]),
        ("--learning-rate nan", ["--learning-rate is NaN", "finite"]),
        ("--learning-rate 0", ["--learning-rate is 0", "greater than 0"]),
    ] {
        training_fails(|_| (), option, 2, &words);
    }
}

#[test]
fn words_that_are_no_values() {
    training_fails(|_| (), "--rank eight", 2, &["eight", "--rank"]);
    training_fails(|_| (), "--method lorra", 2, &["lorra", "--method", "lora-drop"]);
    training_fails(|_| (), "--metric bleu", 2, &["bleu", "--metric", "accuracy"]);
    training_fails(|_| (), "--sample-epochs often", 2, &["often", "auto"]);
    training_fails(|_| (), "--learning-reate 1", 2, &["--learning-reate", "--learning-rate"]);
}

#[test]
fn missing_required_options() {
    let fixture = Fixture::new();
    fixture.run("train --data data --output out").fails(2, &["--model is missing"]);
    fixture.run("train --model model --output out").fails(2, &["--data is missing"]);
    fixture.run("train --model model --data data").fails(2, &["--output is missing"]);
    fixture.run("eval --data data").fails(2, &["--model"]);
    fixture.run("eval --adapter data --data data").fails(2, &["--model is missing", "recipe.toml"]);
}

#[test]
fn an_unknown_module() {
    let words = ["--target-modules", "quary", "bert", "query"];
    training_fails(|_| (), "--target-modules quary,value", 2, &words);
}

#[test]
fn more_tokens_than_the_model_has_positions() {
    training_fails(|_| (), "--max-length 5000", 2, &["--max-length", "5000", "256"]);
}

#[test]
fn a_recipe_that_does_not_exist() {
    let fixture = Fixture::new();
    fixture.run("train absent.toml --output out").fails(1, &["absent.toml"]);
}

#[test]
fn a_recipe_with_an_unknown_key() {
    recipe_fails(
        "epochs = 1\nleraning-rate = 1e-3\n",
        &["recipe.toml:2", "leraning-rate", "did you mean", "learning-rate"],
    );
}

#[test]
fn a_recipe_that_is_not_toml() {
    recipe_fails("epochs = 1\nrank == 3\n", &["recipe.toml:2", "TOML"]);
}

#[test]
fn a_recipe_that_is_not_text() {
    let fixture = Fixture::new();
    fixture.write("recipe.toml", b"epochs = 1\n# caf\xe9\n");
    fixture.run("train recipe.toml").fails(2, &["recipe.toml:2", "UTF-8"]);
}

#[test]
fn a_recipe_with_a_value_of_another_type() {
    recipe_fails("\nrank = \"8\"\n", &["recipe.toml:2", "rank", "expected"]);
    recipe_fails("method = \"ia3\"\n", &["recipe.toml:1", "method", "ia3", "lora-drop"]);
    recipe_fails("[lora]\nrank = 3\n", &["recipe.toml:1", "lora"]);
}

#[test]
fn a_recipe_whose_keys_exclude_each_other() {
    recipe_fails("threshold = 0.9\ntop-k = 3\n", &["--threshold", "--top-k", "exclude each other"]);
    recipe_fails("method = \"full\"\nrank = 3\n", &["--rank", "method full"]);
}

/// Every command's numbers may be below zero on the command line, and its own check refuses them.
#[test]
fn numbers_below_zero_reach_their_checks() {
    let fixture = Fixture::new();
    for (words, expected) in [
        ("bench --model model --steps -1", ["--steps", "from 1 up"]),
        ("eval --model model --data data --threads -1", ["--threads is -1", "0 to"]),
        ("eval --model model --data data --max-length -1", ["--max-length is -1", "3 to"]),
        ("generate --model model --prompt x --temperature -1", ["--temperature is -1", "0 (greedy)"]),
        ("generate --model model --prompt x --top-k -1", ["--top-k", "from 0 up"]),
    ] {
        fixture.run(words).fails(2, &expected);
    }
}

#[test]
fn options_without_effect_for_the_model_or_the_data() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let row = |i: usize| format!("{{\"prompt\": \"w{i} w5\", \"completion\": \" w{i}\"}}\n");
    fixture.write("texts/train.jsonl", (3..20).map(row).collect::<String>());
    fixture.write("plain/train.jsonl", "{\"text\": \"w3 w4 w5\"}\n".repeat(20));
    let lora = "train --method lora --output out --max-length 32";
    let texts = format!("{lora} --model decoder --data texts");
    for (words, expected) in [
        (format!("{texts} --hidden-dropout 0.1"), ["--hidden-dropout", "for a decoder"]),
        (format!("{texts} --label-smoothing 0"), ["--label-smoothing", "for texts"]),
        (format!("{texts} --head-learning-rate 1e-3"), ["--head-learning-rate", "for texts"]),
        (format!("{texts} --activation-cache 4"), ["--activation-cache", "method lora"]),
        (
            format!("{lora} --model decoder --data plain --over-length truncate"),
            ["--over-length", "several sequences"],
        ),
        (
            format!("{lora} --model decoder --data plain --prompt-template x{{prompt}}"),
            ["--prompt-template", "plain text"],
        ),
        (format!("{lora} --model model --data data --quantize q8_0"), ["--quantize", "for an encoder"]),
        (format!("{lora} --model model --data data --chat"), ["--chat", "rows with labels"]),
        (
            "train --model model --data data --output out --unselected drop --activation-cache 1".to_string(),
            ["--activation-cache", "--hidden-dropout 0"],
        ),
        (
            "train --model model --data data --output out --method head --recompute".to_string(),
            ["--recompute", "head"],
        ),
        ("eval --model decoder --data texts --label-column x".to_string(), ["--label-column", "for texts"]),
        (
            "eval --model decoder --data plain --prompt-template x{prompt}".to_string(),
            ["--prompt-template", "plain"],
        ),
        ("eval --model decoder --data texts --max-length 65".to_string(), ["--max-length 65", "64"]),
        (
            "eval --model decoder --data texts/train.jsonl --split test".to_string(),
            ["--split test", "rows are all read"],
        ),
        (
            "eval --model decoder --data texts --metrics bleu --seed 1".to_string(),
            ["--seed", "--temperature"],
        ),
        (
            "generate --model decoder --data texts --length-penalty 1".to_string(),
            ["--length-penalty", "--num-beams"],
        ),
        ("bench --model model --method head --rank 4".to_string(), ["--rank", "method head"]),
    ] {
        fixture.run(&words).fails(2, &expected);
        assert!(!fixture.path("out").exists(), "{words}");
    }
    // A recipe's keys are no exception, and the message is the same.
    let recipe =
        "model = \"decoder\"\ndata = \"texts\"\noutput = \"out\"\nmethod = \"lora\"\nhidden-dropout = 0.0\n";
    fixture.write("recipe.toml", recipe);
    fixture.run("train recipe.toml").fails(2, &["--hidden-dropout", "for a decoder"]);
}

#[test]
fn words_of_other_trainers() {
    let fixture = Fixture::new();
    let dry = "train --model model --data data --output out --dry-run --json --method lora";
    let plan = |options: &str| {
        let found = fixture.run(&format!("{dry} {options}")).ok().json();
        [found["train_steps"].clone(), found["lora_parameters"].clone()]
    };
    let ours =
        plan("--epochs 2 --batch-size 4 --rank 4 --alpha 8 --learning-rate 1e-3 --grad-accumulation 2");
    for theirs in [
        "--num-train-epochs 2 --per-device-train-batch-size 4 --r 4 --lora-alpha 8 --lr 1e-3 --gradient-accumulation-steps 2",
        "--num_train_epochs=2 --per_device_train_batch_size=4 --lora_r 4 --lora_alpha=8 --learning_rate=1e-3 \
         --gradient_accumulation_steps 2 --lr_scheduler_type cosine --label_smoothing_factor 0.1 --max_seq_length 64",
    ] {
        assert_eq!(plan(theirs), ours, "{theirs}");
    }
    for (word, advice) in [
        ("--eval-strategy steps", "--eval-steps"),
        ("--warmup_steps=5", "--warmup-ratio"),
        ("--bf16", "--dtype bf16"),
    ] {
        let outcome = fixture.run(&format!("{dry} {word}")).fails(2, &["there is no option", advice]);
        assert!(!outcome.stderr.contains("similar"), "{}", outcome.stderr);
    }
}
