//! Differences between the tasks with labels: the head, the targets of the loss, a row's answer and
//! loss, the metrics, the prediction, and the names in transformers.
//!
//! To add a task: add its variants of `Task`, `Labels`, `Label`, [`Answer`] and `Answers`, its
//! parsing in data/labels.rs, and its arms here.

use std::ops::Range;

use lora_drop_compute::loss;
use lora_drop_transformer::{Head, HeadKind, Targets};
use serde_json::{Value, json};

use crate::data::{Label, Labels};
use crate::evaluate::entities::{Entity, EntityCount, EntityTags};
use crate::evaluate::metrics::{self, Metric};
use crate::evaluate::{Answers, ClassAnswer, Prediction, SetAnswer, TaggedWord, ValueAnswer};
use crate::settings::Task;

/// Labels of a batch, as the loss takes them.
pub enum BatchTargets {
    Classes(Vec<usize>),
    Sets(Vec<bool>),
    Values(Vec<f32>),
}

impl BatchTargets {
    /// Collects the targets from a batch's labels, all of one task, for a head with `outputs`
    /// outputs.
    pub fn new(labels: &[Label], outputs: usize) -> Self {
        let classes = || labels.iter().flat_map(Label::classes).copied();
        match labels.first() {
            Some(Label::Value(_)) => {
                let value = |label: &Label| if let Label::Value(value) = label { Some(*value) } else { None };
                BatchTargets::Values(labels.iter().filter_map(value).collect())
            }
            Some(Label::Set(_)) => {
                let mut has = vec![false; labels.len() * outputs];
                for (row, label) in has.chunks_exact_mut(outputs).zip(labels) {
                    label.classes().iter().for_each(|&class| row[class] = true);
                }
                BatchTargets::Sets(has)
            }
            Some(Label::Class(_) | Label::Tags(_)) | None => BatchTargets::Classes(classes().collect()),
        }
    }

    /// Borrows the targets in the form that a pass takes.
    pub fn targets(&self) -> Targets<'_> {
        match self {
            BatchTargets::Classes(classes) => Targets::Classes(classes),
            BatchTargets::Sets(has) => Targets::Sets(has),
            BatchTargets::Values(values) => Targets::Values(values),
        }
    }
}

/// Returns a row's share of the number by which the sum of the losses is divided: the sum of its
/// classes' weights, the number of the head's `outputs` for a multi-label row, or 1 for a value.
pub fn loss_weight(label: &Label, weights: &[f64], outputs: usize) -> f64 {
    let weight = |class: &usize| weights.get(*class).copied().unwrap_or(1.0);
    match label {
        Label::Class(class) => weight(class),
        Label::Tags(classes) => classes.iter().map(weight).sum(),
        Label::Set(_) => outputs as f64,
        Label::Value(_) => 1.0,
    }
}

/// A model's answer for one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Class(ClassAnswer),
    Set(SetAnswer),
    Tags(Vec<ClassAnswer>),
    Value(ValueAnswer),
}

impl Answer {
    /// Reads the answer from a row's logits, (outputs) or (labelled words, outputs). Also returns
    /// the sum of the row's losses, without label smoothing.
    pub fn new(logits: &[f32], label: &Label, labels: &Labels) -> (Self, f64) {
        let (outputs, weights) = (labels.outputs(), labels.weights());
        let class = |(logits, &class): (&[f32], &usize)| {
            let (predicted, confidence) = likeliest(logits);
            ClassAnswer { predicted: predicted as u32, confidence, label: class as u32 }
        };
        let targets = BatchTargets::new(std::slice::from_ref(label), outputs);
        let loss = match targets.targets() {
            Targets::Classes(classes) => loss::cross_entropy(logits, classes, weights, 0.0, 1.0, None),
            Targets::Sets(has) => loss::binary_cross_entropy(logits, has, weights, 1.0, None),
            Targets::Values(values) => loss::squared_error(logits, values, 1.0, None),
        };
        let answer = match label {
            Label::Class(of_row) => Answer::Class(class((logits, of_row))),
            Label::Tags(tags) => Answer::Tags(logits.chunks_exact(outputs).zip(tags).map(class).collect()),
            Label::Set(classes) => Answer::Set(SetAnswer {
                predicted: likely(logits).map(|class| class as u32).collect(),
                labels: classes.iter().map(|&class| class as u32).collect(),
                loss: loss as f32,
            }),
            Label::Value(label) => Answer::Value(ValueAnswer { predicted: logits[0], label: *label }),
        };
        (answer, loss)
    }

