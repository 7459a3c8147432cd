//! Use of models: prediction, evaluation, generation and merging.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lora_drop::adapter::FloatType;
use lora_drop::data::text::{Message, Role, TextRow};
use lora_drop::data::{Labels, Row, RowText, TextReader};
use lora_drop::evaluate::text::Metric;
use lora_drop::evaluate::{GenerationOptions, Prediction};
use lora_drop::events::Event;
use lora_drop::generate::GenerateOptions;
use lora_drop::merge::{self as merging, MergedForm};
use lora_drop::model::locate;
use lora_drop::ranks::Ranks;
use lora_drop::use_settings::{UseSettings, base_model, recipe_of};
use lora_drop::{Error, Result};
use lora_drop_transformer::gguf::FileType;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::{Value, json};

use crate::errors::exception;
use crate::events::EventRecord;
use crate::runs::table;
use crate::work::{Cancel, EventSender, run};

/// Locks a model so that one call at a time uses it; a panic in an earlier call is ignored.
fn locked<T>(model: &Mutex<T>) -> MutexGuard<'_, T> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a model with the settings of the adapter's training run, overridden by the given ones, and
/// reports the model's notes.
fn open<T: Send>(
    py: Python<'_>,
    (settings, adapter): (&str, Option<PathBuf>),
    (listen, cancel): (&Bound<'_, PyAny>, &Cancel),
    open: impl FnOnce(&UseSettings, &lora_drop::Cancel) -> Result<T> + Send,
    notes: impl FnOnce(&T) -> &[String] + Send,
) -> PyResult<(T, UseSettings)> {
    run(py, listen, cancel, |cancel, events| {
        let source = UseSettings::new(adapter, table(settings)?)?;
        locate(source.model(), cancel, &mut |part| events.downloading(&part))?;
        let model = open(&source, cancel)?;
        notes(&model).iter().for_each(|note| events.event(&Event::Note(note)));
        Ok((model, source))
    })
}

/// Returns the path of `data`, which is downloaded if it names a data set on the hub.
fn find(
    source: &UseSettings,
    data: &Path,
    cancel: &lora_drop::Cancel,
    events: &EventSender,
) -> Result<PathBuf> {
    source.locate(data, cancel, &mut |part| events.downloading(&part))
}

/// Model that predicts and evaluates.
#[pyclass(frozen, module = "lora_drop._native")]
pub struct Predictor {
    model: Mutex<lora_drop::evaluate::Predictor>,
    source: UseSettings,
}

/// Predictions: a JSON array of objects, the logits of all rows one after the other as
/// native-endian f32, and the number of logits of each row.
type Predicted<'py> = (String, Bound<'py, PyBytes>, Vec<usize>);

#[pymethods]
impl Predictor {
    #[new]
    fn new(
        py: Python<'_>,
        settings: &str,
        adapter: Option<PathBuf>,
        listen: &Bound<'_, PyAny>,
        cancel: &Cancel,
    ) -> PyResult<Self> {
        let predictor = |source: &UseSettings, cancel: &_| source.predictor(&Ranks::default(), cancel);
        let (model, source) = open(
            py,
            (settings, adapter),
            (listen, cancel),
            predictor,
            lora_drop::evaluate::Predictor::notes,
        )?;
        Ok(Predictor { model: Mutex::new(model), source })
    }

    /// Describes the model; returns a JSON object.
    fn about(&self) -> String {
        let model = locked(&self.model);
        let task = model.labels().map_or(lora_drop::settings::Task::Text, Labels::task);
        json!({
            "model": self.source.model(),
            "task": task.name(),
            "labels": model.labels().map(|labels| labels.names().to_vec()).unwrap_or_default(),
            "max_length": model.max_length(),
        })
        .to_string()
    }

