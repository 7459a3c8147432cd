//! A model's predictions for the rows that it was measured on: counts by class, and the rows that
//! are worth a look.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::{TaskData, Tokens};
use crate::events::OnlyClass;

/// What a model predicted for each row, in the rows' order; a few bytes per row, whatever the
/// number of classes.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    Classes(Vec<ClassAnswer>),
    /// For rows that may have several classes.
    Sets(Vec<SetAnswer>),
    /// For each labelled word of a row.
    Tags(Vec<Vec<ClassAnswer>>),
    Values(Vec<ValueAnswer>),
    /// For texts: the mean loss of each text's learned tokens.
    Losses(Vec<f32>),
}

/// The predicted and the true class of a row, by index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassAnswer {
    /// Index of the likeliest class.
    pub predicted: u32,
    /// Its probability, from 0 to 1.
    pub confidence: f32,
    /// Index of the row's class.
    pub label: u32,
}

impl ClassAnswer {
    fn is_wrong(&self) -> bool {
        self.predicted != self.label
    }
}

/// The predicted and the true classes of a row, by index, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetAnswer {
    /// Classes with a probability of at least 0.5.
    pub predicted: Box<[u32]>,
    pub labels: Box<[u32]>,
    /// The loss of the row.
    pub loss: f32,
}

/// The predicted and the true value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueAnswer {
    pub predicted: f32,
    pub label: f32,
}

/// Rows or words counted by class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassCounts {
    /// Classes that a row has or that the model predicts, the most frequent first, then by index.
    pub classes: Vec<ClassCount>,
    /// Number of rows by (true class, predicted class), without pairs that never occur. Empty if
    /// rows may have several classes.
    #[serde(with = "pairs")]
    pub pairs: BTreeMap<(u32, u32), usize>,
}

/// Serialises pairs as a list, because JSON keys are strings.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    type Pairs = BTreeMap<(u32, u32), usize>;

    pub fn serialize<S: Serializer>(pairs: &Pairs, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(pairs)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Pairs, D::Error> {
        Ok(Vec::deserialize(input)?.into_iter().collect())
    }
}

/// Counts of the rows of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Index of the class.
    pub class: u32,
    /// Rows that have it.
    pub labelled: usize,
    /// Rows for which it is predicted.
    pub predicted: usize,
    /// Rows that have it and for which it is predicted.
    pub correct: usize,
}

impl ClassCount {
    /// correct / predicted; 0 if it is never predicted.
    pub fn precision(&self) -> f64 {
        share(self.correct, self.predicted)
    }

    /// correct / labelled; 0 if no row has it.
    pub fn recall(&self) -> f64 {
        share(self.correct, self.labelled)
    }

    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        share(2 * self.correct, self.labelled + self.predicted)
    }
}

fn share(of: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { of as f64 / all as f64 }
}

