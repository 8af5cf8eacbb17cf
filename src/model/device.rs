use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use crate::protocol::DeviceKind;

/// What computes.
///
/// A value stands for a device that this build can use: names are checked where they are parsed. Another burn backend
/// is a variant behind its cargo feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// Left open. The command line puts the fastest that it measured in its place; elsewhere it is the processor.
    #[default]
    Auto,
    /// The processor, through burn's ndarray backend and operations of our own.
    NdArray,
    /// The processor, through burn's flex backend.
    #[cfg(feature = "flex")]
    Flex,
    /// An NVIDIA (or, with such a libtorch, AMD) GPU by its number, through libtorch.
    #[cfg(feature = "tch")]
    Cuda(usize),
    /// An Apple GPU, through libtorch.
    #[cfg(feature = "tch")]
    Mps,
    /// The processor, through libtorch.
    #[cfg(feature = "tch")]
    TchCpu,
}

/// What a network is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operations {
    /// Plain burn operations: any device.
    Plain,
    /// Our extension of the backend, with plain operations for the optimiser.
    #[cfg_attr(not(feature = "tch"), expect(dead_code, reason = "for libtorch"))]
    Extended,
    /// The same, and an optimiser on plain slices.
    Ours,
}

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such name.
    #[error("there is no device `{0}`; there are auto, ndarray, flex, cuda, cuda:N, mps and tch-cpu")]
    Unknown(String),
    /// A backend that was left out of this build.
    #[error("this build leaves `{asked}` out; build Hydra with `--features {feature}` to have it")]
    NotBuilt {
        /// What was asked for.
        asked: String,
        /// The cargo feature that it needs.
        feature: &'static str,
    },
    /// Hardware that this machine lacks.
    #[error(
        "this machine has no device `{asked}` that libtorch can use ({found}); `hydra device list` shows what it has"
    )]
    NotThere {
        /// What was asked for.
        asked: String,
        /// What there is.
        found: String,
    },
}

/// A family of devices.
struct Family {
    name: &'static str,
    /// The cargo feature that it needs, and whether this build has it.
    feature: Option<(&'static str, bool)>,
}

/// In the order they are shown.
const FAMILIES: [Family; 6] = [
    Family { name: "auto", feature: None },
    Family { name: "ndarray", feature: None },
    Family { name: "flex", feature: Some(("flex", cfg!(feature = "flex"))) },
    Family { name: "cuda", feature: Some(("tch", cfg!(feature = "tch"))) },
    Family { name: "mps", feature: Some(("tch", cfg!(feature = "tch"))) },
    Family { name: "tch-cpu", feature: Some(("tch", cfg!(feature = "tch"))) },
];

impl DeviceChoice {
    /// The devices of this machine that this build can use, all but [`DeviceChoice::Auto`].
    #[must_use]
    pub fn present() -> Vec<Self> {
        let devices = [
            vec![Self::NdArray],
            #[cfg(feature = "flex")]
            vec![Self::Flex],
            #[cfg(feature = "tch")]
            libtorch::present(),
        ];
        devices.concat()
    }

    /// The names of devices that this build leaves out, and the cargo feature that brings each.
    pub fn left_out() -> impl Iterator<Item = (&'static str, &'static str)> {
        FAMILIES.into_iter().filter_map(|family| match family.feature {
            Some((feature, false)) => Some((family.name, feature)),
            _ => None,
        })
    }

