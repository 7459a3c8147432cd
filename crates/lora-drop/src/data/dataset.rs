//! Tokenised data sets, as training and evaluation read them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lora_drop_transformer::ModelConfig;

use super::cache::{self, Fingerprint, TokenCache};
use super::columns::{ColumnNames, Columns};
use super::error::{Error, Place, Problem, list};
use super::files::{SplitFiles, SplitName, SplitPart};
use super::labels::{Label, Labels};
use super::raw::{RawRow, RawSplit};
use super::raw_label::RawLabel;
use super::row_text::RowText;
use super::sources::{self, RawSource};
use super::tokens::{Encoded, RowLimits, Tokens};
use crate::settings::{BadRows, ClassWeights, DataSource, OverLength, RowSettings, Task};
use crate::summary::{DataFacts, SourceFacts, SplitFacts};

/// Options for reading data.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// The columns that the user named; the others are found by their usual names.
    pub columns: ColumnNames,
    /// Largest number of tokens of a row, special tokens included.
    pub max_length: usize,
    /// Treatment of rows that are wrong.
    pub bad_rows: BadRows,
    /// Treatment of rows of more than `max_length` tokens.
    pub over_length: OverLength,
    /// Number of tokens that the model has an embedding for.
    pub vocabulary: usize,
    /// Number of token types that the model has an embedding for; `None` if it has no token types.
    pub token_types: Option<usize>,
    /// The task; `None` infers it from the labels.
    pub task: Option<Task>,
    /// The names of all classes in their order; `None` takes those in train.
    pub label_names: Option<Vec<String>>,
    /// Of two classes, the one whose F1 is measured; `None` is the second.
    pub positive_class: Option<String>,
    /// Weights of the classes in the loss; `None` weights all the same.
    pub class_weights: Option<ClassWeights>,
    /// Whether the model's head reads the first token, which should then be a special one.
    pub reads_first: bool,
    /// The data sets that the model was trained on; see [`SplitFiles::part`].
    pub trained_on: Vec<PathBuf>,
    /// Cache of tokenised rows, if it is on.
    pub cache: Option<TokenCache>,
}

impl DataOptions {
    /// Options of a training run, for a model of this configuration.
    pub fn new(rows: &RowSettings, config: &ModelConfig) -> Self {
        DataOptions {
            max_length: rows.row_tokens(config.max_tokens()),
            vocabulary: config.vocab_size,
            token_types: config.token_types,
            reads_first: !config.architecture.is_decoder(),
            cache: TokenCache::in_user_cache(rows.token_cache),
            ..DataOptions::without_model(rows)
        }
    }

    /// Options for reading rows before they are tokenised for any model.
    pub fn without_model(rows: &RowSettings) -> Self {
        DataOptions {
            columns: ColumnNames::of(rows),
            max_length: rows.row_tokens(usize::MAX),
            bad_rows: rows.bad_rows,
            over_length: rows.over_length,
            vocabulary: usize::MAX,
            token_types: None,
            task: rows.task,
            label_names: rows.label_names.clone(),
            positive_class: rows.positive_class.clone(),
            class_weights: rows.class_weights.clone(),
            reads_first: false,
            trained_on: Vec::new(),
            cache: None,
        }
    }

    fn limits(&self) -> RowLimits {
        let DataOptions { max_length, vocabulary, token_types, .. } = *self;
        RowLimits { max_length, vocabulary, token_types }
    }
}

/// A row in memory, for a model with a head.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRow {
    /// The text, or the first text of a pair. If the label is a list of tags, white space separates
    /// the words.
    pub text: String,
    /// The second text of a pair: all rows have one, or none has.
    pub pair: Option<String>,
    pub label: RawLabel,
}

/// One tokenised row.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids, (tokens), at least one.
    pub ids: Vec<u32>,
    /// Token types, (tokens), for models that have them.
    pub types: Vec<u32>,
    /// In token classification, the index of the first token of each labelled word, ascending.
    pub labelled: Vec<u32>,
    /// None in a split without labels. Tags are those of the labelled tokens.
    pub label: Option<Label>,
    /// Index into the split's files.
    pub file: usize,
    /// Line in the file, from 1; the row's number if the format has no lines.
    pub line: usize,
}

