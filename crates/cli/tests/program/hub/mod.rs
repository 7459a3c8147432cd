//! Downloads from a server of the tests' own.

mod client;
mod data;
mod program;
mod server;

pub use server::{COMMIT, Hub, Server};
