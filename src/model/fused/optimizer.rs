use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::super::matmul::{Matrix, MatrixMut, matmul, symmetric_matmul, transpose};
use super::super::optimizer::{
    self, CLIP_EPSILON, CLIP_NORM, ORTHOGONAL, ORTHOGONAL_EPSILON, ORTHOGONAL_STEPS, Update,
};
use super::super::weights::{Group, Weights, download};
use super::block::front_mut;
use super::kernels::sum_of_squares;
use super::pool::{self, Scratch};
use super::threads::for_each;
use crate::protocol::{AdamW, InnerOptimizer};
use crate::training::EngineError;
use burn::tensor::{Tensor, TensorData};

/// Numbers that one task of `AdamW` updates.
const CHUNK: usize = 1 << 14;

/// The optimisers of [`optimizer::Plain`] on plain slices, every matrix a task of its own.
pub(in crate::model) struct Optimizer {
    groups: Vec<Group>,
    settings: InnerOptimizer,
    /// Steps done.
    steps: u32,
    /// First moments of each group; Muon's velocities.
    first: Vec<Vec<f32>>,
    /// Second moments of each group.
    second: Vec<Vec<f32>>,
}

/// The update of some numbers.
struct Task<'a> {
    update: Update,
    shape: [usize; 2],
    weights: &'a mut [f32],
    gradient: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Optimizer {
    /// A fresh optimiser.
    pub fn new(groups: Vec<Group>, settings: InnerOptimizer) -> Self {
        let zeros = || groups.iter().map(|group| vec![0.0; group.range.len()]).collect();
        Self { first: zeros(), second: zeros(), groups, settings, steps: 0 }
    }
}

impl optimizer::Optimizer for Optimizer {
    fn step(&mut self, weights: Weights, gradients: Weights, rate: f32) -> Result<Weights, EngineError> {
        self.steps = self.steps.saturating_add(1);
        let device = weights.first().map(Tensor::device).unwrap_or_default();
        let mut weights = weights.into_iter().map(download).collect::<Result<Vec<_>, _>>()?;
        let mut gradients = gradients.into_iter().map(download).collect::<Result<Vec<_>, _>>()?;
        let squares = |gradient: &Vec<f32>| sum_of_squares(gradient);
        let squares = if rayon::current_num_threads() == 1 {
            gradients.iter().map(squares).collect::<Vec<_>>()
        } else {
            (&gradients).into_par_iter().map(squares).collect()
        };
        #[expect(clippy::cast_possible_truncation, reason = "the arithmetic of a step is f32")]
        let norm = squares.iter().sum::<f64>().sqrt() as f32;
        let clip = (CLIP_NORM / (norm + CLIP_EPSILON)).min(1.0);

        let mut tasks = Vec::new();
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (((group, (first, second)), weights), gradient) in
            self.groups.iter().zip(moments).zip(&mut weights).zip(&mut gradients)
        {
            let mut rests = [&mut first[..], &mut second[..], &mut weights[..], &mut gradient[..]];
            for part in &group.parts {
                let update = Update::of(part, &self.settings, self.steps, rate);
                let chunk = if matches!(update, Update::Muon { .. }) { part.range.len() } else { CHUNK };
                for from in (0..part.range.len()).step_by(chunk) {
                    let length = chunk.min(part.range.len() - from);
                    let [first, second, weights, gradient] = rests.each_mut().map(|rest| front_mut(rest, length));
                    tasks.push(Task { update, shape: [part.rows, part.columns], weights, gradient, first, second });
                }
            }
        }
        for_each(tasks, |task| task.run(clip));
        gradients.into_iter().for_each(pool::give);
        Ok(weights
            .into_iter()
            .map(|values| {
                let length = values.len();
                Tensor::from_data(TensorData::new(values, [length]), &device)
            })
            .collect())
    }
}

