//! A table of the table file: keys of its own, and settings of `train` next to them. Errors name
//! the line of the key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use lora_drop::settings::{Recipe, TomlFile, check_table, definition, one_line, unknown_among};
use lora_drop::{Error, Result};

/// Settings that belong to the whole table, and where they are given instead.
const OF_THE_TABLE: [(&str, &str); 4] = [
    ("output", "each cell has a folder of its own in the table's output"),
    ("seed", "give the table's seeds"),
    ("threads", "give `threads` to the comparison, which shares them among its jobs"),
    ("overwrite", "a finished cell is never written again"),
];

/// A table of the file, whose own keys are taken one by one. What is left are settings of `train`,
/// or unknown keys.
pub(super) struct Section<'a> {
    file: &'a TomlFile,
    span: Range<usize>,
    /// The offset of each key.
    places: BTreeMap<String, usize>,
    left: DeTable<'a>,
    /// The table's own keys that were asked for.
    own: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub fn new(file: &'a TomlFile, table: Spanned<DeTable<'a>>) -> Self {
        let keys = table.get_ref().keys();
        let places = keys.map(|key| (key.get_ref().to_string(), key.span().start)).collect();
        Section { file, span: table.span(), places, left: table.into_inner(), own: Vec::new() }
    }

    pub fn error(&self, key: &str, problem: &str) -> Error {
        Error::Usage(format!("{}: {key}: {problem}", self.at(key)))
    }

    fn at(&self, key: &str) -> String {
        self.file.at(self.places.get(key).copied().unwrap_or(self.span.start))
    }

    fn value(&mut self, key: &'static str) -> Option<Spanned<DeValue<'a>>> {
        self.own.push(key);
        self.left.remove(key)
    }

    /// The value of a key.
    pub fn take<T: DeserializeOwned>(&mut self, key: &'static str) -> Result<Option<T>> {
        let value = self.value(key).map(|value| T::deserialize(ValueDeserializer::from(value)));
        value.transpose().map_err(|e| self.error(key, &one_line(e.message())))
    }

    /// A table within this one.
    pub fn part(&mut self, key: &'static str) -> Result<Option<Self>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let part = table_of(value).map(|table| Section::new(self.file, table));
        part.map(Some).ok_or_else(|| self.error(key, &format!("expected a table [{key}]")))
    }

    /// The tables of a list, at least one.
    pub fn parts(&mut self, key: &'static str) -> Result<Vec<Self>> {
        let tables = match self.value(key).map(Spanned::into_inner) {
            Some(DeValue::Array(list)) => list.into_iter().map(table_of).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        let tables = tables.filter(|tables| !tables.is_empty());
        let tables =
            tables.ok_or_else(|| self.error(key, &format!("expected at least one table [[{key}]]")))?;
        Ok(tables.into_iter().map(|table| Section::new(self.file, table)).collect())
    }

    /// The settings of `train` that are left, for single cells.
    pub fn settings(&mut self) -> Result<Recipe> {
        for (name, advice) in OF_THE_TABLE {
            if self.left.contains_key(name) {
                return Err(self.error(name, &format!("not a setting of a single cell: {advice}")));
            }
        }
        let left = Spanned::new(self.span.clone(), std::mem::take(&mut self.left));
        let plain =
            ValueDeserializer::from(Spanned::new(self.span.clone(), DeValue::Table(left.get_ref().clone())));
        let plain = Table::deserialize(plain).map_err(|e| Error::Usage(one_line(e.message())))?;
        check_table(left, &plain, &self.own, &|offset| self.file.at(offset))?;
        Recipe::from_table(plain)
    }

    /// Refuses keys that are left in a table without settings of `train`.
    pub fn refuse_others(&self) -> Result<()> {
        let Some(key) = self.left.keys().next().map(|key| key.get_ref().as_ref()) else { return Ok(()) };
        if definition(key).is_some() {
            let problem = "a setting of `train`; it belongs in [options], [[tasks]] or [[methods]]";
            return Err(self.error(key, problem));
        }
        Err(Error::Usage(format!("{}: {}", self.at(key), unknown_among(key, &self.own))))
    }

    /// The name of a task or a method.
    pub fn name(&mut self) -> Result<String> {
        let name: Option<String> = self.take("name")?;
        let name = name.filter(|name| !name.trim().is_empty());
        name.ok_or_else(|| self.error("name", "is missing; the tables and pictures need one"))
    }

    /// A list of seeds, none of them twice.
    pub fn seeds(&mut self, key: &'static str) -> Result<Option<Vec<u64>>> {
        let seeds: Option<Vec<u64>> = self.take(key)?;
        let repeats = |seeds: &Vec<u64>| seeds.iter().collect::<BTreeSet<_>>().len() < seeds.len();
        match seeds {
            Some(seeds) if seeds.is_empty() || repeats(&seeds) => {
                Err(self.error(key, "expected a list of different seeds, at least one"))
            }
            seeds => Ok(seeds),
        }
    }

    /// Every combination of the values in a table of lists: one empty combination if there is no
    /// such table. The lists are named by settings of `train`, or by one of the options of `prune`
    /// in `of_prune`.
    pub fn combinations(&mut self, key: &'static str, of_prune: Option<&[&str]>) -> Result<Vec<Table>> {
        let lists: Table = self.take(key)?.unwrap_or_default();
        let mut combinations = vec![Table::new()];
        for (name, values) in lists {
            if let Some((_, advice)) = OF_THE_TABLE.iter().find(|(setting, _)| *setting == name) {
                return Err(self.error(key, &format!("{name} is not a setting of a single cell: {advice}")));
            }
            let list = values.as_array().filter(|list| !list.is_empty());
            let list = list.ok_or_else(|| self.error(key, &format!("{name}: expected a list of values")))?;
            for value in list {
                let one = Table::from_iter([(name.clone(), value.clone())]);
                let checked = match of_prune {
                    Some(known) if known.contains(&name.as_str()) => Ok(()),
                    Some(known) => Err(Error::Usage(unknown_among(&name, known))),
                    None => Recipe::from_table(one).and_then(Recipe::recorded).map(drop),
                };
                checked.map_err(|error| self.error(key, &error.to_string()))?;
            }
            let with = |before: &Table, value: &Value| {
                let mut combination = before.clone();
                combination.insert(name.clone(), value.clone());
                combination
            };
            combinations =
                combinations.iter().flat_map(|before| list.iter().map(|value| with(before, value))).collect();
        }
        Ok(combinations)
    }
}

fn table_of(value: Spanned<DeValue<'_>>) -> Option<Spanned<DeTable<'_>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(span, table)),
        _ => None,
    }
}
