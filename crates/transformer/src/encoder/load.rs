//! An encoder's weights from a checkpoint, and the head's first values.

use lora_drop_compute::device::Storage;
use lora_drop_compute::random::Key;

use super::{Encoder, HeadOrigin, Trained};
use crate::checkpoint::Checkpoint;
use crate::config::EncoderConfig;
use crate::error::Result;
use crate::families;
use crate::linear::Weight;
use crate::parameters::{Group, Parameters};
use crate::weights::{HeadTensor, Weights};

impl Encoder {
    /// Reads the weights of `config`'s encoder and a head of `outputs`, adding what trains to `parameters`.
    ///
    /// Names may come with the architecture's prefix or without. A missing head is initialised by `key`, so is
    /// BERT's pooler, which then trains with the head.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &EncoderConfig,
        outputs: usize,
        trained: Trained,
        key: Key,
        parameters: &mut Parameters,
    ) -> Result<Self> {
        let mut source = Weights::new(checkpoint, config.architecture.prefix());
        let has_pooler =
            config.architecture.pooler().is_none_or(|stem| source.has(&format!("{stem}.weight")));
        // First everything is taken and checked: sizes are not to be trusted before.
        let mut taken = Vec::new();
        for (name, shape) in config.encoder_weights() {
            let missing_pooler = !has_pooler && name.starts_with("pooler.");
            if !missing_pooler {
                let tensor = source.take(&name, &shape);
                taken.push((name, tensor));
            }
        }
        let mut head_tensors = Vec::new();
        let mut head_origin = HeadOrigin::Checkpoint;
        for (name, shape) in config.head_weights(outputs) {
            match source.try_take_head(name, &shape) {
                HeadTensor::Found(tensor) => head_tensors.push((name, shape, Some(tensor))),
                HeadTensor::Missing => {
                    if head_origin == HeadOrigin::Checkpoint {
                        head_origin = HeadOrigin::Initialised;
                    }
                    head_tensors.push((name, shape, None));
                }
                HeadTensor::Misshapen { seen } => {
                    head_origin = HeadOrigin::OtherOutputs(seen.first().copied().unwrap_or(0));
                    head_tensors.push((name, shape, None));
                }
            }
        }
        source.finish()?;

        let prefix = config.architecture.prefix();
        let everything = trained == Trained::Everything;
        let pooler_trains = trained == Trained::HeadAndPooler;
        let mut base = std::collections::HashMap::new();
        for (name, tensor) in taken {
            let of_head = pooler_trains && name.starts_with("pooler.");
            let weight = if everything || of_head {
                let decay = !name.contains("LayerNorm") && !name.contains("bias");
                let full = format!("{prefix}.{name}");
                let group = if of_head { Group::Head } else { Group::Base };
                let id = parameters.add(&full, tensor.shape(), group, decay, &tensor);
                tensor.release(0..tensor.len());
                Weight::Trained(id)
            } else {
                Weight::Frozen(Storage::F32(tensor))
            };
            base.insert(name, weight);
        }
        let initialise = |name: &str, shape: &[usize]| -> Vec<f32> {
            let key = name.bytes().fold(key, |key, byte| key.fold(byte as u64));
            let spread = if name.ends_with("bias") { 0.0 } else { config.initializer_range };
            (0..shape.iter().product::<usize>() as u64).map(|i| (spread * key.normal(i)) as f32).collect()
        };
        let h = config.hidden_size;
        if !has_pooler {
            for (name, shape) in [("pooler.dense.weight", vec![h, h]), ("pooler.dense.bias", vec![h])] {
                let full = format!("{prefix}.{name}");
                let decay = name.ends_with("weight");
                let id = parameters.add(&full, &shape, Group::Head, decay, &initialise(name, &shape));
                base.insert(name.to_string(), Weight::Trained(id));
            }
        }
        let fresh = head_origin != HeadOrigin::Checkpoint;
        let mut head = std::collections::HashMap::new();
        for (name, shape, tensor) in head_tensors {
            // Half of a head is no head: all of it is initialised then.
            let values = match tensor.filter(|_| !fresh) {
                Some(tensor) => tensor.to_vec(),
                None => initialise(name, &shape),
            };
            let decay = !name.ends_with("bias");
            head.insert(name, Weight::Trained(parameters.add(name, &shape, Group::Head, decay, &values)));
        }

        // The head's names have no prefix, so no weight of the base has one of them.
        base.extend(head.into_iter().map(|(name, weight)| (name.to_string(), weight)));
        let mut find =
            |name: &str| base.remove(name).expect("encoder_weights and head_weights list every weight once");
        let net = families::encoder(config, outputs, &mut find);
        Ok(Encoder { config: config.clone(), net, outputs, head_origin })
    }
}
