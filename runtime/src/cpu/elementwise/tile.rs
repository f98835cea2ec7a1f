//! The interpreter of expressions: instruction by instruction over tiles that stay in the first cache,
//! so that a chain of operators reads and writes memory once.

use super::super::memory::{Call, Data};
use super::super::rows::fork;
use super::kernels::{self, TILE};
use super::load;
use crate::ops::elementwise::{
    Class, Expression, Load, MAX_LOADS, MAX_RANK, MAX_SLOTS, Operator, Register,
};
use crate::plan::MAX_OPERANDS;
use bytemuck::{Pod, Zeroable, bytes_of, bytes_of_mut};
use pulp::Arch;
use velora_graph::shapes::DataType;

/// Elements that one thread works on at a time, about.
const CHUNK: usize = 16_384;

/// The values of one register over a tile: 1024 of up to 4 bytes, or 512 of 8.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Slot([u64; TILE / 2]);

/// Where a load finds its elements.
#[derive(Clone, Copy)]
enum Source<'a> {
    Shared(&'a [u8]),
    /// In the bytes of an output, in the same order.
    Output(usize),
}

/// What all chunks of an execution share.
struct Job<'a> {
    arch: Arch,
    expression: &'a Expression,
    sources: [Source<'a>; MAX_LOADS],
    /// Elements of the innermost dimension.
    row: usize,
    /// The most elements of a tile.
    tile: usize,
    /// Elements of a chunk.
    chunk: usize,
    /// By output: whether the instruction that makes its values writes them there, and not to a slot.
    direct: [bool; MAX_OPERANDS],
}

/// The bytes of all outputs, or of a piece of each.
type Outputs<'a> = [&'a mut [u8]; MAX_OPERANDS];

/// Executes an expression.
pub fn execute(expression: &Expression, call: Call<'_>) -> Result<(), String> {
    let elements = expression.elements();
    if elements == 0 {
        return Ok(());
    }
    let mut sources = [Source::Shared(&[]); MAX_LOADS];
    for (load, source) in expression.loads.iter().zip(&mut sources) {
        let Some(Some(input)) = call.inputs.get(load.input) else {
            return Err("an operand is missing".to_owned());
        };
        *source = match input.data {
            Data::Shared(bytes) => Source::Shared(bytes),
            Data::InOutput(output) if load.is_dense(&expression.shape) => Source::Output(output),
            Data::InOutput(_) => return Err("an operand is overwritten too early".to_owned()),
        };
    }
    let mut outputs: Outputs<'_> = std::array::from_fn(|_| &mut [][..]);
    for (output, bytes) in call.outputs.into_iter().zip(&mut outputs) {
        if let Some(output) = output {
            *bytes = output.bytes;
        }
    }
    let job = Job::new(expression, sources, elements);
    job.split(0, elements, outputs);
    Ok(())
}