    /// What it is, in words.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Auto => "the fastest that was measured",
            Self::NdArray => "processor: burn-ndarray with operations of our own",
            #[cfg(feature = "flex")]
            Self::Flex => "processor: burn-flex",
            #[cfg(feature = "tch")]
            Self::Cuda(_) => "GPU: libtorch with CUDA",
            #[cfg(feature = "tch")]
            Self::Mps => "GPU: libtorch with Metal",
            #[cfg(feature = "tch")]
            Self::TchCpu => "processor: libtorch",
        }
    }

    /// Whether it computes in the memory of the processor.
    pub(super) fn is_processor(self) -> bool {
        match self {
            Self::Auto | Self::NdArray => true,
            #[cfg(feature = "flex")]
            Self::Flex => true,
            #[cfg(feature = "tch")]
            Self::TchCpu => true,
            #[cfg(feature = "tch")]
            Self::Cuda(_) | Self::Mps => false,
        }
    }

    /// Whether it is computed by operations of our own altogether, optimiser included.
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Auto | Self::NdArray)
    }

    /// What it is to those who compare results, with these operations.
    pub(super) fn kind(self, operations: Operations) -> DeviceKind {
        match (self, operations) {
            (Self::Auto | Self::NdArray, Operations::Plain) => DeviceKind::NdarrayPlain,
            (Self::Auto | Self::NdArray, _) => DeviceKind::Ndarray,
            #[cfg(feature = "flex")]
            (Self::Flex, _) => DeviceKind::Flex,
            #[cfg(feature = "tch")]
            (Self::Cuda(_), _) => DeviceKind::Cuda,
            #[cfg(feature = "tch")]
            (Self::Mps, _) => DeviceKind::Mps,
            #[cfg(feature = "tch")]
            (Self::TchCpu, _) => DeviceKind::TchCpu,
        }
    }

    /// What the network and the optimiser are best made of on it.
    pub(super) fn operations(self) -> Operations {
        match self {
            Self::Auto | Self::NdArray => Operations::Ours,
            #[cfg(feature = "flex")]
            Self::Flex => Operations::Plain,
            #[cfg(feature = "tch")]
            Self::Cuda(_) | Self::Mps | Self::TchCpu => Operations::Extended,
        }
    }

    /// The burn device that it stands for, ready for use by the current thread.
    #[expect(deprecated, reason = "burn 0.22.1 marks ndarray and libtorch as deprecated, and has nothing as fast")]
    pub(super) fn open(self) -> Device {
        match self {
            Self::Auto | Self::NdArray => Device::ndarray(),
            #[cfg(feature = "flex")]
            Self::Flex => Device::flex(),
            #[cfg(feature = "tch")]
            Self::Cuda(index) => Device::libtorch_cuda(index),
            #[cfg(feature = "tch")]
            Self::Mps => Device::libtorch_mps(),
            #[cfg(feature = "tch")]
            Self::TchCpu => Device::libtorch(),
        }
    }

    /// Tells a library with threads of its own to use as many as the current rayon pool has.
    pub(super) fn share_threads(self) {
        match self {
            #[cfg(feature = "tch")]
            Self::TchCpu => tch::set_num_threads(i32::try_from(rayon::current_num_threads()).unwrap_or(i32::MAX)),
            _ => {}
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use super::{DeviceChoice, DeviceError};

    fn gpus() -> usize {
        usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
    }

    /// What libtorch can use on this machine.
    pub(super) fn present() -> Vec<DeviceChoice> {
        let gpus = (0..gpus()).map(DeviceChoice::Cuda);
        let apple = tch::utils::has_mps().then_some(DeviceChoice::Mps);
        gpus.chain(apple).chain([DeviceChoice::TchCpu]).collect()
    }

    /// `choice`, which was asked for by name, if it is there.
    pub(super) fn find(asked: &str, choice: DeviceChoice) -> Result<DeviceChoice, DeviceError> {
        if present().contains(&choice) {
            return Ok(choice);
        }
        let found = match gpus() {
            _ if choice == DeviceChoice::Mps => "no Apple GPU, or a libtorch without Metal".to_owned(),
            0 => "no CUDA GPU, no driver, or a libtorch without CUDA".to_owned(),
            1 => "its only CUDA GPU is cuda:0".to_owned(),
            count => format!("its CUDA GPUs are cuda:0 to cuda:{}", count - 1),
        };
        Err(DeviceError::NotThere { asked: asked.to_owned(), found })
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (name, index) = match text.split_once(':') {
            Some(("cuda", index)) => ("cuda", Some(index)),
            Some(_) => return Err(unknown()),
            None => (text, None),
        };
        let index: usize = index.map_or(Ok(0), str::parse).map_err(|_| unknown())?;
        let family = FAMILIES.into_iter().find(|family| family.name == name).ok_or_else(unknown)?;
        if let Some((feature, false)) = family.feature {
            return Err(DeviceError::NotBuilt { asked: text.to_owned(), feature });
        }
        match (name, index) {
            ("auto", _) => Ok(Self::Auto),
            ("ndarray", _) => Ok(Self::NdArray),
            #[cfg(feature = "flex")]
            ("flex", _) => Ok(Self::Flex),
            #[cfg(feature = "tch")]
            ("cuda", index) => libtorch::find(text, Self::Cuda(index)),
            #[cfg(feature = "tch")]
            ("mps", _) => libtorch::find(text, Self::Mps),
            #[cfg(feature = "tch")]
            ("tch-cpu", _) => libtorch::find(text, Self::TchCpu),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::NdArray => f.pad("ndarray"),
            #[cfg(feature = "flex")]
            Self::Flex => f.pad("flex"),
            #[cfg(feature = "tch")]
            Self::Cuda(index) => f.pad(&format!("cuda:{index}")),
            #[cfg(feature = "tch")]
            Self::Mps => f.pad("mps"),
            #[cfg(feature = "tch")]
            Self::TchCpu => f.pad("tch-cpu"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_by_the_name_it_is_shown_by() {
        for choice in [vec![DeviceChoice::Auto], DeviceChoice::present()].concat() {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn names_that_stand_for_nothing_are_refused_with_those_that_do() {
        for name in ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "ndarray:0"] {
            let error = name.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error, DeviceError::Unknown(name.to_owned()));
            assert!(error.to_string().contains("auto, ndarray"));
        }
    }

    #[test]
    fn a_device_left_out_of_this_build_is_refused_with_the_feature_that_brings_it() {
        for (name, feature) in DeviceChoice::left_out() {
            let error = name.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error, DeviceError::NotBuilt { asked: name.to_owned(), feature });
            assert!(error.to_string().contains(&format!("--features {feature}")));
        }
    }

    #[test]
    #[cfg(feature = "tch")]
    fn a_gpu_that_is_not_there_is_refused() {
        assert!("cuda:99999999999999999999".parse::<DeviceChoice>().is_err());
        let error = "cuda:99".parse::<DeviceChoice>().unwrap_err().to_string();
        assert!(error.contains("has no device `cuda:99`") && error.contains("hydra device list"), "{error}");
    }
}