    /// Predicts `rows`, a JSON array of texts, {"pair": [first, second]}, {"words": [...]} and
    /// {"row": {...}}.
    fn predict<'py>(
        &self,
        py: Python<'py>,
        rows: &str,
        listen: &Bound<'py, PyAny>,
        cancel: &Cancel,
    ) -> PyResult<Predicted<'py>> {
        let (texts, predictions) = run(py, listen, cancel, |cancel, _| {
            let mut model = locked(&self.model);
            let texts = self.texts(rows, model.labels().map(Labels::task))?;
            let predictions = model.predict_until(&texts, cancel)?;
            Ok((texts, predictions))
        })?;
        let object = |(text, found): (&RowText, &Prediction)| {
            let fields = found.fields(text.is_words()).into_iter().filter(|(name, _)| *name != "logits");
            Value::Object(fields.map(|(name, value)| (name.to_string(), value)).collect())
        };
        let objects: Vec<Value> = texts.iter().zip(&predictions).map(object).collect();
        let counts: Vec<usize> = predictions.iter().map(|found| found.logits.len()).collect();
        let bytes = PyBytes::new_with(py, 4 * counts.iter().sum::<usize>(), |bytes| {
            let logits = predictions.iter().flat_map(|found| &found.logits);
            for (four, logit) in bytes.chunks_exact_mut(4).zip(logits) {
                four.copy_from_slice(&logit.to_ne_bytes());
            }
            Ok(())
        })?;
        Ok((Value::Array(objects).to_string(), bytes, counts))
    }

    /// Evaluates a split by the task's metrics. With `generation`, a JSON object with metrics,
    /// limit and decoding options, also evaluates the texts that a decoder generates. Returns a
    /// JSON object.
    fn evaluate(
        &self,
        py: Python<'_>,
        data: PathBuf,
        split: &str,
        generation: Option<&str>,
        listen: &Bound<'_, PyAny>,
        cancel: &Cancel,
    ) -> PyResult<String> {
        run(py, listen, cancel, |cancel, events| {
            let wanted = generation.map(generation_options).transpose()?;
            let data = find(&self.source, &data, cancel, events)?;
            let mut model = locked(&self.model);
            let reading = &self.source.reading;
            let read = |options| model.inputs(&data, split, reading, options);
            let inputs = wanted.as_ref().map(read).transpose()?.unwrap_or_default();
            let mut listen = |event: &Event| events.event(event);
            let found = model.evaluate(&data, split, reading, cancel, &mut listen)?;
            let mut metrics: serde_json::Map<_, _> =
                found.metrics.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
            let mut texts = None;
            if let Some(options) = &wanted {
                let written = model.evaluate_generation(&inputs, options, cancel, &mut listen)?;
                metrics.extend(written.metrics.iter().map(|(name, value)| (name.clone(), json!(value))));
                texts = Some(written.texts.iter().map(|one| one.text.clone()).collect::<Vec<_>>());
            }
            let (loss, rows, tokens, seconds) = (found.loss, found.rows, found.tokens, found.seconds);
            Ok(json!({"metrics": metrics, "loss": loss, "rows": rows, "tokens": tokens, "seconds": seconds,
                "texts": texts})
            .to_string())
        })
    }
}

