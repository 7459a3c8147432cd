//! The state of a run as a file: one safetensors file, with all numbers of the run in its metadata.
//!
//! | tensor | what |
//! |---|---|
//! | `parameters.NAME` | a trained tensor, F32, under its name in [`Parameters`] |
//! | `exp_avg.NAME`, `exp_avg_sq.NAME` | AdamW's moments of it, F32, under PyTorch's names |
//! | `observations.LAYER.MODULE` | the sums of a module since the sample stage's window began, F64 |
//!
//! [`Parameters`]: lora_drop_transformer::Parameters

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::path::Path;

use lora_drop_transformer::{Checkpoint, ModuleId, Observations};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adalora;
use super::checkpoint::RunFacts;
use super::learner::Learner;
use super::optimiser::Optimiser;
use super::state::{Progress, TrainState};
use crate::events::Stage;
use crate::files::write_atomically;
use crate::score::{Criterion, RankingStability};
use crate::settings::{Method, TrainSettings};
use crate::{Error, Result};

/// The metadata's only key.
const KEY: &str = "lora_drop.train_state";
/// Version of the format; states of other versions are not read.
const VERSION: u64 = 4;
/// Prefixes of the trained tensors' names.
const GROUPS: [&str; 3] = ["parameters", "exp_avg", "exp_avg_sq"];

/// What the metadata has under the key, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    version: u64,
    stage: Stage,
    steps: usize,
    /// The number of steps before each trained tensor's first one, in the order of `Parameters`.
    begun: Cow<'a, [usize]>,
    tokens: usize,
    seconds: f64,
    /// The modules that were observed.
    observed: Vec<ModuleId>,
    settling: Cow<'a, RankingStability>,
    progress: Cow<'a, Progress>,
    /// Facts of a run on files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Cow<'a, RunFacts>>,
}

/// Values of a tensor to write.
enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

impl TrainState {
    /// Writes the state; the same state gives the same bytes. It is complete between steps, so
    /// write it in hooks, and after a step that was interrupted.
    ///
    /// # Errors
    /// Those of the disk; the file is then unchanged.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_with(None, path)
    }

    /// Writes the state with facts of the run.
    ///
    /// # Errors
    /// Those of `write`.
    pub(super) fn write_with(&self, run: Option<&RunFacts>, path: &Path) -> Result<()> {
        let header = Header {
            version: VERSION,
            stage: self.stage,
            steps: self.optimiser.steps,
            begun: Cow::Borrowed(&self.optimiser.begun),
            tokens: self.tokens,
            seconds: self.seconds,
            observed: self.observations.iter().map(|(module, _)| module).collect(),
            settling: Cow::Borrowed(&self.settling),
            progress: Cow::Borrowed(&self.progress),
            run: run.map(Cow::Borrowed),
        };
        let fault = |problem: String| Error::Input(format!("{}: {problem}", path.display()));
        let header = serde_json::to_string(&header).map_err(|e| fault(e.to_string()))?;

        // F64 tensors first, so that all are aligned.
        let mut tensors: Vec<(String, Vec<usize>, Values)> = Vec::new();
        for (module, sums) in self.observations.iter() {
            tensors.push((observed_name(module), vec![sums.len()], Values::F64(sums)));
        }
        let groups = [self.parameters.values(), &self.optimiser.first, &self.optimiser.second];
        for (group, values) in GROUPS.iter().zip(groups) {
            for parameter in self.parameters.list() {
                let values = Values::F32(&values[parameter.range.clone()]);
                tensors.push((format!("{group}.{}", parameter.name), parameter.shape.clone(), values));
            }
        }
        let mut end = 0;
        let infos = tensors.iter().map(|(name, shape, values)| {
            let (start, (dtype, bytes)) = (end, values.size());
            end += bytes;
            (name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets: (start, end) })
        });
        let metadata = HashMap::from([(KEY.to_string(), header)]);
        let metadata = Metadata::new(Some(metadata), infos.collect()).map_err(|e| fault(e.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| fault(e.to_string()))?;
        // The format wants the data to begin at a multiple of 8.
        header.resize(header.len().next_multiple_of(8), b' ');
        write_atomically(path, |out| {
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            tensors.iter().try_for_each(|(_, _, values)| values.write(out))
        })
    }
}

