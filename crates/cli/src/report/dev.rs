//! The report's section on dev's rows: numbers by class, which classes are taken for which, rows
//! that went wrong, and what a decoder wrote.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::report::html::escape;
use lora_drop::evaluate::{ClassCounts, ExampleRow, Outcome, TextSample};
use lora_drop::format::{counted, fixed, grouped, percent};
use lora_drop::record::{DevFindings, RunRecord};

/// Classes in the table of numbers, and in the confusion matrix, of which each is a column too.
const CLASSES: usize = 20;
const COLUMNS: usize = 8;
/// Pairs of classes that are listed, where the matrix has not all of them.
const PAIRS: usize = 10;
/// Characters of a text.
const LETTERS: usize = 280;
/// Characters of a class's name.
const NAME: usize = 40;

/// The sections; nothing where there is nothing to show.
pub fn sections(out: &mut String, record: &RunRecord) {
    let DevFindings { classes, examples, samples } = &record.dev;
    let names = &record.data.classes;
    if let Some(counts) = classes.as_ref().filter(|counts| !counts.classes.is_empty()) {
        out.push_str("<section>\n<h2>Classes on dev</h2>\n");
        if let Some(only) = record.evaluations.iter().find(|e| e.epoch == record.summary.best_epoch)
            && let Some(only) = &only.only_class
        {
            let text = only.to_string();
            _ = writeln!(out, "<p class=\"warn\">Of the best epoch {}.</p>", escape(&text));
        }
        let many = if counts.classes.len() > COLUMNS / 2 { " many" } else { "" };
        _ = writeln!(out, "<div class=\"even{many}\">\n<div>");
        by_class(out, counts, names);
        out.push_str("</div>\n<div>\n");
        confusion(out, counts, names);
        if counts.classes.len() > COLUMNS {
            confused_pairs(out, counts, names);
        }
        out.push_str("</div>\n</div>\n</section>\n");
    }
    if !examples.is_empty() {
        example_rows(out, examples, record);
    }
    if !samples.is_empty() {
        text_samples(out, samples);
    }
}

fn name(names: &[String], class: u32) -> String {
    names.get(class as usize).map_or_else(|| class.to_string(), |name| shortened(name, NAME))
}

