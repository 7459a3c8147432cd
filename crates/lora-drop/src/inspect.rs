//! What training would make of a data set: its files, columns, labels and lengths, and some rows as
//! the model sees them. All of it is read by the code that training uses.

use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

use crate::data::text::{Conversation, RawTexts, Role, TextContent, TextExample, TextRow};
use crate::data::{
    Dataset, Example, Labels, RawDataset, RawRow, RawRows, RawTask, TaskData, Tokens, label_beside_text,
    label_counts,
};
use crate::hub::Download;
use crate::model::ModelFiles;
use crate::settings::{Reader, RunSettings, Situation, Task};
use crate::summary::{DataFacts, ModelFacts, SourceFacts};
use crate::train::prepare;
use crate::{Cancel, Result};

/// What was found in a data set.
#[derive(Clone, Debug, Serialize)]
pub struct DataView {
    /// Always `data`.
    pub kind: &'static str,
    /// The data set, as the settings name it.
    pub data: String,
    /// What the rows are.
    pub layout: &'static str,
    /// The columns that are read, of all splits.
    pub columns: Vec<ColumnView>,
    /// Columns of train with values that are not read.
    pub unread: Vec<String>,
    /// Train, dev and, if there is one, test.
    pub splits: Vec<SplitView>,
    /// Where the rows of train come from; empty for one source.
    pub sources: Vec<SourceFacts>,
    /// None for texts.
    pub labels: Option<LabelView>,
    /// What the tokenizer makes of the rows; None without a model.
    pub tokens: Option<TokenView>,
    /// Some rows of train.
    pub rows: Vec<RowView>,
    /// Warnings, as training gives them.
    pub warnings: Vec<String>,
}

/// A column that is read.
#[derive(Clone, Debug, Serialize)]
pub struct ColumnView {
    pub name: String,
    /// What it is read as: `prompt`, `label`, ...
    pub role: &'static str,
}

/// A split before tokenising.
#[derive(Clone, Debug, Serialize)]
pub struct SplitView {
    /// `train`, `dev` or `test`
    pub name: String,
    pub files: Vec<PathBuf>,
    /// Number of rows that are read.
    pub rows: usize,
    /// Number of rows that are wrong and left out.
    pub left_out: usize,
    /// Number of blank rows that were passed over.
    pub blank: usize,
    /// Whether these rows are held out of train.
    pub held_out: bool,
}

/// The labels.
#[derive(Clone, Debug, Serialize)]
pub struct LabelView {
    /// `classification` or `regression`
    pub task: Task,
    /// Class names in index order; empty for a regression.
    pub classes: Vec<String>,
    /// Of two classes, the one whose F1 is measured.
    pub positive_class: Option<String>,
    /// The labels of each split that has labels.
    pub splits: Vec<LabelCounts>,
}

/// A split's labels.
#[derive(Clone, Debug, Serialize)]
pub struct LabelCounts {
    /// `train`, `dev` or `test`
    pub name: String,
    /// Rows per class in index order; empty for a regression.
    pub per_class: Vec<usize>,
    /// Smallest, mean and largest label of a regression.
    pub range: Option<(f64, f64, f64)>,
}

/// The rows as tokens.
#[derive(Clone, Debug, Serialize)]
pub struct TokenView {
    pub model: ModelFacts,
    pub data: DataFacts,
}

/// Why a row is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    First,
    Middle,
    /// The longest row that is not cut; without a model, one that is longer than 95 % of the rows.
    Long,
}

/// A row that is shown.
#[derive(Clone, Debug, Serialize)]
pub struct RowView {
    pub choice: Choice,
    pub file: PathBuf,
    /// Line in the file, from 1; the row's number if the format has no lines.
    pub line: usize,
    /// The class or the value; None for texts.
    pub label: Option<String>,
    /// The row's texts by their role; empty with a model.
    pub parts: Vec<PartView>,
    /// The row's tokens; empty without a model.
    pub pieces: Vec<PieceView>,
}

