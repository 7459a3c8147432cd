//! Downloads from a server of the tests' own.

mod client;
mod program;
mod server;
