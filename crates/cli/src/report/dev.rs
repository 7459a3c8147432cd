//! The report's sections on dev's rows: numbers by class, which classes are taken for which, rows
//! that went wrong, and what a decoder generated.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::report::page::table;
use lora_drop::evaluate::{ClassCount, ClassCounts, EntityCount, ExampleRow, Outcome, TextSample, WrongTag};
use lora_drop::format::{counted, fixed, grouped, percent};
use lora_drop::run_record::{DevFindings, RunRecord};

/// The most classes in the table of numbers, and in the confusion matrix, where each is a column
/// too.
const CLASSES: usize = 20;
const COLUMNS: usize = 8;
/// The most pairs of classes that are listed where the matrix does not have them all.
const PAIRS: usize = 10;
/// The most wrong words of a row.
const WORDS: usize = 8;
/// The most characters of a text.
const LETTERS: usize = 280;
/// The most characters of a class's name.
const NAME: usize = 40;

/// The sections, as far as there is something to show.
pub fn sections(record: &RunRecord) -> Markup {
    let DevFindings { classes, entities, examples, samples } = &record.dev;
    let counts = classes.as_ref().filter(|counts| !counts.classes.is_empty());
    html! {
        @if !entities.is_empty() { (by_type(entities)) }
        @if let Some(counts) = counts { (by_class(counts, record)) }
        @if let Some(first) = examples.first() { (example_rows(&first.outcome, examples, record)) }
        @if !samples.is_empty() { (text_samples(samples)) }
    }
}

fn by_type(entities: &[EntityCount]) -> Markup {
    let heads = [("name", "type"), ("", "precision"), ("", "recall"), ("", "F1"), ("", "entities")];
    let mut most: Vec<&EntityCount> = entities.iter().collect();
    most.sort_by_key(|count| (std::cmp::Reverse(count.labelled), &count.kind));
    html! {
        section {
            h2 { "Entities on dev" }
            (table("numbers", "Precision, recall and F1 by type", heads, html! {
                @for EntityCount { kind, labelled, predicted, correct } in most.into_iter().take(CLASSES) {
                    @let count = ClassCount { class: 0, labelled: *labelled, predicted: *predicted, correct: *correct };
                    tr {
                        th.name scope="row" { (shortened(kind, NAME)) }
                        (scores(&count))
                        td { (grouped(*labelled)) }
                    }
                }
            }))
            p.note {
                "An entity is right if its type and all its words are. "
                @if entities.len() > CLASSES {
                    (grouped(CLASSES)) " of " (grouped(entities.len())) " types: those with most entities in dev."
                }
            }
        }
    }
}

/// Precision, recall and F1 as cells.
fn scores(count: &ClassCount) -> Markup {
    html! {
        td { (fixed(count.precision(), 3)) }
        td { (fixed(count.recall(), 3)) }
        td { (fixed(count.f1(), 3)) }
    }
}

fn by_class(counts: &ClassCounts, record: &RunRecord) -> Markup {
    let names = &record.data.classes;
    let best = record.evaluations.iter().find(|e| e.epoch == record.summary.best_epoch);
    let many = counts.classes.len() > COLUMNS / 2;
    html! {
        section {
            h2 { "Classes on dev" }
            @if let Some(only) = best.and_then(|e| e.only_class.as_ref()) {
                p.warn { "In the best epoch " (only.to_string()) "." }
            }
            div.even.many[many] {
                div { (numbers(counts, names, record.data.splits.iter().any(|split| split.words > 0))) }
                @if !counts.pairs.is_empty() { div {
                    (confusion(counts, names))
                    @if counts.classes.len() > COLUMNS { (confused_pairs(counts, names)) }
                } }
            }
        }
    }
}

fn name(names: &[String], class: u32) -> String {
    names.get(class as usize).map_or_else(|| class.to_string(), |name| shortened(name, NAME))
}

