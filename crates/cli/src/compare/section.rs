//! A table of the table file: its own keys, and the settings of `train` beside them, each with the
//! line where it stands.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
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

/// A table of the file with its plain values, and the offset at which it stands.
pub(super) type Part<'a> = (Spanned<DeTable<'a>>, Table);

/// A table of the file: its own keys, to be taken one by one, and the settings of `train` beside
/// them.
pub(super) struct Section<'a> {
    file: &'a TomlFile,
    start: usize,
    /// The offset of each key.
    places: BTreeMap<String, usize>,
    parsed: BTreeMap<String, Spanned<DeValue<'a>>>,
    own: Table,
    /// The settings of `train`, or what is no key of its own.
    pub rest: Table,
}

impl<'a> Section<'a> {
    pub fn new(file: &'a TomlFile, table: Spanned<DeTable<'a>>, values: Table, own: &[&str]) -> Result<Self> {
        Ok(Self::split(file, (table, values), own).0)
    }

    /// A table that may have settings of `train`; they are checked.
    pub fn options(file: &'a TomlFile, part: Part<'a>, own: &[&str]) -> Result<Self> {
        let (section, others) = Self::split(file, part, own);
        for (name, advice) in OF_THE_TABLE {
            if section.rest.contains_key(name) {
                return Err(section.error(name, &format!("no setting of a single cell: {advice}")));
            }
        }
        check_table(others, &section.rest, own, &|offset| file.at(offset))?;
        Ok(section)
    }

    fn split(file: &'a TomlFile, (table, mut rest): Part<'a>, own: &[&str]) -> (Self, Spanned<DeTable<'a>>) {
        let span = table.span();
        let places =
            table.get_ref().keys().map(|key| (key.get_ref().to_string(), key.span().start)).collect();
        let mut table = table.into_inner();
        let (mut parsed, mut values) = (BTreeMap::new(), Table::new());
        for &key in own {
            parsed.extend(table.remove(key).map(|value| (key.to_string(), value)));
            values.extend(rest.remove(key).map(|value| (key.to_string(), value)));
        }
        let section = Section { file, start: span.start, places, parsed, own: values, rest };
        (section, Spanned::new(span, table))
    }

    pub fn refuse_others(&self, known: &[&str]) -> Result<()> {
        match self.rest.keys().next() {
            Some(key) if definition(key).is_some() => {
                Err(self
                    .error(key, "a setting of `train`; it belongs into [options], [[tasks]] or [[methods]]"))
            }
            Some(key) => Err(Error::Usage(format!("{}: {}", self.at(key), unknown_among(key, known)))),
            None => Ok(()),
        }
    }

    fn at(&self, key: &str) -> String {
        self.file.at(self.places.get(key).copied().unwrap_or(self.start))
    }

    pub fn error(&self, key: &str, problem: &str) -> Error {
        Error::Usage(format!("{}: {key}: {problem}", self.at(key)))
    }

    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        let value = self.own.remove(key).map(|value| value.try_into());
        value.transpose().map_err(|e: toml::de::Error| self.error(key, &one_line(e.message())))
    }

    pub fn name(&mut self) -> Result<String> {
        let name: Option<String> = self.take("name")?;
        let name = name.filter(|name| !name.trim().is_empty());
        name.ok_or_else(|| self.error("name", "is missing; the tables and pictures need one"))
    }

    /// A list of seeds, none of them twice.
    pub fn seeds(&mut self, key: &str) -> Result<Option<Vec<u64>>> {
        let seeds: Option<Vec<u64>> = self.take(key)?;
        let Some(seeds) = seeds else { return Ok(None) };
        let different: BTreeSet<u64> = seeds.iter().copied().collect();
        if seeds.is_empty() || different.len() < seeds.len() {
            return Err(self.error(key, "expected a list of different seeds, at least one"));
        }
        Ok(Some(seeds))
    }

    /// Every combination of the values that a table of lists has: one empty combination where there
    /// is no such table. The values are those of settings of `train`, or of the options of `prune`
    /// that are named.
    pub fn combinations(&mut self, key: &str, of_prune: Option<&[&str]>) -> Result<Vec<Table>> {
        let lists: Table = self.take(key)?.unwrap_or_default();
        let mut combinations = vec![Table::new()];
        for (name, values) in lists {
            if let Some((_, advice)) = OF_THE_TABLE.iter().find(|(setting, _)| *setting == name) {
                return Err(self.error(key, &format!("{name} is no setting of a single cell: {advice}")));
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

    /// A table within this one.
    pub fn part(&mut self, key: &str) -> Result<Option<Part<'a>>> {
        match (self.parsed.remove(key), self.own.remove(key)) {
            (Some(value), Some(Value::Table(values))) => Ok(table_of(value).map(|table| (table, values))),
            (None, None) => Ok(None),
            _ => Err(self.error(key, &format!("expected a table [{key}]"))),
        }
    }

    /// The tables of a list, at least one.
    pub fn parts(&mut self, key: &str) -> Result<Vec<Part<'a>>> {
        let wrong = format!("expected at least one table [[{key}]]");
        let (parsed, values) = match (self.parsed.remove(key), self.own.remove(key)) {
            (Some(parsed), Some(Value::Array(values))) => (parsed.into_inner(), values),
            _ => return Err(self.error(key, &wrong)),
        };
        let DeValue::Array(parsed) = parsed else { return Err(self.error(key, &wrong)) };
        let both = std::iter::zip(parsed, values).map(|(parsed, values)| match (table_of(parsed), values) {
            (Some(table), Value::Table(values)) => Ok((table, values)),
            _ => Err(self.error(key, &wrong)),
        });
        let parts = both.collect::<Result<Vec<_>>>()?;
        if parts.is_empty() { Err(self.error(key, &wrong)) } else { Ok(parts) }
    }

    pub fn check_unique(&self, key: &str, names: &[&str]) -> Result<()> {
        let mut seen = BTreeSet::new();
        match names.iter().find(|name| !seen.insert(**name)) {
            Some(name) => Err(self.error(key, &format!("two have the name {name:?}"))),
            None => Ok(()),
        }
    }
}

fn table_of(value: Spanned<DeValue<'_>>) -> Option<Spanned<DeTable<'_>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(span, table)),
        _ => None,
    }
}
