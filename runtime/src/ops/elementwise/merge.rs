//! One expression inside another.

use super::{Expression, Instruction, Load, Operator, Register};

/// The most instructions of an expression that was put together from several.
const MAX_CODE: usize = 256;

/// The most values that may live at once in an expression put together from several: their tiles
/// should stay in the first cache.
const MAX_LIVE: u8 = 20;

/// How inputs and outputs of two expressions are numbered in the one made of them.
pub struct Numbering<'a> {
    /// By input of the producer: its number.
    pub producer: &'a [usize],
    /// By input of the consumer: its number; for an output of the producer, that output.
    pub consumer: &'a [Operand],
    /// Outputs of the producer that are outputs still; they come first.
    pub kept: &'a [usize],
}

/// What an input of the consumer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// An input of the merged expression.
    Input(usize),
    /// An output of the producer.
    Produced(usize),
}

impl Expression {
    /// How many times each element of the producer would be computed, were it part of this expression;
    /// `None` where it cannot be.
    pub fn repetitions(&self, producer: &Expression) -> Option<usize> {
        let (own, other) = (self.elements(), producer.elements());
        (other > 0 && own.is_multiple_of(other)).then(|| own / other)
    }

    /// Whether recomputing it for every element of a broadcast costs next to nothing.
    pub fn is_cheap(&self) -> bool {
        use super::{Binary, Unary};
        let work: Vec<&Instruction> = (self.code.iter())
            .filter(|i| !matches!(i.operator, Operator::Load(_) | Operator::Immediate(_)))
            .collect();
        work.len() <= 2
            && work.iter().all(|instruction| match instruction.operator {
                Operator::Convert | Operator::Select | Operator::Compare(_) => true,
                Operator::Unary(op) => matches!(op, Unary::Neg | Unary::Abs | Unary::Not),
                Operator::Binary(op) => matches!(
                    op,
                    Binary::Add
                        | Binary::Sub
                        | Binary::Mul
                        | Binary::And
                        | Binary::Or
                        | Binary::Min
                        | Binary::Max
                ),
                Operator::Load(_) | Operator::Immediate(_) => true,
            })
    }

    /// This expression with the producer of some of its inputs inside; `None` where the shapes do not
    /// allow it or the result would be too large.
    pub fn with_producer(
        &self,
        producer: &Expression,
        numbering: &Numbering<'_>,
    ) -> Option<Expression> {
        let produced = |load: &Load| match numbering.consumer[load.input] {
            Operand::Produced(output) => Some(output),
            Operand::Input(_) => None,
        };
        let mut reads = self.loads.iter().filter(|load| produced(load).is_some());
        let read = reads.next()?;
        // One way of reading, so that one computation serves all.
        if read.offset != 0
            || reads.any(|load| load.strides != read.strides || load.offset != read.offset)
        {
            return None;
        }
        let whole = read.is_dense(&self.shape);
        if !numbering.kept.is_empty() && !whole {
            return None;
        }
        let pieces = self.pieces(&read.strides, producer)?;
        let mut shape = Vec::new();
        for (piece, &size) in pieces.iter().zip(&self.shape) {
            shape.extend(piece);
            debug_assert_eq!(piece.iter().product::<usize>(), size);
        }
        let steps = refined(&read.strides, &pieces);
        let mut merged = Merged {
            loads: Vec::new(),
            code: Vec::new(),
        };
        let mut inner: Vec<Register> = Vec::new();
        for instruction in &producer.code {
            let value = match instruction.operator {
                Operator::Load(number) => {
                    let load = &producer.loads[usize::from(number)];
                    let strides = composed(&steps, &shape, &producer.shape, &load.strides)?;
                    merged.load(Load {
                        input: numbering.producer[load.input],
                        ty: load.ty,
                        strides,
                        offset: load.offset,
                    })
                }
                _ => merged.push(*instruction, &inner),
            };
            inner.push(value);
        }
        let mut outer: Vec<Register> = Vec::new();
        for instruction in &self.code {
            let value = match instruction.operator {
                Operator::Load(number) => {
                    let load = &self.loads[usize::from(number)];
                    match numbering.consumer[load.input] {
                        Operand::Produced(output) => {
                            let register = producer.stores[output];
                            if producer.code[usize::from(register)].ty != load.ty {
                                return None;
                            }
                            inner[usize::from(register)]
                        }
                        Operand::Input(input) => merged.load(Load {
                            input,
                            ty: load.ty,
                            strides: refined(&load.strides, &pieces),
                            offset: load.offset,
                        }),
                    }
                }
                _ => merged.push(*instruction, &outer),
            };
            outer.push(value);
        }
        let kept = numbering.kept.iter();
        let stores = (kept.map(|&output| inner[usize::from(producer.stores[output])]))
            .chain(self.stores.iter().map(|&value| outer[usize::from(value)]))
            .collect();
        if merged.code.len() > MAX_CODE {
            return None;
        }
        Expression::new(shape, merged.loads, merged.code, stores)
            .filter(|expression| expression.slots.iter().all(|&slot| slot < MAX_LIVE))
    }

