//! TEMP
use crate::report::terminal::*;
use crate::report::samples;
#[test]
fn look_terminal() {
    let s = Style::default();
    let r = samples::lora_drop(6, 2);
    println!("{}", model_facts(&r.model, s));
    println!("{}", data_facts(&r.data, s));
    println!("{}", importance(r.importance.as_ref().unwrap(), r.assignment.as_ref(), &r.module_names, s));
    println!("{}", importance(r.importance.as_ref().unwrap(), r.assignment.as_ref(), &r.module_names, Style { width: 30, colour: false }));
    println!("{}", assignment(r.assignment.as_ref().unwrap(), &r.module_names));
    println!("{}", rescored(84, 0.97, true));
    println!("{}", evaluation(&r.evaluations[0], s));
    println!("{}", result(&r.summary, s));
    let mut b = r.summary.clone(); b.method = "lora".into(); b.metrics.insert("accuracy".into(), 0.79);b.lora_parameters=b.lora_parameters_full;b.retained_ratio=1.0;
    println!("{}", comparison(&[("runs/drop".into(), r.summary.clone()), ("runs/lora".into(), b), ("runs/full".into(), samples::full().summary)], s));
    println!("{}", plan(&Plan{method:"lora-drop".into(),trainable_parameters:148994,lora_parameters:(24576,147456),lora_parameters_full:147456,sample_rows:367,sample_steps:120,train_rows:3668,train_steps:575,train_tokens:970060,memory_bytes:300<<20,seconds:Some(444.0)}, s));
    let r = samples::lora_drop(4, 6);
    println!("{}", importance(r.importance.as_ref().unwrap(), r.assignment.as_ref(), &r.module_names, s));
}
