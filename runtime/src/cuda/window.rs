//! Convolutions and pooling, with their gradients.
//!
//! A convolution is a product over the columns of its taps, which are laid out in scratch for as many images
//! at a time as fit a limit; where every window is one element, over X itself. Convolutions of single
//! channels are computed directly: their products would be of one column.

use super::compile::Unit;
use super::division::{Divider, narrow};
use super::encode::{Arguments, BLOCK, Call, Launch, Operand, Scratch, Sink, Unsupported, address};
use super::lt::{Element, Lt, Matrix, Problem, Product};
use super::pool;
use crate::ops::window::{AXES, Conv, Geometry, Window};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "window.cu",
    text: Cow::Borrowed(include_str!("window.cu")),
};

/// Bytes of columns that are laid out at a time, where more than one image fits.
const MOST_COLUMNS: usize = 32 << 20;
/// The most filters of a channel that are computed directly.
const MOST_FILTERS: usize = 8;
/// Elements that one block adds up of a channel, and the most blocks of one.
const CHANNEL_PART: usize = 1 << 14;
const MOST_PARTS: usize = 64;

/// `Geometry` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Narrow {
    size: [i32; AXES],
    kernel: [i32; AXES],
    stride: [i32; AXES],
    dilation: [i32; AXES],
    pad: [i32; AXES],
    pad_after: [i32; AXES],
    out: [i32; AXES],
}

impl Narrow {
    /// The same geometry in 32 bits.
    ///
    /// # Errors
    /// [`Unsupported`] where a number does not fit, or a window reaches beyond what does.
    pub(super) fn new(geometry: &Geometry) -> Result<Self, Unsupported> {
        let narrow = |numbers: [usize; AXES]| -> Result<[i32; AXES], Unsupported> {
            let mut all = [0; AXES];
            for (to, number) in all.iter_mut().zip(numbers) {
                *to = narrow(number)?.cast_signed();
            }
            Ok(all)
        };
        for axis in 0..AXES {
            let reach = (geometry.out[axis].saturating_mul(geometry.stride[axis]))
                .saturating_add(geometry.kernel[axis].saturating_mul(geometry.dilation[axis]))
                .saturating_add(geometry.size[axis])
                .saturating_add(geometry.pad[axis] + geometry.pad_after[axis]);
            super::division::narrow(reach)?;
        }
        Ok(Narrow {
            size: narrow(geometry.size)?,
            kernel: narrow(geometry.kernel)?,
            stride: narrow(geometry.stride)?,
            dilation: narrow(geometry.dilation)?,
            pad: narrow(geometry.pad)?,
            pad_after: narrow(geometry.pad_after)?,
            out: narrow(geometry.out)?,
        })
    }
}

/// `Splits` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Splits {
    positions: [Divider; 3],
    plane: [Divider; 3],
    taps: [Divider; 3],
}

impl Splits {
    fn new(geometry: &Geometry) -> Result<Self, Unsupported> {
        Ok(Splits {
            positions: planes(geometry.out)?,
            plane: planes(geometry.size)?,
            taps: planes(geometry.kernel)?,
        })
    }
}

/// Divides by the elements of a box, of its last two axes, and of its last one.
pub(super) fn planes(sizes: [usize; AXES]) -> Result<[Divider; 3], Unsupported> {
    let [depth, height, width] = sizes;
    Ok([
        Divider::new(depth * height * width)?,
        Divider::new(height * width)?,
        Divider::new(width)?,
    ])
}

/// `Depth` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Depth {
    groups: u32,
    filters: u32,
    outputs: Divider,
    per_group: Divider,
    inputs: Divider,
}

/// Which product of a convolution is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Forward,
    Input,
    Weight,
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Channel by channel.
    Depthwise,
    /// A product over X.
    Pointwise,
    /// A product over columns, of that many images at a time.
    Columns(usize),
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
struct Sizes<'c> {
    conv: &'c Conv,
    element: Element,
}

impl<'c> Sizes<'c> {
    fn new(conv: &'c Conv, data_type: DataType) -> Result<Self, Unsupported> {
        let element = match data_type {
            DataType::FLOAT => Element::F32,
            DataType::DOUBLE => Element::F64,
            other => {
                let message = format!("a convolution of elements of type {}", other.0);
                return Err(Unsupported(message));
            }
        };
        Ok(Sizes { conv, element })
    }

    fn positions(&self) -> usize {
        self.conv.geometry.positions()
    }

    /// Rows of the columns of a group.
    fn rows(&self) -> usize {
        self.conv.channels * self.conv.geometry.taps()
    }

    /// Elements of an image's X, columns and Y.
    fn spans(&self) -> [usize; 3] {
        let Conv {
            groups,
            channels,
            filters,
            ..
        } = *self.conv;
        let columns = groups.saturating_mul(self.rows());
        [
            groups * channels * self.conv.geometry.plane(),
            columns.saturating_mul(self.positions()),
            groups * filters * self.positions(),
        ]
    }

