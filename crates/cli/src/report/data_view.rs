//! What `inspect --data` found, as text for a terminal: tables, bars, and rows as the model sees
//! them.

use std::fmt::Write;
use std::path::Path;

use lora_drop::format::{counted, grouped, percent};
use lora_drop::inspect::{Choice, DataView, LabelView, PieceView, RowView, SplitView, TokenView};
use lora_drop::settings::as_options;
use lora_drop::summary::SplitFacts;

use crate::report::terminal::{Style, Table, bar, indented, letters, padded, source_table};
use crate::report::words::label_range;

/// Indentation of everything below a heading, in columns.
const INDENT: usize = 8;
/// The longest bar.
const BAR: usize = 30;
/// The largest number of classes that are shown as bars.
const CLASSES: usize = 20;
/// Tokens that are shown at each end of a part of a row, learned or not; those between are counted.
const ENDS_OF_TEXT: usize = 200;
const ENDS_OF_TOKENS: usize = 24;

/// What was found.
pub fn data_view(view: &DataView, style: Style) -> String {
    let mut out = heading("Data", &view.data, style);
    _ = writeln!(out, "{:INDENT$}{}", "", view.layout);
    let columns: Vec<String> = view
        .columns
        .iter()
        .map(|column| match column.role {
            role if role == column.name => role.to_string(),
            role => format!("{} as {role}", column.name),
        })
        .collect();
    _ = writeln!(out, "{:INDENT$}columns   {}", "", columns.join(", "));
    if !view.unread.is_empty() {
        _ = writeln!(out, "{:INDENT$}not read  {}", "", view.unread.join(", "));
    }
    out.push('\n');
    let left_out = |of: fn(&SplitView) -> usize| view.splits.iter().any(|split| of(split) > 0);
    let mut splits = Table::new(&view.splits)
        .text("split", |split| split.name.clone())
        .number("rows", |split| grouped(split.rows));
    if left_out(|split| split.left_out) {
        splits = splits.number("left out", |split| grouped(split.left_out));
    }
    if left_out(|split| split.blank) {
        splits = splits.number("blank", |split| grouped(split.blank));
    }
    let file = |split: &SplitView| match (&split.files[..], split.held_out) {
        (_, true) => "held out of train".to_string(),
        ([file], _) => inside(file, view),
        (files, _) => format!("{} and {} more", inside(&files[0], view), files.len() - 1),
    };
    let room = style.width.saturating_sub(INDENT);
    out += &indented(&splits.text("file", file).fit(room), INDENT);
    if !view.sources.is_empty() {
        out.push('\n');
        out += &indented(&source_table(&view.sources, room), INDENT);
    }
    if let Some(labels) = &view.labels {
        out += &label_text(labels, style);
    }
    if let Some(tokens) = &view.tokens {
        out += &token_text(tokens, style);
    }
    for (number, row) in view.rows.iter().enumerate() {
        out += &row_text(row, view, number == 0, style);
    }
    if !view.warnings.is_empty() {
        out.push('\n');
    }
    for warning in &view.warnings {
        _ = writeln!(out, "{} {}", style.warning("warning:"), as_options(warning));
    }
    out
}

fn heading(title: &str, text: &str, style: Style) -> String {
    format!("{}{}{text}\n", style.bold(title), " ".repeat(INDENT.saturating_sub(title.len()).max(1)))
}

/// Classes with their rows, most of them as bars.
fn label_text(labels: &LabelView, style: Style) -> String {
    let mut out = String::from("\n");
    if labels.classes.is_empty() {
        out += &heading("Labels", "numbers to predict", style);
        for split in &labels.splits {
            if let Some(range) = split.range {
                _ = writeln!(out, "{:INDENT$}{:<6} {}", "", split.name, label_range(range));
            }
        }
        return out;
    }
    let f1 = labels.positive_class.as_ref().map(|class| format!(", F1 of {class}")).unwrap_or_default();
    out += &heading("Labels", &format!("{} classes{f1}", grouped(labels.classes.len())), style);
    let Some(train) = labels.splits.first() else { return out };
    let all: usize = train.per_class.iter().sum();
    let most = train.per_class.iter().copied().max().unwrap_or(0).max(1);
    let rows: Vec<usize> = (0..labels.classes.len().min(CLASSES)).collect();
    let mut table = Table::new(&rows).text("class", |&class| labels.classes[class].clone());
    for split in &labels.splits {
        table = table.number(&split.name, |&class| grouped(split.per_class[class]));
    }
    let table = table
        .number("", |&class| percent(train.per_class[class] as f64 / all.max(1) as f64))
        .text("", |&class| bar(train.per_class[class] as f64 / most as f64, BAR))
        .fit(style.width.saturating_sub(INDENT));
    out += &indented(&table, INDENT);
    if labels.classes.len() > CLASSES {
        _ = writeln!(out, "{:INDENT$}and {} more", "", grouped(labels.classes.len() - CLASSES));
    }
    out
}

