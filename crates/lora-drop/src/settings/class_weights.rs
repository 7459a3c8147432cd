//! The weights of classes in the loss.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lora_drop_transformer::json;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Task;
use crate::data;
use crate::data::error::list;
use crate::files::read_if_there;
use crate::summary::SplitFacts;

/// How classes are weighted in the loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassWeights {
    /// By their counts in train: n / (k · count) for k classes that occur and n rows or words. For
    /// rows of several classes: rows without the class / rows with it. 1 for a class that no row
    /// has, or every one of several.
    Balanced,
    /// A JSON file: an object with a weight for each name.
    File(PathBuf),
}

const BALANCED: &str = "balanced";

impl ClassWeights {
    /// The weights of the classes with these `names`, in their order; `train` counts them.
    ///
    /// # Errors
    /// `Error::Options` for a regression; the file cannot be read, lacks a name or has another one, or
    /// a weight is not a number above 0.
    pub(crate) fn of(
        &self,
        task: Task,
        names: &[String],
        train: &SplitFacts,
    ) -> Result<Vec<f64>, data::Error> {
        if names.is_empty() {
            return Err(data::Error::Options("`class_weights`: a regression has no classes".into()));
        }
        let path = match self {
            ClassWeights::Balanced => return Ok(balanced(task, train)),
            ClassWeights::File(path) => path,
        };
        let bytes = read_if_there(path).map_err(|e| data::Error::io(path, e))?;
        let bytes = bytes.ok_or_else(|| {
            let problem = "there is no such file; `class_weights` is balanced or a JSON file";
            data::Error::file(path, problem)
        })?;
        let refuse = |problem: String| data::Error::file(path, problem);
        let form = "expected an object with a weight for each class, such as {\"a\": 1, \"b\": 2.5}";
        let weights: BTreeMap<String, f64> =
            json::from_slice(&bytes).map_err(|e| refuse(format!("{e}; {form}")))?;
        if let Some(other) = weights.keys().find(|name| !names.contains(name)) {
            let known = list(names);
            return Err(refuse(format!("{other:?} is not one of the classes: {known}")));
        }
        let weight = |name: &String| match weights.get(name) {
            Some(&weight) if weight > 0.0 && weight.is_finite() => Ok(weight),
            Some(weight) => Err(refuse(format!("the weight of {name:?} is {weight}, expected more than 0"))),
            None => Err(refuse(format!("the class {name:?} has no weight; {form}"))),
        };
        names.iter().map(weight).collect()
    }
}

fn balanced(task: Task, train: &SplitFacts) -> Vec<f64> {
    let counts = &train.per_class;
    let present = counts.iter().filter(|&&count| count > 0).count() as f64;
    let all = counts.iter().sum::<usize>() as f64;
    let weight = |&count: &usize| match (count, task) {
        (0, _) => 1.0,
        (count, Task::MultiLabel) if count == train.rows => 1.0,
        (count, Task::MultiLabel) => (train.rows - count) as f64 / count as f64,
        (count, _) => all / (present * count as f64),
    };
    counts.iter().map(weight).collect()
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            ClassWeights::Balanced => out.serialize_str(BALANCED),
            ClassWeights::File(path) => path.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        Ok(if text == BALANCED { ClassWeights::Balanced } else { ClassWeights::File(text.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: `compute_class_weight("balanced", ...)` of scikit-learn on 3, 1 and 2 rows.
    #[test]
    fn balanced_weights_are_scikit_learns() {
        let facts = |per_class: &[usize], rows| SplitFacts {
            per_class: per_class.to_vec(),
            rows,
            ..SplitFacts::default()
        };
        let of = |task, facts| balanced(task, &facts);
        let found = of(Task::Classification, facts(&[3, 1, 2], 6));
        assert_eq!(found, [6.0 / 9.0, 2.0, 1.0]);
        // Words are counted, and a class that does not occur takes no part.
        assert_eq!(of(Task::TokenClassification, facts(&[3, 0, 1], 2)), [4.0 / 6.0, 1.0, 2.0]);
        assert_eq!(of(Task::MultiLabel, facts(&[1, 8, 0], 8)), [7.0, 1.0, 1.0]);
    }
}
