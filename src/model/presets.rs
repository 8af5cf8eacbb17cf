use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

use crate::protocol::ModelSpec;

/// A named size of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Preset {
    /// 0.8 million parameters: learns to spell in minutes on a laptop.
    Nano,
    /// 3.2 million parameters.
    Micro,
    /// 10.7 million parameters.
    Mini,
    /// 25.4 million parameters.
    Small,
}

/// What a preset stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// The network.
    pub model: ModelSpec,
    /// Sequences in an inner step.
    pub batch: u32,
}

impl Preset {
    /// All, from the smallest.
    pub const ALL: [Self; 4] = [Self::Nano, Self::Micro, Self::Mini, Self::Small];

    /// The sizes that it stands for.
    #[must_use]
    pub fn recipe(self) -> Recipe {
        let (layers, width, heads, hidden, context, batch) = match self {
            Self::Nano => (4, 128, 4, 352, 64, 12),
            Self::Micro => (4, 256, 4, 688, 128, 12),
            Self::Mini => (6, 384, 6, 1024, 256, 8),
            Self::Small => (8, 512, 8, 1376, 256, 8),
        };
        Recipe { model: ModelSpec { layers, width, heads, hidden, context }, batch }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nano => "nano",
            Self::Micro => "micro",
            Self::Mini => "mini",
            Self::Small => "small",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no preset `{0}`; there are nano, micro, mini and small")]
pub struct PresetError(String);

impl FromStr for Preset {
    type Err = PresetError;

    fn from_str(text: &str) -> Result<Self, PresetError> {
        Self::ALL.into_iter().find(|preset| preset.name() == text).ok_or_else(|| PresetError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_model_that_can_be_built() {
        for preset in Preset::ALL {
            preset.recipe().model.validate().unwrap();
        }
    }

    #[test]
    fn presets_are_read_by_the_name_they_are_shown_by() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse(), Ok(preset));
            assert_eq!(<Preset as ValueEnum>::from_str(&preset.to_string(), false), Ok(preset));
        }
        assert!("huge".parse::<Preset>().unwrap_err().to_string().contains("nano"));
    }

    #[test]
    fn presets_have_the_sizes_that_their_documentation_says() {
        let millions = Preset::ALL.map(|preset| (preset.recipe().model.parameters() + 50_000) / 100_000);
        assert_eq!(millions, [8, 32, 107, 254]);
    }
}
