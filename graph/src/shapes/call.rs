//! One operator application, as the rules see it.

use super::DataType;
use super::fact::{Fact, unknown};
use super::rules::{Fault, Outcome};
use crate::dim::Dim;
use crate::ir::{Graph, Node, ValueId};

/// A node with the facts about its inputs, and room for those about its outputs.
pub(super) struct Call<'a> {
    pub graph: &'a Graph,
    pub node: &'a Node,
    /// The version of the standard operators.
    pub opset: i64,
    pub facts: &'a [Fact],
    /// One for each output slot of the node.
    pub outputs: Vec<Fact>,
}

impl<'a> Call<'a> {
    /// What is known of an input; nothing where it is absent.
    pub fn input(&self, slot: usize) -> &'a Fact {
        match self.node.inputs.get(slot) {
            Some(Some(value)) => &self.facts[value.index()],
            _ => Fact::EMPTY,
        }
    }

    pub fn has(&self, slot: usize) -> bool {
        matches!(self.node.inputs.get(slot), Some(Some(_)))
    }

    pub fn value(&self, slot: usize) -> Option<ValueId> {
        self.node.inputs.get(slot).copied().flatten()
    }

    /// The name of an input tensor.
    pub fn name(&self, slot: usize) -> &'a str {
        self.value(slot).map_or("", |v| &self.graph.value(v).name)
    }

    /// The name of an output tensor, the first where that one is absent.
    pub fn output_name(&self, slot: usize) -> &'a str {
        let at = |slot: usize| self.node.outputs.get(slot).copied().flatten();
        let value = at(slot).or_else(|| self.node.outputs.iter().flatten().next().copied());
        value.map_or("", |v| &self.graph.value(v).name)
    }

    pub fn shape(&self, slot: usize) -> Option<&'a [Dim]> {
        self.input(slot).shape.as_deref()
    }

    pub fn shape_owned(&self, slot: usize) -> Option<Vec<Dim>> {
        self.input(slot).shape.clone()
    }

    pub fn rank(&self, slot: usize) -> Option<usize> {
        self.shape(slot).map(<[Dim]>::len)
    }

    pub fn dtype(&self, slot: usize) -> Option<DataType> {
        self.input(slot).data_type
    }

    pub fn contents(&self, slot: usize) -> Option<&'a [Dim]> {
        self.input(slot).contents.as_deref()
    }

    /// The elements of an input, where all are numbers.
    pub fn numbers(&self, slot: usize) -> Option<Vec<i64>> {
        self.contents(slot)?.iter().map(Dim::as_const).collect()
    }

    pub fn text(&self, attribute: &str, default: &'static str) -> &'a str {
        let found = self.node.attribute(attribute).and_then(|a| a.s.as_deref());
        found.map_or(default, |s| std::str::from_utf8(s).unwrap_or(""))
    }

    /// Axes: an input since some version of the operator, an attribute before. `None` where absent;
    /// `Some(Err)` where present and unknown.
    pub fn axes(&self, attribute: &str, slot: usize) -> Option<Result<Vec<i64>, ()>> {
        if let Some(list) = self.node.ints(attribute) {
            return Some(Ok(list.to_vec()));
        }
        self.has(slot).then(|| self.numbers(slot).ok_or(()))
    }

    pub fn set(&mut self, slot: usize, fact: Fact) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = fact;
        }
    }

    pub fn give(&mut self, slot: usize, data_type: Option<DataType>, shape: Option<Vec<Dim>>) {
        self.set(slot, Fact::new(data_type, shape));
    }

    /// An output of the type and shape of an input.
    pub fn like(&mut self, output: usize, input: usize) {
        let input = self.input(input);
        self.give(output, input.data_type, input.shape.clone());
    }

    pub fn fault(
        &self,
        tensor: &str,
        found: String,
        other: String,
        hint: &'static str,
    ) -> Box<Fault> {
        Box::new(Fault {
            tensor: tensor.to_owned(),
            found,
            other,
            hint,
        })
    }

    /// The axis counted from the front.
    pub fn axis(&self, axis: i64, rank: usize, slot: usize) -> Result<usize, Box<Fault>> {
        self.resolve(axis, rank).ok_or_else(|| {
            self.fault(
                self.name(slot),
                format!("axis {axis} is asked for"),
                format!("the tensor has rank {rank}"),
                "check the axis attribute or input of the node",
            )
        })
    }

    pub fn resolve(&self, axis: i64, rank: usize) -> Option<usize> {
        let rank = i64::try_from(rank).ok()?;
        let front = if axis < 0 {
            axis.checked_add(rank)?
        } else {
            axis
        };
        (0..rank)
            .contains(&front)
            .then_some(front)
            .and_then(|a| usize::try_from(a).ok())
    }

    /// An error unless the rank is unknown or within bounds.
    pub fn want_rank(&self, slot: usize, least: usize, most: usize) -> Outcome {
        match self.rank(slot) {
            Some(rank) if rank < least || rank > most => Err(self.fault(
                self.name(slot),
                format!("the rank is {rank}"),
                match (least, most) {
                    (a, b) if a == b => format!("input {slot} must have rank {a}"),
                    (a, usize::MAX) => format!("input {slot} must have a rank of at least {a}"),
                    (a, b) => format!("input {slot} must have a rank from {a} to {b}"),
                },
                "check what feeds the node",
            )),
            _ => Ok(()),
        }
    }

    /// The element type that inputs share.
    pub fn same_type(
        &self,
        slots: impl IntoIterator<Item = usize>,
    ) -> Result<Option<DataType>, Box<Fault>> {
        let mut first: Option<(usize, DataType)> = None;
        for slot in slots {
            let Some(found) = self.dtype(slot) else {
                continue;
            };
            match first {
                Some((other, expected)) if expected != found => {
                    return Err(self.fault(
                        self.name(slot),
                        format!("the element type is {found}"),
                        format!("'{}' has {expected}", self.name(other)),
                        "the operator takes one type for both: insert a Cast",
                    ));
                }
                Some(_) => {}
                None => first = Some((slot, found)),
            }
        }
        Ok(first.map(|(_, t)| t))
    }

    /// One size known from two places: the more telling one, an error where they are two numbers.
    pub fn agree(
        &self,
        (slot, axis): (usize, usize),
        (other_slot, other_axis): (usize, usize),
    ) -> Result<Dim, Box<Fault>> {
        let at = |slot: usize, axis: usize| {
            let dim = self.shape(slot).and_then(|s| s.get(axis));
            dim.cloned().unwrap_or_else(unknown)
        };
        let (a, b) = (at(slot, axis), at(other_slot, other_axis));
        match (a.as_const(), b.as_const()) {
            (Some(x), Some(y)) if x != y => Err(self.fault(
                self.name(slot),
                format!("axis {axis} is {x}"),
                format!("axis {other_axis} of '{}' is {y}", self.name(other_slot)),
                "the two must be equal: check the layouts of the operands",
            )),
            (None, Some(_)) => Ok(b),
            _ if a.is_undefined() => Ok(b),
            _ => Ok(a),
        }
    }

    /// The shape that inputs broadcast to, or `None` where one of them is unknown.
    pub fn broadcast(
        &self,
        slots: impl IntoIterator<Item = usize>,
    ) -> Result<Option<Vec<Dim>>, Box<Fault>> {
        let mut total: Option<(usize, Vec<Dim>)> = None;
        for slot in slots {
            let Some(shape) = self.shape(slot) else {
                return Ok(None);
            };
            total = Some(match total {
                None => (slot, shape.to_vec()),
                Some((first, so_far)) => match broadcast(&so_far, shape) {
                    Ok(shape) => (first, shape),
                    Err((a, b)) => {
                        return Err(self.fault(
                            self.name(slot),
                            format!("the shape {} has a {b}", list(shape)),
                            format!("'{}' {} has a {a} there", self.name(first), list(&so_far)),
                            "sizes that are broadcast must be equal or 1",
                        ));
                    }
                },
            });
        }
        Ok(total.map(|(_, shape)| shape))
    }
}