impl<'a> Job<'a> {
    fn new(expression: &'a Expression, sources: [Source<'a>; MAX_LOADS], elements: usize) -> Self {
        let row = expression.shape.last().copied().unwrap_or(1);
        let wide = expression.code.iter().any(|i| i.class().bytes() == 8);
        let most = if wide { TILE / 2 } else { TILE };
        // Tiles end where rows end: rows are cut evenly, or several whole ones make a tile.
        let tile = if row >= most {
            row.div_ceil(row.div_ceil(most)).next_multiple_of(16)
        } else {
            most / row * row
        };
        let chunk = if row >= CHUNK {
            CHUNK
        } else {
            CHUNK / row * row
        };
        let mut direct = [false; MAX_OPERANDS];
        for (output, &register) in expression.stores.iter().enumerate() {
            direct[output] = is_direct(expression, &sources, output, register);
        }
        Job {
            arch: Arch::new(),
            expression,
            sources,
            row,
            tile: tile.min(elements),
            chunk,
            direct,
        }
    }

    /// Halves the elements until a chunk is left, perhaps on several threads.
    fn split(&self, start: usize, count: usize, outputs: Outputs<'_>) {
        if count <= self.chunk {
            return self.chunk(start, count, outputs);
        }
        let half = count.div_ceil(self.chunk) / 2 * self.chunk;
        let mut rest: Outputs<'_> = std::array::from_fn(|_| &mut [][..]);
        let mut first: Outputs<'_> = std::array::from_fn(|_| &mut [][..]);
        for (output, bytes) in outputs.into_iter().enumerate() {
            if let Some(&register) = self.expression.stores.get(output) {
                let size = load::bytes(self.ty(register));
                (first[output], rest[output]) = bytes.split_at_mut(half * size);
            }
        }
        fork(
            || self.split(start, half, first),
            || self.split(start + half, count - half, rest),
        );
    }

    fn ty(&self, register: Register) -> DataType {
        self.expression.code[usize::from(register)].ty
    }

    /// Works on a chunk, with as many slots as there must be.
    fn chunk(&self, start: usize, count: usize, outputs: Outputs<'_>) {
        let slots = self.expression.slots.iter().max().map_or(0, |&s| s + 1);
        match slots {
            0..=4 => self.tiles(start, count, outputs, &mut [Slot::zeroed(); 4]),
            5..=12 => self.tiles(start, count, outputs, &mut [Slot::zeroed(); 12]),
            _ => self.tiles(start, count, outputs, &mut [Slot::zeroed(); MAX_SLOTS]),
        }
    }

    fn tiles(&self, start: usize, count: usize, mut outputs: Outputs<'_>, slots: &mut [Slot]) {
        let Expression { code, .. } = self.expression;
        for (instruction, &slot) in code.iter().zip(&self.expression.slots) {
            if let Operator::Immediate(bits) = instruction.operator {
                let values = bytes_of_mut(&mut slots[usize::from(slot)]);
                let values = &mut values[..self.tile * instruction.class().bytes()];
                match instruction.class().bytes() {
                    1 => values.fill(bits as u8),
                    4 => bytemuck::cast_slice_mut(values).fill(bits as u32),
                    _ => bytemuck::cast_slice_mut(values).fill(bits),
                }
            }
        }
        // By load that repeats: first column and number of the elements in its slot.
        let mut kept = [(0, 0); MAX_LOADS];
        let end = start + count;
        let mut position = start;
        while position < end {
            let column = position % self.row;
            let whole = if self.row > self.tile {
                (self.row - column).min(self.tile - column % self.tile)
            } else {
                self.tile - column
            };
            let tile = Tile {
                position,
                from: position - start,
                count: whole.min(end - position),
                column,
                index: self.index(position),
            };
            self.tile(&tile, &mut outputs, slots, &mut kept);
            position += tile.count;
        }
    }

    /// The place of an element in all dimensions but the last.
    fn index(&self, position: usize) -> [usize; MAX_RANK] {
        let shape = &self.expression.shape;
        let mut index = [0; MAX_RANK];
        let mut rest = position / self.row;
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            index[axis] = rest % shape[axis];
            rest /= shape[axis];
        }
        index
    }

    fn tile(
        &self,
        tile: &Tile,
        outputs: &mut Outputs<'_>,
        slots: &mut [Slot],
        kept: &mut [(usize, usize); MAX_LOADS],
    ) {
        let Expression {
            code,
            loads,
            stores,
            slots: places,
            ..
        } = self.expression;
        for (place, instruction) in code.iter().enumerate() {
            let slot = usize::from(places[place]);
            let size = tile.count * instruction.class().bytes();
            match instruction.operator {
                Operator::Immediate(_) => {}
                Operator::Load(number) => {
                    let number = usize::from(number);
                    let load = &loads[number];
                    if self.in_memory(number, tile).is_some() {
                        continue;
                    }
                    if load.repeats() {
                        let column = if load.is_scalar() { 0 } else { tile.column };
                        if kept[number].0 == column && kept[number].1 >= tile.count {
                            continue;
                        }
                        kept[number] = (column, tile.count);
                    }
                    let values = &mut bytes_of_mut(&mut slots[slot])[..size];
                    self.load(number, tile, outputs, values);
                }
                _ => {
                    let operands = instruction.operands();
                    let class = match operands.first() {
                        Some(&first) => code[usize::from(first)].class(),
                        None => Class::F32,
                    };
                    let output = self.home(place);
                    let mut target = output.map(|output| std::mem::take(&mut outputs[output]));
                    // Results never lie where operands do.
                    let (before, rest) = slots.split_at_mut(slot);
                    let Some((own, after)) = rest.split_first_mut() else {
                        continue;
                    };
                    let mut values: [&[u8]; 3] = [&[]; 3];
                    for (value, &operand) in values.iter_mut().zip(operands) {
                        *value = self.value(usize::from(operand), tile, outputs, before, after);
                    }
                    let out = match &mut target {
                        Some(output) => &mut output[tile.bytes(instruction.class().bytes())],
                        None => &mut bytes_of_mut(own)[..size],
                    };
                    kernels::execute(self.arch, instruction, class, values, out);
                    if let (Some(output), Some(target)) = (output, target) {
                        outputs[output] = target;
                    }
                }
            }
        }
        for (output, &register) in stores.iter().enumerate() {
            if !self.direct[output] {
                let ty = self.ty(register);
                let out = std::mem::take(&mut outputs[output]);
                let values = self.value(usize::from(register), tile, outputs, slots, &[]);
                load::store(ty, values, &mut out[tile.bytes(load::bytes(ty))]);
                outputs[output] = out;
            }
        }
    }

    /// The output that an instruction writes to.
    fn home(&self, place: usize) -> Option<usize> {
        let mut stores = self.expression.stores.iter().zip(self.direct);
        stores.position(|(&register, direct)| direct && usize::from(register) == place)
    }

    /// A value over a tile; the slot between `before` and `after` is being written.
    fn value<'s>(
        &'s self,
        place: usize,
        tile: &Tile,
        outputs: &'s Outputs<'_>,
        before: &'s [Slot],
        after: &'s [Slot],
    ) -> &'s [u8] {
        let instruction = &self.expression.code[place];
        if let Operator::Load(number) = instruction.operator
            && let Some(values) = self.in_memory(usize::from(number), tile)
        {
            return values;
        }
        if let Some(output) = self.home(place) {
            return &outputs[output][tile.bytes(instruction.class().bytes())];
        }
        let slot = usize::from(self.expression.slots[place]);
        let values = match slot.checked_sub(before.len() + 1) {
            _ if slot < before.len() => &before[slot],
            Some(slot) => &after[slot],
            None => return &[],
        };
        &bytes_of(values)[..tile.count * instruction.class().bytes()]
    }

    /// The elements of a load, where they lie in memory as they are computed with.
    fn in_memory(&self, number: usize, tile: &Tile) -> Option<&'a [u8]> {
        let load = &self.expression.loads[number];
        let Source::Shared(bytes) = self.sources[number] else {
            return None;
        };
        let in_row = tile.column + tile.count <= self.row;
        let step = load.strides.last().copied().unwrap_or(1);
        let native = load::is_native(load.ty) && step == 1;
        if !native || !(in_row || load.is_dense(&self.expression.shape)) {
            return None;
        }
        let size = load::bytes(load.ty);
        let first = tile.first(load) + tile.column;
        Some(&bytes[first * size..(first + tile.count) * size])
    }

    /// Fills a slot from a load.
    fn load(&self, number: usize, tile: &Tile, outputs: &Outputs<'_>, values: &mut [u8]) {
        let load = &self.expression.loads[number];
        let bytes = match self.sources[number] {
            Source::Shared(bytes) => bytes,
            Source::Output(output) => {
                return load::load(load.ty, outputs[output], tile.from, 1, values);
            }
        };
        let step = load.strides.last().copied().unwrap_or(0);
        if load.is_scalar() {
            return load::load(load.ty, bytes, load.offset, 0, values);
        }
        let size = values.len() / tile.count;
        let shape = &self.expression.shape;
        let mut index = tile.index;
        let mut column = tile.column;
        let mut rest = values;
        while !rest.is_empty() {
            let first: usize = index.iter().zip(&load.strides).map(|(&i, &s)| i * s).sum();
            let count = (self.row - column).min(rest.len() / size);
            let (part, tail) = rest.split_at_mut(count * size);
            load::load(
                load.ty,
                bytes,
                load.offset + first + column * step,
                step,
                part,
            );
            rest = tail;
            column = 0;
            for axis in (0..shape.len().saturating_sub(1)).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }
}

