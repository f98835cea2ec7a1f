//! The block of memory of a plan, and how a step borrows its operands from it.

use crate::plan::{ALIGNMENT, MAX_OPERANDS, Plan, Step};
use crate::tensor::TensorType;
use bytemuck::{Pod, Zeroable};

/// A cache line: what makes the block aligned.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ALIGNMENT]);

/// One block of memory.
pub struct Memory(Vec<Line>);

impl Memory {
    /// A block of zeros; `None` where there is not that much memory.
    pub fn new(bytes: usize) -> Option<Self> {
        let lines = bytes.div_ceil(ALIGNMENT);
        let mut block = Vec::new();
        block.try_reserve_exact(lines).ok()?;
        block.resize(lines, Line([0; ALIGNMENT]));
        Some(Memory(block))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::must_cast_slice(&self.0)
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::must_cast_slice_mut(&mut self.0)
    }
}

/// Where an operand's bytes are during a step.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In a piece that is only read.
    Shared(usize),
    /// In the bytes of an output.
    Output(usize),
}

/// Who a piece of the block belongs to during a step.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Inputs,
    Output(usize),
    Workspace,
}

/// How a step's operands are cut out of the block: worked out once, when a plan is prepared.
pub struct Cut {
    /// Disjoint spans, by their start.
    pieces: Vec<(usize, usize, Owner)>,
    inputs: Vec<Option<Place>>,
}

impl Cut {
    /// Works out the cut of a step.
    pub fn new(plan: &Plan, step: &Step) -> Self {
        let span = |id| {
            let buffer = plan.buffer(id);
            (buffer.offset, buffer.offset + buffer.bytes)
        };
        let mut pieces = Vec::new();
        for (place, output) in step.outputs.iter().enumerate() {
            if let Some(output) = output {
                let (start, end) = span(output.buffer);
                pieces.push((start, end, Owner::Output(place)));
            }
        }
        if let Some(workspace) = step.workspace {
            let (start, end) = span(workspace);
            pieces.push((start, end, Owner::Workspace));
        }
        for input in step.inputs.iter().flatten() {
            let (start, end) = span(input.buffer);
            if !pieces.iter().any(|&(s, e, _)| (s, e) == (start, end)) {
                pieces.push((start, end, Owner::Inputs));
            }
        }
        pieces.sort_by_key(|&(start, end, _)| (start, end));
        // The plan gives buffers that live at once disjoint spans.
        debug_assert!(pieces.windows(2).all(|p| p[0].1 <= p[1].0));
        let inputs = step.inputs.iter().map(|input| {
            let span = span(input.as_ref()?.buffer);
            let piece = pieces.iter().position(|&(s, e, _)| (s, e) == span)?;
            Some(match pieces[piece].2 {
                Owner::Output(place) => Place::Output(place),
                _ => Place::Shared(piece),
            })
        });
        Cut {
            inputs: inputs.collect(),
            pieces,
        }
    }

    /// The spans of the block that the step touches.
    pub fn spans(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pieces.iter().map(|&(start, end, _)| (start, end))
    }

    /// Borrows the operands of a step.
    pub fn call<'m>(&self, step: &'m Step, memory: &'m mut [u8]) -> Call<'m> {
        let mut shared: [&'m [u8]; 2 * MAX_OPERANDS + 1] = [&[]; 2 * MAX_OPERANDS + 1];
        let mut call = Call {
            inputs: std::array::from_fn(|_| None),
            outputs: std::array::from_fn(|_| None),
            // Empty, and aligned all the same.
            workspace: bytemuck::must_cast_slice_mut::<Line, u8>(&mut []),
        };
        let mut rest = memory;
        let mut position = 0;
        for (number, &(start, end, owner)) in self.pieces.iter().enumerate() {
            let (_, tail) = rest.split_at_mut(start - position);
            let (piece, tail) = tail.split_at_mut(end - start);
            rest = tail;
            position = end;
            match owner {
                Owner::Inputs => shared[number] = piece,
                Owner::Workspace => call.workspace = piece,
                Owner::Output(place) => {
                    if let Some(operand) = &step.outputs[place] {
                        call.outputs[place] = Some(Output {
                            ty: &operand.ty,
                            bytes: piece,
                        });
                    }
                }
            }
        }
        for (number, operand) in step.inputs.iter().enumerate() {
            if let (Some(operand), Some(place)) = (operand, self.inputs[number]) {
                call.inputs[number] = Some(Input {
                    ty: &operand.ty,
                    data: match place {
                        Place::Shared(piece) => Data::Shared(shared[piece]),
                        Place::Output(output) => Data::InOutput(output),
                    },
                });
            }
        }
        call
    }
}

/// The operands of one execution of an operation.
pub struct Call<'m> {
    /// What is read; `None` where an optional operand is absent.
    pub inputs: [Option<Input<'m>>; MAX_OPERANDS],
    /// What is written; `None` where nobody wants it.
    pub outputs: [Option<Output<'m>>; MAX_OPERANDS],
    /// Scratch, of the bytes that the backend asked for.
    pub workspace: &'m mut [u8],
}

/// An operand that is read.
#[derive(Clone, Copy)]
pub struct Input<'m> {
    /// Element type and dimensions.
    pub ty: &'m TensorType,
    /// The bytes.
    pub data: Data<'m>,
}

/// Where an input's bytes are.
#[derive(Clone, Copy)]
pub enum Data<'m> {
    /// Here.
    Shared(&'m [u8]),
    /// In the bytes of that output: the operation works in place. Only operations that say so in
    /// [`crate::ops::Op::in_place`], or update a buffer, see this.
    InOutput(usize),
}

impl<'m> Input<'m> {
    /// The elements of an operand that no output overwrites.
    pub fn elements<T: Pod>(&self) -> &'m [T] {
        match self.data {
            // Buffers start at multiples of 64 bytes and hold whole elements.
            Data::Shared(bytes) => bytemuck::cast_slice(bytes),
            Data::InOutput(_) => &[],
        }
    }
}

/// An operand that is written.
pub struct Output<'m> {
    /// Element type and dimensions.
    pub ty: &'m TensorType,
    /// The bytes; those of an input before the operation, where it works in place.
    pub bytes: &'m mut [u8],
}

impl Output<'_> {
    /// The elements.
    pub fn elements<T: Pod>(&mut self) -> &mut [T] {
        // As for inputs.
        bytemuck::cast_slice_mut(self.bytes)
    }
}
