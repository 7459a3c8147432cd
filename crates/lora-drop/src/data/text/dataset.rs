//! Tokenised data sets for generation, as training and evaluation read them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::TextOptions;
use super::encode::{EncodedRow, TextEncoder, TextExample};
use super::error::TextProblem;
use super::rows::{RawText, Targets, TextColumns, TextContent, TextKind, TextRow};
use super::template::ChatTemplate;
use crate::data::cache::{self, TokenCache};
use crate::data::error::{Error, Place};
use crate::data::files::{SplitFiles, SplitName, SplitPart};
use crate::data::labels::Label;
use crate::data::sources::{self, RawSource};
use crate::data::tokens::Tokens;
use crate::settings::DataSource;
use crate::summary::{DataFacts, SourceFacts, SplitFacts};

/// A split's tokenised rows, in the files' order.
#[derive(Clone, Debug)]
pub struct TextSplit {
    pub name: SplitName,
    pub files: Vec<PathBuf>,
    /// Kind of the rows; prompts and completions in the form of turns count as conversations.
    pub kind: TextKind,
    pub columns: TextColumns,
    /// The sequences to learn from or measure. A row without anything to learn has none, a long
    /// text several.
    pub examples: Vec<TextExample>,
    /// All rows, to generate for; empty in the train split of a data set to train on.
    pub rows: Vec<TextRow>,
    pub facts: SplitFacts,
    /// Rows without anything to learn: they have no target, or truncation left none.
    pub unlearned: Vec<Place>,
    /// The special tokens that end the targets, the most frequent first.
    pub ends: Vec<u32>,
}