/// A part of a row's text.
#[derive(Clone, Debug, Serialize)]
pub struct PartView {
    /// `prompt`, `assistant`, ...
    pub role: String,
    pub text: String,
    pub learned: bool,
}

/// The shortest run of tokens whose text is whole characters.
#[derive(Clone, Debug, Serialize)]
pub struct PieceView {
    pub text: String,
    pub tokens: Vec<u32>,
    pub learned: bool,
    /// Whether these are special tokens.
    pub special: bool,
}

impl RowView {
    /// The number of the row's tokens; 0 without a model.
    pub fn tokens(&self) -> usize {
        self.pieces.iter().map(|piece| piece.tokens.len()).sum()
    }
}

/// Reads the data that the settings name as training would read it, for the model that they name,
/// if they name one. `given` are the settings that the user gave. For `cancel` and `progress` see
/// [`ModelFiles::open`].
///
/// # Errors
/// Those of training on the data: of files, rows, columns and labels; a given setting that is not
/// read.
pub fn data(
    settings: &RunSettings,
    given: &[&str],
    cancel: &Cancel,
    progress: &mut dyn FnMut(Download<'_>),
) -> Result<DataView> {
    settings.validate_rows()?;
    if settings.place.model.is_empty() {
        let labelled = labelled_without_model(settings)?;
        let raw = prepare::read_rows(settings, labelled)?;
        let (task, rows) = match &raw {
            RawTask::Labelled(raw) => (raw.labels.task(), None),
            RawTask::Text(raw) => (Task::Text, Some(raw.train.kind())),
        };
        Situation { task: Some(task), rows, ..Situation::new(settings, Reader::Train) }
            .check(given.iter().copied())?;
        let rows = match &raw {
            RawTask::Labelled(raw) => labelled_rows(raw),
            RawTask::Text(raw) => text_rows(&raw.train.files, &raw.train.rows),
        };
        return Ok(DataView { rows, ..DataView::of(&raw, settings)? });
    }
    let model = ModelFiles::open(&settings.place.model, cancel, progress)?;
    let labelled = prepare::check_task(settings, &model.config)?;
    let situation = prepare::situation(settings, &model.config, labelled);
    situation.check(given.iter().copied())?;
    prepare::check_max_length(settings, &model)?;
    let tokens = model.tokens()?;
    let raw = prepare::read_rows(settings, labelled)?;
    let view = DataView::of(&raw, settings)?;
    let data = prepare::tokenise(raw, settings, &model, &tokens)?;
    let (_, situation) = prepare::metric_and_situation(settings, &model.config, &data, situation)?;
    situation.check(given.iter().copied())?;
    let rows = match &data {
        TaskData::Labelled(data) => tokenised_rows(data, &tokens)?,
        TaskData::Text(data) => {
            let most = data.facts.max_length;
            let of_row = |row: &TextExample, choice| {
                Ok(RowView {
                    pieces: pieces(&tokens, &row.ids, &row.learn)?,
                    ..RowView::new(choice, &data.train.files[row.file], row.line)
                })
            };
            choose(&data.train.examples, |row| row.ids.len(), |length| length < most)
                .into_iter()
                .map(|(choice, row)| of_row(row, choice))
                .collect::<Result<_>>()?
        }
    };
    let mut facts = model.facts(labelled);
    let note = prepare::correct_head_facts(&mut facts, &model, &data);
    let warnings = note.into_iter().chain(data.warnings().iter().cloned()).collect();
    Ok(DataView {
        rows,
        warnings,
        tokens: Some(TokenView { model: facts, data: data.facts().clone() }),
        ..view
    })
}

/// Whether rows are read for their labels, if no model is given to decide it.
fn labelled_without_model(settings: &RunSettings) -> Result<bool> {
    let rows = &settings.rows;
    Ok(match rows.task {
        Some(task) => task != Task::Text,
        None if rows.label_column.is_some() || rows.pair_column.is_some() => true,
        None => label_beside_text(settings.place.data.all(), rows)?.is_some(),
    })
}

impl DataView {
    /// The view without rows and tokens.
    fn of(raw: &RawTask, settings: &RunSettings) -> Result<Self> {
        let (layout, roles, labels, unread, splits, sources, warnings) = match raw {
            RawTask::Labelled(raw) => {
                let RawDataset { train, dev, test, labels, sources, warnings } = raw.as_ref();
                let all = [Some(train), Some(dev), test.as_ref()].into_iter().flatten();
                let roles: Vec<_> = all.flat_map(|split| split.columns.roles()).collect();
                let splits = split_views(train, dev, test.as_ref());
                let labels = LabelView::of(raw, labels)?;
                (train.columns.layout(), roles, Some(labels), &train.unread, splits, sources, warnings)
            }
            RawTask::Text(raw) => {
                let RawTexts { train, dev, test, sources, warnings } = raw.as_ref();
                let all = [Some(train), Some(dev), test.as_ref()].into_iter().flatten();
                let roles: Vec<_> = all.flat_map(|split| split.columns.roles()).collect();
                let splits = split_views(train, dev, test.as_ref());
                (train.columns.layout(), roles, None, &train.unread, splits, sources, warnings)
            }
        };
        let mut columns: Vec<ColumnView> = Vec::new();
        for (role, name) in roles {
            if !columns.iter().any(|column| column.name == name && column.role == role) {
                columns.push(ColumnView { name: name.to_string(), role });
            }
        }
        Ok(DataView {
            kind: "data",
            data: settings.place.data.to_string(),
            layout,
            columns,
            unread: unread.clone(),
            splits,
            sources: sources.clone(),
            labels,
            tokens: None,
            rows: Vec::new(),
            warnings: warnings.clone(),
        })
    }
}

fn split_views<C, R>(
    train: &RawRows<C, R>,
    dev: &RawRows<C, R>,
    test: Option<&RawRows<C, R>>,
) -> Vec<SplitView> {
    let view = |split: &RawRows<C, R>, held_out| SplitView {
        name: split.name.to_string(),
        files: split.files.clone(),
        rows: split.rows.len(),
        left_out: split.left_out,
        blank: split.blank,
        held_out,
    };
    let (train_view, dev_view) = (view(train, false), view(dev, dev.files == train.files));
    [train_view, dev_view].into_iter().chain(test.map(|test| view(test, false))).collect()
}

impl LabelView {
    fn of(raw: &RawDataset, labels: &Labels) -> Result<Self> {
        let mut splits = Vec::new();
        for split in [Some(&raw.train), Some(&raw.dev), raw.test.as_ref()].into_iter().flatten() {
            let Some(found) = split.labels(labels)? else { continue };
            let (per_class, range) = label_counts(found.iter().map(Some), labels);
            splits.push(LabelCounts { name: split.name.to_string(), per_class, range });
        }
        Ok(LabelView {
            task: labels.task(),
            classes: labels.names().to_vec(),
            positive_class: labels.positive().map(String::from),
            splits,
        })
    }
}

impl RowView {
    fn new(choice: Choice, file: &std::path::Path, line: usize) -> Self {
        let file = file.to_path_buf();
        RowView { choice, file, line, label: None, parts: Vec::new(), pieces: Vec::new() }
    }
}

/// The first row, the one in the middle and the longest that `fits`, each once.
fn choose<R>(rows: &[R], length: impl Fn(&R) -> usize, fits: impl Fn(usize) -> bool) -> Vec<(Choice, &R)> {
    let lengths: Vec<usize> = rows.iter().map(length).collect();
    let longest = (0..rows.len()).filter(|&row| fits(lengths[row])).max_by_key(|&row| lengths[row]);
    let chosen = [(Choice::First, Some(0)), (Choice::Middle, Some(rows.len() / 2)), (Choice::Long, longest)];
    let mut seen = Vec::new();
    chosen
        .into_iter()
        .filter_map(|(choice, row)| {
            let row = row.filter(|row| *row < rows.len() && !seen.contains(row))?;
            seen.push(row);
            Some((choice, &rows[row]))
        })
        .collect()
}

/// The length that 95 % of the rows do not exceed.
fn most_of<R>(rows: &[R], length: impl Fn(&R) -> usize) -> usize {
    let mut lengths: Vec<usize> = rows.iter().map(length).collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() * 95 / 100).copied().unwrap_or(0)
}

