//! Parameters as safetensors bytes, named and shaped like those of a Hugging Face `LlamaForCausalLM` with tied
//! embeddings. The same parameters always give the same bytes, so that a model's digest names its weights.

use std::borrow::Cow;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, View, serialize};

use crate::protocol::ModelSpec;
use crate::training::{Layout, Params};

/// Bytes that are no checkpoint of the model.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not safetensors.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor of the model is not there.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor that the model does not have.
    #[error("tensor `{0}` is not part of the model")]
    Unknown(String),
    /// A tensor of another shape than the model's.
    #[error("tensor `{name}` has shape {actual:?}, the model's has {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// The model's.
        expected: Vec<usize>,
        /// The file's.
        actual: Vec<usize>,
    },
    /// A tensor of something else than f32.
    #[error("tensor `{name}` has numbers of type {actual}, they must be F32")]
    Type {
        /// Which.
        name: String,
        /// The file's.
        actual: Dtype,
    },
    /// An output head that is not the embedding.
    #[error("`lm_head.weight` is not the embedding; this transformer's are one tensor")]
    Untied,
    /// A NaN or an infinity.
    #[error("tensor `{0}` has a number that is not finite")]
    NotFinite(String),
}

/// A tensor on its way into a file.
struct Stored<'params> {
    shape: &'params [usize],
    values: &'params [f32],
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// `params` as a safetensors file. The metadata `{"format":"pt"}` is what `transformers` asks for.
pub fn encode(params: &Params) -> Result<Vec<u8>, CheckpointError> {
    let layout = params.layout();
    let tensors = layout
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.as_str(), Stored { shape: &tensor.shape, values: params.tensor(tensor) }));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(serialize(tensors, Some(metadata))?)
}

/// The parameters of `model` in a safetensors file: exactly its tensors, in f32, all finite. Never panics, whatever
/// the bytes, and allocates no more than the model needs besides the file's header.
pub fn decode(bytes: &[u8], model: &ModelSpec) -> Result<Params, CheckpointError> {
    let file = SafeTensors::deserialize(bytes)?;
    read(&file, model, &[Dtype::F32])
}

/// The same of a file that another program has written: numbers may be of half as many bits, which f32 holds exactly,
/// and the output head may be there where it is the embedding once more.
pub(super) fn decode_any(bytes: &[u8], model: &ModelSpec) -> Result<Params, CheckpointError> {
    let file = SafeTensors::deserialize(bytes)?;
    if let (Ok(head), Ok(embedding)) = (file.tensor(HEAD), file.tensor("model.embed_tokens.weight"))
        && head != embedding
    {
        return Err(CheckpointError::Untied);
    }
    read(&file, model, &[Dtype::F32, Dtype::F16, Dtype::BF16])
}

/// The output head, where it is a tensor of its own.
const HEAD: &str = "lm_head.weight";

fn read(file: &SafeTensors<'_>, model: &ModelSpec, types: &[Dtype]) -> Result<Params, CheckpointError> {
    let layout = Layout::of(model);
    let mut params = Params::zeros(Arc::clone(&layout));
    for tensor in layout.tensors() {
        let view = file.tensor(&tensor.name).map_err(|_| CheckpointError::Missing(tensor.name.clone()))?;
        if !types.contains(&view.dtype()) {
            return Err(CheckpointError::Type { name: tensor.name.clone(), actual: view.dtype() });
        }
        if view.shape() != tensor.shape {
            let (expected, actual) = (tensor.shape.clone(), view.shape().to_vec());
            return Err(CheckpointError::Shape { name: tensor.name.clone(), expected, actual });
        }
        let values = &mut params.values_mut()[tensor.range()];
        let (fours, _) = view.data().as_chunks::<4>();
        let (twos, _) = view.data().as_chunks::<2>();
        match view.dtype() {
            Dtype::F16 => fill(values, twos.iter().map(|&number| f16(u16::from_le_bytes(number)))),
            Dtype::BF16 => fill(values, twos.iter().map(|&[low, high]| f32::from_le_bytes([0, 0, low, high]))),
            _ => fill(values, fours.iter().map(|&number| f32::from_le_bytes(number))),
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite(tensor.name.clone()));
        }
    }
    let is_known = |name: &str| layout.tensors().iter().any(|tensor| tensor.name == name);
    let is_head = |name: &str| name == HEAD && types.len() > 1;
    let mut names = file.names();
    names.sort_unstable();
    match names.into_iter().find(|name| !is_head(name) && !is_known(name)) {
        Some(unknown) => Err(CheckpointError::Unknown(unknown.to_owned())),
        None => Ok(params),
    }
}

fn fill(values: &mut [f32], numbers: impl Iterator<Item = f32>) {
    for (value, number) in values.iter_mut().zip(numbers) {
        *value = number;
    }
}