    /// Writes the fields that other ranks do not know: all but the label.
    pub fn write_for_ranks(&self, out: &mut Vec<u8>) {
        let class = |out: &mut Vec<u8>, answer: &ClassAnswer| {
            out.extend(answer.predicted.to_le_bytes());
            out.extend(answer.confidence.to_le_bytes());
        };
        match self {
            Answer::Class(answer) => class(out, answer),
            Answer::Tags(answers) => answers.iter().for_each(|answer| class(out, answer)),
            Answer::Set(SetAnswer { predicted, loss, .. }) => {
                out.extend((predicted.len() as u32).to_le_bytes());
                predicted.iter().for_each(|class| out.extend(class.to_le_bytes()));
                out.extend(loss.to_le_bytes());
            }
            Answer::Value(answer) => out.extend(answer.predicted.to_le_bytes()),
        }
    }

    /// Reads what another rank wrote with `write_for_ranks` for a row with this label; None if
    /// it is something else.
    pub fn read_from_rank(label: &Label, from: &mut &[u8]) -> Option<Self> {
        let number = |from: &mut &[u8]| Some(u32::from_le_bytes(take_bytes(from)?));
        let float = |from: &mut &[u8]| Some(f32::from_le_bytes(take_bytes(from)?));
        let class = |from: &mut &[u8], class: usize| {
            Some(ClassAnswer { predicted: number(from)?, confidence: float(from)?, label: class as u32 })
        };
        Some(match label {
            Label::Class(of_row) => Answer::Class(class(from, *of_row)?),
            Label::Tags(tags) => {
                Answer::Tags(tags.iter().map(|&tag| class(from, tag)).collect::<Option<_>>()?)
            }
            Label::Set(classes) => Answer::Set(SetAnswer {
                predicted: (0..number(from)?).map(|_| number(from)).collect::<Option<_>>()?,
                labels: classes.iter().map(|&class| class as u32).collect(),
                loss: float(from)?,
            }),
            Label::Value(label) => Answer::Value(ValueAnswer { predicted: float(from)?, label: *label }),
        })
    }
}

/// Takes the next N bytes of a message; None if it is shorter.
pub fn take_bytes<const N: usize>(message: &mut &[u8]) -> Option<[u8; N]> {
    message.split_off(..N)?.try_into().ok()
}

impl Labels {
    /// The head that these labels need.
    pub fn head(&self) -> Head {
        let kind = if self.of_words() { HeadKind::Token } else { HeadKind::Sequence };
        Head { kind, outputs: self.outputs() }
    }