/// A run of elements.
struct Tile {
    /// The first, of all.
    position: usize,
    /// The first, of the chunk.
    from: usize,
    /// How many.
    count: usize,
    /// The first's place in its row.
    column: usize,
    /// The first's place in the other dimensions.
    index: [usize; MAX_RANK],
}

impl Tile {
    /// The bytes of its elements in a chunk of an output.
    fn bytes(&self, size: usize) -> std::ops::Range<usize> {
        self.from * size..(self.from + self.count) * size
    }

    /// The element that a load sees at the start of the tile's row.
    fn first(&self, load: &Load) -> usize {
        if load.strides.is_empty() {
            return load.offset + self.position;
        }
        load.offset
            + (self.index.iter().zip(&load.strides))
                .map(|(&i, &s)| i * s)
                .sum::<usize>()
    }
}

/// Whether the instruction that makes a value may write it to the output at once: it is the output's
/// alone, and no load follows whose elements would be overwritten.
fn is_direct(
    expression: &Expression,
    sources: &[Source<'_>],
    output: usize,
    register: Register,
) -> bool {
    let place = usize::from(register);
    let instruction = &expression.code[place];
    load::is_native(instruction.ty)
        && instruction.operator.arity() > 0
        && expression.stores.iter().filter(|&&s| s == register).count() == 1
        && !(expression.code[place..].iter()).any(|later| match later.operator {
            Operator::Load(number) => {
                matches!(sources[usize::from(number)], Source::Output(other) if other == output)
            }
            _ => false,
        })
}
