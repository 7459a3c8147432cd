//! A linear layer with its LoRA: y = x Wᵀ + b + z B ᵀ with z = scale · x Aᵀ (LoRA, Hu et al. 2022, eq. 3).
//!
//! Parameter gradients accumulate; activation gradients overwrite or accumulate as the caller says.
//! The LoRA's product joins the wide one, so y and dx are written once.

use crate::blocks::BlockMatrix;
use crate::gemm::{self, FEW_ROWS, Mat, MatMut, PackedMatrix, Precision, Start, Term};
use crate::norm::dropout_rows;
use crate::profile;
use crate::random::{Dropout, Key};
use crate::rows::sum_columns;

/// A weight as it lies in memory, (out, in).
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// By rows.
    F32(&'a [f32]),
    /// Frozen; widened as it is multiplied.
    Blocks(&'a BlockMatrix),
    /// Frozen, and packed once for both directions; not for `infer`.
    Packed(&'a PackedMatrix),
}

impl<'a> Matrix<'a> {
    fn mat(self, rows: usize, cols: usize) -> Mat<'a> {
        match self {
            Matrix::F32(values) => Mat::new(values, rows, cols),
            Matrix::Blocks(matrix) => Mat::blocks(matrix),
            Matrix::Packed(matrix) => Mat::packed(matrix),
        }
    }
}

/// A linear layer: weight (out, in), bias (out).
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub weight: Matrix<'a>,
    pub bias: Option<&'a [f32]>,
    pub input: usize,
    pub output: usize,
    /// Of all products but those of `infer`.
    pub precision: Precision,
}

/// A LoRA pair: a (rank, in), b (rank, out), which is Bᵀ.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
    /// On the LoRA's input, with one key per row.
    pub dropout: Option<(Dropout, &'a [Key])>,
}

/// Where gradients of parameters that train are added.
#[derive(Default)]
pub struct Gradients<'a> {
    /// (dA, dBᵀ)
    pub lora: Option<(&'a mut [f32], &'a mut [f32])>,
    pub weight: Option<&'a mut [f32]>,
    pub bias: Option<&'a mut [f32]>,
}

/// Rows of a wider matrix: the slice starts at the first row's first column.
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    fn mat(&self, rows: usize, cols: usize) -> Mat<'a> {
        Mat::strided(self.data, rows, cols, self.stride)
    }
}

const INPUT_GRADIENT: &str = "linear, input gradient";
const LORA_BACKWARD: &str = "LoRA backward";

impl<'a> Linear<'a> {
    /// `matmul` in the layer's precision, as a span.
    fn product(&self, name: &'static str, c: MatMut, start: Start, scale: f32, terms: &[Term]) {
        let _span = profile::operation(name, || gemm::work(&c, start, terms));
        gemm::matmul(self.precision, c, start, scale, terms);
    }