impl Task<'_> {
    fn run(self, clip: f32) {
        match self.update {
            Update::AdamW { rate, second_correction, keep, settings } => {
                self.adamw(clip, rate, second_correction, keep, settings);
            }
            Update::Muon { rate, keep, momentum } => self.muon(clip, rate, keep, momentum),
        }
    }

    fn adamw(self, clip: f32, rate: f32, second_correction: f32, keep: f32, settings: AdamW) {
        let AdamW { beta1, beta2, epsilon, .. } = settings;
        let moments = self.first.iter_mut().zip(self.second);
        for ((weight, &mut gradient), (first, second)) in self.weights.iter_mut().zip(self.gradient).zip(moments) {
            let gradient = gradient * clip;
            *first = beta1 * *first + (1.0 - beta1) * gradient;
            *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
            *weight = keep * *weight - rate * *first / ((*second / second_correction).sqrt() + epsilon);
        }
    }

    fn muon(self, clip: f32, rate: f32, keep: f32, momentum: f32) {
        for (gradient, velocity) in self.gradient.iter_mut().zip(self.first) {
            let clipped = *gradient * clip;
            *velocity = momentum * *velocity + clipped;
            *gradient = clipped + momentum * *velocity;
        }
        orthogonalize(self.gradient, self.shape);
        for (weight, &mut update) in self.weights.iter_mut().zip(self.gradient) {
            *weight = keep * *weight - rate * update;
        }
    }
}

/// Replaces a matrix by what [`optimizer::orthogonal`] makes of it.
fn orthogonalize(matrix: &mut [f32], [rows, columns]: [usize; 2]) {
    #[expect(clippy::cast_possible_truncation, reason = "the arithmetic of a step is f32")]
    let scale = 1.0 / (sum_of_squares(matrix).sqrt() as f32 + ORTHOGONAL_EPSILON);
    for value in matrix.iter_mut() {
        *value *= scale;
    }
    let mut left = ORTHOGONAL_STEPS;
    while left > 0 {
        let steps = if 4 * rows.max(columns) < 5 * rows.min(columns) { 1 } else { left.min(SMALL_STEPS) };
        iterate(matrix, [rows, columns], steps);
        left -= steps;
    }
}

/// Iterations at a time of a matrix that is not nearly square: all but two of their products are then of the short
/// side alone. Rounding grows with the polynomials' product: to 2e-5 of the result with three, which is no more than
/// two ways to sum differ by, and to 4e-4 with all five.
const SMALL_STEPS: usize = 3;

/// Some Newton–Schulz iterations. With X the matrix, each multiplies it by a polynomial of X·Xᵀ (or Xᵀ·X, whichever is
/// smaller: the iteration commutes with transposition), and so S = X·Xᵀ by its square; polynomials of S commute, so
/// all products of them are symmetric.
fn iterate(matrix: &mut [f32], [rows, columns]: [usize; 2], steps: usize) {
    let [a, b, c] = ORTHOGONAL;
    let short = rows.min(columns);
    let [mut square, mut polynomial, mut product, mut spare] = [(); 4].map(|()| Scratch::new(short * short));
    let mut room = Scratch::new(matrix.len());
    transpose(matrix, columns, 0, &mut room);
    let (x, turned) = (Matrix::new(matrix, rows, columns), Matrix::new(&room, columns, rows));
    let (left, right) = if rows > columns { (turned, x) } else { (x, turned) };
    symmetric_matmul(&mut square, 0.0, 1.0, left, right);
    for step in 0..steps {
        // a + b·S + c·S²
        let factor = Matrix::new(&square, short, short);
        polynomial.copy_from_slice(&square);
        symmetric_matmul(&mut polynomial, b, c, factor, factor);
        polynomial.iter_mut().step_by(short + 1).for_each(|value| *value += a);
        let factor = Matrix::new(&polynomial, short, short);
        if step + 1 < steps {
            let (squared, before) = (&mut spare, Matrix::new(&square, short, short));
            symmetric_matmul(squared, 0.0, 1.0, factor, factor);
            let squared = Matrix::new(squared, short, short);
            let mut after = Scratch::new(short * short);
            symmetric_matmul(&mut after, 0.0, 1.0, before, squared);
            square = after;
        }
        if step == 0 {
            std::mem::swap(&mut product, &mut polynomial);
        } else {
            symmetric_matmul(&mut spare, 0.0, 1.0, Matrix::new(&product, short, short), factor);
            std::mem::swap(&mut product, &mut spare);
        }
    }
    let product = Matrix::new(&product, short, short);
    let x = Matrix::new(matrix, rows, columns);
    let (left, right) = if rows > columns { (x, product) } else { (product, x) };
    matmul(MatrixMut::new(&mut room, rows, columns), 0.0, 1.0, left, right);
    matrix.copy_from_slice(&room);
}
