//! A table of tasks × methods × seeds: each cell a run that is made once, and what the finished
//! ones say together.
//!
//! A cell's folder is named by a hash of all that its result depends on, so a table may be changed,
//! stopped and continued, and cells that are finished and still wanted are used again. How a cell
//! is run is the caller's: [`Comparison::run`] takes a function.

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