fn numbers(counts: &ClassCounts, names: &[String], words: bool) -> Markup {
    let all = &counts.classes;
    let heads = [
        ("name", "class"),
        ("", "precision"),
        ("", "recall"),
        ("", "F1"),
        ("", if words { "words" } else { "rows" }),
    ];
    html! {
        (table("numbers", "Precision, recall and F1 by class", heads, html! {
            @for count in all.iter().take(CLASSES) {
                tr {
                    th.name scope="row" { (name(names, count.class)) }
                    (scores(count))
                    td { (grouped(count.labelled)) }
                }
            }
        }))
        @if all.len() > CLASSES || names.len() > all.len() {
            p.note {
                (grouped(all.len().min(CLASSES))) " of " (counted_classes(names.len()))
                ": those with most rows in dev. " (counted_classes(all.len()))
                @if all.len() == 1 { " is" } @else { " are" }
                " in dev’s labels or in the predictions."
            }
        }
    }
}

fn counted_classes(n: usize) -> String {
    if n == 1 { "1 class".into() } else { format!("{} classes", grouped(n)) }
}

/// The matrix of the classes with most rows; all others are one row and one column.
fn confusion(counts: &ClassCounts, names: &[String]) -> Markup {
    let shown: Vec<u32> = counts.classes.iter().take(COLUMNS).map(|count| count.class).collect();
    let others = counts.classes.len() - shown.len();
    let size = shown.len() + usize::from(others > 0);
    let places: BTreeMap<u32, usize> =
        shown.iter().enumerate().map(|(place, &class)| (class, place)).collect();
    let mut cells = vec![vec![0; size]; size];
    let mut others_right = 0;
    for (&(label, predicted), &rows) in &counts.pairs {
        let place = |class| places.get(&class).copied().unwrap_or(shown.len());
        cells[place(label)][place(predicted)] += rows;
        if label == predicted && !places.contains_key(&label) {
            others_right += rows;
        }
    }
    // Columns are headed by the rows' numbers: names would make the table wider than a page.
    let numbers: Vec<String> = (1..=shown.len()).map(|number| number.to_string()).collect();
    let heads = std::iter::once(("name", "class")).chain(numbers.iter().map(|number| ("", number.as_str())));
    let row_name = |place: usize| match shown.get(place) {
        Some(&class) => format!("{} {}", place + 1, name(names, class)),
        None => format!("others ({})", grouped(others)),
    };
    let share = |rows: usize, row: &[usize]| 100.0 * rows as f64 / row.iter().sum::<usize>().max(1) as f64;
    html! {
        (table("numbers confusion", "Confusion matrix", heads.chain((others > 0).then_some(("", "others"))), html! {
            @for (place, row) in cells.iter().enumerate() {
                tr {
                    th.name scope="row" { (row_name(place)) }
                    @for (column, &rows) in row.iter().enumerate() {
                        td class=[(column == place && place < shown.len()).then_some("right")] style=(format!("--share:{:.0}%", share(rows, row))) {
                            (grouped(rows))
                        }
                    }
                }
            }
        }))
        p.note {
            "A row for each class, a column for what its rows are predicted as."
            @if others > 0 {
                " Shown are the " (shown.len()) " classes with most rows in dev; " (grouped(others_right))
                " rows of the others have the right class."
            }
        }
    }
}

/// The classes that are most often taken for another.
fn confused_pairs(counts: &ClassCounts, names: &[String]) -> Markup {
    let mut pairs: Vec<_> =
        counts.pairs.iter().filter(|((label, predicted), _)| label != predicted).collect();
    pairs.sort_by_key(|&(pair, rows)| (std::cmp::Reverse(rows), pair));
    let heads = [("name", "class"), ("name", "predicted as"), ("", "rows")];
    html! {
        @if !pairs.is_empty() {
            (table("numbers", "Most frequent confusions", heads, html! {
                @for &(&(label, predicted), &rows) in pairs.iter().take(PAIRS) {
                    tr {
                        th.name scope="row" { (name(names, label)) }
                        td.name { (name(names, predicted)) }
                        td { (grouped(rows)) }
                    }
                }
            }))
        }
    }
}

