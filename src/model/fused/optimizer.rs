use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::super::matmul::{Matrix, MatrixMut, matmul, symmetric_matmul};
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
    let [a, b, c] = ORTHOGONAL;
    #[expect(clippy::cast_possible_truncation, reason = "the arithmetic of a step is f32")]
    let scale = 1.0 / (sum_of_squares(matrix).sqrt() as f32 + ORTHOGONAL_EPSILON);
    for value in matrix.iter_mut() {
        *value *= scale;
    }
    let short = rows.min(columns);
    let (mut square, mut polynomial) = (Scratch::new(short * short), Scratch::new(short * short));
    let mut next = Scratch::new(matrix.len());
    for _ in 0..ORTHOGONAL_STEPS {
        let x = Matrix::new(matrix, rows, columns);
        // The smaller of X·Xᵀ and Xᵀ·X: the iteration commutes with transposition.
        let (left, right) = if rows > columns { (x.t(), x) } else { (x, x.t()) };
        symmetric_matmul(&mut square, 0.0, 1.0, left, right);
        polynomial.copy_from_slice(&square);
        let factor = Matrix::new(&square, short, short);
        symmetric_matmul(&mut polynomial, b, c, factor, factor);
        next.copy_from_slice(matrix);
        let polynomial = Matrix::new(&polynomial, short, short);
        let (left, right) = if rows > columns { (x, polynomial) } else { (polynomial, x) };
        matmul(MatrixMut::new(&mut next, rows, columns), a, 1.0, left, right);
        matrix.copy_from_slice(&next);
    }
}
