//! Where rows come from: one data set, or several of which each may have a weight.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use super::definition::{Kind, Setting};
use crate::{Error, Result};

/// A data set, alone or among others.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSource {
    /// A folder or a file.
    pub path: PathBuf,
    /// Its share of an epoch's rows, in proportion to the other sources' weights.
    pub weight: Option<f64>,
}

/// The data sets that rows are read from. A recipe has one as a text and several as a list of
/// texts, each a path, or a path and a weight, `path=0.7`. A text that is an existing path has no
/// weight, so a name may have an equals sign.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct DataSources(Vec<DataSource>);

impl DataSource {
    fn read(text: &str) -> Self {
        let weighted = text.rsplit_once('=').filter(|(path, _)| !path.is_empty() && !Path::new(text).exists());
        match weighted.and_then(|(path, weight)| Some((path, weight.parse().ok()?))) {
            Some((path, weight)) => DataSource { path: path.into(), weight: Some(weight) },
            None => DataSource { path: text.into(), weight: None },
        }
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.weight.map_or(Ok(()), |weight| write!(f, "={weight}"))
    }
}

impl DataSources {
    /// The sources in the order in which they were given.
    pub fn all(&self) -> &[DataSource] {
        &self.0
    }

    /// The path of the only source; None of several.
    pub fn single(&self) -> Option<&Path> {
        if let [only] = &self.0[..] { Some(&only.path) } else { None }
    }

    /// Whether no data set is named.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|source| source.path.as_os_str().is_empty())
    }

    /// The paths of all sources.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|source| source.path.clone()).collect()
    }

    /// The same sources at other paths.
    pub fn map(&self, path: impl Fn(&Path) -> PathBuf) -> Self {
        let map = |source: &DataSource| DataSource { path: path(&source.path), weight: source.weight };
        DataSources(self.0.iter().map(map).collect())
    }

    /// Checks the paths and the weights.
    ///
    /// # Errors
    /// `Error::Usage` for a weight that is not a positive number, for weights of some sources alone,
    /// and for a source that is given twice.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |source: &DataSource, what: &str| Err(Error::Usage(format!("`data = {source}`: {what}")));
        let several = self.0.len() > 1;
        for (i, source) in self.0.iter().enumerate() {
            if source.path.to_str().is_none() {
                return refuse(source, "not valid UTF-8, so recipe.toml could not name it; rename the path");
            }
            match source.weight {
                Some(weight) if !(weight > 0.0 && weight.is_finite()) => {
                    return refuse(source, "a weight must be greater than 0 and finite");
                }
                Some(_) if !several => {
                    return refuse(source, "a weight is one beside those of other sources; leave it out, or give others");
                }
                None if self.0.iter().any(|other| other.weight.is_some()) => {
                    return refuse(source, "has no weight, and another source has one; give all of them one, or none");
                }
                _ => {}
            }
            if self.0[..i].iter().any(|other| other.path == source.path) {
                return refuse(source, "given twice; a weight says how often its rows are seen");
            }
        }
        Ok(())
    }
}

impl fmt::Display for DataSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(DataSource::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

macro_rules! from_path {
    ($($path:ty)+) => {
        $(impl From<$path> for DataSources {
            /// The data set at this path, as it stands.
            fn from(path: $path) -> Self {
                DataSources(vec![DataSource { path: path.into(), weight: None }])
            }
        })+
    };
}

from_path!(PathBuf &Path &PathBuf &str String &String);

impl From<Vec<String>> for DataSources {
    fn from(texts: Vec<String>) -> Self {
        DataSources(texts.iter().map(|text| DataSource::read(text)).collect())
    }
}

impl From<DataSources> for Vec<String> {
    fn from(sources: DataSources) -> Self {
        sources.0.iter().map(DataSource::to_string).collect()
    }
}

impl Setting for DataSources {
    const KIND: Kind = Kind::Several(&Kind::Text);

    fn from_value(value: &Value) -> std::result::Result<Self, String> {
        let text = |value: &Value| {
            let text = value.as_str().map(String::from);
            text.ok_or_else(|| format!("expected a text or a list of texts, found {value}"))
        };
        let texts = match value {
            Value::Array(list) => list.iter().map(text).collect::<std::result::Result<Vec<_>, _>>()?,
            value => vec![text(value)?],
        };
        Ok(texts.into())
    }

    fn to_value(&self) -> Option<Value> {
        let texts = Vec::from(self.clone());
        Some(match texts.len() {
            0 => Value::String(String::new()),
            1 => Value::String(texts.concat()),
            _ => texts.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(texts: &[&str]) -> DataSources {
        texts.iter().map(|text| text.to_string()).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_weight_is_a_number_after_the_last_equals_sign() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lr=0.1").to_str().unwrap().to_string();
        let weight = |text: &str| {
            let source = DataSource::read(text);
            (source.path.to_str().unwrap().to_string(), source.weight)
        };
        assert_eq!(weight("a"), ("a".into(), None));
        assert_eq!(weight("a=0.7"), ("a".into(), Some(0.7)));
        assert_eq!(weight("a=b"), ("a=b".into(), None));
        assert_eq!(weight("a=b=2"), ("a=b".into(), Some(2.0)));
        assert_eq!(weight("=2"), ("=2".into(), None));
        std::fs::write(&file, "").unwrap();
        assert_eq!(weight(&file), (file.clone(), None));
        assert_eq!(weight(&format!("{file}=3")), (file, Some(3.0)));
    }

    #[test]
    fn recipes_have_a_text_or_a_list() {
        for (texts, value) in [
            (&["a"][..], Value::from("a")),
            (&["a", "b"], vec!["a", "b"].into()),
            (&["a=0.7", "b=0.3"], vec!["a=0.7", "b=0.3"].into()),
        ] {
            let sources = sources(texts);
            assert_eq!(sources.to_value(), Some(value.clone()));
            assert_eq!(DataSources::from_value(&value).unwrap(), sources);
        }
        assert_eq!(DataSources::default().to_value(), Some("".into()));
        assert!(DataSources::default().is_empty() && sources(&[""]).is_empty());
        assert!(DataSources::from_value(&Value::Integer(1)).unwrap_err().contains("a list of texts"));
    }

    #[test]
    fn weights_that_do_not_fit_are_named() {
        sources(&["a", "b"]).check().unwrap();
        sources(&["a=7", "b=3"]).check().unwrap();
        for (texts, parts) in [
            (&["a=0", "b=1"][..], &["`data = a=0`", "greater than 0"][..]),
            (&["a=nan", "b=1"], &["a=NaN", "finite"]),
            (&["a=0.7"], &["`data = a=0.7`", "other sources"]),
            (&["a=0.7", "b"], &["`data = b`", "has no weight"]),
            (&["a", "b", "a"], &["`data = a`", "given twice"]),
        ] {
            let message = sources(texts).check().unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