    fn way(&self) -> Way {
        let Conv {
            groups,
            channels,
            filters,
            batch,
            ref geometry,
        } = *self.conv;
        if channels == 1 && groups > 1 && filters <= MOST_FILTERS {
            return Way::Depthwise;
        }
        if geometry.is_pointwise() {
            return Way::Pointwise;
        }
        let image = self.spans()[1].saturating_mul(self.element.bytes());
        Way::Columns((MOST_COLUMNS / image.max(1)).clamp(1, batch.max(1)))
    }

    /// Bytes of the columns that are there at a time.
    fn columns(&self) -> usize {
        match self.way() {
            Way::Columns(images) => {
                let elements = self.spans()[1].saturating_mul(images);
                elements
                    .saturating_mul(self.element.bytes())
                    .next_multiple_of(256)
            }
            _ => 0,
        }
    }

    /// Images of one call of the library: with one group, those that lie one behind the other; else one, the
    /// groups of which do.
    fn together(&self, kind: Kind) -> usize {
        match self.way() {
            _ if self.conv.groups > 1 || kind == Kind::Weight => 1,
            Way::Columns(images) => images,
            _ => self.conv.batch,
        }
    }

    /// The product of some images, by what it is for.
    fn problem(&self, kind: Kind, images: usize, adds: bool) -> Problem {
        let (positions, rows) = (self.positions(), self.rows());
        let Conv {
            groups, filters, ..
        } = *self.conv;
        let matrix = |transposed, step, batch| Matrix {
            transposed,
            step,
            batch,
        };
        let each = if groups > 1 { filters * rows } else { 0 };
        let columns = |transposed| matrix(transposed, positions, rows * positions);
        let of_y = matrix(false, positions, filters * positions);
        let (m, n, k, a, b) = match kind {
            Kind::Forward => {
                let weights = matrix(false, rows, each);
                (filters, positions, rows, weights, columns(false))
            }
            Kind::Input => {
                let weights = matrix(true, rows, each);
                (rows, positions, filters, weights, of_y)
            }
            Kind::Weight => (filters, rows, positions, of_y, columns(true)),
        };
        Problem {
            element: self.element,
            m,
            n,
            k,
            a,
            b,
            count: images * groups,
            bias: false,
            adds,
        }
    }

    /// Scratch of the library, for all products that may come.
    fn product_scratch(&self, kind: Kind, lt: &Lt) -> usize {
        let empty = self.rows() == 0 || self.positions() == 0 || self.conv.filters == 0;
        if self.way() == Way::Depthwise || empty || self.conv.batch == 0 || self.conv.groups == 0 {
            return 0;
        }
        let together = self.together(kind);
        let rest = match self.conv.batch % together {
            0 => together,
            rest => rest,
        };
        let problems = [together, rest]
            .into_iter()
            .flat_map(|images| [false, true].map(|adds| self.problem(kind, images, adds)));
        // Where the library has no algorithm, launching it says so.
        problems
            .map(|problem| lt.workspace(&problem).unwrap_or(0))
            .max()
            .unwrap_or(0)
    }
}

/// Bytes of scratch.
pub fn workspace(
    op: &Window,
    lt: &Lt,
    inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    let (conv, kind) = match op {
        Window::Conv(conv) => (conv, Kind::Forward),
        Window::ConvInput(conv) => (conv, Kind::Input),
        Window::ConvWeight(conv) => (conv, Kind::Weight),
        Window::ChannelSum {
            batch,
            channels,
            positions,
        } => {
            return match channel_parts(*batch, *positions) {
                1 => 0,
                parts => parts.saturating_mul(*channels).saturating_mul(8),
            };
        }
        _ => return 0,
    };
    let data_type = inputs.first().copied().flatten().map(|ty| ty.data_type);
    match Sizes::new(conv, data_type.unwrap_or(DataType::FLOAT)) {
        Ok(sizes) => sizes
            .columns()
            .saturating_add(sizes.product_scratch(kind, lt)),
        // Encoding says what is wrong.
        Err(_) => 0,
    }
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Window, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    match op {
        Window::Conv(conv) => convolve(conv, Kind::Forward, call, sink),
        Window::ConvInput(conv) => convolve(conv, Kind::Input, call, sink),
        Window::ConvWeight(conv) => convolve(conv, Kind::Weight, call, sink),
        Window::ChannelSum {
            batch,
            channels,
            positions,
        } => channel_sum(*batch, *channels, *positions, call, sink),
        Window::Pool(op) => pool::pool(op, call, sink),
        Window::MaxGrad {
            planes,
            size,
            positions,
        } => pool::max_gradient(*planes, *size, *positions, call, sink),
        Window::AverageGrad(op) => pool::average_gradient(op, call, sink),
    }
}