/// The number that these bits are in IEEE 754's half precision.
fn f16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2.0f32.powi(-24),
        0x1f if fraction > 0.0 => f32::NAN,
        0x1f => f32::INFINITY,
        _ => (1.0 + fraction / 1024.0) * 2.0f32.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Seed;

    const TINY: ModelSpec = ModelSpec { layers: 1, width: 4, heads: 1, hidden: 6, context: 4 };

    fn tiny() -> (Params, Vec<u8>) {
        let params = Params::initial(&TINY, &Seed::from_number(1));
        let bytes = encode(&params).unwrap();
        (params, bytes)
    }

    /// The header of a file, and what follows it.
    fn split(bytes: &[u8]) -> (String, &[u8]) {
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        (String::from_utf8(bytes[8..8 + length].to_vec()).unwrap(), &bytes[8 + length..])
    }

    fn join(header: &str, body: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), body].concat()
    }

    #[test]
    fn parameters_survive_a_checkpoint_bit_for_bit() {
        let (params, bytes) = tiny();
        let back = decode(&bytes, &TINY).unwrap();
        assert_eq!(back, params);
        assert_eq!(encode(&back).unwrap(), bytes);
    }

    #[test]
    fn a_checkpoint_says_that_it_is_for_pytorch_and_names_tensors_as_llama_does() {
        let (header, _) = split(&tiny().1).clone();
        assert!(header.contains(r#""__metadata__":{"format":"pt"}"#), "{header}");
        assert!(header.contains(r#""model.layers.0.mlp.gate_proj.weight":{"dtype":"F32","shape":[6,4]"#), "{header}");
        assert!(!header.contains("lm_head"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let (_, bytes) = tiny();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], &TINY).is_err(), "the first {end} bytes");
        }
    }

    #[test]
    fn another_architecture_is_refused_by_the_name_of_the_tensor() {
        let (_, bytes) = tiny();
        let wider = decode(&bytes, &ModelSpec { hidden: 8, ..TINY }).unwrap_err();
        assert!(matches!(wider, CheckpointError::Shape { ref name, .. } if name.ends_with("gate_proj.weight")));
        let deeper = decode(&bytes, &ModelSpec { layers: 2, ..TINY }).unwrap_err();
        assert!(matches!(deeper, CheckpointError::Missing(ref name) if name.contains("layers.1")));
        let two = Params::initial(&ModelSpec { layers: 2, ..TINY }, &Seed::from_number(1));
        let shallower = decode(&encode(&two).unwrap(), &TINY).unwrap_err();
        assert!(matches!(shallower, CheckpointError::Unknown(ref name) if name.contains("layers.1")));
    }

    #[test]
    fn another_type_of_number_is_refused() {
        let (_, bytes) = tiny();
        let (header, body) = split(&bytes);
        let integers = join(&header.replace("F32", "I32"), body);
        assert!(matches!(decode(&integers, &TINY), Err(CheckpointError::Type { .. })));
    }

    #[test]
    fn weights_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut params, _) = tiny();
            *params.values_mut().last_mut().unwrap() = bad;
            let error = decode(&encode(&params).unwrap(), &TINY).unwrap_err();
            assert!(matches!(error, CheckpointError::NotFinite(name) if name == "model.norm.weight"));
        }
    }

    #[test]
    fn halves_are_the_numbers_that_they_stand_for() {
        let known =
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 5.960_464_5e-8), (0x3555, 0.333_251_95)];
        for (bits, number) in known {
            assert_eq!(f16(bits), number);
        }
        assert!(f16(0x7c00).is_infinite() && f16(0x7e00).is_nan() && f16(0x8000).is_sign_negative());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0u64..300) {
            let _ = decode(&bytes, &TINY);
            let _ = decode(&[&length.to_le_bytes()[..], &bytes].concat(), &TINY);
        }

        #[test]
        fn no_flipped_bits_of_the_header_make_it_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 0u32..8), 1..4),
        ) {
            let (params, mut bytes) = tiny();
            let end = bytes.len() - size_of_val(params.values());
            for (at, bit) in flips {
                bytes[at.index(end)] ^= 1 << bit;
            }
            if let Ok(read) = decode(&bytes, &TINY) {
                prop_assert_eq!(read.values().len(), params.values().len());
            }
        }

        #[test]
        fn no_numbers_in_the_header_make_it_panic(number in any::<u64>(), at in any::<prop::sample::Index>()) {
            let (_, bytes) = tiny();
            let (header, body) = split(&bytes);
            let digits = header.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect::<Vec<_>>();
            let at = digits[at.index(digits.len())];
            let changed = format!("{}{number}{}", &header[..at], &header[at + 1..]);
            let _ = decode(&join(&changed, body), &TINY);
        }
    }
}