    /// Cuts the dimensions so that each piece lies within one dimension of the producer, whose elements
    /// are read with the given steps: by dimension the sizes, from outer to inner.
    fn pieces(&self, strides: &[usize], producer: &Expression) -> Option<Vec<Vec<usize>>> {
        let mut pieces = Vec::new();
        for (&size, &stride) in self.shape.iter().zip(strides) {
            let mut sizes = Vec::new();
            let mut left = size;
            if stride != 0 {
                let mut step = stride;
                let mut border = 1;
                for &inner in producer.shape.iter().rev() {
                    border *= inner;
                    if border <= step || left == 1 {
                        continue;
                    }
                    if border >= step.checked_mul(left)? {
                        break;
                    }
                    if !border.is_multiple_of(step) || !left.is_multiple_of(border / step) {
                        return None;
                    }
                    sizes.push(border / step);
                    left /= border / step;
                    step = border;
                }
            }
            sizes.push(left);
            sizes.reverse();
            pieces.push(sizes);
        }
        Some(pieces)
    }
}

/// Strides over dimensions that were cut into pieces.
fn refined(strides: &[usize], pieces: &[Vec<usize>]) -> Vec<usize> {
    let mut all = Vec::new();
    for (&stride, sizes) in strides.iter().zip(pieces) {
        let mut steps: Vec<usize> = (sizes.iter().rev())
            .scan(stride, |step, &size| {
                let own = *step;
                *step *= size;
                Some(own)
            })
            .collect();
        steps.reverse();
        all.extend(steps);
    }
    all
}

/// How a load of the producer is read from the consumer's dimensions, which see the producer's elements
/// with the given steps.
fn composed(
    steps: &[usize],
    sizes: &[usize],
    shape: &[usize],
    strides: &[usize],
) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for (&step, &size) in steps.iter().zip(sizes) {
        if step == 0 || size == 1 {
            all.push(0);
            continue;
        }
        let mut within = None;
        let mut inner = 1;
        for (&dim, &stride) in shape.iter().zip(strides).rev() {
            let outer = inner * dim;
            if inner <= step && step * size <= outer && step.is_multiple_of(inner) {
                within = Some(stride * (step / inner));
            }
            inner = outer;
        }
        all.push(within?);
    }
    Some(all)
}

/// The code of two expressions, each computation once.
struct Merged {
    loads: Vec<Load>,
    code: Vec<Instruction>,
}

impl Merged {
    fn load(&mut self, load: Load) -> Register {
        let known = self.loads.iter().position(|other| *other == load);
        let number = known.unwrap_or_else(|| {
            self.loads.push(load.clone());
            self.loads.len() - 1
        });
        self.once(Instruction {
            operator: Operator::Load(number as u16),
            ty: load.ty,
            arguments: [0; 3],
        })
    }

    fn push(&mut self, mut instruction: Instruction, values: &[Register]) -> Register {
        let arity = instruction.operator.arity();
        for argument in &mut instruction.arguments[..arity] {
            *argument = values[usize::from(*argument)];
        }
        self.once(instruction)
    }

    fn once(&mut self, instruction: Instruction) -> Register {
        let known = self.code.iter().position(|other| *other == instruction);
        known.unwrap_or_else(|| {
            self.code.push(instruction);
            self.code.len() - 1
        }) as Register
    }
}