impl Predictor {
    /// Parses the rows of `predict`.
    fn texts(&self, rows: &str, task: Option<lora_drop::settings::Task>) -> Result<Vec<RowText>> {
        let mut reader = TextReader::new(Path::new("rows"), task, &self.source.reading);
        let read = |(number, value): (usize, Value)| -> Result<RowText> {
            let (mut fields, line) = match value {
                Value::String(text) => return Ok(RowText::One(text)),
                Value::Object(fields) => (fields, number + 1),
                other => return Err(Error::Usage(format!("row {}: {other} is no row", number + 1))),
            };
            let texts = |value: Value| serde_json::from_value::<Vec<String>>(value).unwrap_or_default();
            if let Some(pair) = fields.remove("pair")
                && let Ok([first, second]) = <[String; 2]>::try_from(texts(pair))
            {
                return Ok(RowText::Pair(first, second));
            }
            if let Some(words) = fields.remove("words") {
                return Ok(RowText::Words(texts(words)));
            }
            let fields = fields.remove("row").and_then(|row| row.as_object().cloned()).unwrap_or_default();
            Ok(reader.read(&Row { line, fields })?)
        };
        values(rows)?.into_iter().enumerate().map(read).collect()
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

fn values(rows: &str) -> Result<Vec<Value>> {
    serde_json::from_str(rows).map_err(|e| Error::Usage(format!("rows: {e}")))
}

/// Parses decoding options by name; a null option counts as not given.
fn decoding(mut given: Value) -> Result<GenerateOptions> {
    if let Some(given) = given.as_object_mut() {
        given.retain(|_, value| !value.is_null());
    }
    let options: GenerateOptions =
        serde_json::from_value(given).map_err(|e| Error::Usage(format!("options of decoding: {e}")))?;
    options.check()?;
    Ok(options)
}

fn generation_options(given: &str) -> Result<GenerationOptions> {
    let mut given: Value = serde_json::from_str(given).map_err(|e| Error::Usage(e.to_string()))?;
    let names = given["metrics"].take();
    let limit = given["limit"].take().as_u64().map(|limit| limit as usize);
    if let Some(given) = given.as_object_mut() {
        given.remove("metrics");
        given.remove("limit");
    }
    let metric = |name: &Value| {
        let found = name.as_str().and_then(Metric::from_name);
        let known = || listed(Metric::ALL.iter().map(|metric| metric.name()));
        found.ok_or_else(|| Error::Usage(format!("`metrics`: {name} is none of {}", known())))
    };
    let metrics = names.as_array().into_iter().flatten().map(metric).collect::<Result<_>>()?;
    Ok(GenerationOptions { metrics, limit, decoding: decoding(given)? })
}

/// Decoder that generates text.
#[pyclass(frozen, module = "lora_drop._native")]
pub struct Generator {
    model: Mutex<lora_drop::generate::Generator>,
}

#[pymethods]
impl Generator {
    #[new]
    fn new(
        py: Python<'_>,
        settings: &str,
        adapter: Option<PathBuf>,
        listen: &Bound<'_, PyAny>,
        cancel: &Cancel,
    ) -> PyResult<Self> {
        let generator = |source: &UseSettings, _: &_| source.generator();
        let (model, _) = open(
            py,
            (settings, adapter),
            (listen, cancel),
            generator,
            lora_drop::generate::Generator::notes,
        )?;
        Ok(Generator { model: Mutex::new(model) })
    }

    /// Continues prompts, a JSON array of texts and conversations; a conversation is an array of
    /// objects with role and content. Events of the kind `text` have the row and its next piece of
    /// text. Returns a JSON array of objects.
    fn generate(
        &self,
        py: Python<'_>,
        prompts: &str,
        options: &str,
        listen: &Bound<'_, PyAny>,
        cancel: &Cancel,
    ) -> PyResult<String> {
        run(py, listen, cancel, |cancel, events| {
            let given = serde_json::from_str(options).map_err(|e| Error::Usage(e.to_string()))?;
            let options = decoding(given)?;
            let mut model = locked(&self.model);
            let rows = values(prompts)?.into_iter().enumerate().map(|(number, prompt)| {
                row(prompt).map_err(|problem| Error::Usage(format!("row {}: {problem}", number + 1)))
            });
            let rows = rows.collect::<Result<Vec<_>>>()?;
            let mut on_text = |row: usize, text: &str| {
                events.send(EventRecord::new("text", json!({"row": row, "text": text})))
            };
            let found = model.write(&rows, &options, cancel, &mut on_text)?;
            let object = |one: lora_drop::generate::Generated| json!({"text": one.text, "finish": one.finish, "tokens": one.tokens, "score": one.score});
            Ok(Value::from_iter(found.into_iter().map(object)).to_string())
        })
    }
}

/// Parses a prompt or the turns of a conversation.
fn row(prompt: Value) -> std::result::Result<TextRow, String> {
    let turns = match prompt {
        Value::String(prompt) => return Ok(TextRow::prompt(prompt)),
        Value::Array(turns) => turns,
        other => return Err(format!("{other} is neither a text nor a list of turns")),
    };
    let message = |turn: &Value| {
        let role = turn["role"].as_str().and_then(Role::from_name);
        let content = turn["content"].as_str();
        let message = role.zip(content).map(|(role, content)| Message::new(role, content));
        message.ok_or_else(|| {
            let roles = listed(Role::ALL.iter().map(|role| role.name()));
            format!("the turn {turn} needs a content, and a role among {roles}")
        })
    };
    Ok(TextRow::conversation(turns.iter().map(message).collect::<std::result::Result<_, _>>()?))
}

/// Merges an adapter into its model and writes a checkpoint, or with `gguf` a GGUF file. Returns a
/// JSON object.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "Python gives them by name")]
pub fn merge(
    py: Python<'_>,
    model: Option<String>,
    adapter: PathBuf,
    output: PathBuf,
    dtype: Option<&str>,
    gguf: Option<&str>,
    overwrite: bool,
    listen: &Bound<'_, PyAny>,
    cancel: &Cancel,
) -> PyResult<String> {
    let form = form(dtype, gguf).map_err(|error| exception(py, error))?;
    run(py, listen, cancel, |cancel, events| {
        let recipe = if model.is_some() { None } else { recipe_of(&adapter)? };
        let model = base_model(model, recipe.as_ref())?;
        locate(&model, cancel, &mut |part| events.downloading(&part))?;
        let merged = merging::merge(&model, &adapter, form, &output, overwrite, cancel)?;
        serde_json::to_string(&merged).map_err(|e| Error::Input(e.to_string()))
    })
}

fn form(dtype: Option<&str>, gguf: Option<&str>) -> Result<MergedForm> {
    let one_of = |name: &str, word: &str, words: &str| {
        Error::Usage(format!("`{name}` is {word:?}; it must be one of {words}"))
    };
    match (dtype, gguf) {
        (Some(_), Some(_)) => Err(Error::Usage("`dtype` and `gguf` exclude each other".to_string())),
        (_, Some("f32")) => Ok(MergedForm::Gguf(FileType::F32)),
        (_, Some("f16")) => Ok(MergedForm::Gguf(FileType::F16)),
        (_, Some("q8_0")) => Ok(MergedForm::Gguf(FileType::Q8_0)),
        (_, Some(word)) => Err(one_of("gguf", word, "f32, f16, q8_0")),
        (Some(word), _) => match FloatType::from_name(word) {
            Some(dtype) => Ok(MergedForm::Safetensors(Some(dtype))),
            None => Err(one_of("dtype", word, &listed(FloatType::ALL.iter().map(|kind| kind.name())))),
        },
        (None, None) => Ok(MergedForm::Safetensors(None)),
    }
}
