use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use crate::training::{EngineError, Layout, Params, Role};

/// Tensors of a block in the [`Layout`]: two gains, four projections of attention, three of the feed-forward network.
const BLOCK_TENSORS: usize = 9;

/// The parameters as burn tensors, one flat tensor for each [`Group`]: the embedding, each block, the final norm.
///
/// A block's parameters are one tensor because they are adjacent in the [`Layout`]: so a block is one operation of
/// two inputs, and the projections to queries, keys and values (and to gate and up) are one matrix without a copy.
pub(super) type Weights = Vec<Tensor<1>>;

/// Adjacent tensors of a [`Layout`] that are one burn tensor.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Where it is among all parameters.
    pub range: Range<usize>,
    /// Its parts.
    pub parts: Vec<Part>,
}

/// One tensor of the [`Layout`].
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Where it is in its group.
    pub range: Range<usize>,
    /// Rows (the out dimension); 1 for a gain.
    pub rows: usize,
    /// Columns (the in dimension).
    pub columns: usize,
    /// What it is for.
    pub role: Role,
}

/// The groups of a layout: embedding, blocks, final norm.
pub(super) fn groups(layout: &Layout) -> Vec<Group> {
    let tensors = layout.tensors();
    let (embedding, rest) = tensors.split_at(1);
    let (blocks, norm) = rest.split_at(rest.len() - 1);
    assert!(blocks.len().is_multiple_of(BLOCK_TENSORS), "a layout is an embedding, blocks and a norm");
    let runs = std::iter::once(embedding).chain(blocks.chunks(BLOCK_TENSORS)).chain(std::iter::once(norm));
    runs.map(|run| {
        let start = run[0].offset;
        let parts = run.iter().map(|tensor| {
            let columns = tensor.shape[tensor.shape.len() - 1];
            let range = tensor.range().start - start..tensor.range().end - start;
            Part { rows: range.len() / columns, columns, range, role: tensor.role }
        });
        let parts: Vec<_> = parts.collect();
        Group { range: start..start + parts[parts.len() - 1].range.end, parts }
    })
    .collect()
}

/// `params` on `device`.
pub(super) fn upload(params: &Params, device: &Device) -> Weights {
    let values = params.values();
    groups(params.layout())
        .iter()
        .map(|group| {
            Tensor::from_data(TensorData::new(values[group.range.clone()].to_vec(), [group.range.len()]), device)
        })
        .collect()
}

/// The numbers of a tensor; without a copy where the device is the processor and nobody else holds the tensor.
pub(super) fn download<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, EngineError> {
    tensor.try_into_vec_as::<f32>().map_err(|error| EngineError::Device(error.to_string()))
}
