//! The operations as an extension of burn's libtorch backend: libtorch's own functions, which it differentiates itself.
//!
//! A forward pass keeps libtorch's graph of one operation; the backward pass runs through that graph. So attention, the
//! norms and everything between them are as fast as in PyTorch, on every device that libtorch has.
#![expect(deprecated, reason = "burn 0.22.1 marks libtorch as deprecated; it is what we extend")]

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::TensorMetadata;
use burn_tch::{LibTorch, TchTensor};
use tch::{Device, Reduction, Tensor};

use super::super::transformer::NORM_EPSILON;
use super::attention::Rotary;
use super::block::BlockShape;
use super::ops::FusedOps;

/// Cosines and sines of rotary positions on the device that asked last.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<Option<[TchTensor; 2]>>);

impl Tables {
    /// The first rows of both.
    fn rows(&self, rotary: &Rotary, rows: usize, head: usize, device: Device) -> [Tensor; 2] {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|[table, _]| table.tensor.device() != device) {
            let tables = rotary.tables().map(|table| {
                let table = Tensor::from_slice(table).view([-1, signed(head / 2)]);
                TchTensor::new(table.to_device(device))
            });
            *kept = Some(tables);
        }
        let Some(tables) = &*kept else { unreachable!("they have just been made") };
        tables.each_ref().map(|table| table.tensor.narrow(0, 0, signed(rows)))
    }
}

/// A size as libtorch wants it. Sizes are bounded by `protocol::limits`.
fn signed(size: usize) -> i64 {
    size as i64
}

/// The same numbers as the start of a graph.
fn leaf(tensor: TchTensor) -> TchTensor {
    TchTensor::from_existing(tensor.tensor.detach().set_requires_grad(true), tensor.storage)
}

/// The same numbers without their graph, and with it.
fn cut(tensor: Tensor) -> (TchTensor, TchTensor) {
    let tensor = TchTensor::new(tensor);
    // Both know of the other, so that neither is changed in place.
    (TchTensor::from_existing(tensor.tensor.detach(), tensor.storage.clone()), tensor)
}

/// Token numbers on a device.
fn indices(tokens: &[u16], device: Device) -> Tensor {
    Tensor::from_slice(&tokens.iter().map(|&token| i64::from(token)).collect::<Vec<_>>()).to_device(device)
}

fn norm(x: &Tensor, gain: &Tensor) -> Tensor {
    x.rms_norm(gain.size(), Some(gain), f64::from(NORM_EPSILON))
}

fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    x.linear(weight, None::<&Tensor>)
}

/// The residual stream after a block.
fn block(x: &Tensor, weights: &Tensor, shape: &BlockShape) -> Tensor {
    let [width, heads, hidden, context] = [shape.width, shape.heads, shape.hidden, shape.context].map(signed);
    let head = width / heads;
    let sizes = [width, 3 * width * width, width * width, width, 2 * hidden * width, width * hidden];
    let parts = weights.split_with_sizes(sizes, 0);
    let [attention_gain, qkv, o, hidden_gain, gate_up, down] = &parts[..] else { unreachable!("as many as sizes") };

    let qkv = linear(&norm(x, attention_gain), &qkv.view([3 * width, width])).view([-1, context, 3, heads, head]);
    let qkv = qkv.permute([2, 0, 3, 1, 4]);
    let [cosines, sines] = shape.rotary.torch.rows(&shape.rotary, shape.context, shape.width / shape.heads, x.device());
    let halves = qkv.narrow(0, 0, 2).chunk(2, -1);
    let [a, b] = &halves[..] else { unreachable!("a head is even") };
    let turned = Tensor::cat(&[a * &cosines - b * &sines, a * &sines + b * &cosines], -1);
    let (q, k, v) = (turned.select(0, 0), turned.select(0, 1), qkv.select(0, 2));
    let o_in = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, true, None, false);
    let x = x + linear(&o_in.transpose(1, 2).reshape([-1, width]), &o.view([width, width]));

    let halves = linear(&norm(&x, hidden_gain), &gate_up.view([2 * hidden, width])).chunk(2, -1);
    let [gate, up] = &halves[..] else { unreachable!("two halves") };
    &x + linear(&(gate.silu() * up), &down.view([width, hidden]))
}