impl Answers {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Answers::Classes(rows) => rows.len(),
            Answers::Sets(rows) => rows.len(),
            Answers::Tags(rows) => rows.len(),
            Answers::Values(rows) => rows.len(),
            Answers::Losses(rows) => rows.len(),
        }
    }

    /// Returns the answers of rows or words that have exactly one class; `None` for other answers.
    fn single(&self) -> Option<impl Iterator<Item = &ClassAnswer>> {
        let (rows, words): (&[_], &[_]) = match self {
            Answers::Classes(rows) => (rows, &[]),
            Answers::Tags(rows) => (&[], rows),
            Answers::Sets(_) | Answers::Values(_) | Answers::Losses(_) => return None,
        };
        Some(rows.iter().chain(words.iter().flatten()))
    }

    /// Counts the answers by class; `None` if rows have no classes.
    pub fn by_class(&self) -> Option<ClassCounts> {
        let mut classes: BTreeMap<u32, ClassCount> = BTreeMap::new();
        let mut add = |class, labelled, predicted, correct| {
            let found = classes.entry(class).or_insert(ClassCount { class, ..ClassCount::default() });
            found.labelled += labelled;
            found.predicted += predicted;
            found.correct += correct;
        };
        let mut pairs: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        if let Answers::Sets(rows) = self {
            for SetAnswer { predicted, labels, .. } in rows {
                labels.iter().for_each(|&class| add(class, 1, 0, usize::from(predicted.contains(&class))));
                predicted.iter().for_each(|&class| add(class, 0, 1, 0));
            }
        } else {
            for answer in self.single()? {
                *pairs.entry((answer.label, answer.predicted)).or_default() += 1;
            }
        }
        for (&(label, predicted), &count) in &pairs {
            add(label, count, 0, if label == predicted { count } else { 0 });
            add(predicted, 0, count, 0);
        }
        let mut classes: Vec<ClassCount> = classes.into_values().collect();
        classes.sort_by_key(|count| (std::cmp::Reverse(count.labelled), count.class));
        Some(ClassCounts { classes, pairs })
    }

    /// Returns the class that is predicted for every row or word although not all have it; `names`
    /// are those of all classes, by index.
    pub fn only_class(&self, names: &[String]) -> Option<OnlyClass> {
        let first = self.single()?.next()?;
        let rows = self.single()?.count();
        let correct = self.single()?.filter(|row| row.label == first.predicted).count();
        let is_only = self.single()?.all(|row| row.predicted == first.predicted) && correct < rows;
        let name = names.get(first.predicted as usize).filter(|_| is_only)?;
        let words = matches!(self, Answers::Tags(_));
        Some(OnlyClass { name: name.clone(), share: share(correct, rows), words })
    }

    /// Returns the indices of at most `most` rows that say most about the model: the wrong ones
    /// with the highest confidence, those with most wrong words, the values with the largest error,
    /// or those with the highest loss.
    fn worst(&self, most: usize) -> Vec<usize> {
        let mut rows: Vec<(f32, usize)> = match self {
            Answers::Classes(rows) => {
                let wrong = rows.iter().enumerate().filter(|(_, row)| row.predicted != row.label);
                wrong.map(|(number, row)| (row.confidence, number)).collect()
            }
            Answers::Sets(rows) => {
                let wrong = rows.iter().enumerate().filter(|(_, row)| row.predicted != row.labels);
                wrong.map(|(number, row)| (row.loss, number)).collect()
            }
            Answers::Tags(rows) => {
                let wrong = |row: &Vec<ClassAnswer>| row.iter().filter(|word| word.is_wrong()).count() as f32;
                let rows = rows.iter().enumerate().map(|(number, row)| (wrong(row), number));
                rows.filter(|(wrong, _)| *wrong > 0.0).collect()
            }
            Answers::Values(rows) => {
                let off = |row: &ValueAnswer| (row.predicted - row.label).abs();
                rows.iter().enumerate().map(|(number, row)| (off(row), number)).collect()
            }
            Answers::Losses(losses) => {
                losses.iter().enumerate().map(|(number, &loss)| (loss, number)).collect()
            }
        };
        rows.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        rows.into_iter().take(most).map(|(_, number)| number).collect()
    }
}

/// A row of dev with the model's prediction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExampleRow {
    /// File and line.
    pub place: String,
    /// The text, or both of a pair; for a text to learn, what the model reads and what it should
    /// write. Decoded from tokens, so without what truncation and the tokenizer removed.
    pub texts: Vec<String>,
    pub outcome: Outcome,
}

/// The prediction for a row, next to the truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Class names, and the probability of the predicted class.
    Class { label: String, predicted: String, confidence: f64 },
    /// Names of the classes.
    Set { labels: Vec<String>, predicted: Vec<String> },
    /// The wrong words of a row with this number of words.
    Tags { wrong: Vec<WrongTag>, words: usize },
    /// Values of a regression.
    Value { label: f64, predicted: f64 },
    /// The mean loss of the learned tokens.
    Loss(f64),
}

/// A word with a wrong tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongTag {
    /// The word, decoded from its tokens.
    pub word: String,
    pub label: String,
    pub predicted: String,
}

/// Returns at most `most` rows of dev that show most about the model: wrong ones with the highest
/// confidence, values with the largest error, or texts with the highest loss.
///
/// # Errors
/// The tokenizer fails.
pub fn examples(data: &TaskData, answers: &Answers, tokens: &Tokens, most: usize) -> Result<Vec<ExampleRow>> {
    let row = |number: usize| -> Result<ExampleRow> {
        Ok(match data {
            TaskData::Labelled(data) => {
                let example = &data.dev.examples[number];
                let texts = tokens.texts(&example.ids)?;
                let place = data.dev.place(example).to_string();
                let word = |word: usize| {
                    let start = example.labelled[word] as usize;
                    let end = example.labelled.get(word + 1).map_or(example.ids.len(), |&end| end as usize);
                    Ok(tokens.decode(&example.ids[start..end])?.trim().to_string())
                };
                ExampleRow { place, texts, outcome: outcome(answers, number, data.labels.names(), word)? }
            }
            TaskData::Text(data) => {
                let example = &data.dev.examples[number];
                // A text that is learned whole has one token before its targets, which is not a
                // prompt.
                let prompt = if example.prompt() > 1 { example.prompt() } else { 0 };
                let parts = <[_; 2]>::from(example.ids.split_at(prompt)).into_iter();
                let texts = parts
                    .filter(|part| !part.is_empty())
                    .map(|ids| tokens.decode_all(ids))
                    .collect::<std::result::Result<_, _>>()?;
                let place = data.dev.place(example).to_string();
                ExampleRow { place, texts, outcome: outcome(answers, number, &[], |_| Ok(String::new()))? }
            }
        })
    };
    answers.worst(most).into_iter().map(row).collect()
}

