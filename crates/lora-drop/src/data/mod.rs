//! Files → examples → tokens → packed batches, and the stratified sample.
//!
//! [`files`] finds a data set's splits, [`rows`] reads them in any format, [`columns`] and
//! [`labels`] say what the columns mean, [`raw`] holds texts and labels, [`tokens`] turns them into
//! numbers, [`cache`] keeps these for the next run, [`dataset`] holds them, [`batch`] packs them.
//! [`text`] is the same for rows from which generation is learned. Whatever is wrong with a row is
//! an [`Error`] with file and line.

pub mod batch;
pub mod cache;
pub mod columns;
pub mod dataset;
pub mod error;
pub mod files;
pub mod gguf_tokenizer;
pub mod labels;
pub mod random;
pub mod raw;
pub mod rows;
pub mod sample;
pub mod task;
pub mod text;
mod tokenizer_rules;
pub mod tokens;

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
pub use task::{TaskData, TaskRows, label_beside_text};
pub use tokens::{Encoded, Tokens};
