//! Sources that are compiled for the element types in use, and numbers that their kernels get.

use super::compile::Unit;
use super::encode::{Operand, Sink, Unsupported};
use bytemuck::{Pod, Zeroable};
use std::borrow::Cow;
use velora_graph::shapes::DataType;

/// A source file whose kernels are for types that it does not name: one for each combination in use, since
/// compiling all of them would take long.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The name of the units.
    pub name: &'static str,
    /// The file, which the units include.
    pub file: &'static str,
}

impl Source {
    /// The unit in which names stand for what is given (built-in types, or those of common.cuh).
    pub fn with(&self, names: &[(&str, &str)]) -> Unit {
        let mut text = String::new();
        for (name, meaning) in names {
            text.push_str(&format!("#define {name} {meaning}\n"));
        }
        text.push_str(&format!("#include \"{}\"\n", self.file));
        Unit {
            name: self.name,
            text: Cow::Owned(text),
        }
    }
}

/// The unit in which `Element` is a floating-point type, of `ELEMENT_BYTES`.
///
/// # Errors
/// [`Unsupported`] where it is none that kernels know.
pub fn float_unit(source: &Source, data_type: DataType) -> Result<Unit, Unsupported> {
    let bytes = element_bytes(data_type).to_string();
    let name = type_name(data_type)?;
    Ok(source.with(&[("Element", name), ("ELEMENT_BYTES", &bytes)]))
}

/// The name of an element type in sources.
///
/// # Errors
/// [`Unsupported`] where there is none.
pub fn type_name(data_type: DataType) -> Result<&'static str, Unsupported> {
    Ok(match data_type {
        DataType::FLOAT => "float",
        DataType::DOUBLE => "double",
        DataType::FLOAT16 => "f16",
        DataType::BFLOAT16 => "bf16",
        DataType::INT64 => "i64",
        DataType::INT32 => "i32",
        DataType::INT8 => "i8",
        DataType::UINT8 | DataType::BOOL => "u8",
        DataType(4) => "u16",
        DataType(5) => "i16",
        other => return Err(no_kernel(other)),
    })
}

/// Refuses what is no floating-point number.
///
/// # Errors
/// [`Unsupported`] for other types.
pub fn float(operand: Operand<'_>) -> Result<DataType, Unsupported> {
    match operand.ty.data_type {
        ty @ (DataType::FLOAT | DataType::DOUBLE | DataType::FLOAT16 | DataType::BFLOAT16) => {
            Ok(ty)
        }
        other => Err(no_kernel(other)),
    }
}

/// What is said of a type without kernels, as on the CPU.
pub fn no_kernel(data_type: DataType) -> Unsupported {
    Unsupported(format!(
        "elements of type {} have no kernel here",
        data_type.0
    ))
}

/// The bytes of an element of which a byte has one at most.
pub fn element_bytes(data_type: DataType) -> usize {
    usize::try_from(data_type.bits().unwrap_or(8) / 8).unwrap_or(1)
}

/// How many elements are moved at once: a power of two of at most 16 bytes that divides all sizes.
pub fn pack(data_type: DataType, sizes: &[usize]) -> usize {
    let mut pack = 16 / element_bytes(data_type).clamp(1, 16);
    while sizes.iter().any(|size| !size.is_multiple_of(pack)) {
        pack /= 2;
    }
    pack
}

/// As many elements as have 16 bytes where they divide a size, or one. Of single bytes 4, which are computed
/// with in 64 bits and take registers.
pub fn whole_pack(data_type: DataType, size: usize) -> usize {
    let most = match element_bytes(data_type) {
        1 => 4,
        bytes => 16 / bytes,
    };
    if size.is_multiple_of(most) { most } else { 1 }
}

/// Bytes of what elements of a floating-point type are computed with.
pub fn lane_bytes(data_type: DataType) -> usize {
    if data_type == DataType::DOUBLE { 8 } else { 4 }
}

/// The length of a row as a kernel takes it.
///
/// # Errors
/// [`Unsupported`] beyond 32 bits.
pub fn row_length(size: usize) -> Result<u32, Unsupported> {
    u32::try_from(size).map_err(|_| Unsupported(format!("rows of {size} elements")))
}

/// How rows that stay in registers are given to warps or blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    rows: usize,
    pack: usize,
    warps: bool,
    /// Threads of a block.
    pub threads: u32,
}

impl Rows {
    /// For rows of a size, of which a thread keeps `held` packs.
    ///
    /// # Errors
    /// [`Unsupported`] for rows that are too long to be counted in 32 bits.
    pub fn new(
        data_type: DataType,
        rows: usize,
        size: usize,
        held: usize,
    ) -> Result<Self, Unsupported> {
        row_length(size)?;
        let pack = whole_pack(data_type, size);
        let packs = size.div_ceil(pack);
        let warps = packs <= 32 * held;
        let threads = match warps {
            true => 256,
            false => packs.div_ceil(held).next_power_of_two().clamp(64, 512),
        };
        Ok(Rows {
            rows,
            pack,
            warps,
            threads: threads as u32,
        })
    }

