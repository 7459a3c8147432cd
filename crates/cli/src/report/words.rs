//! Names and phrases that the terminal and the pages share.

use std::collections::BTreeMap;

use toml::Value;

use lora_drop::adapter::added_values;
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::format::{counted, fixed, grouped, layers, percent};
use lora_drop::run_record::ModuleNames;
use lora_drop::score::BudgetCurve;
use lora_drop::settings::Method;
use lora_drop::summary::{BaselineKind, DataFacts, SplitFacts, Summary};
use lora_drop_transformer::{AdapterMethod, ModuleKind};

/// A method's name in running text.
pub fn method_name(method: &str) -> &str {
    Method::from_name(method).map_or(method, |method| method.title())
}

/// The name in running text of the adapters that a method trains.
pub fn adapter_name(method: &str) -> &'static str {
    adapter(method).title()
}

/// What a method's parameters are compared with: plain LoRA's, or those of its own adapters where
/// these add to plain LoRA's.
pub fn plain_name(method: &str) -> &'static str {
    let adapter = adapter(method);
    if added_values(adapter, 1) > 0 { adapter.title() } else { AdapterMethod::Lora.title() }
}

fn adapter(method: &str) -> AdapterMethod {
    Method::from_name(method).and_then(Method::adapter).unwrap_or_default()
}

/// The architecture's name of a module type, or its part in the block where the map has none.
pub fn module_name(names: &ModuleNames, kind: ModuleKind) -> &str {
    names.get(&kind).map_or(kind.name(), String::as_str)
}

/// A metric's name in running text.
pub fn metric_name(metric: &str) -> &str {
    match metric {
        "accuracy" => "Accuracy",
        "f1" => "F1",
        "mcc" => "Matthews correlation",
        "precision" => "Precision",
        "recall" => "Recall",
        "micro_f1" => "Micro F1",
        "macro_f1" => "Macro F1",
        "subset_accuracy" => "Subset accuracy",
        "pearson" => "Pearson correlation",
        "spearman" => "Spearman correlation",
        "perplexity" => "Perplexity",
        other => other,
    }
}

/// A metric's name, with the class whose F1 it is.
pub fn metric_title(metric: &str, positive: Option<&str>) -> String {
    match positive.filter(|_| metric == "f1") {
        Some(class) => format!("F1 ({class})"),
        None => metric_name(metric).to_string(),
    }
}

/// A summary's metrics, the deciding one first, then by name.
pub fn metrics_in_order(summary: &Summary) -> Vec<(&str, f64)> {
    let mut all: Vec<(&str, f64)> = summary.metrics.iter().map(|(name, &v)| (name.as_str(), v)).collect();
    all.sort_by_key(|(name, _)| *name != summary.metric);
    all
}

/// What gives a baseline's value on dev.
pub fn baseline_name(kind: BaselineKind) -> &'static str {
    match kind {
        BaselineKind::CommonestClass => "the most frequent class alone",
        BaselineKind::Mean => "the mean of the training labels alone",
        BaselineKind::Untrained => "the model before training",
    }
}

/// Least, mean and greatest of a regression's labels.
pub fn label_range((least, mean, greatest): (f64, f64, f64)) -> String {
    format!("{} to {}, mean {}", fixed(least, 2), fixed(greatest, 2), fixed(mean, 2))
}

/// The weights of the classes in the loss; None if they have none.
pub fn class_weights(data: &DataFacts) -> Option<String> {
    const SHOWN: usize = 20;
    let weight = |(name, weight): (&String, &f64)| format!("{name} {}", fixed(*weight, 3));
    let shown = std::iter::zip(&data.classes, &data.class_weights).take(SHOWN).map(weight);
    let more = if data.class_weights.len() > SHOWN { ", ..." } else { "" };
    let shown = shown.collect::<Vec<_>>().join(", ");
    (!shown.is_empty()).then(|| format!("{shown}{more}"))
}

/// The rows or words of each of a split's first `most` classes, then how many classes there are besides.
pub fn class_shares(split: &SplitFacts, classes: &[String], most: usize) -> Vec<String> {
    let all = if split.words > 0 { split.words } else { split.rows };
    let share = |(name, &rows): (&String, &usize)| {
        format!("{name} {} ({})", grouped(rows), percent(rows as f64 / all as f64))
    };
    let mut shares: Vec<String> = std::iter::zip(classes, &split.per_class).take(most).map(share).collect();
    if classes.len() > most {
        shares.push(format!("and {} more", grouped(classes.len() - most)));
    }
    shares
}

/// Each module type's name, and which of its layers keep their LoRA, share one or have none.
pub fn assignment_lines(assignment: &Assignment, names: &ModuleNames) -> Vec<(String, String)> {
    let mut kinds: BTreeMap<ModuleKind, [Vec<usize>; 3]> = BTreeMap::new();
    for (module, owner) in &assignment.owners {
        let place = match owner {
            Owner::Own => 0,
            Owner::Shared => 1,
            Owner::None => 2,
        };
        kinds.entry(module.kind).or_default()[place].push(module.layer);
    }
    let line = |(kind, [own, shared, none]): (ModuleKind, [Vec<usize>; 3])| {
        let all = counted(own.len() + shared.len() + none.len(), "layer");
        let mut line = match own.as_slice() {
            [] => format!("keeps none of {all}"),
            own => format!("keeps {} of {all}: {}", own.len(), layers(own)),
        };
        line += &match shared.as_slice() {
            [] => String::new(),
            [one] => format!("; layer {one} is the only one that uses the shared LoRA"),
            many => format!("; layers {} share one LoRA", layers(many)),
        };
        line += &match none.as_slice() {
            [] => String::new(),
            [one] => format!("; layer {one} has none"),
            many => format!("; layers {} have none", layers(many)),
        };
        (module_name(names, kind).to_string(), line)
    };
    kinds.into_iter().map(line).collect()
}

/// Budget, parameters and loss: of everything, of the budgets that were tried, without any LoRA.
pub fn budget_rows(curve: &BudgetCurve) -> Vec<(String, String, f64)> {
    let tried = curve.points.iter().map(|p| (p.budget.to_string(), grouped(p.parameters), p.loss));
    let row = |name: &str, loss| std::iter::once((name.to_string(), String::new(), loss));
    row("whole", curve.loss).chain(tried).chain(row("without LoRA", curve.without)).collect()
}

/// Which budget is kept, and why.
pub fn budget_decision(curve: &BudgetCurve) -> String {
    let kept = if curve.is_uninformative() {
        "everything is kept: on these rows the loss does not rise even without any LoRA, so they cannot tell how many are enough"
            .to_string()
    } else if curve.kept < 1.0 {
        format!("{} is kept, the smallest budget with which it rises by no more", curve.kept)
    } else {
        "everything is kept, because the loss rises by more with any smaller budget".to_string()
    };
    format!(
        "{} of train outside the sample, loss ± {} (one standard error): {kept}",
        counted(curve.rows, "row"),
        fixed(curve.tolerance, 4),
    )
}

/// A setting's value as people read it, with this between the elements of a list.
pub fn value_text(value: &Value, between: &str) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            list.iter().map(|value| value_text(value, between)).collect::<Vec<_>>().join(between)
        }
        // 0.0005 and not 5e-4, which is how `toml` writes it.
        Value::Float(number) => number.to_string(),
        other => other.to_string(),
    }
}
