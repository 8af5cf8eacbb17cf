//! The operations as an extension of burn's ndarray backend, and their place in burn's automatic differentiation.
#![expect(deprecated, reason = "burn 0.22.1 marks ndarray as deprecated; it is what we extend")]
#![expect(clippy::type_complexity, reason = "an operation of burn that makes several tensors gives a tuple")]

use std::borrow::Cow;
use std::sync::Arc;

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::tensor::TensorData;
use burn_ndarray::{NdArray, NdArrayTensor};

use super::block::{self, BlockShape};
use super::{head, pool};

/// The operations. Residual streams are `tokens × width`; weights are flat, as in `weights`.
#[backend_extension(Autodiff, NdArray, LibTorch: cfg(feature = "tch"))]
pub trait FusedOps: Backend {
    /// The embedding of each token.
    fn embed(embedding: FloatTensor<Self>, tokens: Arc<[u16]>, width: usize) -> FloatTensor<Self>;
    /// The gradient of an embedding of `length` numbers.
    fn embed_backward(gradient: FloatTensor<Self>, tokens: Arc<[u16]>, length: usize) -> FloatTensor<Self>;
    /// The residual stream after a block.
    fn block(x: FloatTensor<Self>, weights: FloatTensor<Self>, shape: BlockShape) -> FloatTensor<Self>;
    /// The same; and what the backward pass needs: x, the weights, whatever else.
    fn block_forward(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        shape: BlockShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// The gradients of x and of the weights.
    fn block_backward(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        shape: BlockShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// The mean cross-entropy of `targets`.
    fn head(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        embedding: FloatTensor<Self>,
        targets: Arc<[u16]>,
    ) -> FloatTensor<Self>;
    /// The same; and what the backward pass needs: x, gain, embedding, whatever else.
    fn head_forward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        embedding: FloatTensor<Self>,
        targets: Arc<[u16]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// The gradients of x, gain and embedding.
    fn head_backward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        embedding: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// The numbers of a tensor in row-major order, without a copy where they lie so.
fn numbers(tensor: &NdArrayTensor) -> Cow<'_, [f32]> {
    let NdArrayTensor::F32(storage) = tensor else { unreachable!("all our tensors are f32") };
    let view = storage.view();
    match view.to_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(view.iter().copied().collect()),
    }
}

/// A tensor of these numbers, without a copy.
fn tensor<const D: usize>(numbers: Vec<f32>, shape: [usize; D]) -> NdArrayTensor {
    NdArrayTensor::from_data(TensorData::new(numbers, shape))
}

/// Gives a tensor's memory back to the pool, unless somebody else holds it.
fn recycle(tensor: NdArrayTensor) {
    let NdArrayTensor::F32(storage) = tensor else { return };
    if storage.is_unique()
        && let Ok(array) = storage.into_owned().try_into_owned_nocopy()
    {
        pool::give(array.into_raw_vec_and_offset().0);
    }
}

impl FusedOps for NdArray {
    fn embed(embedding: NdArrayTensor, tokens: Arc<[u16]>, width: usize) -> NdArrayTensor {
        tensor(head::embed(&numbers(&embedding), &tokens, width), [tokens.len(), width])
    }

    fn embed_backward(gradient: NdArrayTensor, tokens: Arc<[u16]>, length: usize) -> NdArrayTensor {
        let width = gradient.shape()[1];
        let out = tensor(head::embed_backward(&numbers(&gradient), &tokens, width, length), [length]);
        recycle(gradient);
        out
    }

    fn block(x: NdArrayTensor, weights: NdArrayTensor, shape: BlockShape) -> NdArrayTensor {
        let (y, x, _, saved) = Self::block_forward(x, weights, shape);
        recycle(x);
        recycle(saved);
        y
    }

    fn block_forward(
        x: NdArrayTensor,
        weights: NdArrayTensor,
        shape: BlockShape,
    ) -> (NdArrayTensor, NdArrayTensor, NdArrayTensor, NdArrayTensor) {
        let (y, saved) = block::forward(&numbers(&x), &numbers(&weights), &shape);
        let (rows, length) = (x.shape()[0], saved.len());
        (tensor(y, [rows, shape.width]), x, weights, tensor(saved, [length]))
    }

    fn block_backward(
        x: NdArrayTensor,
        weights: NdArrayTensor,
        saved: NdArrayTensor,
        gradient: NdArrayTensor,
        shape: BlockShape,
    ) -> (NdArrayTensor, NdArrayTensor) {
        let (x_gradient, weights_gradient) =
            block::backward(&numbers(&x), &numbers(&weights), &numbers(&saved), &numbers(&gradient), &shape);
        let rows = x.shape()[0];
        [x, saved, gradient].into_iter().for_each(recycle);
        let length = weights_gradient.len();
        (tensor(x_gradient, [rows, shape.width]), tensor(weights_gradient, [length]))
    }

    fn head(x: NdArrayTensor, gain: NdArrayTensor, embedding: NdArrayTensor, targets: Arc<[u16]>) -> NdArrayTensor {
        let (loss, x, _, _, saved) = Self::head_forward(x, gain, embedding, targets);
        recycle(x);
        recycle(saved);
        loss
    }