fn part(role: impl Into<String>, text: impl Into<String>, learned: bool) -> PartView {
    PartView { role: role.into(), text: text.into(), learned }
}

fn labelled_rows(raw: &RawDataset) -> Vec<RowView> {
    let train = &raw.train;
    let length = |row: &RawRow| row.text.texts().iter().map(|text| text.len()).sum();
    let most = most_of(&train.rows, length);
    let roles = train.columns.roles();
    let view = |(choice, row): (Choice, &RawRow)| {
        let parts =
            std::iter::zip(&roles, row.text.texts()).map(|((role, _), text)| part(*role, text, false));
        RowView {
            label: row.label.as_ref().map(ToString::to_string),
            parts: parts.collect(),
            ..RowView::new(choice, train.file_of(row), row.line)
        }
    };
    choose(&train.rows, length, |length| length <= most).into_iter().map(view).collect()
}

fn text_rows(files: &[PathBuf], rows: &[TextRow]) -> Vec<RowView> {
    let length = |row: &TextRow| parts_of(row).iter().map(|part| part.text.len()).sum();
    let most = most_of(rows, length);
    let view = |(choice, row): (Choice, &TextRow)| RowView {
        parts: parts_of(row),
        ..RowView::new(choice, &files[row.file], row.line)
    };
    choose(rows, length, |length| length <= most).into_iter().map(view).collect()
}