/// What the tokenizer makes of each split, and a histogram of train's lengths.
fn token_text(tokens: &TokenView, style: Style) -> String {
    let (data, model) = (&tokens.data, &tokens.model);
    let learns = !data.splits.iter().all(|split| split.learned == 0);
    let about =
        format!("{} ({}), at most {} a row", model.model, model.architecture, grouped(data.max_length));
    let mut out = format!("\n{}", heading("Tokens", &about, style));
    let mut table = Table::new(&data.splits)
        .text("split", |split| split.name.clone())
        .number("tokens", |split| grouped(split.tokens));
    if learns {
        table = table.number("learned", |split| share(split.learned, split.tokens));
    }
    let table = table
        .number("unknown", |split| share(split.unknown, split.tokens))
        .number("min", |split| grouped(split.shortest))
        .number("median", |split| grouped(split.median_length))
        .number("95 %", |split| grouped(split.length_95))
        .number("max", |split| {
            format!("{}{}", if split.uncounted > 0 { "≥ " } else { "" }, grouped(split.longest))
        })
        .number("over-long", |split| grouped(split.over_long))
        .fit(style.width.saturating_sub(INDENT));
    out += &indented(&table, INDENT);
    if let Some(fate) = super::terminal::fate_of_over_long(data) {
        _ = writeln!(out, "{:INDENT$}{}", "", style.warning(&fate));
    }
    let Some(train) = data.splits.first() else { return out };
    out.push('\n');
    out + &indented(&histogram(train, data.max_length, style), INDENT)
}

/// A number as a share of all, such as `12.3 %`.
fn share(part: usize, all: usize) -> String {
    percent(part as f64 / all.max(1) as f64)
}

/// Rows by their number of tokens; ranges beyond `max_length` are marked.
fn histogram(train: &SplitFacts, max_length: usize, style: Style) -> String {
    let most = train.lengths.iter().map(|range| range.rows).max().unwrap_or(0).max(1);
    Table::new(&train.lengths)
        .number("tokens", |range| match range.from == range.to {
            true => grouped(range.from),
            false => format!("{}–{}", grouped(range.from), grouped(range.to)),
        })
        .number("rows", |range| grouped(range.rows))
        .text("", |range| {
            let bar = bar(range.rows as f64 / most as f64, BAR);
            if range.from > max_length { style.warning(&bar) } else { bar }
        })
        .fit(style.width.saturating_sub(INDENT))
}

/// A file of the data: its path in the folder, or its name; of several sources its whole path.
fn inside(file: &Path, view: &DataView) -> String {
    if !view.sources.is_empty() {
        return file.display().to_string();
    }
    let below = file.strip_prefix(&view.data).ok().filter(|path| !path.as_os_str().is_empty());
    let name = below.or_else(|| file.file_name().map(Path::new));
    name.unwrap_or(file).display().to_string()
}

/// A row: its texts or its tokens, and with `numbers` also the ids of its tokens.
fn row_text(row: &RowView, view: &DataView, numbers: bool, style: Style) -> String {
    let title = match row.choice {
        Choice::First => "First row",
        Choice::Middle => "Row from the middle",
        Choice::Long if row.pieces.is_empty() => "Long row",
        Choice::Long => "Longest row that fits",
    };
    let mut facts = vec![format!("{}:{}", inside(&row.file, view), row.line)];
    if row.tokens() > 0 {
        facts.push(counted(row.tokens(), "token"));
    }
    let learned: usize =
        row.pieces.iter().filter(|piece| piece.learned).map(|piece| piece.tokens.len()).sum();
    if learned > 0 {
        let mark = if style.colour { "green".to_string() } else { format!("in {OPEN}{CLOSE}") };
        facts.push(format!("{} learned ({mark})", grouped(learned)));
    }
    let mut out = format!("\n{}  {}\n", style.bold(title), style.faint(&facts.join(", ")));
    for part in &row.parts {
        _ = writeln!(out, "{:INDENT$}{}", "", style.faint(&part.role));
        let text = if part.learned { learned_text(&part.text, style) } else { part.text.clone() };
        out += &flowing(&text, style);
    }
    if !row.pieces.is_empty() {
        out += &flowing(&marked(&row.pieces, style), style);
    }
    if let Some(label) = &row.label {
        _ = writeln!(out, "{:INDENT$}{} {}", "", style.faint("label"), style.kept(label));
    }
    if numbers && !row.pieces.is_empty() {
        out.push('\n');
        out += &interlinear(&row.pieces, style);
    }
    out
}

/// Marks a text as learned: by colour, or by brackets.
fn learned_text(text: &str, style: Style) -> String {
    if style.colour { style.kept(text) } else { format!("{OPEN}{text}{CLOSE}") }
}

/// Brackets around learned text where there are no colours.
const OPEN: char = '⟦';
const CLOSE: char = '⟧';

