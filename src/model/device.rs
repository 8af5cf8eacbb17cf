use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

/// What computes. Another burn backend is added as a variant behind its cargo feature, and a row in [`OFFERED`].
///
/// [`OFFERED`]: DeviceChoice::OFFERED
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The fastest that this build offers.
    #[default]
    Auto,
    /// The processor, through burn's ndarray backend and operations of our own.
    NdArray,
}

/// A device that this build does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this build has no device `{asked}`; it offers {offered}")]
pub struct DeviceError {
    /// What was asked for.
    pub asked: String,
    /// What there is.
    pub offered: String,
}

impl DeviceChoice {
    /// What this build offers, by name.
    pub const OFFERED: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("ndarray", Self::NdArray)];

    /// Whether operations of our own run on it.
    pub(super) fn is_fused(self) -> bool {
        match self {
            Self::Auto | Self::NdArray => true,
        }
    }

    /// The burn device that it stands for.
    #[expect(deprecated, reason = "burn 0.22.1 marks ndarray as deprecated; it is what our own operations extend")]
    pub(super) fn open(self) -> Device {
        match self {
            Self::Auto | Self::NdArray => Device::ndarray(),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::OFFERED.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| DeviceError {
            asked: text.to_owned(),
            offered: Self::OFFERED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::OFFERED.iter().find(|(_, choice)| choice == self).map_or("auto", |(name, _)| *name);
        f.pad(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_by_the_name_it_is_shown_by() {
        for &(name, choice) in DeviceChoice::OFFERED {
            assert_eq!(name.parse(), Ok(choice));
            assert_eq!(choice.to_string(), name);
        }
    }

    #[test]
    fn a_device_that_is_not_in_this_build_is_refused_with_what_there_is() {
        let error = "cuda".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(error.to_string(), "this build has no device `cuda`; it offers auto, ndarray");
    }
}
