//! Numbers from integers and scales: integers are unpacked, shifted and scaled tile by tile, so that the
//! output is in the cache until it is done, and memory sees each operand once.

use super::Machine;
use super::memory::Call;
use super::rows::{BLOCK, dispatch, for_chunks};
use crate::backend::StepContext;
use crate::ops::dequantize::{Dequantize, Scales};
use crate::tensor::TensorType;
use bytemuck::{Pod, cast_slice};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use velora_graph::shapes::DataType;

/// Elements that are worked on at once; even, so that a tile of 4-bit integers begins with a byte.
const TILE: usize = 1024;
/// Columns that scales and zero points are converted for at once.
const PIECE: usize = 256;
/// Bytes of 4-bit integers that are unpacked at once: a loop of a length that the compiler knows.
const STEP: usize = 16;

/// Bytes of scratch that an operation needs: none, a tile lies on the stack.
pub fn workspace(
    _op: &Dequantize,
    _machine: &Machine,
    _inputs: &[Option<&TensorType>],
    _outputs: &[Option<&TensorType>],
) -> usize {
    0
}

/// Executes the operation; the error says what is wrong with the operands.
pub fn execute(op: &Dequantize, _context: &StepContext, mut call: Call<'_>) -> Result<(), String> {
    let ([Some(x), Some(scales), zeros, ..], [Some(y), ..]) = (&call.inputs, &mut call.outputs)
    else {
        return Err("an operand is missing".to_owned());
    };
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let job = Job {
        integers: Integers::new(x.ty.data_type, x.elements())?,
        zeros: match zeros {
            Some(zeros) => Some(Integers::new(zeros.ty.data_type, zeros.elements())?),
            None => None,
        },
        scales: match scales.ty.data_type {
            DataType::FLOAT => Numbers::Single(scales.elements()),
            DataType::FLOAT16 => Numbers::Half(scales.elements()),
            DataType::BFLOAT16 => Numbers::Brain(scales.elements()),
            other => return Err(format!("scales of {other} have no kernel here")),
        },
        pattern: Pattern::new(op),
    };
    match y.ty.data_type {
        DataType::FLOAT => for_chunks(y.elements::<f32>(), TILE, BLOCK, &|number, tile| {
            dispatch!(f32, dequantize, (&job, number * TILE, tile));
        }),
        DataType::FLOAT16 => for_chunks(y.elements::<f16>(), TILE, BLOCK, &|number, tile| {
            let mut values = [0.0; TILE];
            let values = &mut values[..tile.len()];
            dispatch!(f32, dequantize, (&job, number * TILE, &mut *values));
            tile.convert_from_f32_slice(values);
        }),
        DataType::BFLOAT16 => for_chunks(y.elements::<bf16>(), TILE, BLOCK, &|number, tile| {
            let mut values = [0.0; TILE];
            let values = &mut values[..tile.len()];
            dispatch!(f32, dequantize, (&job, number * TILE, &mut *values));
            tile.convert_from_f32_slice(values);
        }),
        other => return Err(format!("an output of {other} has no kernel here")),
    }
    Ok(())
}

/// The operands.
struct Job<'a> {
    integers: Integers<'a>,
    zeros: Option<Integers<'a>>,
    scales: Numbers<'a>,
    pattern: Pattern,
}

/// How scales lie over the elements, taken as rows.
enum Pattern {
    /// Elements side by side share a scale: each row has runs of `run` (fewer in the last one), and the
    /// scales, `scales` of them, follow one another, and then begin again.
    Runs {
        width: usize,
        run: usize,
        scales: usize,
    },
    /// Each column has its scale: rows come in `rows` at a time, of which `block` (fewer in the last
    /// block) share a row of scales.
    Columns {
        width: usize,
        rows: usize,
        block: usize,
    },
}