fn outcome(
    answers: &Answers,
    number: usize,
    names: &[String],
    word: impl Fn(usize) -> Result<String>,
) -> Result<Outcome> {
    let name = |class: u32| names.get(class as usize).cloned().unwrap_or_default();
    Ok(match answers {
        Answers::Classes(rows) => {
            let ClassAnswer { predicted, confidence, label } = rows[number];
            Outcome::Class { label: name(label), predicted: name(predicted), confidence: confidence.into() }
        }
        Answers::Sets(rows) => {
            let SetAnswer { predicted, labels, .. } = &rows[number];
            let [labels, predicted] =
                [labels, predicted].map(|classes| classes.iter().map(|&class| name(class)).collect());
            Outcome::Set { labels, predicted }
        }
        Answers::Tags(rows) => {
            let wrong = rows[number].iter().enumerate().filter(|(_, answer)| answer.is_wrong());
            let wrong = wrong.map(|(place, answer)| {
                let (label, predicted) = (name(answer.label), name(answer.predicted));
                Ok(WrongTag { word: word(place)?, label, predicted })
            });
            Outcome::Tags { wrong: wrong.collect::<Result<_>>()?, words: rows[number].len() }
        }
        Answers::Values(rows) => {
            Outcome::Value { label: rows[number].label.into(), predicted: rows[number].predicted.into() }
        }
        Answers::Losses(losses) => Outcome::Loss(losses[number].into()),
    })
}

/// A text that a decoder generated for a row of dev.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextSample {
    /// File and line.
    pub place: String,
    pub prompt: String,
    /// Text that follows the prompt in the row.
    pub reference: String,
    /// The generated text, up to the limit of new tokens.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(rows: &[(u32, u32)]) -> Answers {
        let row = |(n, &(label, predicted)): (usize, &(u32, u32))| ClassAnswer {
            predicted,
            confidence: 0.5 + 0.1 * n as f32,
            label,
        };
        Answers::Classes(rows.iter().enumerate().map(row).collect())
    }

    /// Expected: precision_recall_fscore_support of scikit-learn on the same lists.
    #[test]
    fn counts_by_class() {
        let found = classes(&[(2, 2), (2, 7), (2, 2), (0, 0), (0, 2), (7, 7)]).by_class().unwrap();
        let numbers = |c: &ClassCount| (c.class, c.labelled, c.precision(), c.recall(), c.f1());
        let third = 2.0 / 3.0;
        assert_eq!(
            found.classes.iter().map(numbers).collect::<Vec<_>>(),
            [(2, 3, third, third, third), (0, 2, 1.0, 0.5, third), (7, 1, 0.5, 1.0, third)]
        );
        assert_eq!(found.pairs.len(), 5);
        assert_eq!(found.pairs[&(2, 7)], 1);
        // A class that is predicted but never right has numbers too.
        let never = classes(&[(0, 1)]).by_class().unwrap().classes[1];
        assert_eq!((never.class, never.precision(), never.recall(), never.f1()), (1, 0.0, 0.0, 0.0));
        assert_eq!(Answers::Losses(vec![1.0]).by_class(), None);
    }

    #[test]
    fn one_class_for_all_rows_is_found() {
        let names = ["a", "b", "c"].map(String::from);
        let only = |rows: &[(u32, u32)]| classes(rows).only_class(&names);
        let found = only(&[(0, 1), (1, 1), (1, 1), (2, 1)]).unwrap();
        assert_eq!((found.name.as_str(), found.share), ("b", 0.5));
        assert_eq!(found.to_string(), "every row is predicted as \"b\", which 50.0 % of them are");
        assert_eq!(only(&[(0, 1), (1, 0)]), None);
        // Rows that all have the class are right.
        assert_eq!(only(&[(1, 1), (1, 1)]), None);
        assert_eq!(only(&[]), None);
        assert_eq!(Answers::Losses(vec![1.0]).only_class(&names), None);
    }

    #[test]
    fn the_worst_rows_come_first() {
        assert_eq!(classes(&[(0, 1), (1, 1), (1, 0), (0, 1)]).worst(2), [3, 2]);
        let value = |predicted: f32| ValueAnswer { predicted, label: 1.0 };
        assert_eq!(Answers::Values(vec![value(1.5), value(-2.0), value(3.0)]).worst(9), [1, 2, 0]);
        assert_eq!(Answers::Losses(vec![0.5, 2.0, 0.5]).worst(2), [1, 0]);
    }
}