    /// Description of the labels for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Labels::Classification { .. } => "the labels are classification",
            Labels::MultiLabel { .. } => "rows have several labels",
            Labels::TokenClassification { .. } if self.entities().is_some() => "the labels are entities",
            Labels::TokenClassification { .. } => "the labels are tags of words",
            Labels::Regression => "the labels are a regression",
        }
    }

    /// Value of config.json's problem_type; None for token classification, whose model in
    /// transformers has no other task.
    pub(crate) fn problem_type(&self) -> Option<&'static str> {
        match self {
            Labels::Classification { .. } => Some("single_label_classification"),
            Labels::MultiLabel { .. } => Some(MULTI_LABEL),
            Labels::TokenClassification { .. } => None,
            Labels::Regression => Some("regression"),
        }
    }

    /// How the tags mark entities; None if they mark none, and for other tasks.
    pub(crate) fn entities(&self) -> Option<EntityTags> {
        if self.of_words() { EntityTags::new(self.names()) } else { None }
    }

    /// The task's metrics, the default one first.
    pub fn metrics(&self) -> &'static [Metric] {
        match self {
            Labels::Classification { .. } => &Metric::CLASSIFICATION,
            Labels::MultiLabel { .. } => &Metric::MULTI_LABEL,
            Labels::TokenClassification { .. } if self.entities().is_some() => &Metric::ENTITIES,
            Labels::TokenClassification { .. } => &Metric::TAGS,
            Labels::Regression => &Metric::REGRESSION,
        }
    }

    /// Collects the answers of rows in their order.
    pub(crate) fn answers(&self, rows: impl Iterator<Item = Answer>) -> Answers {
        macro_rules! all {
            ($answer:ident, $answers:ident) => {
                Answers::$answers(
                    rows.filter_map(|row| if let Answer::$answer(row) = row { Some(row) } else { None })
                        .collect(),
                )
            };
        }
        match self {
            Labels::Classification { .. } => all!(Class, Classes),
            Labels::MultiLabel { .. } => all!(Set, Sets),
            Labels::TokenClassification { .. } => all!(Tags, Tags),
            Labels::Regression => all!(Value, Values),
        }
    }

    /// Computes the metrics over the rows with these numbers, the default one first; none for
    /// texts.
    pub(crate) fn measure(&self, answers: &Answers, rows: &[usize]) -> Vec<(Metric, f64)> {
        let (classes, all) = (self.outputs(), rows.iter().copied());
        match answers {
            Answers::Classes(of) => {
                let predicted: Vec<usize> = all.clone().map(|row| of[row].predicted as usize).collect();
                let labels: Vec<usize> = all.map(|row| of[row].label as usize).collect();
                metrics::classification(&predicted, &labels, classes, self.positive_index())
            }
            Answers::Sets(of) => {
                metrics::multi_label(all.map(|row| (&*of[row].predicted, &*of[row].labels)), classes)
            }
            Answers::Tags(of) => {
                let words = || all.clone().flat_map(|row| &of[row]);
                let predicted: Vec<usize> = words().map(|word| word.predicted as usize).collect();
                let labels: Vec<usize> = words().map(|word| word.label as usize).collect();
                let found = metrics::tags(&predicted, &labels, classes);
                match self.entities() {
                    Some(tags) => {
                        let rows = all.map(|row| tags_of(&of[row]));
                        metrics::entities(&tags.count(rows), found[0].1)
                    }
                    None => found,
                }
            }
            Answers::Values(of) => {
                let predicted: Vec<f32> = all.clone().map(|row| of[row].predicted).collect();
                let labels: Vec<f32> = all.map(|row| of[row].label).collect();
                metrics::regression(&predicted, &labels)
            }
            Answers::Losses(_) => Vec::new(),
        }
    }

    /// Counts the entities of all rows by type; empty if the tags mark none.
    pub(crate) fn count_entities(&self, answers: &Answers) -> Vec<EntityCount> {
        match (answers, self.entities()) {
            (Answers::Tags(rows), Some(tags)) => tags.count(rows.iter().map(|row| tags_of(row))),
            _ => Vec::new(),
        }
    }

    /// Reads the prediction from a row's logits, (outputs) or (words with a token, outputs).
    /// `words` are the row's words, and `placed` the indices of those with a token.
    pub(crate) fn prediction(&self, logits: &[f32], words: &[&str], placed: &[usize]) -> Prediction {
        let (task, names) = (self.task(), self.names());
        let mut found = Prediction { task, logits: logits.to_vec(), ..Prediction::default() };
        let scored = |scores: Vec<f32>| names.iter().cloned().zip(scores).collect();
        match self {
            Labels::Regression => found.label = logits[0].to_string(),
            Labels::Classification { .. } => {
                let (index, _) = likeliest(logits);
                (found.label, found.index) = (names[index].clone(), Some(index));
                found.scores = scored(softmax(logits));
            }
            Labels::MultiLabel { .. } => {
                found.labels = likely(logits).map(|class| names[class].clone()).collect();
                found.label = found.labels.join(", ");
                found.scores = scored(logits.iter().map(|&x| sigmoid(x) as f32).collect());
            }
            Labels::TokenClassification { .. } => {
                let word = |word: &&str| TaggedWord { word: word.to_string(), tag: None, score: None };
                found.words = words.iter().map(word).collect();
                let mut tags = Vec::with_capacity(placed.len());
                for (&word, logits) in placed.iter().zip(logits.chunks_exact(names.len())) {
                    let (tag, score) = likeliest(logits);
                    tags.push(tag);
                    (found.words[word].tag, found.words[word].score) =
                        (Some(names[tag].clone()), Some(score));
                }
                if let Some(marks) = self.entities() {
                    let entity = |entity: Entity| {
                        let (first, last) = (placed[entity.words.start], placed[entity.words.end - 1]);
                        (marks.kind(&entity).to_string(), first..last + 1)
                    };
                    found.entities = Some(marks.entities(tags).into_iter().map(entity).collect());
                }
                let tags = found.words.iter().map(|word| word.tag.as_deref().unwrap_or("-"));
                found.label = tags.collect::<Vec<_>>().join(" ");
            }
        }
        found
    }
}

