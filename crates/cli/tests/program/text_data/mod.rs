//! Data for generation from outside: chat templates against transformers, tokens and targets of
//! each kind of row, lengths, splits, and every odd row.

mod encoding;
mod families;
mod fixture;
mod layouts;
mod odd;
mod templates;
mod tokenizer_files;