/// A split's tokenised rows, in the files' order.
#[derive(Clone, Debug)]
pub struct Split {
    pub name: SplitName,
    pub files: Vec<PathBuf>,
    pub examples: Vec<Example>,
    pub facts: SplitFacts,
}

/// A data set to train on.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Rows to train on.
    pub train: Split,
    /// Rows on which each epoch is measured.
    pub dev: Split,
    /// Rows that training does not read; None if the data has none.
    pub test: Option<Split>,
    pub labels: Labels,
    pub facts: DataFacts,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// A data set before tokenisation: the rows of each split. If the data has no dev split, its rows
/// are held out of train.
#[derive(Clone, Debug)]
pub struct RawDataset {
    pub train: RawSplit,
    pub dev: RawSplit,
    pub test: Option<RawSplit>,
    pub labels: Labels,
    /// The sources of train's rows; empty for one source.
    pub sources: Vec<SourceFacts>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl RawDataset {
    /// Reads each source's train, dev and test, as [`Dataset::load`] does. Train is mixed by the
    /// sources' weights; dev and test contain those of all sources.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a file or a row, with its place; sources whose rows or
    /// labels are of different kinds.
    pub fn read(sources: &[DataSource], options: &DataOptions) -> Result<Self, Error> {
        let read = |source: &DataSource| {
            let found = SplitFiles::find(source.place())?;
            let train = RawSplit::read(
                SplitName::Train,
                found.of(SplitName::Train)?,
                &options.columns,
                options.bad_rows,
            )?;
            let names = train.columns.names();
            let read = |name| match found.files.get(&name) {
                Some(files) => RawSplit::read(name, files, &names, options.bad_rows).map(Some),
                None => Ok(None),
            };
            let (dev, test) = (read(SplitName::Dev)?, read(SplitName::Test)?);
            Ok(RawSource { source: source.clone(), train, dev, test })
        };
        RawDataset::of_sources(sources.iter().map(read).collect::<Result<_, Error>>()?, options)
    }

    fn of_sources(
        mut sources: Vec<RawSource<Columns, RawRow>>,
        options: &DataOptions,
    ) -> Result<Self, Error> {
        if let Some(names) = &options.label_names
            && (names.len() < 2 || names.iter().collect::<BTreeSet<_>>().len() < names.len())
        {
            let names = names.join(",");
            return Err(Error::Options(format!(
                "`label_names = {names}`: expected at least two names, all different"
            )));
        }
        let mut warnings = sources::warnings(&sources);
        check_alike(&sources, options)?;
        let joined = match &sources[..] {
            [only] => Cow::Borrowed(&only.train),
            all => Cow::Owned(
                sources::join(all.iter().map(|source| source.train.clone())).ok_or_else(sources::no_data)?,
            ),
        };
        let labels = labels_of(&joined, options)?;
        let labels = match &options.positive_class {
            Some(class) => labels.with_positive(class)?,
            None => labels,
        };
        warnings.extend(suspicions(&joined, &labels, options.task));
        for source in &mut sources {
            if source.dev.is_none() {
                source.dev = Some(hold_out(&mut source.train, &labels, &mut warnings)?);
            }
        }
        let facts = sources::weigh(&mut sources)?;
        let (train, dev, test) = sources::join_splits(sources)?;
        Ok(RawDataset { train, dev, test, labels, sources: facts, warnings })
    }
}

/// Determines the labels of train, from the options or from how the labels look.
fn labels_of(train: &RawSplit, options: &DataOptions) -> Result<Labels, Error> {
    let names = options.label_names.as_deref().or_else(|| train.names_of_lists());
    Labels::of(train, options.task, names)
}

/// Checks that the rows of several sources can be trained on together.
///
/// # Errors
/// `Error::Sources` with the first source that differs from the one before it.
fn check_alike(sources: &[RawSource<Columns, RawRow>], options: &DataOptions) -> Result<(), Error> {
    let labels: Vec<Option<Labels>> = match sources {
        [_] => return Ok(()),
        // A source with a single class has no labels of its own.
        all => all.iter().map(|source| labels_of(&source.train, options).ok()).collect(),
    };
    for (i, pair) in sources.windows(2).enumerate() {
        let refuse = |what: String| {
            let [one, other] = [&pair[0], &pair[1]].map(|source| source.source.path.clone());
            Err(Error::Sources { one, other, what })
        };
        let rows = [&pair[0].train, &pair[1].train];
        if rows[0].columns.pair.is_some() != rows[1].columns.pair.is_some() {
            return refuse(format!("{} and {}", rows[0].columns.layout(), rows[1].columns.layout()));
        }
        let kinds =
            rows.map(|split| split.rows.iter().find_map(|row| row.label.as_ref()).map(RawLabel::kind));
        if let [Some(one), Some(other)] = kinds
            && one != other
        {
            return refuse(format!("labels that are {one} and labels that are {other}"));
        }
        let (Some(one), Some(other)) = (&labels[i], &labels[i + 1]) else { continue };
        if one.is_regression() != other.is_regression() {
            return refuse(format!("{} and {}; see `task`", one.task(), other.task()));
        }
        let shared = one.names().iter().any(|name| other.names().contains(name));
        if !one.is_regression() && !shared {
            return refuse(format!("the classes {} and {}", list(one.names()), list(other.names())));
        }
    }
    Ok(())
}

/// Up to this many rows, an error blames the number of rows and not the label column.
const FEW: usize = 20;

impl Dataset {
    /// Reads a folder's train, dev and test, or one file as train. Without dev a tenth of train is
    /// held out, stratified and the same for every seed, and a warning says so. Train decides what
    /// the labels are.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a file or a row, with its place.
    pub fn load(path: &Path, tokens: &Tokens, options: &DataOptions) -> Result<Self, Error> {
        Dataset::encode(RawDataset::read(&[DataSource::new(path)], options)?, tokens, options)
    }