/// A data set to train on.
#[derive(Clone, Debug)]
pub struct TextDataset {
    /// Rows to train on.
    pub train: TextSplit,
    /// Rows on which each epoch is measured.
    pub dev: TextSplit,
    /// Rows that training does not read; None if the data has none.
    pub test: Option<TextSplit>,
    pub kind: TextKind,
    /// Counts of each split, and the columns: `text_column` is the prompt, the conversation or the
    /// text, `pair_column` the completion, `label_column` the references.
    pub facts: DataFacts,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl TextDataset {
    /// Reads a folder's train, dev and test, or one file as train. Without dev a tenth of train is
    /// held out, the same for every seed, and a warning says so. Train determines the kind of rows.
    /// Rows of test may lack targets.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a file or a row, with its place; train or dev without
    /// anything to learn.
    pub fn load(
        path: &Path,
        tokens: &Tokens,
        template: Option<&ChatTemplate>,
        options: &TextOptions,
    ) -> Result<Self, Error> {
        TextDataset::encode(RawTexts::read(&[DataSource::new(path)], options)?, tokens, template, options)
    }

    /// Tokenises rows in memory, all of one kind. Without rows for dev a tenth of train is held
    /// out, as in `load`.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a row, with its number from 1 in "rows for train" or
    /// "rows for dev".
    pub fn new(
        train: Vec<TextContent>,
        dev: Vec<TextContent>,
        tokens: &Tokens,
        template: Option<&ChatTemplate>,
        options: &TextOptions,
    ) -> Result<Self, Error> {
        let train = RawText::of_rows(SplitName::Train, train)?;
        let dev = if dev.is_empty() { None } else { Some(RawText::of_rows(SplitName::Dev, dev)?) };
        let rows = vec![RawSource::single(train, dev, None)];
        TextDataset::encode(RawTexts::of_sources(rows)?, tokens, template, options)
    }

    /// Tokenises all splits.
    ///
    /// # Errors
    /// The options do not fit the tokenizer or the template; the first row that cannot be
    /// tokenised; train or dev without anything to learn.
    pub fn encode(
        raw: RawTexts,
        tokens: &Tokens,
        template: Option<&ChatTemplate>,
        options: &TextOptions,
    ) -> Result<Self, Error> {
        let encoder = TextEncoder::new(tokens, template, options)?;
        let RawTexts { train, dev, test, sources, mut warnings } = raw;
        let (kind, columns) = (train.kind(), train.columns.clone());
        let mut encode = |raw| -> Result<TextSplit, Error> {
            let (split, found) = TextSplit::encode(raw, &encoder, options)?;
            warnings.extend(found);
            Ok(split)
        };
        let (mut train, dev) = (encode(train)?, encode(dev)?);
        // Nothing is generated for the rows of train.
        train.rows = Vec::new();
        let test = test.map(encode).transpose()?;
        warnings.extend(options.cache.as_ref().and_then(TokenCache::stopped));
        let chat = options.chat || kind == TextKind::Messages;
        if kind == TextKind::Text && options.text_eos && options.end.is_none() {
            warnings.push(
                "the model's files name no end-of-sequence token, so the model does not learn where texts end".into(),
            );
        }
        if chat && template.is_some_and(ChatTemplate::writes_date) {
            warnings.push("the chat template writes the date, so the data differs from day to day".into());
        }
        for split in [&train, &dev] {
            split.check_learned()?;
        }
        let splits = [Some(&train), Some(&dev), test.as_ref()];
        let facts = DataFacts {
            splits: splits.into_iter().flatten().map(|split| split.facts.clone()).collect(),
            classes: Vec::new(),
            class_weights: Vec::new(),
            positive_class: None,
            text_column: columns.text,
            pair_column: columns.completion,
            label_column: columns.references.unwrap_or_default(),
            max_length: options.max_length,
            over_length: if kind == TextKind::Text {
                SPLIT.into()
            } else {
                options.over_length.name().into()
            },
            sources,
        };
        Ok(TextDataset { train, dev, test, kind, facts, warnings })
    }
}

/// A data set for generation before tokenisation: the rows of each split. If the data has no dev
/// split, its rows are held out of train.
#[derive(Clone, Debug)]
pub struct RawTexts {
    pub train: RawText,
    pub dev: RawText,
    pub test: Option<RawText>,
    /// The sources of train's rows; empty for one source.
    pub sources: Vec<SourceFacts>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl RawTexts {
    /// Reads each source's train, dev and test, as [`TextDataset::load`] does. Train is mixed by
    /// the sources' weights; dev and test contain those of all sources.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a file or a row, with its place; sources whose rows
    /// are of different kinds.
    pub fn read(sources: &[DataSource], options: &TextOptions) -> Result<Self, Error> {
        let read = |source: &DataSource| {
            let found = SplitFiles::find(source.place())?;
            let read = |name, files, columns, targets| {
                RawText::read(name, files, columns, targets, options.bad_rows)
            };
            let files = found.of(SplitName::Train)?;
            let train = read(SplitName::Train, files, &options.columns, Targets::Required)?;
            let names = train.columns.names();
            let read = |name, targets| {
                let files = found.files.get(&name);
                files.map(|files| read(name, files, &names, targets)).transpose()
            };
            let (dev, test) =
                (read(SplitName::Dev, Targets::Required)?, read(SplitName::Test, Targets::Optional)?);
            Ok(RawSource { source: source.clone(), train, dev, test })
        };
        RawTexts::of_sources(sources.iter().map(read).collect::<Result<_, Error>>()?)
    }

    fn of_sources(mut sources: Vec<RawSource<TextColumns, TextRow>>) -> Result<Self, Error> {
        let mut warnings = sources::warnings(&sources);
        for pair in sources.windows(2) {
            let kinds = [&pair[0].train, &pair[1].train].map(RawText::kind);
            if kinds[0] != kinds[1] {
                let [one, other] = [&pair[0], &pair[1]].map(|source| source.source.path.clone());
                return Err(Error::Sources {
                    one,
                    other,
                    what: format!("rows of kind {} and {}", kinds[0], kinds[1]),
                });
            }
        }
        for source in &mut sources {
            if source.dev.is_none() {
                source.dev = Some(hold_out(&mut source.train, &mut warnings)?);
            }
        }
        let facts = sources::weigh(&mut sources)?;
        let (train, dev, test) = sources::join_splits(sources)?;
        Ok(RawTexts { train, dev, test, sources: facts, warnings })
    }
}

/// Treatment of plain texts of too many tokens, as reported in the facts.
const SPLIT: &str = "split";

impl TextSplit {
    /// Reads one split, as evaluation and generation do; `SplitFiles::part` says which rows it has.
    /// Rows may lack targets, except those of data that was trained on. Returns the split and
    /// warnings for the user.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a file or a row, with its place.
    pub fn load(
        path: &Path,
        name: SplitName,
        tokens: &Tokens,
        template: Option<&ChatTemplate>,
        options: &TextOptions,
    ) -> Result<(Self, Vec<String>), Error> {
        let encoder = TextEncoder::new(tokens, template, options)?;
        let found = SplitFiles::find(path)?;
        let (files, part) = found.part(name, &options.trained_on)?;
        let read =
            |name, files, targets| RawText::read(name, files, &options.columns, targets, options.bad_rows);
        let mut warnings = Vec::new();
        let raw = if part == SplitPart::All {
            let raw = read(name, files, Targets::Optional)?;
            warnings.extend(raw.warnings.iter().cloned());
            raw
        } else {
            let mut train = read(SplitName::Train, files, Targets::Required)?;
            warnings.extend(train.warnings.iter().cloned());
            let dev = hold_out(&mut train, &mut warnings)?;
            if part == SplitPart::HeldOut { dev } else { train }
        };
        let (split, found) = TextSplit::encode(raw, &encoder, options)?;
        warnings.extend(found);
        Ok((split, warnings))
    }

