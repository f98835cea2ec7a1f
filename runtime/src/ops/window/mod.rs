//! Convolutions and pooling, with their gradients.
//!
//! Windows have at most three spatial axes. A layer with fewer has leading axes of size 1, so that the
//! kernels know only one case.

mod lower;

use super::Family;

/// The operators, and how they are lowered.
pub const FAMILY: Family = Family {
    operators: &[
        ("", "Conv"),
        ("", "ConvTranspose"),
        ("", "MaxPool"),
        ("", "AveragePool"),
        ("", "LpPool"),
        ("", "GlobalMaxPool"),
        ("", "GlobalAveragePool"),
        ("", "GlobalLpPool"),
        ("", "MaxPoolGrad"),
        ("", "AveragePoolGrad"),
        ("com.microsoft", "AveragePoolGrad"),
        ("com.microsoft", "MaxPoolGrad"),
        ("com.microsoft", "ConvGrad"),
        ("com.microsoft", "ConvTransposeGrad"),
    ],
    lower: lower::lower,
};

/// Spatial axes that kernels see.
pub const AXES: usize = 3;

/// How a window slides over the spatial axes.
///
/// Tap `k` of output `o` lies at `o · stride + k · dilation - pad` of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Sizes of the input.
    pub size: [usize; AXES],
    /// Sizes of the window, in taps.
    pub kernel: [usize; AXES],
    /// Steps between two windows.
    pub stride: [usize; AXES],
    /// Steps between two taps.
    pub dilation: [usize; AXES],
    /// Padding in front of the input.
    pub pad: [usize; AXES],
    /// Padding behind the input.
    pub pad_after: [usize; AXES],
    /// Sizes of the output.
    pub out: [usize; AXES],
}

impl Geometry {
    /// Elements of an input plane.
    pub fn plane(&self) -> usize {
        self.size.iter().product()
    }

    /// Taps of a window.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Elements of an output plane.
    pub fn positions(&self) -> usize {
        self.out.iter().product()
    }

    /// Whether an output plane is the input plane: the window is one tap that visits every element.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; AXES]
            && self.stride == [1; AXES]
            && self.pad == [0; AXES]
            && self.size == self.out
    }
}

/// A convolution, whichever of its three products is meant.
///
/// X is `[batch, groups · channels, size...]`, W `[groups · filters, channels, kernel...]`, Y
/// `[batch, groups · filters, out...]`, all dense.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// How the filters slide.
    pub geometry: Geometry,
    /// Images.
    pub batch: usize,
    /// Groups.
    pub groups: usize,
    /// Input channels of a group.
    pub channels: usize,
    /// Output channels of a group.
    pub filters: usize,
}

/// What a pooling makes of the elements of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    /// The greatest; NaN where there is one.
    Max {
        /// Whether indices count the first spatial axis fastest.
        column_major: bool,
    },
    /// The mean.
    Average {
        /// Whether padding counts as elements.
        count_padding: bool,
    },
    /// The norm `(Σ |x|^p)^(1/p)`.
    Norm {
        /// Its exponent.
        p: f32,
    },
}

/// A pooling of planes.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// How the windows slide.
    pub geometry: Geometry,
    /// Planes: images times channels.
    pub planes: usize,
    /// What becomes of a window.
    pub reduction: Reduction,
}

/// An operation of the family.
#[derive(Clone, Debug, PartialEq)]
pub enum Window {
    /// X, W, optional bias → Y.
    Conv(Conv),
    /// dY, W, optional bias of X's channels → dX, which also is the transposed convolution.
    ConvInput(Conv),
    /// dY, X → dW.
    ConvWeight(Conv),
    /// `[batch, channels, positions]` → sums by channel.
    ChannelSum {
        /// Images.
        batch: usize,
        /// Channels.
        channels: usize,
        /// Elements of a plane.
        positions: usize,
    },
    /// X → Y, and for the maximum, where they lie in X.
    Pool(Pool),
    /// dY, where the maxima lie in X → dX.
    MaxGrad {
        /// Images times channels.
        planes: usize,
        /// Elements of a plane of dX.
        size: usize,
        /// Elements of a plane of dY.
        positions: usize,
    },
    /// dY → dX.
    AverageGrad(Pool),
}

impl Window {
    /// The word that profiles and listings use.
    pub fn name(&self) -> &'static str {
        match self {
            Window::Conv(_) => "Conv",
            Window::ConvInput(_) => "ConvInput",
            Window::ConvWeight(_) => "ConvWeight",
            Window::ChannelSum { .. } => "ChannelSum",
            Window::Pool(pool) => match pool.reduction {
                Reduction::Max { .. } => "MaxPool",
                Reduction::Average { .. } => "AveragePool",
                Reduction::Norm { .. } => "LpPool",
            },
            Window::MaxGrad { .. } => "MaxPoolGrad",
            Window::AverageGrad(_) => "AveragePoolGrad",
        }
    }

    /// Pairs of output and input: the output may be written over the input.
    pub fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }
}