    fn head_forward(
        x: NdArrayTensor,
        gain: NdArrayTensor,
        embedding: NdArrayTensor,
        targets: Arc<[u16]>,
    ) -> (NdArrayTensor, NdArrayTensor, NdArrayTensor, NdArrayTensor, NdArrayTensor) {
        let (loss, saved) = head::forward(&numbers(&x), &numbers(&gain), &numbers(&embedding), &targets);
        let length = saved.len();
        (tensor(vec![loss], [1]), x, gain, embedding, tensor(saved, [length]))
    }

    fn head_backward(
        x: NdArrayTensor,
        gain: NdArrayTensor,
        embedding: NdArrayTensor,
        saved: NdArrayTensor,
        gradient: NdArrayTensor,
    ) -> (NdArrayTensor, NdArrayTensor, NdArrayTensor) {
        let scale = numbers(&gradient).first().copied().unwrap_or_default();
        let (x_gradient, gain_gradient, embedding_gradient) =
            head::backward(&numbers(&x), &numbers(&gain), &numbers(&embedding), &numbers(&saved), scale);
        let shape = x.shape();
        [x, saved].into_iter().for_each(recycle);
        let lengths = [gain_gradient.len(), embedding_gradient.len()];
        (
            tensor(x_gradient, [shape[0], shape[1]]),
            tensor(gain_gradient, [lengths[0]]),
            tensor(embedding_gradient, [lengths[1]]),
        )
    }
}

/// Why backward operations are not differentiated: nothing here asks for second derivatives.
const FIRST_ORDER: &str = "gradients of gradients are not defined";

impl<B: FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn embed(embedding: FloatTensor<Self>, tokens: Arc<[u16]>, width: usize) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct EmbedBackward;
        impl<B: FusedOps> Backward<B, 1> for EmbedBackward {
            type State = (Arc<[u16]>, usize);
            fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
                let [embedding] = ops.parents;
                let (tokens, length) = ops.state;
                let gradient = gradients.consume::<B>(&ops.node);
                if let Some(embedding) = embedding {
                    gradients.register::<B>(embedding.id, B::embed_backward(gradient, tokens, length));
                }
            }
        }
        let (embedding, node) = embedding.into_parts();
        let length = embedding.shape().num_elements();
        match EmbedBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(op) => {
                let y = B::embed(embedding, Arc::clone(&tokens), width);
                op.finish((tokens, length), y)
            }
            OpsKind::UnTracked(op) => op.finish(B::embed(embedding, tokens, width)),
        }
    }

    fn embed_backward(_: FloatTensor<Self>, _: Arc<[u16]>, _: usize) -> FloatTensor<Self> {
        unreachable!("{FIRST_ORDER}")
    }

    fn block(x: FloatTensor<Self>, weights: FloatTensor<Self>, shape: BlockShape) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct BlockBackward;
        impl<B: FusedOps> Backward<B, 2> for BlockBackward {
            type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, BlockShape);
            fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
                let [x_node, weights_node] = ops.parents;
                let (x, weights, saved, shape) = ops.state;
                let gradient = gradients.consume::<B>(&ops.node);
                let (x, weights) = B::block_backward(x, weights, saved, gradient, shape);
                for (node, gradient) in [(x_node, x), (weights_node, weights)] {
                    if let Some(node) = node {
                        gradients.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let (x, x_node) = x.into_parts();
        let (weights, weights_node) = weights.into_parts();
        match BlockBackward.prepare::<C>([x_node, weights_node]).compute_bound().stateful() {
            OpsKind::Tracked(op) => {
                let (y, x, weights, saved) = B::block_forward(x, weights, shape.clone());
                op.finish((x, weights, saved, shape), y)
            }
            OpsKind::UnTracked(op) => op.finish(B::block(x, weights, shape)),
        }
    }

    fn block_forward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: BlockShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn block_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: BlockShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn head(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        embedding: FloatTensor<Self>,
        targets: Arc<[u16]>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct HeadBackward;
        impl<B: FusedOps> Backward<B, 3> for HeadBackward {
            type State = [FloatTensor<B>; 4];
            fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
                let [x_node, gain_node, embedding_node] = ops.parents;
                let [x, gain, embedding, saved] = ops.state;
                let gradient = gradients.consume::<B>(&ops.node);
                let (x, gain, embedding) = B::head_backward(x, gain, embedding, saved, gradient);
                for (node, gradient) in [(x_node, x), (gain_node, gain), (embedding_node, embedding)] {
                    if let Some(node) = node {
                        gradients.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let ((x, x_node), (gain, gain_node)) = (x.into_parts(), gain.into_parts());
        let (embedding, embedding_node) = embedding.into_parts();
        match HeadBackward.prepare::<C>([x_node, gain_node, embedding_node]).compute_bound().stateful() {
            OpsKind::Tracked(op) => {
                let (loss, x, gain, embedding, saved) = B::head_forward(x, gain, embedding, targets);
                op.finish([x, gain, embedding, saved], loss)
            }
            OpsKind::UnTracked(op) => op.finish(B::head(x, gain, embedding, targets)),
        }
    }

    fn head_forward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Arc<[u16]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }

    fn head_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("{FIRST_ORDER}")
    }
}