impl Prediction {
    /// Returns the prediction as fields of a JSON object. With `own_words`, the row has the words
    /// itself, and they are left out.
    pub fn fields(&self, own_words: bool) -> Vec<(&'static str, Value)> {
        let scores = || {
            let scores = self.scores.iter().map(|(class, score)| (class.clone(), json!(score)));
            ("scores", Value::Object(scores.collect()))
        };
        let logits = ("logits", json!(self.logits));
        match self.task {
            Task::Classification => vec![("label", json!(self.label)), scores(), logits],
            Task::MultiLabel => vec![("labels", json!(self.labels)), scores(), logits],
            Task::TokenClassification => {
                let each = |field: fn(&TaggedWord) -> Value| self.words.iter().map(field).collect::<Value>();
                let words = ("words", each(|word| json!(word.word)));
                let tags = ("tags", each(|word| json!(word.tag)));
                let scores = ("scores", each(|word| json!(word.score)));
                let outputs =
                    self.logits.len() / self.words.iter().filter(|w| w.tag.is_some()).count().max(1);
                let mut of_words = self.logits.chunks(outputs.max(1));
                let logits = self.words.iter().map(|w| json!(w.tag.as_ref().and_then(|_| of_words.next())));
                let logits = ("logits", logits.collect::<Value>());
                let entity = |(kind, words): &(String, Range<usize>)| {
                    let text: Vec<&str> = self.words[words.clone()].iter().map(|w| w.word.as_str()).collect();
                    json!({"type": kind, "start": words.start, "end": words.end, "text": text.join(" ")})
                };
                let entities = self.entities.iter();
                let entities = entities.map(|all| ("entities", all.iter().map(entity).collect::<Value>()));
                let own = (!own_words).then_some(words);
                own.into_iter().chain([tags, scores]).chain(entities).chain([logits]).collect()
            }
            Task::Regression | Task::Text => vec![("value", json!(self.logits.first())), logits],
        }
    }
}

/// Value of config.json's problem_type for rows that may have several classes.
pub(crate) const MULTI_LABEL: &str = "multi_label_classification";

/// The true and the predicted tags of a row.
pub(crate) fn tags_of(row: &[ClassAnswer]) -> (Vec<usize>, Vec<usize>) {
    row.iter().map(|word| (word.label as usize, word.predicted as usize)).unzip()
}

/// Returns the most likely class of a row's logits, the first in a tie, and its probability.
fn likeliest(logits: &[f32]) -> (usize, f32) {
    let class = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    let top = f64::from(logits[class]);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    (class, (1.0 / sum) as f32)
}