fn parts_of(row: &TextRow) -> Vec<PartView> {
    match &row.content {
        TextContent::Text(text) => vec![part("text", text, true)],
        TextContent::Completion { prompt, completion } => {
            let completion = completion.iter().map(|text| part("completion", text, true));
            std::iter::once(part("prompt", prompt, false)).chain(completion).collect()
        }
        TextContent::Messages(Conversation { turns, tools }) => {
            let tools = tools.iter().map(|tools| part("tools", tools.to_string(), false));
            let turns = turns.iter().map(|turn| {
                let text = turn.content.clone().unwrap_or_else(|| turn.to_json().to_string());
                part(turn.role.name(), text, turn.role == Role::Assistant && turn.learned)
            });
            tools.chain(turns).collect()
        }
    }
}

fn tokenised_rows(data: &Dataset, tokens: &Tokens) -> Result<Vec<RowView>> {
    let most = data.facts.max_length;
    let view = |(choice, row): (Choice, &Example)| {
        // Marks the tokens that have a tag.
        let mut tagged = vec![false; row.ids.len()];
        row.labelled.iter().for_each(|&place| tagged[place as usize] = true);
        Ok(RowView {
            label: row.label.as_ref().map(|label| data.labels.describe(label)),
            pieces: pieces(tokens, &row.ids, &tagged)?,
            ..RowView::new(choice, &data.train.files[row.file], row.line)
        })
    };
    let chosen = choose(&data.train.examples, |row| row.ids.len(), |length| length < most);
    chosen.into_iter().map(view).collect()
}

/// Splits a row's tokens into pieces of whole characters.
fn pieces(tokens: &Tokens, ids: &[u32], learn: &[bool]) -> Result<Vec<PieceView>> {
    let mut start = 0;
    let added = tokens.tokenizer().get_added_tokens_decoder();
    let is_special = |id: &u32| added.get(id).is_some_and(|token| token.special);
    let view = |(text, count): (String, usize)| {
        let place: Range<usize> = start..start + count;
        start = place.end;
        PieceView {
            text,
            learned: learn[place.clone()].contains(&true),
            special: ids[place.clone()].iter().all(is_special),
            tokens: ids[place].to_vec(),
        }
    };
    Ok(tokens.pieces(ids)?.into_iter().map(view).collect())
}
