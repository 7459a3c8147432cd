//! importance.json: the scores of all modules, how they were made, and the modules kept by them.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_transformer::{ModuleId, ModuleKind};
use serde::{Deserialize, Serialize};

use super::{BudgetCurve, Criterion, Importance, ModuleScore, Window};
use crate::assignment::{Assignment, Owner, Rest};
use crate::settings::{Scope, Selection, SelectionSettings, Unselected};
use crate::{Error, Result};

/// A scoring, and the choice based on it: the contents of importance.json.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The criterion's name.
    pub criterion: String,
    /// The scores.
    pub importance: Importance,
    /// The assignment that was chosen.
    pub assignment: Assignment,
    /// Which modules were ranked together.
    pub scope: Scope,
    /// The rule by which modules were kept.
    pub selection: Selection,
    /// Treatment of the modules that were not kept.
    pub rest: Rest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    criterion: String,
    scope: Scope,
    selection: Choice,
    unselected: Unselected,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shared_rank: Option<usize>,
    sample: Sample,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    curve: Option<BudgetCurve>,
    modules: Vec<Line>,
    kept: BTreeMap<String, Vec<usize>>,
}

/// The selection, serialised as `{"threshold": 0.9}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Choice {
    Threshold(f64),
    TopK(usize),
    Budget(f64),
    /// The budget that was found: `{"auto": 0.375}`.
    Auto(f64),
    Layers(Vec<usize>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    rows: usize,
    tokens: usize,
    #[serde(default)]
    micro_tokens: usize,
    steps: usize,
    settled: bool,
    #[serde(default)]
    window: Window,
    history: Vec<Scoring>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scoring {
    step: usize,
    tau: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    layer: usize,
    module: String,
    score: f64,
    importance: f64,
    kept: bool,
}

impl Record {
    /// Records the scores by a criterion, and the choice based on them with these settings.
    pub fn new(
        selection: &SelectionSettings,
        criterion: &dyn Criterion,
        importance: Importance,
        assignment: Assignment,
    ) -> Self {
        Record {
            criterion: criterion.name().to_string(),
            importance,
            assignment,
            scope: selection.scope,
            selection: selection.rule(),
            rest: selection.rest(),
        }
    }

    /// Converts to a JSON document. `name` returns the architecture's name of a module type.
    pub fn to_json(&self, name: impl Fn(ModuleKind) -> String) -> serde_json::Value {
        let i = &self.importance;
        let document = Document {
            criterion: self.criterion.clone(),
            scope: self.scope,
            selection: match &self.selection {
                Selection::Threshold(t) => Choice::Threshold(*t),
                Selection::TopK(k) => Choice::TopK(*k),
                Selection::Budget(f) => Choice::Budget(*f),
                Selection::Auto => Choice::Auto(i.curve.as_ref().map_or(1.0, |curve| curve.kept)),
                Selection::Layers(layers) => Choice::Layers(layers.clone()),
            },
            unselected: self.rest.unselected,
            shared_rank: self.rest.shared_rank,
            sample: Sample {
                rows: i.rows,
                tokens: i.tokens,
                micro_tokens: i.micro_tokens,
                steps: i.steps,
                settled: i.settled,
                window: i.window,
                history: i.history.iter().map(|&(step, tau)| Scoring { step, tau }).collect(),
            },
            curve: i.curve.clone(),
            modules: i
                .modules
                .iter()
                .map(|m| Line {
                    layer: m.layer,
                    module: name(m.kind),
                    score: m.score,
                    importance: m.importance,
                    kept: self.assignment.owners.get(&ModuleId { layer: m.layer, kind: m.kind })
                        == Some(&Owner::Own),
                })
                .collect(),
            kept: self.assignment.kept().into_iter().map(|(kind, layers)| (name(kind), layers)).collect(),
        };
        // All keys are strings and all serialisation is derived, so nothing can fail.
        serde_json::to_value(document).unwrap_or_default()
    }

    /// Reads a document; `name` as in [`Record::to_json`].
    ///
    /// # Errors
    /// `Error::Input` if a key is missing or unknown, a module has a name that `name` does not
    /// return, or `kept` contradicts the modules.
    pub fn from_json(document: &serde_json::Value, name: impl Fn(ModuleKind) -> String) -> Result<Self> {
        let document =
            Document::deserialize(document).map_err(|e| Error::Input(format!("importance.json: {e}")))?;
        let rest = Rest { unselected: document.unselected, shared_rank: document.shared_rank };
        let mut modules = Vec::new();
        let (mut known, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for line in document.modules {
            let Some(kind) = ModuleKind::ALL.into_iter().find(|kind| name(*kind) == line.module) else {
                let names: Vec<String> = ModuleKind::ALL.into_iter().map(&name).collect();
                return Err(Error::Input(format!(
                    "importance.json: there is no module type {:?} in this model, only {}",
                    line.module,
                    names.join(", ")
                )));
            };
            let id = ModuleId { layer: line.layer, kind };
            kept.extend(line.kept.then_some(id));
            if !known.insert(id) {
                return Err(Error::Input(format!(
                    "importance.json: layer {} {} occurs twice",
                    line.layer, line.module
                )));
            }
            modules.push(ModuleScore {
                layer: line.layer,
                kind,
                score: line.score,
                importance: line.importance,
            });
        }
        modules.sort_by_key(|m| (m.kind, m.layer));
        let assignment = Assignment::keeping(&kept, known, rest);
        let kept: BTreeMap<String, Vec<usize>> =
            assignment.kept().into_iter().map(|(kind, layers)| (name(kind), layers)).collect();
        if kept != document.kept {
            return Err(Error::Input(
                "importance.json: \"kept\" names other layers than the modules with \"kept\": true"
                    .to_string(),
            ));
        }
        Ok(Record {
            criterion: document.criterion,
            importance: Importance {
                modules,
                rows: document.sample.rows,
                tokens: document.sample.tokens,
                micro_tokens: document.sample.micro_tokens,
                steps: document.sample.steps,
                settled: document.sample.settled,
                window: document.sample.window,
                history: document.sample.history.into_iter().map(|s| (s.step, s.tau)).collect(),
                curve: document.curve,
            },
            assignment,
            scope: document.scope,
            selection: match document.selection {
                Choice::Threshold(t) => Selection::Threshold(t),
                Choice::TopK(k) => Selection::TopK(k),
                Choice::Budget(f) => Selection::Budget(f),
                Choice::Auto(_) => Selection::Auto,
                Choice::Layers(layers) => Selection::Layers(layers),
            },
            rest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::assign;
    use crate::score::BudgetPoint;

    fn name(kind: ModuleKind) -> String {
        format!("the.{}", kind.name())
    }

    fn record() -> Record {
        let scores = (0..4)
            .flat_map(|layer| {
                [(ModuleKind::Query, layer as f64 + 0.3), (ModuleKind::Value, 1.0 / (layer as f64 + 1.0))]
                    .map(|(kind, g)| (ModuleId { layer, kind }, g))
            })
            .collect();
        let (scope, selection) = (Scope::Module, Selection::Threshold(0.7));
        let rest = Rest { unselected: Unselected::Share, shared_rank: Some(12) };
        let importance = Importance {
            rows: 366,
            tokens: 20_001,
            micro_tokens: 512,
            steps: 60,
            settled: true,
            window: Window { steps: 20, rows: 640, tokens: 35_011 },
            history: vec![(20, 0.5), (40, 0.9375), (60, 1.0)],
            ..Importance::from_scores(&scores, scope)
        };
        let assignment =
            assign(&importance, selection.clone(), scope, rest, |_| 1.into()).expect("valid scores");
        let criterion = "output".to_string();
        Record { criterion, importance, assignment, scope, selection, rest }
    }

    #[test]
    fn a_record_is_read_back_from_its_json() {
        for selection in [
            Selection::Threshold(0.7),
            Selection::TopK(2),
            Selection::Budget(0.5),
            Selection::Auto,
            Selection::Layers(vec![1, 3]),
        ] {
            let mut record = Record { selection, ..record() };
            let point = BudgetPoint { budget: 0.75, parameters: 6, share: 0.75, loss: 0.5 };
            record.importance.curve = (record.selection == Selection::Auto).then(|| BudgetCurve {
                rows: 40,
                loss: 0.5,
                tolerance: 0.125,
                without: 0.75,
                points: vec![point],
                kept: 0.75,
            });
            let text = record.to_json(name).to_string();
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(Record::from_json(&value, name).expect("readable"), record);
        }
    }

    #[test]
    fn the_document_has_the_documented_keys() {
        let value = record().to_json(name);
        assert_eq!(value["criterion"], "output");
        assert_eq!(value["scope"], "module");
        assert_eq!(value["selection"], serde_json::json!({"threshold": 0.7}));
        assert_eq!((&value["unselected"], &value["shared_rank"]), (&"share".into(), &12.into()));
        assert_eq!(value["sample"]["history"][1]["step"], 40);
        assert_eq!(
            value["sample"]["window"],
            serde_json::json!({"steps": 20, "rows": 640, "tokens": 35_011})
        );
        assert_eq!(value["kept"]["the.query"], serde_json::json!([2, 3]));
        let first = &value["modules"][0];
        assert_eq!(
            (&first["layer"], &first["module"], &first["kept"]),
            (&0.into(), &"the.query".into(), &false.into())
        );
    }

    #[test]
    fn a_wrong_document_is_an_error_that_says_what() {
        let refuse = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
            let mut value = record().to_json(name);
            change(&mut value);
            let message = Record::from_json(&value, name).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        };
        refuse(&|v| v["modules"][0]["module"] = "the.moon".into(), "\"the.moon\"");
        refuse(&|v| v["modules"][1]["layer"] = 0.into(), "layer 0 the.query occurs twice");
        refuse(&|v| v["modules"][0]["kept"] = true.into(), "\"kept\" names other layers");
        refuse(&|v| v["sample"]["tokens"] = (-1).into(), "-1");
        refuse(&|v| v["surprise"] = 1.into(), "surprise");
    }
}