/// The mean cross-entropy of targets.
fn head(x: &Tensor, gain: &Tensor, embedding: &Tensor, targets: &[u16]) -> Tensor {
    let logits = linear(&norm(x, gain), &embedding.view([-1, gain.size()[0]]));
    let targets = indices(targets, x.device());
    logits.cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Mean, -100, 0.0).view([1])
}

/// The gradients of the leaves of `y`'s graph, from that of y.
fn backward<const N: usize>(y: TchTensor, gradient: TchTensor, leaves: [TchTensor; N]) -> [TchTensor; N] {
    let root = (y.tensor * gradient.tensor).sum(tch::Kind::Float);
    let leaves = leaves.map(|leaf| leaf.tensor);
    let mut gradients = Tensor::run_backward(&[root], &leaves, false, false).into_iter();
    // libtorch gives one for each leaf, or fails above.
    leaves.each_ref().map(|leaf| TchTensor::new(gradients.next().unwrap_or_else(|| leaf.zeros_like()).detach()))
}

impl FusedOps for LibTorch {
    fn embed(embedding: TchTensor, tokens: Arc<[u16]>, width: usize) -> TchTensor {
        let table = embedding.tensor.view([-1, signed(width)]);
        TchTensor::new(table.index_select(0, &indices(&tokens, table.device())))
    }

    fn embed_backward(gradient: TchTensor, tokens: Arc<[u16]>, length: usize) -> TchTensor {
        let width = gradient.shape()[1];
        let tokens = indices(&tokens, gradient.tensor.device());
        let rows = signed(length / width);
        TchTensor::new(Tensor::embedding_dense_backward(&gradient.tensor, &tokens, rows, -1, false).view([-1]))
    }

    fn block(x: TchTensor, weights: TchTensor, shape: BlockShape) -> TchTensor {
        TchTensor::new(block(&x.tensor, &weights.tensor, &shape))
    }

    fn block_forward(
        x: TchTensor,
        weights: TchTensor,
        shape: BlockShape,
    ) -> (TchTensor, TchTensor, TchTensor, TchTensor) {
        let (x, weights) = (leaf(x), leaf(weights));
        let (y, saved) = cut(block(&x.tensor, &weights.tensor, &shape));
        (y, x, weights, saved)
    }

    fn block_backward(
        x: TchTensor,
        weights: TchTensor,
        saved: TchTensor,
        gradient: TchTensor,
        _: BlockShape,
    ) -> (TchTensor, TchTensor) {
        backward(saved, gradient, [x, weights]).into()
    }

    fn head(x: TchTensor, gain: TchTensor, embedding: TchTensor, targets: Arc<[u16]>) -> TchTensor {
        TchTensor::new(head(&x.tensor, &gain.tensor, &embedding.tensor, &targets))
    }

    fn head_forward(
        x: TchTensor,
        gain: TchTensor,
        embedding: TchTensor,
        targets: Arc<[u16]>,
    ) -> (TchTensor, TchTensor, TchTensor, TchTensor, TchTensor) {
        let (x, gain, embedding) = (leaf(x), leaf(gain), leaf(embedding));
        let (loss, saved) = cut(head(&x.tensor, &gain.tensor, &embedding.tensor, &targets));
        (loss, x, gain, embedding, saved)
    }

    fn head_backward(
        x: TchTensor,
        gain: TchTensor,
        embedding: TchTensor,
        saved: TchTensor,
        gradient: TchTensor,
    ) -> (TchTensor, TchTensor, TchTensor) {
        backward(saved, gradient, [x, gain, embedding]).into()
    }
}
