//! The exchange between ranks that are threads of one process.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use super::{Exchange, Exchanged};

/// The messages of all ranks, and the barrier at which they wait for each other.
struct Table {
    given: Mutex<Vec<Vec<u8>>>,
    all: Barrier,
}

struct Threads {
    rank: usize,
    size: usize,
    table: Arc<Table>,
}

/// An exchange for each of `size` ranks.
pub(super) fn exchanges(size: usize) -> impl Iterator<Item = impl Exchange + 'static> {
    let table = Arc::new(Table { given: Mutex::new(vec![Vec::new(); size]), all: Barrier::new(size) });
    (0..size).map(move |rank| Threads { rank, size, table: table.clone() })
}

impl Exchange for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, mine: Vec<u8>) -> Exchanged<Vec<Vec<u8>>> {
        // A thread that panics leaves each message whole, so a poisoned lock does no harm.
        let given = || self.table.given.lock().unwrap_or_else(PoisonError::into_inner);
        given()[self.rank] = mine;
        self.table.all.wait();
        let all = given().clone();
        self.table.all.wait();
        Ok(all)
    }

    fn gather_values(&self, mine: Vec<f32>, lengths: Vec<usize>) -> Exchanged<Vec<f32>> {
        let all = values(&self.gather(bytes(&mine))?.concat());
        match all.len() == lengths.iter().sum::<usize>() {
            true => Ok(all),
            false => Err(format!("{} values were given, {lengths:?} expected", all.len())),
        }
    }

    fn exchange_values(
        &self,
        sent: Vec<f32>,
        sent_lengths: Vec<usize>,
        lengths: Vec<usize>,
    ) -> Exchanged<Vec<f32>> {
        let ends = sent_lengths.iter().flat_map(|&length| (length as u64).to_le_bytes());
        let all = self.gather(ends.chain(bytes(&sent)).collect())?;
        let mut received = Vec::new();
        for (rank, message) in all.iter().enumerate() {
            let (of_ranks, sent) = message.split_at(self.size * size_of::<u64>());
            let of_ranks: Vec<usize> =
                of_ranks.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect();
            if of_ranks[self.rank] != lengths[rank] {
                let (sent, expected) = (of_ranks[self.rank], lengths[rank]);
                return Err(format!("rank {rank} has sent {sent} values, {expected} expected"));
            }
            let start: usize = of_ranks[..self.rank].iter().sum();
            received.extend(&values(sent)[start..][..lengths[rank]]);
        }
        Ok(received)
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