/// The runs of pieces that are all learned, or all not.
fn runs(pieces: &[PieceView]) -> impl Iterator<Item = &[PieceView]> {
    pieces.chunk_by(|a, b| a.learned == b.learned)
}

/// Shortens a run to `ends` pieces at each end. Returns the first pieces and, if pieces are left
/// out, the number of their tokens and the last pieces.
fn with_gap(run: &[PieceView], ends: usize) -> (&[PieceView], Option<(usize, &[PieceView])>) {
    if run.len() <= 2 * ends + ends / 2 {
        return (run, None);
    }
    let (gap, last) = (&run[ends..run.len() - ends], &run[run.len() - ends..]);
    (&run[..ends], Some((gap.iter().map(|piece| piece.tokens.len()).sum(), last)))
}

/// A row's text with the learned parts and special tokens marked.
fn marked(pieces: &[PieceView], style: Style) -> String {
    let text = |pieces: &[PieceView]| -> String {
        let of_kind = pieces.chunk_by(|a, b| a.special == b.special);
        of_kind
            .map(|pieces| {
                let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
                match (pieces[0].learned, pieces[0].special) {
                    (true, _) if style.colour => style.kept(&text),
                    (false, true) => style.faint(&text),
                    _ => text,
                }
            })
            .collect()
    };
    let mut out = String::new();
    for run in runs(pieces) {
        let bracketed = run[0].learned && !style.colour;
        out.extend(bracketed.then_some(OPEN));
        let (first, rest) = with_gap(run, ENDS_OF_TEXT);
        out += &text(first);
        if let Some((gap, last)) = rest {
            _ = write!(out, "{}", style.faint(&format!(" … {} … ", counted(gap, "token"))));
            out += &text(last);
        }
        out.extend(bracketed.then_some(CLOSE));
    }
    out
}

/// Tokens with their ids below them.
fn interlinear(pieces: &[PieceView], style: Style) -> String {
    let mut cells: Vec<(String, String, bool)> = Vec::new();
    for run in runs(pieces) {
        let learned = run[0].learned;
        let from = cells.len();
        let cell = |piece: &PieceView| {
            let numbers: Vec<String> = piece.tokens.iter().map(u32::to_string).collect();
            (visible(&piece.text), numbers.join(" "), learned)
        };
        let (first, rest) = with_gap(run, ENDS_OF_TOKENS);
        cells.extend(first.iter().map(cell));
        if let Some((gap, last)) = rest {
            cells.push(("…".to_string(), format!("{} more", grouped(gap)), false));
            cells.extend(last.iter().map(cell));
        }
        if learned && !style.colour {
            cells[from].0.insert(0, OPEN);
            if let Some(last) = cells.last_mut() {
                last.0.push(CLOSE);
            }
        }
    }
    let room = style.width.saturating_sub(INDENT);
    let (mut texts, mut numbers, mut used) = (String::new(), String::new(), 0);
    let mut out = String::new();
    let mut end = |texts: &mut String, numbers: &mut String| {
        _ = writeln!(out, "{:INDENT$}{}", "", texts.trim_end());
        _ = writeln!(out, "{:INDENT$}{}", "", style.faint(numbers.trim_end()));
        texts.clear();
        numbers.clear();
    };
    for (text, number, learned) in &cells {
        let width = letters(text).max(letters(number));
        if used > 0 && used + width > room {
            end(&mut texts, &mut numbers);
            used = 0;
        }
        let text = padded(text, width);
        texts += &if *learned { style.kept(&text) } else { text };
        texts.push_str("  ");
        numbers += &padded(number, width + 2);
        used += width + 2;
    }
    if used > 0 {
        end(&mut texts, &mut numbers);
    }
    out
}

/// A token's text with white space that can be seen.
fn visible(text: &str) -> String {
    text.replace(' ', "␣").replace('\n', "↵").replace('\t', "⇥")
}

/// A text below a heading, for a terminal broken at its width, after spaces or within long words.
fn flowing(text: &str, style: Style) -> String {
    let room = style.width.saturating_sub(INDENT).max(20);
    let mut out = String::new();
    for line in text.trim_end_matches('\n').split('\n') {
        let line = line.replace('\t', "    ");
        let (mut used, mut lines) = (0, vec![String::new()]);
        let mut put = |word: &str, width: usize, used: &mut usize| {
            if style.terminal && *used > 0 && *used + width > room {
                lines.push(String::new());
                *used = 0;
            }
            if let Some(last) = lines.last_mut() {
                last.push_str(word);
            }
        };
        for word in line.split_inclusive(' ') {
            let width = letters(word.trim_end());
            if style.terminal && width > room {
                for letter in word.chars().map(String::from) {
                    put(&letter, letters(&letter), &mut used);
                    used += letters(&letter);
                }
            } else {
                put(word, width, &mut used);
                used += letters(word);
            }
        }
        for line in lines {
            _ = writeln!(out, "{:INDENT$}{}", "", line.trim_end());
        }
    }
    out
}