impl Pattern {
    /// The pattern of an operation that has elements.
    fn new(op: &Dequantize) -> Self {
        let Dequantize {
            outer, size, inner, ..
        } = *op;
        match op.scales {
            Scales::Axis if size == 1 => Pattern::Runs {
                width: outer * inner,
                run: outer * inner,
                scales: 1,
            },
            // All rows share one row of scales.
            Scales::Axis if inner == 1 => Pattern::Columns {
                width: size,
                rows: outer,
                block: outer,
            },
            Scales::Axis => Pattern::Runs {
                width: inner,
                run: inner,
                scales: size,
            },
            // Each element has its scale.
            Scales::Blocks(1) => Pattern::Columns {
                width: outer * size * inner,
                rows: 1,
                block: 1,
            },
            Scales::Blocks(block) if inner == 1 => Pattern::Runs {
                width: size,
                run: block,
                scales: op.count(),
            },
            Scales::Blocks(block) => Pattern::Columns {
                width: inner,
                rows: size,
                block,
            },
        }
    }
}

/// Floating-point numbers.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    Single(&'a [f32]),
    Half(&'a [f16]),
    Brain(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    #[inline(always)]
    fn at(&self, place: usize) -> f32 {
        match self {
            Numbers::Single(all) => all[place],
            Numbers::Half(all) => all[place].to_f32(),
            Numbers::Brain(all) => all[place].to_f32(),
        }
    }

    /// Numbers from `first` on: where they lie, or converted in `room`, which has the length.
    #[inline(always)]
    fn part<'b>(&self, first: usize, room: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        let range = first..first + room.len();
        match self {
            Numbers::Single(all) => return &all[range],
            Numbers::Half(all) => all[range].convert_to_f32_slice(room),
            Numbers::Brain(all) => all[range].convert_to_f32_slice(room),
        }
        room
    }
}