/// The rows that went most wrong; their outcomes are all of one kind.
fn example_rows(kind: &Outcome, examples: &[ExampleRow], record: &RunRecord) -> Markup {
    let (title, note) = match kind {
        Outcome::Class { .. } => {
            let pairs = record.dev.classes.iter().flat_map(|counts| &counts.pairs);
            let wrong: usize =
                pairs.filter(|((label, predicted), _)| label != predicted).map(|(_, n)| n).sum();
            let wrong = counted(wrong, "row");
            ("Mistakes", format!("{wrong} of dev wrong; these are the ones with the highest confidence."))
        }
        Outcome::Set { .. } => (
            "Mistakes",
            "Rows of dev with other classes than predicted; these are the ones with the highest loss.".into(),
        ),
        Outcome::Tags { .. } => ("Mistakes", "The rows of dev with most wrong words.".into()),
        Outcome::Value { .. } => ("Largest errors", "The rows of dev with the largest errors.".into()),
        Outcome::Loss(_) => (
            "Texts with the highest loss",
            "The rows of dev whose learned tokens the model finds least likely, on average.".to_string(),
        ),
    };
    html! {
        section {
            h2 { (title) }
            p.note { (note) " Texts are as the tokenizer reads them back, and shortened." }
            ol.rows {
                @for row in examples {
                    li {
                        p.said { (outcome(&row.outcome)) " " span { (row.place) } }
                        @for text in &row.texts { blockquote { (shortened(text, LETTERS)) } }
                    }
                }
            }
        }
    }
}

fn outcome(outcome: &Outcome) -> Markup {
    match outcome {
        Outcome::Class { label, predicted, confidence } => html! {
            b { (shortened(label, NAME)) } " predicted as " b { (shortened(predicted, NAME)) }
            " with " (percent(*confidence))
        },
        Outcome::Set { labels, predicted } => {
            let list = |names: &[String]| match names {
                [] => "none".to_string(),
                names => shortened(&names.join(", "), 3 * NAME),
            };
            html! { b { (list(labels)) } " predicted as " b { (list(predicted)) } }
        }
        Outcome::Tags { wrong, words } => html! {
            (grouped(wrong.len())) " of " (counted(*words, "word")) " wrong: "
            @for (number, WrongTag { word, label, predicted }) in wrong.iter().take(WORDS).enumerate() {
                @if number > 0 { ", " }
                b { (shortened(word, NAME)) } " (" (shortened(label, NAME)) ") as " (shortened(predicted, NAME))
            }
            @if wrong.len() > WORDS { " …" }
        },
        Outcome::Value { label, predicted } => html! {
            b { (fixed(*label, 3)) } " predicted as " b { (fixed(*predicted, 3)) }
        },
        Outcome::Loss(loss) => html! { "loss " b { (fixed(*loss, 3)) } " a token" },
    }
}

fn text_samples(samples: &[TextSample]) -> Markup {
    let shown = |text: &str| {
        if text.trim().is_empty() { "(nothing)".to_string() } else { shortened(text, LETTERS) }
    };
    html! {
        section {
            h2 { "Generated samples" }
            p.note {
                "What the model of the best epoch generates greedily for the first prompts of dev, for two seconds and 48 \
                 tokens at most, next to the row’s own text. Texts are shortened."
            }
            ol.rows {
                @for sample in samples {
                    li {
                        p.said { span { (sample.place) } }
                        dl {
                            dt { "prompt" } dd { (shown(&sample.prompt)) }
                            dt { "generated" } dd { (shown(&sample.text)) }
                            dt { "reference" } dd { (shown(&sample.reference)) }
                        }
                    }
                }
            }
        }
    }
}

/// The text, or its beginning up to a word's end, and an ellipsis.
fn shortened(text: &str, most: usize) -> String {
    let text = text.trim();
    let Some((end, _)) = text.char_indices().nth(most) else {
        return text.to_string();
    };
    let start = &text[..end];
    // A word as long as the text is cut.
    let whole = start.rfind(char::is_whitespace).filter(|&at| at > end / 2).unwrap_or(end);
    format!("{} …", start[..whole].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened_at_words() {
        assert_eq!(shortened(" a text ", 20), "a text");
        assert_eq!(shortened("one two three four", 10), "one two …");
        assert_eq!(shortened("onetwothreefour", 10), "onetwothre …");
        assert_eq!(shortened("ééééééé", 3), "ééé …");
    }
}
