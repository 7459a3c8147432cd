//! The data module from outside: every format, every odd row, splits, labels and tokens.

mod errors;
mod fixture;
mod formats;
mod splits;
mod tokens;