/// `[batch, 4]`, for messages.
pub(super) fn list(shape: &[Dim]) -> String {
    let sizes: Vec<String> = shape.iter().map(show).collect();
    format!("[{}]", sizes.join(", "))
}

pub(super) fn show(dim: &Dim) -> String {
    if dim.is_undefined() {
        return "?".to_owned();
    }
    dim.to_string()
}

/// Numpy's rule, from the last axis; the two numbers that are not compatible otherwise.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, (i64, i64)> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let extra = long.len() - short.len();
    let mut shape = long.to_vec();
    for (axis, dim) in short.iter().enumerate() {
        let slot = &mut shape[axis + extra];
        *slot = match join(slot, dim) {
            Some(dim) => dim,
            None => {
                let (x, y) = (slot.as_const().unwrap_or(0), dim.as_const().unwrap_or(0));
                return Err(if a.len() >= b.len() { (x, y) } else { (y, x) });
            }
        };
    }
    Ok(shape)
}

/// The size that two sizes broadcast to, `None` where they are two numbers that do not.
pub(super) fn join(a: &Dim, b: &Dim) -> Option<Dim> {
    if a == b {
        return Some(a.clone());
    }
    Some(match (a.as_const(), b.as_const()) {
        (Some(1), _) => b.clone(),
        (_, Some(1)) => a.clone(),
        (Some(_), Some(_)) => return None,
        // The other one is this number, or 1.
        (Some(_), None) => a.clone(),
        (None, Some(_)) => b.clone(),
        // Equal, or one of them is 1; symbols are at least 1.
        (None, None) => a.maximum(b),
    })
}
