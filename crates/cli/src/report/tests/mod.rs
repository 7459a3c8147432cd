//! The pages and the terminal's texts of made-up runs.

pub mod pages;
pub mod samples;
mod terminal;
