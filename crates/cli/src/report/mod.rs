//! Everything that a person looks at: the pages, the terminal's texts and progress.
//!
//! Each of them is made from the facts of a run and feeds nothing back. Only [`Terminal`] and
//! [`Overall`] print, to standard error.

pub mod curves;
mod data_view;
mod dev;
mod figures;
pub mod grid;
pub mod heatmap;
mod overall;
pub mod page;
mod printable;
mod profile;
mod progress;
mod prune;
mod run_page;
pub mod terminal;
pub mod words;

pub use data_view::data_view;
pub use overall::Overall;
pub use printable::printable;
pub use profile::{kernels, profile};
pub use progress::Terminal;
pub use prune::{prune_page, prune_table};
pub use run_page::render;

#[cfg(test)]
pub mod tests;
