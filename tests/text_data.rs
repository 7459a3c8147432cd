//! Data for generation from outside: chat templates against transformers, tokens and targets of each kind of row, lengths,
//! splits, and every odd row.

#[path = "text_data/encoding.rs"]
mod encoding;
#[path = "text_data/fixture.rs"]
mod fixture;
#[path = "text_data/odd.rs"]
mod odd;
#[path = "text_data/templates.rs"]
mod templates;
