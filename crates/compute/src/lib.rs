//! Tensors and operations, each forward beside its backward, on the CPU.

pub mod tensor;

pub use tensor::Tensor;
