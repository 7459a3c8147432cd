//! Metrics of generated text against the numbers of the Python packages (written by
//! tools/golden/text_metrics.py).

use lora_drop::evaluate::text::{self, Bleu, Metric};
use serde_json::Value;

/// The committed texts are made up; this variable names a file of the same form with real ones.
const REAL: &str = "LORA_DROP_TEXT_METRICS";

/// The largest relative difference seen, and where.
#[derive(Default)]
struct Largest {
    difference: f64,
    at: String,
    compared: usize,
}

impl Largest {
    fn see(&mut self, at: String, found: f64, expected: f64) {
        self.compared += 1;
        let difference = match found {
            _ if found == expected => 0.0,
            _ if found.is_nan() => f64::INFINITY,
            _ => (found - expected).abs() / expected.abs(),
        };
        if difference > self.difference {
            (self.difference, self.at) = (difference, format!("{at}: {found}, the package has {expected}"));
        }
    }
}

fn read(path: &str) -> Value {
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_slice(&file).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().expect("texts").iter().map(|t| t.as_str().expect("a text").to_owned()).collect()
}

fn compare(golden: &Value) -> Largest {
    let mut largest = Largest::default();
    for case in golden["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let hypotheses = texts(&case["hypotheses"]);
        let references: Vec<Vec<String>> =
            case["references"].as_array().expect("rows").iter().map(texts).collect();
        let numbers = case["numbers"].as_object().expect("numbers");

        for score in text::evaluate(&Metric::WORDING, &hypotheses, &references).expect("rows that fit") {
            let expected = match score.name {
                "bleu" => &numbers["bleu"]["score"],
                // left out where the package fails
                other => numbers.get(other).unwrap_or(&Value::Null),
            };
            if let Some(expected) = expected.as_f64() {
                largest.see(format!("{name}, {}", score.name), score.value, expected);
            }
        }

        let Bleu { precisions, brevity_penalty, hypothesis_length, reference_length, .. } =
            text::bleu(&hypotheses, &references).expect("rows that fit");
        let bleu = |key: &str| &numbers["bleu"][key];
        for (n, found) in precisions.into_iter().enumerate() {
            let expected = bleu("precisions")[n].as_f64().expect("a number");
            largest.see(format!("{name}, precision {}", n + 1), found, expected);
        }
        let expected = bleu("brevity_penalty").as_f64().expect("a number");
        largest.see(format!("{name}, brevity penalty"), brevity_penalty, expected);
        assert_eq!(hypothesis_length as u64, *bleu("hypothesis_length"), "{name}");
        assert_eq!(reference_length as u64, *bleu("reference_length"), "{name}");
    }
    largest
}

#[test]
fn numbers_are_those_of_the_packages() {
    let golden = read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/text_metrics.json"));
    let largest = compare(&golden);
    assert!(largest.compared > 100, "{} numbers compared", largest.compared);
    assert!(largest.difference < 1e-9, "{}", largest.at);
}

#[test]
#[ignore = "reads real texts from a file that LORA_DROP_TEXT_METRICS names; see tools/golden/README.md"]
fn numbers_on_real_texts() {
    let path = std::env::var(REAL).unwrap_or_else(|_| panic!("{REAL} has to name the file"));
    let golden = read(&path);
    let largest = compare(&golden);
    println!(
        "{} numbers, largest relative difference {:e} ({})",
        largest.compared, largest.difference, largest.at
    );
    assert!(largest.difference < 1e-9, "{}", largest.at);
    let answers = golden["final_numbers"].as_array().expect("answers");
    for answer in answers {
        let text = answer["text"].as_str().expect("a text");
        assert_eq!(text::final_number(text), answer["number"].as_f64(), "{text}");
    }
    println!("{} final numbers", answers.len());
}