    /// Tokenises rows in memory. Without rows for dev a tenth of train is held out, as in `load`.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a row, with its number from 1 in "rows for train" or
    /// "rows for dev".
    pub fn new(
        train: Vec<LabelledRow>,
        dev: Vec<LabelledRow>,
        tokens: &Tokens,
        options: &DataOptions,
    ) -> Result<Self, Error> {
        let train = RawSplit::of_rows(SplitName::Train, train)?;
        let dev = if dev.is_empty() { None } else { Some(RawSplit::of_rows(SplitName::Dev, dev)?) };
        let rows = vec![RawSource::single(train, dev, None)];
        Dataset::encode(RawDataset::of_sources(rows, options)?, tokens, options)
    }

    /// Tokenises all splits.
    ///
    /// # Errors
    /// The first row whose label or text is wrong; all rows dropped; rows of one class alone.
    pub fn encode(raw: RawDataset, tokens: &Tokens, options: &DataOptions) -> Result<Self, Error> {
        let RawDataset { train, dev, test, labels, sources, mut warnings } = raw;
        let columns = train.columns.clone();
        tokens.check_max_length(options.max_length, columns.pair.is_some())?;
        if options.reads_first && !labels.of_words() && tokens.special_tokens(false) == 0 {
            let file = tokens.file().display();
            warnings
                .push(format!("{file}: adds no special tokens, and the encoder's head reads the first one"));
        }
        let train = Split::encode(train, &labels, tokens, options)?;
        if let Some(only) = only_class(&train.facts.per_class).filter(|_| labels.task() != Task::MultiLabel) {
            let class = labels.names()[only].clone();
            return Err(Error::OneClass { path: train.files[0].clone(), class });
        }
        let labels = match &options.class_weights {
            Some(weights) => {
                let weights = weights.of(labels.task(), labels.names(), &train.facts)?;
                labels.with_weights(weights)
            }
            None => labels,
        };
        let dev = Split::encode(dev, &labels, tokens, options)?;
        let test = test.map(|test| Split::encode(test, &labels, tokens, options)).transpose()?;
        warnings.extend(options.cache.as_ref().and_then(TokenCache::stopped));
        warnings.extend(tokens.unknown_warning(&train.facts));
        let splits = [Some(&train), Some(&dev), test.as_ref()];
        warnings.extend(splits.into_iter().flatten().filter_map(|split| unread_words(&split.facts)));
        let facts = DataFacts {
            splits: splits.into_iter().flatten().map(|split| split.facts.clone()).collect(),
            classes: labels.names().to_vec(),
            class_weights: labels.weights().to_vec(),
            positive_class: labels.positive().map(String::from),
            text_column: columns.text,
            pair_column: columns.pair,
            label_column: columns.label.unwrap_or_default(),
            max_length: options.max_length,
            over_length: options.over_length.name().into(),
            sources,
        };
        Ok(Dataset { train, dev, test, labels, facts, warnings })
    }
}

impl Split {
    /// Reads one split under known labels, as evaluation does; `SplitFiles::part` says which rows
    /// it has. Returns the split and warnings for the user.
    ///
    /// # Errors
    /// See [`Error`]: whatever is wrong with a file or a row, with its place.
    pub fn load(
        path: &Path,
        name: SplitName,
        tokens: &Tokens,
        options: &DataOptions,
        labels: &Labels,
    ) -> Result<(Self, Vec<String>), Error> {
        let found = SplitFiles::find(path)?;
        let mut warnings = Vec::new();
        let (files, part) = found.part(name, &options.trained_on)?;
        let raw = if part == SplitPart::All {
            let raw = RawSplit::read(name, files, &options.columns, options.bad_rows)?;
            warnings.extend(raw.warnings.iter().cloned());
            raw
        } else {
            let mut train = RawSplit::read(SplitName::Train, files, &options.columns, options.bad_rows)?;
            warnings.extend(train.warnings.iter().cloned());
            let dev = hold_out(&mut train, labels, &mut warnings)?;
            if part == SplitPart::HeldOut { dev } else { train }
        };
        tokens.check_max_length(options.max_length, raw.columns.pair.is_some())?;
        warnings.extend(labels.index_warning(&raw));
        let split = Split::encode(raw, labels, tokens, options)?;
        warnings.extend(tokens.unknown_warning(&split.facts));
        warnings.extend(unread_words(&split.facts));
        Ok((split, warnings))
    }