/// The ending of a kernel for real numbers.
pub(super) fn suffix(data_type: DataType) -> Result<&'static str, Unsupported> {
    match data_type {
        DataType::FLOAT => Ok("f32"),
        DataType::DOUBLE => Ok("f64"),
        other => Err(Unsupported(format!(
            "windows of elements of type {}",
            other.0
        ))),
    }
}

fn convolve(
    conv: &Conv,
    kind: Kind,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let output = call.output(0)?;
    let sizes = Sizes::new(conv, output.ty.data_type)?;
    if output.ty.elements() == 0 {
        return Ok(());
    }
    let bias = call.optional_input(2).filter(|_| kind != Kind::Weight);
    let empty = sizes.rows() == 0 || sizes.positions() == 0 || conv.filters == 0;
    if empty || conv.batch == 0 {
        return begin(&sizes, kind, bias, &output, sink);
    }
    match sizes.way() {
        Way::Depthwise => depthwise(&sizes, kind, bias, call, sink),
        Way::Pointwise => products(&sizes, kind, bias, conv.batch, call, sink),
        Way::Columns(images) => products(&sizes, kind, bias, images, call, sink),
    }
}

/// Gives an output its first elements: the bias of their channels, or 0.
fn begin(
    sizes: &Sizes<'_>,
    kind: Kind,
    bias: Option<Operand<'_>>,
    output: &Operand<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let Some(bias) = bias else {
        sink.fill(output.address, 0, output.ty.bytes());
        return Ok(());
    };
    let conv = sizes.conv;
    let (positions, channels) = match kind {
        Kind::Input => (conv.geometry.plane(), conv.groups * conv.channels),
        _ => (conv.geometry.positions(), conv.groups * conv.filters),
    };
    let count = narrow(output.ty.elements())?;
    let arguments = Arguments::new()
        .address(bias.address)
        .address(output.address)
        .structure(&Divider::new(positions)?)
        .structure(&Divider::new(channels)?)
        .u32(count);
    let kernel = format!("spread_{}", suffix(output.ty.data_type)?);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

fn depthwise(
    sizes: &Sizes<'_>,
    kind: Kind,
    bias: Option<Operand<'_>>,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (first, second, output) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let conv = sizes.conv;
    let suffix = suffix(output.ty.data_type)?;
    let count = narrow(output.ty.elements())?;
    let depth = Depth {
        groups: narrow(conv.groups)?,
        filters: narrow(conv.filters)?,
        outputs: Divider::new(conv.groups * conv.filters)?,
        per_group: Divider::new(conv.filters)?,
        inputs: Divider::new(conv.groups)?,
    };
    let arguments = Arguments::new()
        .address(first.address)
        .address(second.address);
    let arguments = match kind {
        Kind::Weight => arguments,
        _ => arguments.address(address(bias)),
    };
    let arguments = arguments
        .address(output.address)
        .structure(&Narrow::new(&conv.geometry)?)
        .structure(&Splits::new(&conv.geometry)?)
        .structure(&depth);
    let (name, arguments, blocks) = match kind {
        Kind::Weight => {
            narrow(conv.batch * sizes.positions())?;
            let arguments = arguments.u32(narrow(conv.batch)?);
            (
                "depthwise_weight",
                arguments,
                sink.blocks(count as usize, 1),
            )
        }
        _ => {
            let blocks = sink.blocks(count as usize, BLOCK as usize);
            let name = match kind {
                Kind::Forward => "depthwise",
                _ => "depthwise_input",
            };
            (name, arguments, blocks)
        }
    };
    let kernel = format!("{name}_{suffix}");
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments.u32(count));
    Ok(())
}