impl Learner {
    /// Continues from a written state. The learner must come from [`Learner::new`] with the run's
    /// settings; every later step is then bit-identical to the original run's. `criterion` is the
    /// sample stage's.
    ///
    /// # Errors
    /// The file, with the tensor that is missing, unknown, or of another type or shape; a state of
    /// another version, of other modules, or of a stage that this run does not have. The learner
    /// must not be used afterwards.
    pub fn restore(
        &mut self,
        settings: &TrainSettings,
        criterion: &dyn Criterion,
        path: &Path,
    ) -> Result<()> {
        let fault = |problem: String| Error::Input(format!("{}: {problem}", path.display()));
        let file = Checkpoint::open_file(path)?;
        let header = read_header(&file).map_err(fault)?;
        let assignment = &header.progress.assignment;
        let own = &self.state.progress.assignment;
        let same = match (header.stage, self.state.stage) {
            (Stage::Train, Stage::Sample) => assignment.owners.keys().eq(own.owners.keys()),
            (read, own_stage) if read == own_stage => assignment == own,
            (read, _) => {
                return Err(fault(format!(
                    "the state is of the stage {read:?}, which this run does not have"
                )));
            }
        };
        if !same {
            return Err(fault(
                "the state is of a run with LoRA on other modules; continue with the settings of the run that wrote it"
                    .into(),
            ));
        }
        let widest = |kind| {
            let (output, input) = self.model.config.linear_shape(kind);
            output.min(input)
        };
        if let Some((id, rank)) = assignment.ranks.iter().find(|(id, rank)| **rank > widest(id.kind)) {
            let (layer, kind) = (id.layer, id.kind.name());
            return Err(fault(format!(
                "the rank of layer {layer} {kind} is {rank}, expected at most {}",
                widest(id.kind)
            )));
        }
        if header.stage != self.state.stage {
            self.replace_pairs(settings, assignment)?;
        }

        let mut unread: BTreeSet<&str> = file.names().collect();
        let mut bytes = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<&[u8]> {
            let found = file.bytes(name).zip(file.dtype(name)).zip(file.shape(name));
            let Some(((bytes, seen), seen_shape)) = found else {
                return Err(fault(format!(
                    "tensor {name} is missing; the state is of a run with other settings"
                )));
            };
            if seen != dtype || seen_shape != shape {
                return Err(fault(format!(
                    "tensor {name} is {seen} of shape {seen_shape:?}, expected {dtype} of shape {shape:?}; the state is \
                     of a run with other settings"
                )));
            }
            unread.remove(name);
            Ok(bytes)
        };
        let mut groups = [(); 3].map(|()| Vec::with_capacity(self.state.parameters.count()));
        for (group, values) in GROUPS.iter().zip(&mut groups) {
            for parameter in self.state.parameters.list() {
                let name = format!("{group}.{}", parameter.name);
                let (chunks, _) = bytes(&name, Dtype::F32, &parameter.shape)?.as_chunks();
                values.extend(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)));
            }
        }
        let mut observations = Observations::new();
        for module in header.observed {
            let name = observed_name(module);
            let pair = self.bank.pair_of(module);
            let pair = pair.ok_or_else(|| fault(format!("{name} is of a module without LoRA")))?;
            let count = match settings.adapter.method {
                Method::AdaLora => adalora::sums(pair),
                Method::SparseAdapter => pair.parameters(),
                _ => criterion.sums(pair.lora.rank),
            };
            let (chunks, _) = bytes(&name, Dtype::F64, &[count])?.as_chunks();
            let sums = observations.of(module, count).iter_mut();
            sums.zip(chunks).for_each(|(sum, chunk)| *sum = f64::from_le_bytes(*chunk));
        }
        if let Some(name) = unread.first() {
            return Err(fault(format!(
                "tensor {name} does not belong to this run; the state is of a run with other settings"
            )));
        }

        let (tensors, begun) = (self.state.parameters.list().len(), header.begun.into_owned());
        if begun.len() != tensors || begun.iter().any(|&begun| begun > header.steps) {
            return Err(fault(format!(
                "{KEY}: begun has {} numbers, expected one for each of {tensors} tensors, each at most {}",
                begun.len(),
                header.steps
            )));
        }

        let [values, first, second] = groups;
        let state = &mut self.state;
        state.parameters.set_values(&values);
        state.optimiser = Optimiser { first, second, steps: header.steps, begun };
        (state.tokens, state.seconds, state.observations) = (header.tokens, header.seconds, observations);
        (state.settling, state.progress) = (header.settling.into_owned(), header.progress.into_owned());
        Ok(())
    }
}

impl Values<'_> {
    /// Returns the type and the number of bytes.
    fn size(&self) -> (Dtype, usize) {
        match self {
            Values::F32(values) => (Dtype::F32, size_of_val(*values)),
            Values::F64(values) => (Dtype::F64, size_of_val(*values)),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Values::F32(values) => write_values(out, values, |v| v.to_le_bytes()),
            Values::F64(values) => write_values(out, values, |v| v.to_le_bytes()),
        }
    }
}

fn write_values<T: Copy, const N: usize>(
    out: &mut dyn Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N << 14);
    for piece in values.chunks(1 << 14) {
        buffer.clear();
        buffer.extend(piece.iter().flat_map(|&value| bytes(value)));
        out.write_all(&buffer)?;
    }
    Ok(())
}

fn observed_name(module: ModuleId) -> String {
    format!("observations.{}.{}", module.layer, module.kind.name())
}

/// The stage and the facts of the run that wrote a state.
///
/// # Errors
/// `Error::Input` if the file is not the state of a run on files.
pub(super) fn read_facts(path: &Path) -> Result<(Stage, RunFacts)> {
    let file = Checkpoint::open_file(path)?;
    let header = read_header(&file).map_err(|problem| Error::file(path, problem))?;
    let facts = header.run.ok_or_else(|| Error::file(path, "the state of a run that was not on files"))?;
    Ok((header.stage, facts.into_owned()))
}

fn read_header(file: &Checkpoint) -> std::result::Result<Header<'static>, String> {
    let text = file.metadata().get(KEY);
    let text = text.ok_or_else(|| format!("not the state of a run: its metadata has no {KEY}"))?;
    let value: Value = lora_drop_transformer::json::from_str(text).map_err(|e| format!("{KEY}: {e}"))?;
    match value.get("version").map(Value::as_u64) {
        Some(Some(VERSION)) => {}
        seen => {
            let seen = seen.flatten().map_or("none".to_string(), |version| version.to_string());
            return Err(format!(
                "the state has version {seen}, but this program reads version {VERSION}; continue with the program that wrote it"
            ));
        }
    }
    Header::deserialize(value).map_err(|e| format!("{KEY}: {e}"))
}
