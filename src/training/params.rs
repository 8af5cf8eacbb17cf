use std::sync::Arc;

use rand::Rng;

use crate::protocol::{ModelSpec, Seed, VOCABULARY};

/// What part a tensor plays; the optimiser and the codec treat each differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The token embedding (also the output head: they are tied).
    Embedding,
    /// A matrix inside a block.
    Hidden,
    /// A norm's gain, a vector.
    Gain,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its path, as in a Hugging Face `LlamaForCausalLM`.
    pub name: String,
    /// `[out, in]` of a matrix, `[width]` of a gain.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// Where its numbers start among all parameters.
    pub offset: usize,
}

impl TensorSpec {
    /// How many numbers it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none. (It never has.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its numbers are among all parameters.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The tensors of an architecture, in the order that all of Hydra stores them: embedding, blocks, final norm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    len: usize,
}

/// Numbers that are no parameters of an architecture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{actual} numbers where the model has {expected} parameters")]
pub struct ParamsError {
    /// What the architecture has.
    pub expected: usize,
    /// What was given.
    pub actual: usize,
}

impl Layout {
    /// The layout of `model`.
    #[must_use]
    pub fn of(model: &ModelSpec) -> Arc<Self> {
        let [width, hidden, vocabulary] = [model.width, model.hidden, VOCABULARY].map(|n| n as usize);
        let mut layout = Self { tensors: Vec::new(), len: 0 };
        layout.push("model.embed_tokens.weight".to_owned(), &[vocabulary, width], Role::Embedding);
        for block in 0..model.layers {
            let mut push = |part: &str, shape: &[usize], role| {
                layout.push(format!("model.layers.{block}.{part}.weight"), shape, role);
            };
            push("input_layernorm", &[width], Role::Gain);
            for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                push(&format!("self_attn.{projection}"), &[width, width], Role::Hidden);
            }
            push("post_attention_layernorm", &[width], Role::Gain);
            push("mlp.gate_proj", &[hidden, width], Role::Hidden);
            push("mlp.up_proj", &[hidden, width], Role::Hidden);
            push("mlp.down_proj", &[width, hidden], Role::Hidden);
        }
        layout.push("model.norm.weight".to_owned(), &[width], Role::Gain);
        Arc::new(layout)
    }

    fn push(&mut self, name: String, shape: &[usize], role: Role) {
        let tensor = TensorSpec { name, shape: shape.to_vec(), role, offset: self.len };
        self.len += tensor.len();
        self.tensors.push(tensor);
    }

    /// The tensors, in storage order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// All parameters together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none. (There always are.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// One number for each parameter of an architecture: weights, or a pseudo-gradient. Flat f32 in the order of the
/// [`Layout`].
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    layout: Arc<Layout>,
    values: Vec<f32>,
}

impl Params {
    /// These numbers.
    pub fn new(layout: Arc<Layout>, values: Vec<f32>) -> Result<Self, ParamsError> {
        if values.len() == layout.len() {
            Ok(Self { layout, values })
        } else {
            Err(ParamsError { expected: layout.len(), actual: values.len() })
        }
    }

    /// All zero.
    #[must_use]
    pub fn zeros(layout: Arc<Layout>) -> Self {
        let values = vec![0.0; layout.len()];
        Self { layout, values }
    }

    /// The initial weights of a run: normal with deviation 0.02, the projections back into the residual stream
    /// 0.02/√(2·layers) as in GPT-2, gains 1.
    #[must_use]
    pub fn initial(model: &ModelSpec, seed: &Seed) -> Self {
        let mut params = Self::zeros(Layout::of(model));
        let residual = 0.02 / f64::from(2 * model.layers).sqrt();
        let layout = Arc::clone(&params.layout);
        for (index, tensor) in layout.tensors().iter().enumerate() {
            let values = &mut params.values[tensor.range()];
            if tensor.role == Role::Gain {
                values.fill(1.0);
                continue;
            }
            let into_residual = ["o_proj.weight", "down_proj.weight"].iter().any(|end| tensor.name.ends_with(end));
            let deviation = if into_residual { residual } else { 0.02 };
            let mut rng = seed.derive("initial weights", index as u64).rng();
            for pair in values.chunks_mut(2) {
                for (value, normal) in pair.iter_mut().zip(normal_pair(&mut rng)) {
                    *value = (deviation * normal) as f32;
                }
            }
        }
        params
    }

    /// The tensors that the numbers belong to.
    #[must_use]
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The numbers.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The numbers, to change in place.
    #[must_use]
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The numbers of one tensor.
    #[must_use]
    pub fn tensor(&self, tensor: &TensorSpec) -> &[f32] {
        &self.values[tensor.range()]
    }

    /// The numbers alone.
    #[must_use]
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// The L2 norm, summed in f64 in storage order.
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    }

    /// Whether every number is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }
}

/// Two independent standard normal numbers (Box–Muller).
fn normal_pair(rng: &mut impl Rng) -> [f64; 2] {
    let unit = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let radius = (-2.0 * unit(rng.next_u64()).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(rng.next_u64());
    [radius * angle.cos(), radius * angle.sin()]
}
