//! Joins the launcher's job and exchanges values as a training step does: each rank has the
//! gradients of some parts of a batch, receives its slice of all parts' gradients, sums the slices
//! in the order of the parts, and gathers the sums. Each rank prints a hash of the sums, which is
//! the same for any number of ranks.
//!
//!     mpirun -n 4 cargo run --release -p lora-drop-mpi --example exchange

use std::process::ExitCode;

use lora_drop_mpi::{Error, Launch, World};

const PARTS: usize = 7;
const VALUES: usize = 10_001;

/// Returns a part's gradient: values whose sum over the parts depends on the order.
fn gradient(part: usize) -> Vec<f32> {
    (0..VALUES).map(|i| ((i * 7919 + part * 104_729) % 1000) as f32 * 0.001 - 0.37 * part as f32).collect()
}

/// Returns the lengths of `ranks` slices of `length` values; they differ by at most 1.
fn slices(length: usize, ranks: usize) -> Vec<usize> {
    (0..ranks).map(|rank| length * (rank + 1) / ranks - length * rank / ranks).collect()
}

fn run() -> Result<String, Error> {
    let Some(launch) = Launch::from_environment()? else {
        return Ok("started without a launcher".to_string());
    };
    let world = World::join(&launch)?;
    let (rank, ranks) = (world.rank(), world.size());
    let (parts, lengths) = (slices(PARTS, ranks), slices(VALUES, ranks));
    let first: usize = parts[..rank].iter().sum();

    let mine: Vec<Vec<f32>> = (first..first + parts[rank]).map(gradient).collect();
    let mut sent = Vec::new();
    let mut start = 0;
    for length in &lengths {
        mine.iter().for_each(|part| sent.extend_from_slice(&part[start..start + length]));
        start += length;
    }
    let sent_lengths = lengths.iter().map(|length| length * parts[rank]).collect();
    let received_lengths = parts.iter().map(|parts| parts * lengths[rank]).collect();
    let received = world.exchange_values(sent, sent_lengths, received_lengths).wait()?;
    let mut sum = vec![0.0f32; lengths[rank]];
    for part in received.chunks_exact(lengths[rank].max(1)) {
        sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    let sum = world.gather_values(sum, lengths).wait()?;
    let bits = sum
        .iter()
        .fold(0u64, |hash, value| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01b3));
    if std::env::args().any(|argument| argument == "abort") && rank == ranks - 1 {
        world.abort(7);
    }
    let line = format!("rank {rank} of {ranks}: sums {bits:016x} by {}", world.library());
    world.finish()?;
    Ok(line)
}

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
