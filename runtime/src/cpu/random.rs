//! What draws random numbers.

use super::Machine;
use super::memory::{Call, Data, Input, Output};
use super::movement::missing;
use super::rows::{RowsMut, for_blocks, for_chunks, vectorize};
use crate::backend::StepContext;
use crate::ops::random::{Distribution, Draw, Dropout, Random, check_ratio};
use crate::random::{block, normal, philox};
use crate::tensor::TensorType;
use bytemuck::Pod;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// Elements of a piece of work; a multiple of [`GROUP`].
const CHUNK: usize = 1 << 13;
/// Blocks of the generator that are computed side by side.
const LANES: usize = 16;
/// The numbers of that many blocks.
const GROUP: usize = 4 * LANES;

/// Bytes of scratch that an operation needs.
pub fn workspace(
    _op: &Random,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Executes an operation; the error says what is wrong with the data.
pub fn execute(op: &Random, context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    match op {
        Random::Dropout(op) => dropout(op, context, &mut call),
        Random::DropoutGrad(op) => dropout_grad(op, &mut call),
        Random::Draw(op) => match &mut call.outputs[0] {
            Some(output) => draw(op, context, output),
            None => Err(missing()),
        },
        Random::Bernoulli { stream } => match (&call.inputs[0], &mut call.outputs[0]) {
            (Some(input), Some(output)) => bernoulli(*stream, context, input, output),
            _ => Err(missing()),
        },
    }
}

/// The numbers that an operation draws in a step.
#[derive(Clone, Copy)]
struct Numbers {
    seed: u64,
    stream: u64,
    /// The step, in the upper half of the counter's position: a tensor has less than 2³⁴ elements.
    step: u64,
}

impl Numbers {
    fn new(context: &StepContext, stream: u64) -> Self {
        Numbers {
            seed: context.seed,
            stream,
            step: context.step << 32,
        }
    }

    /// The random bits of 64 elements, the first of which is a multiple of 64.
    #[inline(always)]
    fn group(&self, first: usize) -> [u32; GROUP] {
        let position = self.step | (first / 4) as u64;
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        // Blocks start at multiples of 16, so the lower word does not overflow.
        let lanes: [[u32; 4]; LANES] = std::array::from_fn(|lane| {
            philox(
                [
                    position as u32 + lane as u32,
                    (position >> 32) as u32,
                    self.stream as u32,
                    (self.stream >> 32) as u32,
                ],
                key,
            )
        });
        bytemuck::must_cast(lanes)
    }

    /// A number in [0, 1), of 53 bits.
    fn uniform(&self, place: usize) -> f64 {
        let words = block(self.seed, self.stream, self.step | (place / 2) as u64);
        let [low, high] = [words[place % 2 * 2], words[place % 2 * 2 + 1]];
        let bits = u64::from(low) | u64::from(high) << 32;
        (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// A type that dropout works on.
trait Float: Pod + Send + Sync {
    fn scale(self, factor: f64) -> Self;
    fn of(number: f64) -> Self;
}

macro_rules! float {
    ($($float:ty: $scale:expr, $of:expr;)*) => {$(
        impl Float for $float {
            #[inline(always)]
            fn scale(self, factor: f64) -> Self {
                $scale(self, factor)
            }
            fn of(number: f64) -> Self {
                $of(number)
            }
        }
    )*};
}

float! {
    f32: |x, factor| x * factor as f32, |x| x as f32;
    f64: |x, factor| x * factor, |x| x;
    f16: |x: f16, factor| f16::from_f32(x.to_f32() * factor as f32), f16::from_f64;
    bf16: |x: bf16, factor| bf16::from_f32(x.to_f32() * factor as f32), bf16::from_f64;
}

/// Ratio and mode: those that are known, else those of the operands.
fn settings(
    op: &Dropout,
    ratio: Option<Input<'_>>,
    mode: Option<Input<'_>>,
) -> Result<Option<f64>, String> {
    let ratio = match (op.ratio, ratio) {
        (Some(ratio), _) => ratio,
        (None, Some(ratio)) => match ratio.ty.data_type {
            DataType::FLOAT => f64::from(ratio.elements::<f32>()[0]),
            DataType::DOUBLE => ratio.elements::<f64>()[0],
            DataType::FLOAT16 => ratio.elements::<f16>()[0].to_f64(),
            _ => ratio.elements::<bf16>()[0].to_f64(),
        },
        (None, None) => return Err(missing()),
    };
    check_ratio(ratio)?;
    let training = match (op.training, mode) {
        (Some(training), _) => training,
        (None, mode) => mode.is_some_and(|mode| mode.elements::<u8>()[0] != 0),
    };
    Ok((training && ratio != 0.0).then_some(ratio))
}

/// What kept elements are multiplied by; nothing is kept where the ratio is 1.
fn factor(ratio: f64) -> f64 {
    if ratio < 1.0 {
        1.0 / (1.0 - ratio)
    } else {
        0.0
    }
}

fn dropout(op: &Dropout, context: &StepContext, call: &mut Call<'_>) -> Result<(), String> {
    let [Some(data), ratio, mode, ..] = call.inputs else {
        return Err(missing());
    };
    let ratio = settings(op, ratio, mode)?;
    let [Some(output), mask, ..] = &mut call.outputs else {
        return Err(missing());
    };
    let mask = mask.as_mut().map(|mask| &mut mask.bytes[..]);
    let numbers = Numbers::new(context, op.stream);
    match output.ty.data_type {
        DataType::FLOAT => drop_elements::<f32>(ratio, numbers, &data, output, mask),
        DataType::DOUBLE => drop_elements::<f64>(ratio, numbers, &data, output, mask),
        DataType::FLOAT16 => drop_elements::<f16>(ratio, numbers, &data, output, mask),
        _ => drop_elements::<bf16>(ratio, numbers, &data, output, mask),
    }
    Ok(())
}

fn drop_elements<T: Float>(
    ratio: Option<f64>,
    numbers: Numbers,
    data: &Input<'_>,
    output: &mut Output<'_>,
    mask: Option<&mut [u8]>,
) {
    let source = match data.data {
        Data::Shared(_) => Some(data.elements::<T>()),
        Data::InOutput(_) => None,
    };
    let output = output.elements::<T>();
    let arch = pulp::Arch::new();
    let chunk = |number: usize, output: &mut [T], mask: Option<&mut [u8]>| {
        let start = number * CHUNK;
        if let Some(source) = source {
            output.copy_from_slice(&source[start..start + output.len()]);
        }
        match ratio {
            Some(ratio) => vectorize(
                arch,
                #[inline(always)]
                |(output, mask)| drop_chunk(ratio, numbers, start, output, mask),
                (output, mask),
            ),
            None => {
                if let Some(mask) = mask {
                    mask.fill(1);
                }
            }
        }
    };
    let chunks = output.len().div_ceil(CHUNK);
    let written = (
        RowsMut::new(output, CHUNK),
        mask.map(|mask| RowsMut::new(mask, CHUNK)),
    );
    for_blocks(0..chunks, 1, written, &|range, (output, mask)| {
        chunk(range.start, output.elements, mask.map(|mask| mask.elements));
    });
}

#[inline(always)]
fn drop_chunk<T: Float>(
    ratio: f64,
    numbers: Numbers,
    start: usize,
    output: &mut [T],
    mut mask: Option<&mut [u8]>,
) {
    // An element is dropped where its 24 bits, as a number in [0, 1), lie below the ratio.
    let least = (ratio * f64::from(1 << 24)).ceil() as u32;
    let factor = factor(ratio);
    for (group, output) in output.chunks_mut(GROUP).enumerate() {
        let bits = numbers.group(start + group * GROUP);
        let keep: [u8; GROUP] = std::array::from_fn(|i| u8::from(bits[i] >> 8 >= least));
        for (to, &keep) in output.iter_mut().zip(&keep) {
            let scaled = to.scale(factor);
            *to = if keep != 0 { scaled } else { T::zeroed() };
        }
        if let Some(mask) = &mut mask {
            mask[group * GROUP..][..output.len()].copy_from_slice(&keep[..output.len()]);
        }
    }
}

fn dropout_grad(op: &Dropout, call: &mut Call<'_>) -> Result<(), String> {
    let [Some(gradient), Some(mask), ratio, mode, ..] = call.inputs else {
        return Err(missing());
    };
    let ratio = settings(op, ratio, mode)?;
    let Some(output) = &mut call.outputs[0] else {
        return Err(missing());
    };
    let mask = mask.elements::<u8>();
    match output.ty.data_type {
        DataType::FLOAT => mask_elements::<f32>(ratio, &gradient, mask, output),
        DataType::DOUBLE => mask_elements::<f64>(ratio, &gradient, mask, output),
        DataType::FLOAT16 => mask_elements::<f16>(ratio, &gradient, mask, output),
        _ => mask_elements::<bf16>(ratio, &gradient, mask, output),
    }
    Ok(())
}

fn mask_elements<T: Float>(
    ratio: Option<f64>,
    gradient: &Input<'_>,
    mask: &[u8],
    output: &mut Output<'_>,
) {
    let source = match gradient.data {
        Data::Shared(_) => Some(gradient.elements::<T>()),
        Data::InOutput(_) => None,
    };
    let output = output.elements::<T>();
    for_chunks(output, CHUNK, CHUNK, &|number, output| {
        let mask = &mask[number * CHUNK..][..output.len()];
        if let Some(source) = source {
            output.copy_from_slice(&source[number * CHUNK..][..output.len()]);
        }
        if let Some(ratio) = ratio {
            let factor = factor(ratio);
            for (to, &keep) in output.iter_mut().zip(mask) {
                let scaled = to.scale(factor);
                *to = if keep != 0 { scaled } else { T::zeroed() };
            }
        }
    });
}

fn draw(op: &Draw, context: &StepContext, output: &mut Output<'_>) -> Result<(), String> {
    match output.ty.data_type {
        DataType::FLOAT => draw_elements::<f32>(op, context, output),
        DataType::DOUBLE => draw_elements::<f64>(op, context, output),
        DataType::FLOAT16 => draw_elements::<f16>(op, context, output),
        _ => draw_elements::<bf16>(op, context, output),
    }
    Ok(())
}

fn draw_elements<T: Float>(op: &Draw, context: &StepContext, output: &mut Output<'_>) {
    let numbers = Numbers::new(context, op.stream);
    for_chunks(output.elements::<T>(), CHUNK, CHUNK, &|number, chunk| {
        for (place, to) in (number * CHUNK..).zip(chunk) {
            *to = T::of(match op.distribution {
                Distribution::Uniform { low, high } => low + (high - low) * numbers.uniform(place),
                Distribution::Normal { mean, deviation } => {
                    // Two numbers per block: the step moves the position accordingly.
                    let place = (numbers.step << 1) | place as u64;
                    mean + deviation * normal(numbers.seed, numbers.stream, place)
                }
            });
        }
    });
}

fn bernoulli(
    stream: u64,
    context: &StepContext,
    input: &Input<'_>,
    output: &mut Output<'_>,
) -> Result<(), String> {
    let numbers = Numbers::new(context, stream);
    let probability = |place: usize| match input.ty.data_type {
        DataType::FLOAT => f64::from(input.elements::<f32>()[place]),
        DataType::DOUBLE => input.elements::<f64>()[place],
        DataType::FLOAT16 => input.elements::<f16>()[place].to_f64(),
        _ => input.elements::<bf16>()[place].to_f64(),
    };
    let hit = |place: usize| numbers.uniform(place) < probability(place);
    let width = output
        .ty
        .data_type
        .bits()
        .map_or(1, |bits| bits as usize / 8);
    let one: [u8; 8] = match output.ty.data_type {
        DataType::FLOAT => u64::from(1f32.to_bits()),
        DataType::DOUBLE => 1f64.to_bits(),
        DataType::FLOAT16 => u64::from(f16::ONE.to_bits()),
        DataType::BFLOAT16 => u64::from(bf16::ONE.to_bits()),
        _ => 1,
    }
    .to_le_bytes();
    for_chunks(output.bytes, width, CHUNK, &|place, to| match hit(place) {
        true => to.copy_from_slice(&one[..width]),
        false => to.fill(0),
    });
    Ok(())
}