    /// The name of the kernel for them.
    pub fn kernel(&self, name: &str) -> String {
        let team = if self.warps { "warps" } else { "blocks" };
        format!("{name}_{team}_{}", self.pack)
    }

    /// The rows that a block works on at once.
    pub fn per_block(&self) -> usize {
        if self.warps {
            self.threads as usize / 32
        } else {
            1
        }
    }

    /// The number of blocks.
    pub fn grid(&self, sink: &Sink<'_>) -> u32 {
        sink.blocks(self.rows, self.per_block())
    }
}

/// `Divisor` of the kernels: what division by a number is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Divisor {
    divisor: u64,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// For division by a number, at least 1.
    pub fn new(divisor: usize) -> Self {
        let divisor = divisor.max(1) as u64;
        let shift = 64 - (divisor - 1).leading_zeros();
        if shift > 32 {
            // Quotients of 32-bit numbers are 0.
            return Divisor {
                divisor,
                multiplier: 0,
                shift: 63,
            };
        }
        // Below 2^32, since the fraction is less than 1.
        let multiplier = (((1u64 << shift) - divisor) << 32) / divisor + 1;
        Divisor {
            divisor,
            multiplier: multiplier as u32,
            shift,
        }
    }
}

/// `Columns` of the kernels: how a matrix is cut whose columns are reduced. It depends on the sizes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Columns {
    rows: u64,
    width: u64,
    rows_of_part: u64,
    tiles: u32,
    across: u32,
}

/// Threads of a block that reduces columns.
const THREADS: usize = 256;
/// Blocks that a matrix is cut into at most, but for one per tile.
const BLOCKS: usize = 512;

impl Columns {
    /// For a matrix [rows, width] of which `pack` columns are read at once, in parts if it is tall.
    pub fn new(rows: usize, width: usize, pack: usize) -> Self {
        Self::cut(rows, width, pack, BLOCKS)
    }

    /// The same in one part.
    pub fn whole(rows: usize, width: usize, pack: usize) -> Self {
        Self::cut(rows, width, pack, 1)
    }

    fn cut(rows: usize, width: usize, pack: usize, blocks: usize) -> Self {
        let packs = width.div_ceil(pack).max(1);
        let across = packs.next_power_of_two().trailing_zeros().min(5);
        let tiles = packs.div_ceil(1 << across);
        let down = THREADS >> across;
        // Some elements for every thread.
        let most = rows.div_ceil(down * 16).max(1);
        let parts = (blocks / tiles).clamp(1, most);
        Columns {
            rows: rows as u64,
            width: width as u64,
            rows_of_part: rows.div_ceil(parts).max(1) as u64,
            tiles: tiles as u32,
            across,
        }
    }

    /// The rows.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }

    /// The columns.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// The parts that the rows are cut into.
    pub fn parts(&self) -> usize {
        self.rows.div_ceil(self.rows_of_part).max(1) as usize
    }

    /// The blocks of all parts.
    pub fn blocks(&self) -> usize {
        self.parts() * self.tiles as usize
    }

    /// Bytes of the totals of all parts.
    pub fn bytes(&self) -> usize {
        self.parts() * self.width as usize * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernels do it.
    fn quotient(n: u64, by: Divisor) -> u64 {
        if n >> 32 != 0 {
            return n / by.divisor;
        }
        let high = (n * u64::from(by.multiplier)) >> 32;
        (high + n) >> by.shift
    }

    #[test]
    fn quotients_are_those_of_division() {
        let ends = [
            0,
            1,
            2,
            3,
            6,
            7,
            100,
            4095,
            4096,
            1 << 31,
            u64::from(u32::MAX),
        ];
        let divisors = [
            1,
            2,
            3,
            5,
            7,
            43,
            128,
            1000,
            (1 << 31) - 1,
            1 << 31,
            (1 << 32) - 1,
            1 << 32,
            1 << 40,
        ];
        for divisor in divisors {
            let by = Divisor::new(divisor);
            let divisor = divisor as u64;
            let around = (1..50).flat_map(|k| {
                let multiple = divisor.saturating_mul(k);
                [multiple - 1, multiple, multiple + 1]
            });
            for n in ends.into_iter().chain(around) {
                assert_eq!(quotient(n, by), n / divisor, "{n} / {divisor}");
            }
        }
    }

    #[test]
    fn parts_cover_all_rows_once() {
        for rows in [0, 1, 2, 63, 64, 1000, 100_000] {
            for (width, pack) in [(1, 1), (3, 1), (8, 4), (128, 4), (4096, 8), (50_000, 4)] {
                let columns = Columns::new(rows, width, pack);
                let covered = columns.parts() as u64 * columns.rows_of_part;
                assert!(covered >= rows as u64, "{rows} {width}");
                assert!(covered.saturating_sub(columns.rows_of_part) < rows.max(1) as u64);
                assert!((columns.tiles as usize) << columns.across >= width.div_ceil(pack));
                assert!(columns.blocks() <= BLOCKS.max(columns.tiles as usize));
            }
        }
    }
}
