//! Files → examples → tokens → packed batches, and the stratified sample.
//!
//! [`files`] finds a data set's splits, [`rows`] reads them in any format, [`columns`] and
//! [`labels`] say what the columns mean, [`raw`] holds texts and labels, [`tokens`] turns them into
//! numbers, [`cache`] keeps these for the next run, [`dataset`] holds them, [`batch`] packs them.
//! [`text`] is the same for rows from which generation is learned. Whatever is wrong with a row is
//! an [`Error`] with file and line.

pub(crate) mod batch;
pub(crate) mod cache;
pub(crate) mod columns;
pub(crate) mod dataset;
pub(crate) mod error;
pub(crate) mod files;
pub mod gguf_tokenizer;
pub(crate) mod labels;
pub mod random;
pub(crate) mod raw;
pub mod rows;
pub(crate) mod sample;
pub(crate) mod task;
pub mod text;
mod tokenizer_rules;
pub(crate) mod tokens;

pub use batch::PackedBatch;
pub use cache::TokenCache;
pub use columns::{ColumnNames, Columns, LabelColumn};
pub use dataset::{DataOptions, Dataset, Example, LabelledRow, Split};
pub use error::{Error, Place, Problem};
pub use files::{Part, SplitFiles, SplitName};
pub use gguf_tokenizer::GgufTokenizer;
pub use labels::{Label, Labels, RawLabel};
pub use raw::RawSplit;
pub use rows::{Row, Rows};
pub(crate) use task::label_beside_text;
pub use task::{TaskData, TaskRows};
pub use tokens::{Encoded, Tokens};
