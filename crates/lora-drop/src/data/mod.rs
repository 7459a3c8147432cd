//! Data: files or rows in memory → texts and labels → tokens → packed batches, and the stratified
//! sample.
//!
//! [`Dataset`] reads and tokenises labelled rows, by these steps: [`SplitFiles`] finds the files of
//! each split, [`rows`] reads them in any format, [`Columns`] and [`Labels`] give columns their
//! meaning, and [`Tokens`] makes token ids, which [`TokenCache`] stores for the next run. [`text`]
//! does the same for rows of text generation. Whatever is wrong with a row is an [`Error`] with
//! file and line.

mod added_tokens;
pub(crate) mod batch;
pub(crate) mod cache;
pub(crate) mod columns;
pub(crate) mod dataset;
pub(crate) mod error;
pub(crate) mod files;
pub mod gguf_tokenizer;
pub(crate) mod labels;
mod layouts;
pub(crate) mod pieces;
pub mod random;
pub(crate) mod raw;
pub(crate) mod raw_label;
pub(crate) mod row_text;
pub mod rows;
pub(crate) mod sample;
mod sources;
pub(crate) mod task;
pub mod text;
mod tokenizer_rules;
pub(crate) mod tokens;

pub use batch::PackedBatch;
pub use cache::TokenCache;
pub use columns::{ColumnNames, Columns, LabelColumn};
pub(crate) use dataset::label_counts;
pub use dataset::{DataOptions, Dataset, Example, LabelledRow, RawDataset, Split};
#[cfg(feature = "hub")]
pub(crate) use error::list as list_names;
pub use error::{Error, Place, Problem};
pub use files::{SplitFiles, SplitName, SplitPart};
pub use gguf_tokenizer::GgufTokenizer;
pub use labels::{Classes, Label, Labels};
pub use raw::{LeftOut, RawRow, RawRows, RawSplit};
pub use raw_label::RawLabel;
pub use row_text::{RowText, TextReader};
pub use rows::{ClassNames, Row, Rows};
pub(crate) use task::label_beside_text;
pub use task::{RawTask, TaskData, TaskRows};
pub use tokens::{Encoded, RowLimits, Tokens};
