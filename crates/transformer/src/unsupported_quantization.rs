//! Detection of checkpoints that other programs have quantized. Their weights are not read;
//! config.json or the names of tensors reveal them before any shape is compared.

use serde_json::Value;

use crate::config::Keys;
use crate::error::Result;

/// Values of `quant_method`, and the name that people know.
const TITLES: [(&str, &str); 6] = [
    ("gptq", "GPTQ"),
    ("awq", "AWQ"),
    ("fp8", "FP8"),
    ("fbgemm_fp8", "FBGEMM FP8"),
    ("mxfp4", "MXFP4"),
    ("hqq", "HQQ"),
];

/// Ends of tensors' names, and the program or format that has them. The first that occurs counts.
const TENSORS: [(&str, &str); 10] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_scale", "FP8 or compressed-tensors"),
    (".scales", "MLX"),
];

/// Parts of names of models that are themselves quantized.
const TAGS: [&str; 10] = ["gptq", "awq", "bnb", "4bit", "8bit", "fp8", "int4", "int8", "mxfp4", "w4a16"];

/// Refuses a configuration that says that the weights are quantized.
///
/// # Errors
/// `Error::Config` with the method and, if the file names it, the model that was quantized.
pub fn check_config(keys: &Keys) -> Result<()> {
    // A key, and the method if the object does not name one.
    let places = [
        ("quantization_config", "a method that it does not name"),
        ("compression_config", "compressed-tensors"),
        ("quantization", "MLX"),
    ];
    let object = |(place, unnamed)| Some((place, unnamed, keys.get(place)?.as_object()?));
    let Some((place, unnamed, object)) = places.into_iter().find_map(object) else {
        return Ok(());
    };
    let is_on = |key: &str| object.get(key).and_then(Value::as_bool);
    let loads = ["load_in_4bit", "load_in_8bit"].map(is_on);
    // bitsandbytes' settings with everything off: the weights are not quantized.
    if object.is_empty() || loads.iter().any(Option::is_some) && !loads.contains(&Some(true)) {
        return Ok(());
    }
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let method = match text("quant_method") {
        Some(name) => TITLES.iter().find(|(known, _)| *known == name).map_or(name, |(_, title)| title),
        None if loads.contains(&Some(true)) => "bitsandbytes",
        None => unnamed,
    };
    let number = |key: &str| object.get(key).and_then(Value::as_u64);
    let bits = match loads {
        [Some(true), _] => Some(4),
        [_, Some(true)] => Some(8),
        _ => number("bits").or_else(|| number("w_bit")),
    };
    let bits = bits.map_or(String::new(), |bits| format!(" to {bits} bits"));
    let names = [text("model_name_or_path"), keys.get("_name_or_path").and_then(Value::as_str)];
    let base = names.into_iter().flatten().find(|name| is_plain_name(name));
    let base = base.map_or(String::new(), |name| format!(", perhaps {name}"));
    Err(keys.error(format!(
        "{place} says that the model is quantized by {method}{bits}, and such weights are not read; give the \
         unquantized model{base}"
    )))
}

/// Whether a name is `org/name` and has no tag of a quantized model.
fn is_plain_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| !part.is_empty() && !part.starts_with('.');
    parts.len() == 2 && parts.iter().all(plain) && !TAGS.iter().any(|tag| lower.contains(tag))
}

/// Returns the quantization method that the names of a checkpoint's tensors reveal, and the name of
/// a tensor that shows it.
pub fn by_tensors<'a>(names: impl Iterator<Item = &'a str>) -> Option<(&'static str, &'a str)> {
    let found = names.filter_map(|name| {
        let place = TENSORS.iter().position(|(end, _)| name.ends_with(end))?;
        Some((place, name))
    });
    let (place, name) = found.min_by_key(|(place, _)| *place)?;
    Some((TENSORS[place].1, name))
}