    /// x: (rows, in); y: (rows, out) in rows `stride` apart; z: (rows, rank), kept for the backward pass
    /// and for the score. `dropped` is scratch of x's size, used where the LoRA has dropout.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        rows: usize,
        x: &[f32],
        lora: Option<Lora>,
        y: &mut [f32],
        stride: usize,
        z: &mut [f32],
        dropped: &mut [f32],
    ) {
        let weight = self.weight.mat(self.output, self.input);
        let wide: Term = (Mat::new(x, rows, self.input), weight.t());
        let y = MatMut::strided(y, rows, self.output, stride);
        let start = self.bias.map_or(Start::Zero, Start::Bias);
        match lora {
            None => self.product("linear", y, start, 1.0, &[wide]),
            Some(lora) => {
                let x = lora.input(x, dropped);
                let a = Mat::new(lora.a, lora.rank, self.input);
                self.product(
                    "LoRA",
                    MatMut::new(z, rows, lora.rank),
                    Start::Zero,
                    lora.scale,
                    &[(Mat::new(x, rows, self.input), a.t())],
                );
                let thin = (Mat::new(z, rows, lora.rank), Mat::new(lora.b, lora.rank, self.output));
                self.product("linear", y, start, 1.0, &[wide, thin]);
            }
        }
    }

    /// As `forward` without dropout, for generating text: up to `FEW_ROWS` rows read the weight once and pack nothing.
    /// Each row's result is then the same whatever the number of rows, but for rounding not that of `forward`.
    #[allow(clippy::too_many_arguments)]
    pub fn infer(
        &self,
        rows: usize,
        x: &[f32],
        lora: Option<Lora>,
        y: &mut [f32],
        stride: usize,
        z: &mut [f32],
    ) {
        let lora = lora.map(|lora| Lora { dropout: None, ..lora });
        if rows > FEW_ROWS {
            return self.forward(rows, x, lora, y, stride, z, &mut []);
        }
        let wide = (Mat::new(x, rows, self.input), self.weight.mat(self.output, self.input).t());
        let y = MatMut::strided(y, rows, self.output, stride);
        let start = self.bias.map_or(Start::Zero, Start::Bias);
        let Some(lora) = lora else {
            return few("linear, few rows", y, start, wide, None);
        };
        let z = &mut z[..rows * lora.rank];
        let a = Mat::new(lora.a, lora.rank, self.input);
        few("LoRA", MatMut::new(z, rows, lora.rank), Start::Zero, (wide.0, a.t()), None);
        z.iter_mut().for_each(|z| *z *= lora.scale);
        let thin = (Mat::new(z, rows, lora.rank), Mat::new(lora.b, lora.rank, self.output));
        few("linear, few rows", y, start, wide, Some(thin));
    }

    /// dy: (rows, out); dx: (rows, in), overwritten or added to as `start` says, None where nothing below
    /// trains; dz: scratch (rows, rank); `dropped`: scratch of x's size, used where the LoRA has dropout.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        rows: usize,
        x: &[f32],
        lora: Option<Lora>,
        z: &[f32],
        dy: Rows,
        gradients: Gradients,
        dx: Option<(&mut [f32], Start)>,
        dz: &mut [f32],
        dropped: &mut [f32],
    ) {
        let dy_mat = dy.mat(rows, self.output);
        if let Some(dweight) = gradients.weight {
            let dweight = MatMut::new(dweight, self.output, self.input);
            let terms = [(dy_mat.t(), Mat::new(x, rows, self.input))];
            self.product("linear, weight gradient", dweight, Start::Keep, 1.0, &terms);
        }
        if let Some(dbias) = gradients.bias {
            let _span =
                profile::operation("linear, bias gradient", || profile::Work::floats(rows * self.output));
            sum_columns(self.output, rows, dbias, |row, out| {
                crate::norm::add_row(out, &dy.data[row * dy.stride..][..self.output]);
            });
        }
        let weight = self.weight.mat(self.output, self.input);
        let Some(lora) = lora else {
            if let Some((dx, start)) = dx {
                self.product(
                    INPUT_GRADIENT,
                    MatMut::new(dx, rows, self.input),
                    start,
                    1.0,
                    &[(dy_mat, weight)],
                );
            }
            return;
        };
        let (rank, b) = (lora.rank, Mat::new(lora.b, lora.rank, self.output));
        let a = Mat::new(lora.a, rank, self.input);
        self.product(LORA_BACKWARD, MatMut::new(dz, rows, rank), Start::Zero, lora.scale, &[(dy_mat, b.t())]);
        if let Some((da, db)) = gradients.lora {
            let z = Mat::new(z, rows, rank);
            let db = MatMut::new(db, rank, self.output);
            self.product(LORA_BACKWARD, db, Start::Keep, 1.0, &[(z.t(), dy_mat)]);
            let x = Mat::new(lora.input(x, dropped), rows, self.input);
            self.product(
                LORA_BACKWARD,
                MatMut::new(da, rank, self.input),
                Start::Keep,
                1.0,
                &[(Mat::new(dz, rows, rank).t(), x)],
            );
        }
        if let Some((dx, start)) = dx {
            let dz = Mat::new(dz, rows, rank);
            match lora.dropout {
                None => {
                    self.product(
                        INPUT_GRADIENT,
                        MatMut::new(dx, rows, self.input),
                        start,
                        1.0,
                        &[(dy_mat, weight), (dz, a)],
                    );
                }
                Some((dropout, keys)) => {
                    self.product(
                        INPUT_GRADIENT,
                        MatMut::new(dx, rows, self.input),
                        start,
                        1.0,
                        &[(dy_mat, weight)],
                    );
                    let dropped = &mut dropped[..rows * self.input];
                    self.product(
                        LORA_BACKWARD,
                        MatMut::new(dropped, rows, self.input),
                        Start::Zero,
                        1.0,
                        &[(dz, a)],
                    );
                    dropout_rows(dropped, dropout, keys);
                    crate::norm::add(dx, dropped);
                }
            }
        }
    }
}

/// `matmul_few`, as a span.
fn few(name: &'static str, c: MatMut, start: Start, wide: Term, thin: Option<Term>) {
    let _span = profile::operation(name, || match thin {
        None => gemm::work(&c, start, &[wide]),
        Some(thin) => gemm::work(&c, start, &[wide, thin]),
    });
    gemm::matmul_few(c, start, wide, thin);
}

impl Lora<'_> {
    /// The LoRA's input: x, or dropout(x) in the scratch.
    fn input<'s>(&self, x: &'s [f32], dropped: &'s mut [f32]) -> &'s [f32] {
        match self.dropout {
            None => x,
            Some((dropout, keys)) => {
                let dropped = &mut dropped[..x.len()];
                dropped.copy_from_slice(x);
                dropout_rows(dropped, dropout, keys);
                dropped
            }
        }
    }
}