fn by_class(out: &mut String, counts: &ClassCounts, names: &[String]) {
    let all = &counts.classes;
    out.push_str(
        "<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers\">\n<caption>Precision, recall and F1 by class</caption>\n\
         <thead><tr><th scope=\"col\" class=\"name\">class</th><th scope=\"col\">precision</th>\
         <th scope=\"col\">recall</th><th scope=\"col\">F1</th><th scope=\"col\">rows</th></tr></thead>\n<tbody>\n",
    );
    for count in all.iter().take(CLASSES) {
        _ = writeln!(
            out,
            "<tr><th scope=\"row\" class=\"name\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&name(names, count.class)),
            fixed(count.precision(), 3),
            fixed(count.recall(), 3),
            fixed(count.f1(), 3),
            grouped(count.labelled)
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    if all.len() > CLASSES || names.len() > all.len() {
        _ = writeln!(
            out,
            "<p class=\"note\">{} of {}: those with most rows in dev. {} {} in dev’s labels or in the predictions.</p>",
            grouped(all.len().min(CLASSES)),
            counted_classes(names.len()),
            counted_classes(all.len()),
            if all.len() == 1 { "is" } else { "are" },
        );
    }
}

fn counted_classes(n: usize) -> String {
    if n == 1 { "1 class".into() } else { format!("{} classes", grouped(n)) }
}

/// The matrix of the classes with most rows; all others are one row and one column.
fn confusion(out: &mut String, counts: &ClassCounts, names: &[String]) {
    let shown: Vec<u32> = counts.classes.iter().take(COLUMNS).map(|count| count.class).collect();
    let has_others = counts.classes.len() > shown.len();
    let size = shown.len() + usize::from(has_others);
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
    out.push_str(
        "<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers confusion\">\n<caption>Confusion matrix</caption>\n<thead><tr><th scope=\"col\" class=\"name\">class</th>",
    );
    // Columns have the rows' numbers: names would make the table wider than a page.
    for place in 0..shown.len() {
        _ = write!(out, "<th scope=\"col\">{}</th>", place + 1);
    }
    out.push_str(if has_others { "<th scope=\"col\">others</th>" } else { "" });
    out.push_str("</tr></thead>\n<tbody>\n");
    for (place, row) in cells.iter().enumerate() {
        let head = match shown.get(place) {
            Some(&class) => format!("{} {}", place + 1, name(names, class)),
            None => format!("others ({})", grouped(counts.classes.len() - shown.len())),
        };
        _ = write!(out, "<tr><th scope=\"row\" class=\"name\">{}</th>", escape(&head));
        let all: usize = row.iter().sum::<usize>().max(1);
        for (column, &rows) in row.iter().enumerate() {
            let heat = 100.0 * rows as f64 / all as f64;
            let class = if column == place && place < shown.len() { " class=\"right\"" } else { "" };
            _ = write!(out, "<td{class} style=\"--share:{heat:.0}%\">{}</td>", grouped(rows));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n<p class=\"note\">A row for each class, a column for what its rows are predicted as.");
    if has_others {
        let right = grouped(others_right);
        _ = write!(
            out,
            " Shown are the {} classes with most rows in dev; {right} of the others’ rows have the right class.",
            shown.len(),
        );
    }
    out.push_str("</p>\n");
}

/// The classes that are most often taken for another.
fn confused_pairs(out: &mut String, counts: &ClassCounts, names: &[String]) {
    let mut pairs: Vec<_> =
        counts.pairs.iter().filter(|((label, predicted), _)| label != predicted).collect();
    pairs.sort_by_key(|&(pair, rows)| (std::cmp::Reverse(rows), pair));
    if pairs.is_empty() {
        return;
    }
    out.push_str(
        "<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers\">\n<caption>Most frequent confusions</caption>\n<thead><tr>\
         <th scope=\"col\" class=\"name\">class</th><th scope=\"col\" class=\"name\">predicted as</th>\
         <th scope=\"col\">rows</th></tr></thead>\n<tbody>\n",
    );
    for (&(label, predicted), &rows) in pairs.into_iter().take(PAIRS) {
        _ = writeln!(
            out,
            "<tr><th scope=\"row\" class=\"name\">{}</th><td class=\"name\">{}</td><td>{}</td></tr>",
            escape(&name(names, label)),
            escape(&name(names, predicted)),
            grouped(rows)
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

fn example_rows(out: &mut String, examples: &[ExampleRow], record: &RunRecord) {
    let (title, note) = match &examples[0].outcome {
        Outcome::Class { .. } => {
            let pairs = record.dev.classes.iter().flat_map(|counts| &counts.pairs);
            let wrong: usize =
                pairs.filter(|((label, predicted), _)| label != predicted).map(|(_, n)| n).sum();
            let all = format!("{} of dev wrong", counted(wrong, "row"));
            ("Mistakes", format!("{all}; these are the ones with the highest confidence."))
        }
        Outcome::Value { .. } => ("Largest errors", "The rows of dev with the largest errors.".into()),
        Outcome::Loss(_) => (
            "Texts with the highest loss",
            "The rows of dev whose learned tokens the model finds least likely, on average.".to_string(),
        ),
    };
    let texts = "Texts are as the tokenizer reads them back, and shortened.";
    _ = writeln!(
        out,
        "<section>\n<h2>{title}</h2>\n<p class=\"note\">{note} {texts}</p>\n<ol class=\"rows\">"
    );
    for row in examples {
        out.push_str("<li>");
        let said = match &row.outcome {
            Outcome::Class { label, predicted, confidence } => format!(
                "<b>{}</b> predicted as <b>{}</b> with {}",
                escape(&shortened(label, NAME)),
                escape(&shortened(predicted, NAME)),
                percent(*confidence)
            ),
            Outcome::Value { label, predicted } => {
                format!("<b>{}</b> predicted as <b>{}</b>", fixed(*label, 3), fixed(*predicted, 3))
            }
            Outcome::Loss(loss) => format!("loss <b>{}</b> a token", fixed(*loss, 3)),
        };
        _ = write!(out, "<p class=\"said\">{said} <span>{}</span></p>", escape(&row.place));
        for text in &row.texts {
            _ = write!(out, "<blockquote>{}</blockquote>", escape(&shortened(text, LETTERS)));
        }
        out.push_str("</li>\n");
    }
    out.push_str("</ol>\n</section>\n");
}

fn text_samples(out: &mut String, samples: &[TextSample]) {
    out.push_str(
        "<section>\n<h2>Generated samples</h2>\n<p class=\"note\">What the model of the best epoch writes greedily for the first \
         prompts of dev, for two seconds and 48 tokens at most, beside what the row has. Texts are shortened.</p>\n\
         <ol class=\"rows\">\n",
    );
    for sample in samples {
        _ = write!(out, "<li><p class=\"said\"><span>{}</span></p><dl>", escape(&sample.place));
        for (what, text) in
            [("prompt", &sample.prompt), ("generated", &sample.text), ("reference", &sample.reference)]
        {
            let text = if text.trim().is_empty() { "(nothing)".into() } else { shortened(text, LETTERS) };
            _ = write!(out, "<dt>{what}</dt><dd>{}</dd>", escape(&text));
        }
        out.push_str("</dl></li>\n");
    }
    out.push_str("</ol>\n</section>\n");
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