/// Integers of a type with a kernel.
#[derive(Clone, Copy)]
enum Integers<'a> {
    U8(&'a [u8]),
    I8(&'a [i8]),
    U16(&'a [u16]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    /// 4 bits, two to a byte. The bit of the sign is flipped and then counts as often as it counted too
    /// much: 8 for signed integers, 0 for unsigned ones.
    Half(&'a [u8], u8),
}

impl<'a> Integers<'a> {
    fn new(data_type: DataType, bytes: &'a [u8]) -> Result<Self, String> {
        Ok(match data_type {
            DataType::UINT8 => Integers::U8(bytes),
            DataType::INT8 => Integers::I8(cast_slice(bytes)),
            DataType(4) => Integers::U16(cast_slice(bytes)),
            DataType(5) => Integers::I16(cast_slice(bytes)),
            DataType::INT32 => Integers::I32(cast_slice(bytes)),
            DataType::UINT4 => Integers::Half(bytes, 0),
            DataType::INT4 => Integers::Half(bytes, 8),
            other => return Err(format!("integers of {other} have no kernel here")),
        })
    }

    #[inline(always)]
    fn at(&self, place: usize) -> f32 {
        match self {
            Integers::U8(all) => all[place].into(),
            Integers::I8(all) => all[place].into(),
            Integers::U16(all) => all[place].into(),
            Integers::I16(all) => all[place].into(),
            Integers::I32(all) => all[place] as f32,
            Integers::Half(bytes, sign) => {
                nibble(bytes[place / 2] >> (4 * (place % 2)), *sign).into()
            }
        }
    }

    /// Unpacks integers from `first` on; `finish` makes of them what is written.
    #[inline(always)]
    fn load(&self, first: usize, values: &mut [f32], finish: impl Fn(f32) -> f32) {
        match self {
            Integers::U8(all) => widen(all, first, values, |x| finish(x.into())),
            Integers::I8(all) => widen(all, first, values, |x| finish(x.into())),
            Integers::U16(all) => widen(all, first, values, |x| finish(x.into())),
            Integers::I16(all) => widen(all, first, values, |x| finish(x.into())),
            Integers::I32(all) => widen(all, first, values, |x| finish(x as f32)),
            Integers::Half(bytes, sign) => {
                // A row may begin in the middle of a byte.
                let head = (first % 2).min(values.len());
                let (before, values) = values.split_at_mut(head);
                for value in before {
                    *value = finish(self.at(first));
                }
                unpack(&bytes[(first + head) / 2..], *sign, values, finish);
            }
        }
    }
}

#[inline(always)]
fn widen<T: Pod>(all: &[T], first: usize, values: &mut [f32], finish: impl Fn(T) -> f32) {
    let part = &all[first..first + values.len()];
    for (value, &x) in values.iter_mut().zip(part) {
        *value = finish(x);
    }
}

/// The integer in the low half of a byte.
#[inline(always)]
fn nibble(byte: u8, sign: u8) -> i8 {
    ((byte & 15) ^ sign).wrapping_sub(sign) as i8
}

/// Unpacks 4-bit integers from the first byte on.
#[inline(always)]
fn unpack(bytes: &[u8], sign: u8, values: &mut [f32], finish: impl Fn(f32) -> f32) {
    let (wholes, rest) = values.as_chunks_mut::<{ 2 * STEP }>();
    let (packs, others) = bytes.as_chunks::<STEP>();
    let done = wholes.len();
    for (values, pack) in wholes.iter_mut().zip(packs) {
        let mut integers = [0i8; 2 * STEP];
        for i in 0..STEP {
            integers[2 * i] = nibble(pack[i], sign);
            integers[2 * i + 1] = nibble(pack[i] >> 4, sign);
        }
        for i in 0..2 * STEP {
            values[i] = finish(integers[i].into());
        }
    }
    let others = match packs.get(done) {
        Some(pack) => &pack[..],
        None => others,
    };
    for (pair, &byte) in rest.chunks_mut(2).zip(others) {
        for (half, value) in pair.iter_mut().enumerate() {
            *value = finish(nibble(byte >> (4 * half), sign).into());
        }
    }
}

/// Fills a tile, which begins with the element `first`.
#[inline(always)]
fn dequantize((job, first, values): (&Job<'_>, usize, &mut [f32])) {
    match job.pattern {
        Pattern::Runs { width, run, scales } => {
            // Divided once for a tile; from then on counted.
            let (row, mut column) = (first / width, first % width);
            let mut number = (row * width.div_ceil(run) + column / run) % scales;
            // A tile may begin within a run.
            let mut left = run.min(width - column / run * run) - column % run;
            let (mut place, mut rest) = (first, values);
            loop {
                let (part, others) = rest.split_at_mut(left.min(rest.len()));
                let zero = job.zeros.map_or(0.0, |zeros| zeros.at(number));
                let scale = job.scales.at(number);
                (job.integers).load(place, part, |x| (x - zero) * scale);
                if others.is_empty() {
                    break;
                }
                rest = others;
                place += left;
                column += left;
                if column == width {
                    column = 0;
                }
                number += 1;
                if number == scales {
                    number = 0;
                }
                left = run.min(width - column);
            }
        }
        Pattern::Columns { width, rows, block } => {
            job.integers.load(first, values, |x| x);
            let (mut row, mut column) = (first / width, first % width);
            let mut rest = values;
            let mut room = [[0.0; PIECE]; 2];
            while !rest.is_empty() {
                let count = (width - column).min(rest.len()).min(PIECE);
                let (part, others) = rest.split_at_mut(count);
                let row_of_scales = row / rows * rows.div_ceil(block) + row % rows / block;
                let place = row_of_scales * width + column;
                let [numbers, shifts] = &mut room;
                let scales = job.scales.part(place, &mut numbers[..count]);
                match job.zeros {
                    Some(zeros) => {
                        let shifts = &mut shifts[..count];
                        zeros.load(place, shifts, |zero| zero);
                        for ((value, zero), scale) in part.iter_mut().zip(shifts).zip(scales) {
                            *value = (*value - *zero) * scale;
                        }
                    }
                    None => {
                        for (value, scale) in part.iter_mut().zip(scales) {
                            *value *= scale;
                        }
                    }
                }
                rest = others;
                column += count;
                if column == width {
                    column = 0;
                    row += 1;
                }
            }
        }
    }
}
