//! Downloads from servers of the tests' own, and uploads to them.

mod client;
mod data;
mod program;
mod push;
mod receiver;
mod server;

pub use server::{COMMIT, Hub, Server};