    /// Tokenises rows, in parallel and in order, and treats over-long ones as the options say.
    /// Returns the split and warnings for the user.
    ///
    /// # Errors
    /// The first row in the files' order that the template refuses or that cannot be tokenised; all
    /// rows dropped.
    pub fn encode(
        raw: RawText,
        encoder: &TextEncoder,
        options: &TextOptions,
    ) -> Result<(Self, Vec<String>), Error> {
        let (name, limit) = (raw.name, options.max_length);
        let place = |row: &TextRow| Place::new(&raw.files[row.file], row.line);
        let kind = raw.kind();
        // All rows of a split must be formatted in one way.
        let turns = raw.rows.iter().find(|row| matches!(row.content, TextContent::Messages(_)));
        if raw.columns.kind == TextKind::Completion
            && let Some(row) = turns
        {
            let refused = match (kind, options.chat, &options.prompt_template) {
                (TextKind::Completion, false, _) => Some(TextProblem::NotChat),
                (TextKind::Completion, true, Some(_)) => Some(TextProblem::PromptTemplate),
                _ => None,
            };
            refused
                .map_or(Ok(()), |problem| Err(Error::Row { place: place(row), problem: problem.into() }))?;
        }
        let encode =
            |row: &TextRow| encoder.encode(row).map_err(|problem| Error::Row { place: place(row), problem });
        let fingerprint = || encoder.fingerprint(&raw.rows);
        let sound = |row: &EncodedRow| encoder.is_sound(row);
        let (encoded, cached) =
            cache::load_or_encode(options.cache.as_ref(), fingerprint, &raw.rows, sound, encode)?;
        // Rows without a target have no length.
        let lengths: Vec<usize> = encoded.iter().map(|row| row.length).filter(|&length| length > 0).collect();
        let count = |is: fn(&EncodedRow) -> bool| encoded.iter().filter(|row| is(row)).count();
        let uncounted = count(|row| row.issues.partly_counted);
        let prompt_merged = count(|row| row.issues.prompt_merged);
        let no_end_token = count(|row| row.issues.no_end_token);
        let no_generation_prompt = count(|row| row.issues.no_generation_prompt);
        let thoughts_dropped = count(|row| row.issues.thoughts_dropped);
        let mut ends = BTreeMap::new();
        for &end in encoded.iter().flat_map(|row| &row.end_tokens) {
            *ends.entry(end).or_insert(0) += 1;
        }
        let mut ends: Vec<(u32, usize)> = ends.into_iter().collect();
        ends.sort_by_key(|&(_, rows)| Reverse(rows));
        let ends = ends.into_iter().map(|(end, _)| end).collect();
        let (mut examples, mut unlearned) = (Vec::with_capacity(encoded.len()), Vec::new());
        let mut dropped = 0;
        for (row, encoded) in raw.rows.iter().zip(encoded) {
            let is_dropped = encoded.length > limit && encoder.drops(row);
            dropped += usize::from(is_dropped);
            if encoded.sequences.is_empty() && encoded.length > 0 && !is_dropped {
                unlearned.push(place(row));
            }
            let example = |(ids, learn)| TextExample { ids, learn, file: row.file, line: row.line };
            examples.extend(encoded.sequences.into_iter().map(example));
        }
        if dropped > 0 && dropped == lengths.len() {
            let (path, rows) = (raw.files[0].clone(), raw.rows.len());
            return Err(Error::AllDropped { path, rows, max_length: limit });
        }
        let mut warnings = Vec::new();
        if !unlearned.is_empty() {
            warnings.push(nothing_learned(name, &unlearned, limit));
        }
        if prompt_merged > 0 {
            warnings.push(format!(
                "{name}: in {prompt_merged} rows an answer's first token reaches back into the prompt; generation, which starts \
                 after the prompt, sees other tokens there"
            ));
        }
        if no_end_token > 0 {
            warnings.push(format!(
                "{name}: in {no_end_token} rows an answer ends without a special token, so the model does not learn to stop there"
            ));
        }
        if no_generation_prompt > 0 {
            warnings.push(format!(
                "{name}: in {no_generation_prompt} rows the template's generation prompt, such as the start of thoughts, is not before \
                 every answer, so generation starts with other text than these answers"
            ));
        }
        if thoughts_dropped > 0 {
            warnings.push(format!(
                "{name}: in {thoughts_dropped} rows the template leaves out thoughts of an answer, so they are not learned"
            ));
        }
        let tokens = examples.iter().map(|example: &TextExample| example.ids.len());
        let unknown = examples.iter().map(|example| encoder.count_unknown(&example.ids)).sum();
        let learned = examples.iter().map(TextExample::learned).sum();
        let facts = SplitFacts { uncounted, unknown, learned, cached, ..raw.facts(tokens, lengths, limit) };
        warnings.extend(encoder.unknown_warning(&facts));
        let RawText { files, columns, rows, .. } = raw;
        Ok((TextSplit { name, files, kind, columns, examples, rows, facts, unlearned, ends }, warnings))
    }

