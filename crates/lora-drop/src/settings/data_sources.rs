//! Where rows come from: one data set, or several, each with an optional weight.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use super::definition::{Kind, Setting};
use crate::hub::Download;
#[cfg(feature = "hub")]
use crate::hub::HubOptions;
use crate::{Cancel, Error, Result};

/// A data set, alone or among others.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSource {
    /// A folder, a file or a name on the hub, as it was given.
    pub path: PathBuf,
    /// Where the files are, if `path` is a name on the hub and was located.
    pub found: Option<PathBuf>,
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
    /// A source without a weight.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DataSource { path: path.into(), found: None, weight: None }
    }

    /// Where its files are.
    pub fn place(&self) -> &Path {
        self.found.as_deref().unwrap_or(&self.path)
    }

    fn read(text: &str) -> Self {
        let weighted =
            text.rsplit_once('=').filter(|(path, _)| !path.is_empty() && !Path::new(text).exists());
        match weighted.and_then(|(path, weight)| Some((path, weight.parse().ok()?))) {
            Some((path, weight)) => DataSource { weight: Some(weight), ..DataSource::new(path) },
            None => DataSource::new(text),
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

    /// The same sources with absolute paths; names on the hub stay what they are.
    pub fn absolute(&self) -> Self {
        let mut all = self.clone();
        for source in all.0.iter_mut().filter(|source| source.found.is_none()) {
            source.path = std::path::absolute(&source.path).unwrap_or_else(|_| source.path.clone());
        }
        all
    }

    /// Finds the sources that are names on the hub, and downloads what is not in the cache. `config`
    /// is the configuration to take of them. Returns whether there are any. For `cancel` and
    /// `progress` see [`HubOptions::resolve`](crate::hub::HubOptions::resolve).
    ///
    /// # Errors
    /// Those of [`HubOptions::resolve_data`](crate::hub::HubOptions::resolve_data).
    #[cfg(feature = "hub")]
    pub fn locate(
        &mut self,
        config: Option<&str>,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<bool> {
        let hub = HubOptions::from_env();
        for source in &mut self.0 {
            source.found = hub.resolve_data(&source.path, config, cancel, progress)?;
        }
        Ok(self.0.iter().any(|source| source.found.is_some()))
    }

    /// Returns false: this build has no hub.
    ///
    /// # Errors
    /// There are none.
    #[cfg(not(feature = "hub"))]
    pub fn locate(&mut self, _: Option<&str>, _: &Cancel, _: &mut dyn FnMut(Download<'_>)) -> Result<bool> {
        Ok(false)
    }

    /// Like `locate`, but a given configuration must apply to at least one source.
    ///
    /// # Errors
    /// Those of `locate`; `Error::Usage` if a configuration is given and no source is on the hub.
    pub fn locate_all(
        &mut self,
        config: Option<&str>,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        if !self.locate(config, cancel, progress)? && config.is_some() {
            return Err(self.no_config());
        }
        Ok(())
    }

    /// The error for a given configuration if no source is on the hub.
    pub fn no_config(&self) -> Error {
        Error::Usage(format!(
            "`data_config` has no effect for {self}, which is no data set of the hub (`hf://org/name` always is)"
        ))
    }

    /// Checks the paths and the weights.
    ///
    /// # Errors
    /// `Error::Usage` for a weight that is not a positive number, for weights of some sources alone,
    /// and for a source that is given twice.
    pub fn check(&self) -> Result<()> {
        let refuse =
            |source: &DataSource, what: &str| Err(Error::Usage(format!("`data = {source}`: {what}")));
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
                    return refuse(
                        source,
                        "a weight is one beside those of other sources; leave it out, or give others",
                    );
                }
                None if self.0.iter().any(|other| other.weight.is_some()) => {
                    return refuse(
                        source,
                        "has no weight, and another source has one; give all of them one, or none",
                    );
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
                DataSources(vec![DataSource::new(path)])
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
