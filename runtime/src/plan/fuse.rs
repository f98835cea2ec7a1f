//! Chains of element-wise operations become one operation each.
//!
//! A fused operation reads its inputs and writes its outputs once; what only it reads is never in memory.
//! An intermediate that others read as well is one more output. Every value is rounded as before, so
//! the bits do not change.
//!
//! Operations of the forward half are never fused with such of the backward half: what the backward half
//! reads is what the analysis of lifetimes says. And operations stay near where they were: nothing
//! big may live longer than it did.

use crate::ops::Op;
use crate::ops::elementwise::{Elementwise, Expression, Numbering, Operand};
use crate::plan::MAX_OPERANDS;
use crate::program::{Operation, Program, Source, TensorId};

/// Fuses the element-wise operations of a program; returns how many operations are gone.
pub fn fuse(program: &mut Program) -> usize {
    let before = program.operations.len();
    let mut fusion = Fusion::new(program);
    for place in 0..before {
        while fusion.absorb_one(place) {}
    }
    let operations = std::mem::take(&mut fusion.operations);
    let mut moved: Vec<(usize, Operation)> = (operations.into_iter().enumerate())
        .filter_map(|(place, operation)| Some((place, operation?)))
        .collect();
    moved.sort_by_key(|&(place, _)| place);
    program.operations = moved.into_iter().map(|(_, operation)| operation).collect();
    before - program.operations.len()
}

struct Fusion<'p> {
    program: &'p Program,
    /// By tensor: its root.
    roots: Vec<TensorId>,
    /// The operations at their places; `None` where one has gone into another.
    operations: Vec<Option<Operation>>,
    /// By root: the operations that read it, in order, each once.
    readers: Vec<Vec<usize>>,
    /// By root: the operation that makes it.
    producer: Vec<Option<usize>>,
    /// By root: the operations that write over it.
    updates: Vec<Vec<usize>>,
    /// By root: whether it must be there after the step.
    wanted: Vec<bool>,
    /// By place: how many operations before it are of other families.
    others: Vec<usize>,
}

impl<'p> Fusion<'p> {
    fn new(program: &'p Program) -> Self {
        let count = program.values.len();
        let ids = (0..count).map(|index| TensorId(index as u32));
        let roots: Vec<TensorId> = ids.map(|id| program.root(id)).collect();
        let mut fusion = Fusion {
            program,
            operations: program.operations.iter().cloned().map(Some).collect(),
            readers: vec![Vec::new(); count],
            producer: vec![None; count],
            updates: vec![Vec::new(); count],
            wanted: vec![false; count],
            others: Vec::new(),
            roots,
        };
        let mut others = 0;
        for (place, operation) in program.operations.iter().enumerate() {
            for root in fusion.read(operation) {
                fusion.readers[root.index()].push(place);
            }
            for &output in operation.outputs.iter().flatten() {
                let root = fusion.root(output);
                if matches!(program.value(output).source, Source::Computed) {
                    fusion.producer[root.index()] = Some(place);
                } else {
                    fusion.updates[root.index()].push(place);
                }
            }
            fusion.others.push(others);
            others += usize::from(expression(operation).is_none());
        }
        for id in program.wanted() {
            let root = fusion.root(id);
            fusion.wanted[root.index()] = true;
        }
        fusion
    }

    fn root(&self, id: TensorId) -> TensorId {
        self.roots[id.index()]
    }