    /// Returns the file and line of an example.
    pub fn place(&self, example: &TextExample) -> Place {
        Place::new(&self.files[example.file], example.line)
    }

    /// Returns every example's number of tokens.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.ids.len()).collect()
    }

    fn check_learned(&self) -> Result<(), Error> {
        if self.examples.is_empty() {
            let message = format!(
                "nothing to learn in any of the {} rows; with long prompts, raise `max_length`",
                self.unlearned.len()
            );
            return Err(Error::file(&self.files[0], message));
        }
        Ok(())
    }
}

/// Holds rows out of train as dev, with a warning.
fn hold_out(train: &mut RawText, warnings: &mut Vec<String>) -> Result<RawText, Error> {
    // All rows count as one class, so the draw works as for labelled rows.
    let Some(dev) = train.hold_out(&vec![Label::Class(0); train.rows.len()]) else {
        let message = format!("{} rows are too few to hold any out as dev; add a dev file", train.rows.len());
        return Err(Error::file(&train.files[0], message));
    };
    warnings.push(format!(
        "no dev split: {} rows of train are held out as dev (the same for every seed), {} are left",
        dev.rows.len(),
        train.rows.len()
    ));
    Ok(dev)
}

/// Returns the warning about rows without anything to learn, with the first of their places.
fn nothing_learned(name: SplitName, places: &[Place], max_length: usize) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = places.iter().take(SHOWN).map(Place::to_string).collect();
    let more = match places.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(
        "{name}: {} rows are left out, because none of their first {max_length} tokens is learned: {}{more}",
        places.len(),
        shown.join("; ")
    )
}
