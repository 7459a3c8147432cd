//! A table of tasks × methods × seeds. Each cell is a run that is made once; the finished ones are
//! compared.
//!
//! A cell's folder is named by a hash of everything that its result depends on, so a table can be
//! changed, stopped and continued, and finished cells are used again. [`Comparison::run`] takes the
//! function that runs a cell.

mod cell;
mod figures;
mod files;
mod findings;
mod page;
mod run;
mod section;
mod sources;
mod statistics;
mod table;
#[cfg(test)]
mod tests;

pub use cell::{Cell, CellResult, Measured, Outcome, Purpose};
pub use files::summary_table;
pub use findings::{Average, Entry, Findings, ImportanceMap, KindImportance, RankAgreement, Smallest};
pub use run::{Comparison, Counts, Event, Run, Work};
pub use statistics::{Difference, Spread};
pub use table::{Equal, Keep, Line, Prune, Score, TableFile, Task};
