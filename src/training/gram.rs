use rayon::prelude::*;

use super::CodecError;
use super::aggregate::{Piece, Update, decode_all};
use super::kernels::{SignRows, multiply, multiply_signs, place};
use crate::protocol::Codec;

/// Runs of pieces: enough for many threads, few enough to keep a matrix of each.
const RUNS: usize = 64;

/// The products of updates with each other.
#[derive(Debug)]
pub(super) struct Gram {
    len: usize,
    products: Vec<f64>,
}

impl Gram {
    /// Those of `updates`, whose payloads have the codec's length. Pieces are worked on in runs, so that there are not as many
    /// matrices as pieces, and these are added up in order, so that the number of threads changes nothing.
    pub fn of(codec: Codec, pieces: &[Piece], updates: &[Update<'_>]) -> Result<Self, CodecError> {
        let len = updates.len();
        let run = pieces.len().div_ceil(RUNS).max(1);
        let products = |run: &[Piece]| {
            let mut lower = vec![0.0; len * (len + 1) / 2];
            run.iter().try_for_each(|piece| add_products(codec, piece, updates, &mut lower)).map(|()| lower)
        };
        let runs = pieces.par_chunks(run).map(products).collect::<Result<Vec<Vec<f64>>, CodecError>>()?;
        let mut lower = vec![0.0; len * (len + 1) / 2];
        for run in runs {
            lower.iter_mut().zip(run).for_each(|(sum, part)| *sum += part);
        }
        let products = (0..len * len).map(|at| lower[place((at / len).max(at % len), (at / len).min(at % len))]);
        Ok(Self { len, products: products.collect() })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.products[i * self.len + j]
    }

    pub fn scaled(&self, scales: &[f64]) -> Self {
        let product = |at: usize| self.products[at] * scales[at / self.len] * scales[at % self.len];
        Self { len: self.len, products: (0..self.products.len()).map(product).collect() }
    }

    pub fn square_between(&self, i: usize, j: usize) -> f64 {
        self.at(i, i) - 2.0 * self.at(i, j) + self.at(j, j)
    }

    /// How far each update is from the mean with these weights.
    pub fn distances(&self, weights: &[f64]) -> Vec<f64> {
        let row = |i: usize| -> f64 { weights.iter().enumerate().map(|(j, weight)| weight * self.at(i, j)).sum() };
        let rows: Vec<f64> = (0..self.len).map(row).collect();
        let centre: f64 = rows.iter().zip(weights).map(|(row, weight)| row * weight).sum();
        rows.iter().enumerate().map(|(i, row)| (self.at(i, i) - 2.0 * row + centre).max(0.0).sqrt()).collect()
    }
}

/// Adds the products of the same piece of every update. Ternary ones are multiplied as they are: 64 numbers at a time, by
/// counting bits.
fn add_products(codec: Codec, piece: &Piece, updates: &[Update<'_>], out: &mut [f64]) -> Result<(), CodecError> {
    let (mut rows, mut signs) = (SignRows::default(), Vec::new());
    for update in updates {
        let bytes = piece.bytes(update.payload);
        if !codec.decode_signs(piece.role, bytes, piece.first, piece.range.len(), &mut signs)? {
            multiply(&decode_all(codec, piece, updates)?, updates.len(), out);
            return Ok(());
        }
        rows.extend(&signs);
    }
    multiply_signs(&rows, updates.len(), out);
    Ok(())
}