    /// Tokenises rows, in parallel and in order, and treats over-long ones as the options say.
    ///
    /// # Errors
    /// The first row in the files' order whose label or text is wrong; all rows dropped.
    pub fn encode(
        raw: RawSplit,
        labels: &Labels,
        tokens: &Tokens,
        options: &DataOptions,
    ) -> Result<Self, Error> {
        let of_rows = raw.labels(labels)?;
        let limit = options.max_length;
        let encode = |row: &RawRow| -> Result<Encoded, Error> {
            let refuse = |problem| Error::row(raw.file_of(row), row.line, problem);
            let encoded =
                tokens.encode_row(&row.text, labels.of_words(), options.limits()).map_err(refuse)?;
            if encoded.length > limit && options.over_length == OverLength::Error {
                let Encoded { length: tokens, partly_counted, .. } = encoded;
                return Err(refuse(Problem::OverLong { tokens, partly_counted, max_length: limit }));
            }
            Ok(encoded)
        };
        let sound = |row: &Encoded| {
            let known = row.ids.iter().all(|&id| (id as usize) < options.vocabulary);
            let types = options.token_types.is_none_or(|n| row.types.iter().all(|&kind| (kind as usize) < n));
            let words = row.words.iter().all(|&(_, place)| (place as usize) < row.ids.len());
            known && types && words && (1..=limit).contains(&row.ids.len())
        };
        let fingerprint = || Some(fingerprint(&raw, labels.of_words(), tokens, options));
        let (encoded, cached) =
            cache::load_or_encode(options.cache.as_ref(), fingerprint, &raw.rows, sound, encode)?;
        let lengths: Vec<usize> = encoded.iter().map(|row| row.length).collect();
        let uncounted = encoded.iter().filter(|row| row.partly_counted).count();
        let mut examples = Vec::with_capacity(encoded.len());
        let mut of_rows = of_rows.map(Vec::into_iter);
        let (mut words, mut unread) = (0, 0);
        for (row, encoded) in raw.rows.iter().zip(encoded) {
            let Encoded { ids, types, length, words: of_row, .. } = encoded;
            let label = of_rows.as_mut().and_then(Iterator::next);
            if length > limit && options.over_length == OverLength::Drop {
                continue;
            }
            words += of_row.len();
            let label = match label {
                Some(Label::Tags(tags)) => {
                    unread += tags.len() - of_row.len();
                    let tag = |&(word, _): &(u32, u32)| tags[word as usize];
                    Some(Label::Tags(of_row.iter().map(tag).collect()))
                }
                label => label,
            };
            let labelled = of_row.into_iter().map(|(_, place)| place).collect();
            examples.push(Example { ids, types, labelled, label, file: row.file, line: row.line });
        }
        if examples.is_empty() {
            let (path, rows) = (raw.files[0].clone(), lengths.len());
            return Err(Error::AllDropped { path, rows, max_length: limit });
        }
        let (per_class, label_range) =
            label_counts(examples.iter().map(|example| example.label.as_ref()), labels);
        let facts = raw.facts(examples.iter().map(|example| example.ids.len()), lengths, limit);
        let unknown = examples.iter().map(|example| tokens.count_unknown(&example.ids)).sum();
        let facts = SplitFacts {
            cached,
            uncounted,
            unknown,
            words,
            unread_words: unread,
            per_class,
            label_range,
            ..facts
        };
        Ok(Split { name: raw.name, files: raw.files, examples, facts })
    }

