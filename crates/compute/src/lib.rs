//! The operations of transformer models, forward and backward, on the CPU or another device.
//!
//! Results do not depend on the number of threads: sums have a fixed order, and random numbers are
//! functions of a key and a position.
//!
//! - [`device`]: the trait [`Device`], its buffers, and the list of operations; start here
//! - [`Tensor`], [`blocks`], [`mapped`]: weights as f32, in half precision or quantized, and mapped
//!   from files
//! - [`gemm`]: matrix products
//! - [`attention`], [`rotary`], [`relative`], [`embedding`], [`norm`], [`activation`]: the CPU's
//!   operations as functions on slices
//! - [`loss`], [`adamw`]: losses and the optimiser
//! - [`saved_values`], [`rows`], [`random`]: saved activations, sums over rows, random numbers
//! - [`profile`]: time and work by operation
//!
//! The product y = x Wᵀ on the CPU:
//!
//! ```
//! use lora_drop_compute::device::{
//!     Cpu, Device, Matrix, Operation, Piece, Product, Start, Store, To,
//! };
//! use lora_drop_compute::gemm::Precision;
//!
//! // One buffer with x (2, 3), W (2, 3) and y (2, 2).
//! let mut memory = vec![
//!     1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0,
//! ];
//! let [x, w, y] = [Piece::new(0, 6), Piece::new(6, 6), Piece::new(12, 4)];
//! let mut store: Store<Cpu> = Store { memory: &mut memory, parameters: &[], gradients: None };
//! let product = Product {
//!     name: "example",
//!     precision: Precision::F32,
//!     few: false,
//!     to: To::Memory(y),
//!     rows: 2,
//!     cols: 2,
//!     start: Start::Zero,
//!     scale: 1.0,
//!     terms: &[(Matrix::of(x, 2, 3), Matrix::of(w, 2, 3).t())],
//! };
//! Cpu.compute(&mut store, Operation::Product(product))?;
//! assert_eq!(Cpu.read(&memory, y)?, [1.0, 2.0, 4.0, 5.0]);
//! # Ok::<(), lora_drop_compute::device::DeviceError>(())
//! ```

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
mod lanes;
pub mod loss;
mod magnitude;
pub mod mapped;
mod math;
pub mod norm;
mod output_slice;
pub mod profile;
pub mod random;
pub mod relative;
mod rms_norm;
pub mod rotary;
pub mod rows;
pub mod saved_values;
mod scaled;
mod tensor;

pub use cpu::instruction_sets;
pub use device::{Cpu, Device};
pub use tensor::Tensor;
