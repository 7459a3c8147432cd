//! Tensors and operations, each forward beside its backward, on the CPU.
//!
//! Everything above speaks in slices with stated shapes and in these operations. All of them give
//! the same bits whatever the number of threads: sums have a fixed order and random numbers come
//! from counters.

pub mod activation;
pub mod adamw;
mod aligned;
mod arena;
pub mod attention;
pub mod blocks;
mod cpu;
pub mod device;
pub mod embedding;
pub mod gemm;
pub mod kept_values;
mod lanes;
pub mod loss;
mod magnitude;
pub mod mapped;
mod math;
pub mod norm;
pub mod profile;
pub mod random;
pub mod relative;
mod rms_norm;
pub mod rotary;
pub mod rows;
mod scaled;
mod tensor;

pub use device::{Cpu, Device};
pub use tensor::Tensor;