    /// Returns the file and line of an example.
    pub fn place(&self, example: &Example) -> Place {
        Place::new(&self.files[example.file], example.line)
    }

    /// Returns every example's label, if the split has labels.
    pub fn labels(&self) -> Option<Vec<Label>> {
        self.examples.iter().map(|example| example.label.clone()).collect()
    }

    /// Mean of a regression's labels; `None` for classes.
    pub(crate) fn mean_value(&self) -> Option<f64> {
        let value = |label| if let Label::Value(value) = label { Some(f64::from(value)) } else { None };
        let values: Option<Vec<f64>> = self.labels()?.into_iter().map(value).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Returns every example's number of tokens.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples.iter().map(|example| example.ids.len()).collect()
    }
}

/// Returns the fingerprint of a split's texts and of everything else that decides their tokens.
fn fingerprint(raw: &RawSplit, of_words: bool, tokens: &Tokens, options: &DataOptions) -> Fingerprint {
    let mut fingerprint = tokens.fingerprint(if of_words { "labelled words" } else { "labelled rows" });
    fingerprint.number(options.max_length as u64);
    fingerprint.text(options.over_length.name());
    for row in &raw.rows {
        match &row.text {
            RowText::One(text) => (fingerprint.text(text), fingerprint.maybe(None)),
            RowText::Pair(text, pair) => (fingerprint.text(text), fingerprint.maybe(Some(pair))),
            RowText::Words(words) => {
                (fingerprint.number(words.len() as u64), words.iter().for_each(|word| fingerprint.text(word)))
            }
        };
    }
    fingerprint
}

/// Returns a warning if labelled words have no token.
fn unread_words(facts: &SplitFacts) -> Option<String> {
    let SplitFacts { name, words, unread_words: unread, .. } = facts;
    (*unread > 0).then(|| {
        format!(
            "{name}: {unread} of {} words have a label and no token: they lie beyond `max_length`, or the tokenizer \
             makes nothing of them; they are neither learned nor measured",
            words + unread
        )
    })
}

/// Holds rows out of train as dev, with a warning.
fn hold_out(train: &mut RawSplit, labels: &Labels, warnings: &mut Vec<String>) -> Result<RawSplit, Error> {
    let of_rows = train.labels(labels)?.unwrap_or_default();
    if let Some(dev) = train.hold_out(&of_rows) {
        warnings.push(format!(
            "no dev split: {} rows of train are held out as dev (stratified, the same for every seed), {} are left",
            dev.rows.len(),
            train.rows.len()
        ));
        return Ok(dev);
    }
    // The only row of a class is never held out.
    let (rows, classes) = (train.rows.len(), labels.names().len());
    let problem = match rows > FEW && classes > 0 {
        true => format!(
            "every one of its {rows} rows has a class of its own, so none can be held out as dev: is {:?} the label \
             column? For numbers to predict give `task = regression`; otherwise",
            train.label_column()
        ),
        false => format!("{rows} rows are too few to hold any out as dev;"),
    };
    Err(Error::file(&train.files[0], format!("{problem} add a dev file")))
}

/// Returns warnings of what is probably a mistake in train.
fn suspicions(train: &RawSplit, labels: &Labels, task: Option<Task>) -> Vec<String> {
    let (names, rows) = (labels.names(), train.rows.len());
    let mut warnings = Vec::new();
    if names.len() > 20 && names.len() * 2 > rows {
        let column = train.label_column();
        warnings.push(format!("{} classes in {rows} rows: is {column:?} the label column?", names.len()));
    }
    let mut without_case: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    names.iter().for_each(|name| without_case.entry(name.to_lowercase()).or_default().push(name));
    if let Some(same) = without_case.values().find(|same| same.len() > 1) {
        let same: Vec<String> = same.iter().map(|name| format!("{name:?}")).collect();
        warnings.push(format!("labels that differ only in case are different classes: {}", same.join(", ")));
    }
    let whole = |row: &RawRow| matches!(&row.label, Some(RawLabel::Float(x)) if x.fract() == 0.0);
    if task.is_none() && train.rows.iter().all(whole) {
        let (taken, other, task) = match labels.is_regression() {
            true => ("numbers to predict", "classes", Task::Classification),
            false => ("classes", "numbers to predict", Task::Regression),
        };
        warnings.push(format!(
            "the labels are whole numbers written with a fraction, such as 1.0, and are taken for {taken}; if they are \
             {other}, give `task = {task}`"
        ));
    }
    if let (Labels::TokenClassification { .. }, true) =
        (labels, names.iter().all(|name| name.parse::<i64>().is_ok()))
    {
        warnings.push(
            "the tags are numbers without names, so no entities are measured; give their names in order as \
             `label_names`, such as O,B-PER,I-PER"
                .into(),
        );
    }
    if names.len() > 2 && names.first().is_some_and(|name| name == "-1") {
        let rows =
            train.rows.iter().filter(|row| row.label.as_ref().is_some_and(|l| l.is_minus_one())).count();
        warnings.push(format!(
            "label -1 ({rows} rows) is a class like the others; if it marks rows without label, remove them"
        ));
    }
    warnings
}

/// Returns the only class that occurs, if there is just one.
fn only_class(per_class: &[usize]) -> Option<usize> {
    let mut present = (0..per_class.len()).filter(|&class| per_class[class] > 0);
    present.next().filter(|_| present.next().is_none())
}

/// Counts the rows or words of each class; returns the smallest, mean and largest value of a
/// regression.
pub(crate) fn label_counts<'a>(
    of_rows: impl Iterator<Item = Option<&'a Label>>,
    labels: &Labels,
) -> (Vec<usize>, Option<(f64, f64, f64)>) {
    let mut per_class = vec![0; labels.names().len()];
    let mut values = Vec::new();
    for label in of_rows {
        match label {
            Some(Label::Value(value)) => values.push(f64::from(*value)),
            Some(label) => label.classes().iter().for_each(|&class| per_class[class] += 1),
            None => per_class.clear(),
        }
    }
    let least = values.iter().copied().reduce(f64::min);
    let most = values.iter().copied().reduce(f64::max);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (per_class, least.zip(most).map(|(least, most)| (least, mean, most)))
}