/// The classes with a probability of at least 0.5.
fn likely(logits: &[f32]) -> impl Iterator<Item = usize> {
    (0..logits.len()).filter(|&class| sigmoid(logits[class]) >= 0.5)
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let weights: Vec<f64> = logits.iter().map(|&x| (x as f64 - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Classes;

    fn labels(task: &str, names: &Value) -> Labels {
        let names = serde_json::from_value(names.clone()).unwrap();
        let classes = Classes::new(names);
        match task {
            "multi-label" => Labels::MultiLabel { classes, indicators: false },
            _ => Labels::TokenClassification { classes },
        }
    }

    /// Answers of rows, given as their true and their predicted classes.
    fn answers(labels: &Labels, rows: &[(Vec<usize>, Vec<usize>)]) -> Answers {
        let outputs = labels.outputs();
        let answer = |(truth, predicted): &(Vec<usize>, Vec<usize>)| {
            let (label, logits): (_, Vec<f32>) = if labels.of_words() {
                let one = |&class: &usize| (0..outputs).map(move |i| f32::from(u8::from(i == class)));
                (Label::Tags(truth.clone()), predicted.iter().flat_map(one).collect())
            } else {
                let one = |class: usize| if predicted.contains(&class) { 1.5 } else { -0.5 };
                (Label::Set(truth.clone()), (0..outputs).map(one).collect())
            };
            Answer::new(&logits, &label, labels).0
        };
        labels.answers(rows.iter().map(answer))
    }

    /// Expected: scikit-learn's and seqeval's, written by tools/golden/label_metrics.py.
    #[test]
    fn metrics_are_scikit_learns_and_seqevals() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/label_metrics.json");
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut count = 0;
        for (task, cases) in golden.as_object().unwrap() {
            for case in cases.as_array().unwrap() {
                let labels = labels(task, &case["names"]);
                let rows =
                    |part: &str| serde_json::from_value::<Vec<Vec<usize>>>(case[part].clone()).unwrap();
                let rows: Vec<_> = rows("labels").into_iter().zip(rows("predicted")).collect();
                let found = labels.measure(&answers(&labels, &rows), &(0..rows.len()).collect::<Vec<_>>());
                assert_eq!(found.iter().map(|(metric, _)| *metric).collect::<Vec<_>>(), labels.metrics());
                for (metric, found) in found {
                    let expected = case["metrics"][metric.name()].as_f64().unwrap();
                    assert!(
                        (found - expected).abs() < 1e-12,
                        "{task} {metric}: {found}, expected {expected}"
                    );
                    count += 1;
                }
            }
        }
        assert!(count > 40);
    }

    #[test]
    fn ranks_exchange_answers_without_labels() {
        let names = json!(["O", "B-A", "I-A"]);
        let cases = [
            (labels("multi-label", &names), Label::Set(vec![0, 2]), vec![1.0, -1.0, 0.25]),
            (labels("token", &names), Label::Tags(vec![1, 2]), vec![0.5, 2.0, 0.0, 0.0, 1.0, 3.0]),
            (Labels::classes(vec!["a".into(), "b".into()]), Label::Class(1), vec![0.5, 2.0]),
            (Labels::Regression, Label::Value(0.5), vec![2.0]),
        ];
        for (labels, label, logits) in cases {
            let (answer, loss) = Answer::new(&logits, &label, &labels);
            let mut bytes = Vec::new();
            answer.write_for_ranks(&mut bytes);
            assert_eq!(Answer::read_from_rank(&label, &mut &bytes[..]), Some(answer));
            assert_eq!(Answer::read_from_rank(&label, &mut &bytes[..bytes.len() - 1]), None);
            assert!(loss > 0.0);
        }
    }

    #[test]
    fn words_without_a_token_have_no_tag() {
        let labels = labels("token", &json!(["O", "B-A", "I-A"]));
        let found = labels.prediction(&[0.0, 2.0, 0.0, 0.0, 0.0, 3.0], &["a", "", "b"], &[0, 2]);
        let fields: serde_json::Map<_, _> =
            found.fields(false).into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        assert_eq!(fields["words"], json!(["a", "", "b"]));
        assert_eq!(fields["tags"], json!(["B-A", null, "I-A"]));
        assert_eq!(fields["logits"], json!([[0.0, 2.0, 0.0], null, [0.0, 0.0, 3.0]]));
        assert_eq!(fields["entities"], json!([{ "type": "A", "start": 0, "end": 3, "text": "a  b" }]));
    }
}
