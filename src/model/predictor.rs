use super::device::DeviceChoice;
use super::engine::{check_tokens, load};
use super::network::Network;
use super::weights::{Weights, download};
use crate::protocol::ModelSpec;
use crate::training::{EngineError, Params};

/// A model loaded to predict what comes next.
#[derive(Debug, Clone)]
pub struct Predictor {
    context: usize,
    network: Network,
    weights: Weights,
}

impl Predictor {
    /// Loads `params`.
    ///
    /// # Errors
    /// When they are not of `model`, or not finite.
    pub fn new(device: DeviceChoice, model: &ModelSpec, params: &Params) -> Result<Self, EngineError> {
        let weights = load(model, params, &device.open())?;
        Ok(Self { context: model.context as usize, network: Network::new(model, device.operations()), weights })
    }

    /// The logit of each token of the vocabulary to follow `tokens`, of which the last `context` count.
    ///
    /// # Errors
    /// When there are no tokens or one is not of the vocabulary, or when the model computes a NaN.
    pub fn logits(&self, tokens: &[u16]) -> Result<Vec<f32>, EngineError> {
        let tokens = &tokens[tokens.len().saturating_sub(self.context)..];
        if tokens.is_empty() {
            return Err(EngineError::Batch("there is no token to continue".to_owned()));
        }
        check_tokens(tokens)?;
        let logits = download(self.network.logits(&self.weights, tokens))?;
        if logits.iter().all(|logit| logit.is_finite()) { Ok(logits) } else { Err(EngineError::NotFinite("a logit")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BurnEngine;
    use crate::model::engine::tests::{TINY, lively, random_batch};
    use crate::training::{Batch, Engine};

    fn predictor() -> Predictor {
        Predictor::new(DeviceChoice::Auto, &TINY, &lively(&TINY, 1)).unwrap()
    }

    #[test]
    fn its_logits_are_those_that_the_loss_is_computed_from() {
        let batch = random_batch(1, 8, 5);
        // The loss over prefixes of one more token differs by the last token's surprise.
        let surprise = |length: usize| {
            let batch = Batch { context: length, tokens: batch.tokens[..=length].to_vec() };
            let engine = BurnEngine::new(DeviceChoice::Auto);
            engine.loss(&TINY, &lively(&TINY, 1), &mut std::iter::once(batch)).unwrap() * length as f64
        };
        for length in 2..=8 {
            let logits = predictor().logits(&batch.tokens[..length]).unwrap();
            let target = f64::from(logits[batch.tokens[length] as usize]);
            let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            let expected = surprise(length) - surprise(length - 1);
            assert!((total - target - expected).abs() < 1e-4, "{length}: {} {expected}", total - target);
        }
    }

    #[test]
    fn only_the_last_tokens_of_the_context_count() {
        let tokens = random_batch(2, 8, 5).tokens;
        let predictor = predictor();
        assert_eq!(predictor.logits(&tokens), predictor.logits(&tokens[tokens.len() - 8..]));
        assert_eq!(predictor.logits(&tokens).unwrap().len(), 264);
    }

    #[test]
    fn many_threads_may_ask_it() {
        fn shared<T: Send + Sync>(_: &T) {}
        shared(&predictor());
    }

    #[test]
    fn what_cannot_be_continued_is_refused() {
        assert!(matches!(predictor().logits(&[]), Err(EngineError::Batch(_))));
        assert!(matches!(predictor().logits(&[1, 300]), Err(EngineError::Batch(_))));
    }
}
