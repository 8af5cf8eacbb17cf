//! The final norm, the tied head and the cross-entropy on plain slices, forward and backward; and the embedding.

use super::super::matmul::{Matrix, MatrixMut, matmul, transpose};
use super::block::{Band, front, front_mut};
use super::kernels::{NormBackward, add, exp_row, norm};
use super::pool::{Scratch, take};
use super::threads::for_each;

/// Rows (tokens) that go through the head together.
const CHUNK_ROWS: usize = 128;

/// The mean cross-entropy of `targets` given the residual stream `x` (`rows × width`), nats; and what the backward
/// pass needs: the loss's gradient with respect to the logits, and the norm's inverses.
pub(super) fn forward(x: &[f32], gain: &[f32], embedding: &[f32], targets: &[u16]) -> (f32, Vec<f32>) {
    let (width, rows) = (gain.len(), targets.len());
    let vocabulary = embedding.len() / width;
    assert_eq!([x.len(), embedding.len()], [rows * width, vocabulary * width], "one target for each row");
    let mut saved = take(rows * (vocabulary + 1));
    let mut losses = Scratch::new(rows);
    let mut turned = Scratch::new(embedding.len());
    transpose(embedding, width, 0, &mut turned);
    let head = Matrix::new(&turned, width, vocabulary);
    let (slopes, inverses) = saved.split_at_mut(rows * vocabulary);
    let chunks = x.chunks(CHUNK_ROWS * width).zip(targets.chunks(CHUNK_ROWS)).zip(losses.chunks_mut(CHUNK_ROWS));
    let outputs = slopes.chunks_mut(CHUNK_ROWS * vocabulary).zip(inverses.chunks_mut(CHUNK_ROWS));
    for_each(chunks.zip(outputs).collect(), |(((x, targets), losses), (slopes, inverses))| {
        let mut normed = Scratch::new(x.len());
        norm(x, gain, &mut normed, inverses);
        let normed = Matrix::new(&normed, targets.len(), width);
        matmul(MatrixMut::new(slopes, targets.len(), vocabulary), 0.0, 1.0, normed, head);
        for ((row, &target), loss) in slopes.chunks_exact_mut(vocabulary).zip(targets).zip(losses) {
            let logit = row[usize::from(target)];
            let (most, sum) = exp_row(row);
            *loss = most - logit + sum.ln();
            let scale = 1.0 / (sum * rows as f32);
            for value in row.iter_mut() {
                *value *= scale;
            }
            row[usize::from(target)] -= 1.0 / rows as f32;
        }
    });
    #[expect(clippy::cast_possible_truncation, reason = "the loss is an f32")]
    let loss = (losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / rows as f64) as f32;
    (loss, saved)
}

/// The gradients of x, gain and embedding, from that of the loss.
pub(super) fn backward(
    x: &[f32],
    gain: &[f32],
    embedding: &[f32],
    saved: &[f32],
    scale: f32,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let width = gain.len();
    let (rows, vocabulary) = (x.len() / width, embedding.len() / width);
    assert_eq!(saved.len(), rows * (vocabulary + 1), "saved by the same head's forward");
    let mut saved = saved;
    let (slopes, inverses) = (front(&mut saved, rows * vocabulary), saved);
    let mut x_gradient = take(x.len());
    let mut gain_gradient = take(width);
    let mut embedding_gradient = take(embedding.len());
    let chunks = rows.div_ceil(CHUNK_ROWS);
    let mut buffer = Scratch::new(x.len() + chunks * width);
    let mut rest = &mut buffer[..];
    let (normed, gains) = (front_mut(&mut rest, x.len()), rest);
    let inputs = x.chunks(CHUNK_ROWS * width).zip(slopes.chunks(CHUNK_ROWS * vocabulary));
    let inputs = inputs.zip(inverses.chunks(CHUNK_ROWS));
    let outputs = x_gradient.chunks_mut(CHUNK_ROWS * width).zip(normed.chunks_mut(CHUNK_ROWS * width));
    let outputs = outputs.zip(gains.chunks_exact_mut(width));
    for_each(inputs.zip(outputs).collect(), |(((x, slopes), inverses), ((x_gradient, output), gain_gradient))| {
        let mut gradient = Scratch::new(x.len());
        let (slopes, head) =
            (Matrix::new(slopes, inverses.len(), vocabulary), Matrix::new(embedding, vocabulary, width));
        matmul(MatrixMut::new(&mut gradient, inverses.len(), width), 0.0, scale, slopes, head);
        NormBackward { x, gain, inverses, gradient: &gradient, residual: &[], x_gradient, output, gain_gradient }.run();
    });
    gain_gradient.fill(0.0);
    gains.chunks_exact(width).for_each(|gains| add(&mut gain_gradient, gains));
    for_each(Band::cut(&mut embedding_gradient, slopes, normed, [vocabulary, width], scale).collect(), Band::run);
    (x_gradient, gain_gradient, embedding_gradient)
}

/// The embeddings of tokens, `tokens × width`.
pub(super) fn embed(embedding: &[f32], tokens: &[u16], width: usize) -> Vec<f32> {
    let mut out = take(tokens.len() * width);
    embed_into(embedding, tokens, &mut out);
    out
}

/// The same into a buffer of tokens × width.
pub(super) fn embed_into(embedding: &[f32], tokens: &[u16], out: &mut [f32]) {
    let width = out.len() / tokens.len();
    for (row, &token) in out.chunks_exact_mut(width).zip(tokens) {
        row.copy_from_slice(&embedding[usize::from(token) * width..][..width]);
    }
}

/// The gradient of the embedding (of `length` numbers), from that of [`embed`]'s output.
pub(super) fn embed_backward(gradient: &[f32], tokens: &[u16], width: usize, length: usize) -> Vec<f32> {
    let mut out = take(length);
    out.fill(0.0);
    for (row, &token) in gradient.chunks_exact(width).zip(tokens) {
        add(&mut out[usize::from(token) * width..][..width], row);
    }
    out
}
