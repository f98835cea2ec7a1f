//! What draws random numbers: those of the CPU's kernels, since each is a function of its position alone.

use super::compile::Unit;
use super::encode::{Arguments, BLOCK, Call, Operand, Sink, Unsupported, address};
use super::movement::width;
use crate::ops::random::{Distribution, Draw, Dropout, Random, check_ratio};
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// The kernels.
pub const UNIT: Unit = Unit {
    name: "random.cu",
    text: Cow::Borrowed(include_str!("random.cu")),
};

/// `Settings` of the kernels.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Settings {
    ratio: f64,
    given_ratio: u64,
    given_mode: u64,
    ratio_type: u32,
    training: u32,
}

/// Puts an operation into a sink.
///
/// # Errors
/// [`Unsupported`] where there is no kernel.
pub fn encode(op: &Random, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    match op {
        Random::Dropout(op) => dropout(op, call, sink),
        Random::DropoutGrad(op) => gradient(op, call, sink),
        Random::Draw(op) => draw(op, &call.output(0)?, sink),
        Random::Bernoulli { stream } => bernoulli(*stream, call, sink),
    }
}

/// The ending of a kernel for floating-point numbers.
fn suffix(data_type: DataType) -> Result<&'static str, Unsupported> {
    match data_type {
        DataType::FLOAT => Ok("f32"),
        DataType::DOUBLE => Ok("f64"),
        DataType::FLOAT16 => Ok("f16"),
        DataType::BFLOAT16 => Ok("bf16"),
        other => Err(Unsupported(format!(
            "draws for elements of type {}",
            other.0
        ))),
    }
}

/// The settings of a dropout, whose ratio and mode are operands where they are not known.
fn settings(
    op: &Dropout,
    ratio: Option<Operand<'_>>,
    mode: Option<Operand<'_>>,
) -> Result<Settings, Unsupported> {
    let given = match op.ratio {
        Some(_) => None,
        None => Some(ratio.ok_or_else(|| Unsupported("a dropout without a ratio".to_owned()))?),
    };
    if let Some(ratio) = op.ratio {
        check_ratio(ratio).map_err(Unsupported)?;
    }
    if let Some(ratio) = &given {
        suffix(ratio.ty.data_type)?;
    }
    let mode = mode.filter(|_| op.training.is_none());
    Ok(Settings {
        ratio: op.ratio.unwrap_or(0.0),
        given_ratio: address(given),
        given_mode: address(mode),
        ratio_type: given.map_or(0, |ratio| ratio.ty.data_type.0.unsigned_abs()),
        training: u32::from(op.training == Some(true)),
    })
}

/// Whether nothing is dropped, whatever the operands are.
fn keeps_all(settings: &Settings) -> bool {
    let known_ratio = settings.given_ratio == 0 && settings.ratio == 0.0;
    // A ratio that is read is checked even so.
    let known_mode = settings.given_mode == 0 && settings.training == 0;
    known_ratio || (known_mode && settings.given_ratio == 0)
}

/// The report, and the check of a ratio.
fn ratio_check(sink: &mut Sink<'_>) -> (u64, u32) {
    sink.check(|bits, _| {
        let found = check_ratio(f64::from_bits(bits.cast_unsigned()));
        found.err().unwrap_or_default()
    })
}

fn dropout(op: &Dropout, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (data, output) = (call.input(0)?, call.output(0)?);
    let mask = call.optional_output(1);
    let settings = settings(op, call.optional_input(1), call.optional_input(2))?;
    let suffix = suffix(output.ty.data_type)?;
    let count = output.ty.elements();
    if keeps_all(&settings) {
        sink.copy(output.address, data.address, output.ty.bytes());
        if let Some(mask) = mask {
            sink.fill(mask.address, 1, count);
        }
        return Ok(());
    }
    let (report, check) = ratio_check(sink);
    let arguments = Arguments::new()
        .address(sink.context())
        .u64(op.stream)
        .structure(&settings)
        .address(data.address)
        .address(output.address)
        .address(address(mask))
        .size(count)
        .address(report)
        .u32(check);
    let blocks = sink.blocks(count, 4 * BLOCK as usize);
    sink.launch(&UNIT, format!("dropout_{suffix}"), blocks, BLOCK, arguments);
    Ok(())
}

fn gradient(op: &Dropout, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (gradient, mask) = (call.input(0)?, call.input(1)?);
    let output = call.output(0)?;
    let settings = settings(op, call.optional_input(2), call.optional_input(3))?;
    let suffix = suffix(output.ty.data_type)?;
    let count = output.ty.elements();
    if keeps_all(&settings) {
        sink.copy(output.address, gradient.address, output.ty.bytes());
        return Ok(());
    }
    let (report, check) = ratio_check(sink);
    let arguments = Arguments::new()
        .structure(&settings)
        .address(gradient.address)
        .address(mask.address)
        .address(output.address)
        .size(count)
        .address(report)
        .u32(check);
    let blocks = sink.blocks(count, 4 * BLOCK as usize);
    let kernel = format!("dropout_gradient_{suffix}");
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}

fn draw(op: &Draw, output: &Operand<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let suffix = suffix(output.ty.data_type)?;
    let (kernel, first, second) = match op.distribution {
        Distribution::Uniform { low, high } => ("uniform", low, high),
        Distribution::Normal { mean, deviation } => ("normal", mean, deviation),
    };
    let count = output.ty.elements();
    let arguments = Arguments::new()
        .address(sink.context())
        .u64(op.stream)
        .f64(first)
        .f64(second)
        .address(output.address)
        .size(count);
    let blocks = sink.blocks(count, 2 * BLOCK as usize);
    sink.launch(
        &UNIT,
        format!("{kernel}_{suffix}"),
        blocks,
        BLOCK,
        arguments,
    );
    Ok(())
}

fn bernoulli(stream: u64, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
    let (input, output) = (call.input(0)?, call.output(0)?);
    let suffix = suffix(input.ty.data_type)?;
    let bytes = width(output.ty.data_type)?;
    let one = match output.ty.data_type {
        DataType::FLOAT => u64::from(1f32.to_bits()),
        DataType::DOUBLE => 1f64.to_bits(),
        DataType::FLOAT16 => u64::from(f16::ONE.to_bits()),
        DataType::BFLOAT16 => u64::from(bf16::ONE.to_bits()),
        _ => 1,
    };
    let count = output.ty.elements();
    let arguments = Arguments::new()
        .address(sink.context())
        .u64(stream)
        .address(input.address);
    // The low bytes: the number fits.
    let arguments = match bytes {
        1 => arguments.structure(&(one as u8)),
        2 => arguments.structure(&(one as u16)),
        4 => arguments.u32(one as u32),
        _ => arguments.u64(one),
    };
    let arguments = arguments.address(output.address).size(count);
    let blocks = sink.blocks(count, 2 * BLOCK as usize);
    let kernel = format!("bernoulli_{suffix}_{bytes}");
    sink.launch(&UNIT, kernel, blocks, BLOCK, arguments);
    Ok(())
}