/// A convolution as products, over columns of some images at a time.
fn products(
    sizes: &Sizes<'_>,
    kind: Kind,
    bias: Option<Operand<'_>>,
    images: usize,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (first, second, output) = (call.input(0)?, call.input(1)?, call.output(0)?);
    let conv = sizes.conv;
    let bytes = sizes.element.bytes();
    let [of_x, of_columns, of_y] = sizes.spans().map(|span| (span * bytes) as u64);
    let pointwise = sizes.way() == Way::Pointwise;
    let columns = call.workspace.address;
    let used = sizes.columns();
    let scratch = Scratch {
        address: columns + used as u64,
        bytes: call.workspace.bytes.saturating_sub(used),
    };
    // What the library adds to must be there: with columns, dX gets its bias where they are collected.
    let adds_bias = bias.is_some() && (kind == Kind::Forward || pointwise);
    if adds_bias {
        begin(sizes, kind, bias, &output, sink)?;
    }
    let together = sizes.together(kind);
    for chunk in (0..conv.batch).step_by(images) {
        let end = (chunk + images).min(conv.batch);
        if !pointwise && kind != Kind::Input {
            let x = match kind {
                Kind::Forward => first,
                _ => second,
            };
            lay_out(sizes, &x, chunk, end - chunk, columns, sink)?;
        }
        for image in (chunk..end).step_by(together) {
            let count = together.min(end - image);
            let at = |address: u64, span: u64| address + image as u64 * span;
            let laid_out = match pointwise {
                true => None,
                false => Some(columns + (image - chunk) as u64 * of_columns),
            };
            let (a, b, y, adds) = match kind {
                Kind::Forward => {
                    let x = laid_out.unwrap_or(at(first.address, of_x));
                    (second.address, x, at(output.address, of_y), adds_bias)
                }
                Kind::Input => {
                    let dx = laid_out.unwrap_or(at(output.address, of_x));
                    (second.address, at(first.address, of_y), dx, adds_bias)
                }
                Kind::Weight => {
                    let x = laid_out.unwrap_or(at(second.address, of_x));
                    (at(first.address, of_y), x, output.address, image > 0)
                }
            };
            sink.product(Product {
                problem: sizes.problem(kind, count, adds),
                a,
                b,
                y,
                bias: 0,
                alpha: 1.0,
                beta: if adds { 1.0 } else { 0.0 },
                workspace: scratch,
            });
        }
        if !pointwise && kind == Kind::Input {
            collect(sizes, bias, chunk, end - chunk, columns, &output, sink)?;
        }
    }
    Ok(())
}

/// Lays out the columns of some images.
fn lay_out(
    sizes: &Sizes<'_>,
    x: &Operand<'_>,
    first: usize,
    images: usize,
    columns: u64,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let [of_x, of_columns, _] = sizes.spans();
    let count = narrow(images * of_columns)?;
    let arguments = Arguments::new()
        .address(x.address + (first * of_x * sizes.element.bytes()) as u64)
        .address(columns)
        .structure(&Narrow::new(&sizes.conv.geometry)?)
        .structure(&Splits::new(&sizes.conv.geometry)?)
        .u32(count);
    let kernel = format!("columns_{}", suffix(x.ty.data_type)?);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

/// Adds up what the columns of some images have for their inputs.
fn collect(
    sizes: &Sizes<'_>,
    bias: Option<Operand<'_>>,
    first: usize,
    images: usize,
    columns: u64,
    dx: &Operand<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let conv = sizes.conv;
    let [of_x, _, _] = sizes.spans();
    let channels = conv.groups * conv.channels;
    let count = narrow(images * of_x)?;
    let arguments = Arguments::new()
        .address(columns)
        .address(address(bias))
        .address(dx.address + (first * of_x * sizes.element.bytes()) as u64)
        .structure(&Narrow::new(&conv.geometry)?)
        .structure(&Splits::new(&conv.geometry)?)
        .structure(&Divider::new(channels)?)
        .u32(narrow(first * channels)?)
        .u32(count);
    let kernel = format!("collect_{}", suffix(dx.ty.data_type)?);
    let blocks = sink.blocks(count as usize, BLOCK as usize);
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

/// The blocks of a channel's sum, which depend on sizes only.
fn channel_parts(batch: usize, positions: usize) -> usize {
    let elements = batch.saturating_mul(positions);
    elements.div_ceil(CHANNEL_PART).clamp(1, MOST_PARTS)
}

fn channel_sum(
    batch: usize,
    channels: usize,
    positions: usize,
    call: &Call<'_>,
    sink: &mut Sink<'_>,
) -> Result<(), Unsupported> {
    let (dy, sums) = (call.input(0)?, call.output(0)?);
    let suffix = suffix(dy.ty.data_type)?;
    let parts = channel_parts(batch, positions);
    let several = parts > 1;
    let partial_sums = if several { call.workspace.address } else { 0 };
    let arguments = Arguments::new()
        .address(dy.address)
        .address(sums.address)
        .address(partial_sums)
        .u32(narrow(channels)?)
        .structure(&Divider::new(positions)?)
        .u32(narrow(batch * positions)?);
    sink.launch_with(Launch {
        unit: UNIT.clone(),
        kernel: format!("channel_sums_{suffix}"),
        grid: [narrow(channels)?, parts as u32, 1],
        block: [BLOCK, 1, 1],
        shared: 0,
        arguments,
    });
    if several {
        let arguments = Arguments::new()
            .address(partial_sums)
            .address(sums.address)
            .u32(narrow(channels)?)
            .u32(parts as u32);
        let blocks = narrow(channels.div_ceil(BLOCK as usize))?;
        let kernel = format!("add_parts_{suffix}");
        sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    }
    Ok(())
}