    /// The roots that an operation reads, each once.
    fn read(&self, operation: &Operation) -> Vec<TensorId> {
        let inputs = operation.inputs.iter().flatten();
        let mut roots: Vec<TensorId> = inputs.map(|&id| self.root(id)).collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    /// Merges one producer into the operation at a place; false where none can be.
    fn absorb_one(&mut self, place: usize) -> bool {
        let Some(consumer) = self.operations[place].as_ref() else {
            return false;
        };
        if !self.is_open(consumer) {
            return false;
        }
        let mut producers: Vec<usize> = (self.read(consumer).iter())
            .filter_map(|root| self.producer[root.index()])
            .collect();
        // The nearest first: it is the likeliest to be read by nobody else.
        producers.sort_unstable_by(|a, b| b.cmp(a));
        producers.dedup();
        (producers.into_iter()).any(|producer| producer < place && self.merge(producer, place))
    }

    /// Whether an operation is an expression that makes new tensors only.
    fn is_open(&self, operation: &Operation) -> bool {
        expression(operation).is_some()
            && (operation.outputs.iter()).all(|output| {
                output.is_some_and(|id| matches!(self.program.value(id).source, Source::Computed))
            })
    }

    fn merge(&mut self, at: usize, place: usize) -> bool {
        let Some(merged) = self.merged(at, place) else {
            return false;
        };
        let pair = (self.operations[at].take(), self.operations[place].take());
        let (Some(producer), Some(consumer)) = pair else {
            return false;
        };
        for root in self.read(&producer).into_iter().chain(self.read(&consumer)) {
            self.readers[root.index()].retain(|&reader| reader != at && reader != place);
        }
        for root in self.read(&merged) {
            let readers = &mut self.readers[root.index()];
            readers.push(place);
            readers.sort_unstable();
        }
        for &output in producer.outputs.iter().flatten() {
            self.producer[self.roots[output.index()].index()] = None;
        }
        for &output in merged.outputs.iter().flatten() {
            self.producer[self.roots[output.index()].index()] = Some(place);
        }
        self.operations[place] = Some(merged);
        true
    }

    /// Two operations as one, at the place of the second; `None` where that must not be.
    fn merged(&self, at: usize, place: usize) -> Option<Operation> {
        let (producer, consumer) = (
            self.operations[at].as_ref()?,
            self.operations[place].as_ref()?,
        );
        if producer.backward != consumer.backward || !self.is_open(producer) {
            return None;
        }
        let (inner, outer) = (expression(producer)?, expression(consumer)?);
        let repetitions = outer.repetitions(inner)?;
        let mut kept = Vec::new();
        for (number, output) in producer.outputs.iter().enumerate() {
            let root = self.root((*output)?);
            let readers = &self.readers[root.index()];
            // Whoever else reads it must come later.
            if readers
                .iter()
                .any(|&reader| reader != place && reader < place)
            {
                return None;
            }
            if self.wanted[root.index()] || readers.iter().any(|&reader| reader != place) {
                kept.push(number);
            }
        }
        if repetitions > 1 && !(inner.is_cheap() && kept.is_empty()) {
            return None;
        }
        let read = self.read(producer);
        let overwritten = |root: &TensorId| {
            let mut updates = self.updates[root.index()].iter();
            updates.any(|&update| at < update && update < place)
        };
        if read.iter().any(overwritten) || !self.keeps_lifetimes(at, place, &read) {
            return None;
        }
        let mut inputs: Vec<TensorId> = Vec::new();
        let mut number = |id: TensorId| {
            let root = self.root(id);
            let known = inputs.iter().position(|&input| self.root(input) == root);
            known.unwrap_or_else(|| {
                inputs.push(id);
                inputs.len() - 1
            })
        };
        let mut of_producer = Vec::new();
        for input in &producer.inputs {
            of_producer.push(number((*input)?));
        }
        let mut of_consumer = Vec::new();
        for input in &consumer.inputs {
            let id = (*input)?;
            let root = self.root(id);
            let output = (producer.outputs.iter())
                .position(|output| output.is_some_and(|output| self.root(output) == root));
            of_consumer.push(match output {
                Some(output) => Operand::Produced(output),
                None => Operand::Input(number(id)),
            });
        }
        let numbering = Numbering {
            producer: &of_producer,
            consumer: &of_consumer,
            kept: &kept,
        };
        let expression = outer.with_producer(inner, &numbering)?;
        let outputs: Vec<Option<TensorId>> = (kept.iter())
            .map(|&number| producer.outputs[number])
            .chain(consumer.outputs.iter().copied())
            .collect();
        if inputs.len() > MAX_OPERANDS || outputs.len() > MAX_OPERANDS {
            return None;
        }
        Some(Operation {
            op: Op::Elementwise(Elementwise::Expression(expression)),
            inputs: inputs.into_iter().map(Some).collect(),
            outputs,
            node: consumer.node.clone(),
            backward: consumer.backward,
        })
    }

    /// Whether moving a producer to its consumer lets no more bytes live in between: what it reads stays
    /// alive, and what it makes is not yet there.
    fn keeps_lifetimes(&self, at: usize, place: usize, read: &[TensorId]) -> bool {
        if self.others[at] == self.others[place] {
            return true;
        }
        let bytes = |root: TensorId| self.program.ty(root).bytes();
        let longer: usize = (read.iter())
            .filter(|root| {
                let last = self.readers[root.index()].last();
                !self.wanted[root.index()]
                    && matches!(self.program.value(**root).source, Source::Computed)
                    && last.is_some_and(|&last| last < place)
            })
            .map(|&root| bytes(root))
            .sum();
        let outputs = self.operations[at]
            .iter()
            .flat_map(|operation| &operation.outputs);
        let shorter: usize = outputs.flatten().map(|&id| bytes(self.root(id))).sum();
        longer <= shorter
    }
}

/// The expression of an operation, where it is one.
fn expression(operation: &Operation) -> Option<&Expression> {
    match &operation.op {
        Op::Elementwise(Elementwise::Expression(expression)) => Some(expression),
        _ => None,
    }
}
