//! Nodes beside the body of an operator.

use super::super::{Difference, at};
use crate::ops::{Op, Variant};
use prost::Message;
use std::collections::{HashMap, HashSet};
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};
use velora_graph::onnx::schema::{AttributeProto, FunctionProto, NodeProto};

/// A body of an operator.
pub(super) type Body = (Variant, FunctionProto);

/// The nodes that may be part of an operator's expansions.
pub(super) struct Members<'a> {
    pub graph: &'a Graph,
    pub op: Op,
    pub nodes: HashSet<NodeId>,
}

/// A comparison of nodes with a body.
pub(super) struct Attempt<'b> {
    pub variant: Variant,
    pub body: &'b FunctionProto,
    /// By name in the body: the value.
    pub values: HashMap<&'b str, ValueId>,
    /// The attributes of the call that the nodes stand for, as far as they are read.
    pub attributes: HashMap<&'b str, AttributeProto>,
    /// The nodes that were looked at.
    pub seen: HashSet<NodeId>,
    /// How many of those are the body's.
    same: usize,
    /// The first thing that is not as in the body.
    pub wrong: Option<Difference>,
}

impl Members<'_> {
    /// The body that makes a value, or the one that its nodes are most like.
    pub fn best<'b>(&self, bodies: &'b [Body], value: ValueId) -> Option<Attempt<'b>> {
        let mut best: Option<Attempt<'b>> = None;
        for (variant, body) in bodies {
            for output in &body.output {
                let attempt = self.attempt(*variant, body, (output, value));
                if attempt.wrong.is_none() {
                    return Some(attempt);
                }
                if best.as_ref().is_none_or(|best| attempt.same > best.same) {
                    best = Some(attempt);
                }
            }
        }
        best
    }

    /// Goes up from a value and from what the body calls it, side by side.
    fn attempt<'b>(
        &self,
        variant: Variant,
        body: &'b FunctionProto,
        (output, value): (&'b str, ValueId),
    ) -> Attempt<'b> {
        let mut attempt = Attempt {
            variant,
            body,
            values: HashMap::new(),
            attributes: HashMap::new(),
            seen: HashSet::new(),
            same: 0,
            wrong: None,
        };
        let makers: HashMap<&str, (&NodeProto, usize)> = (body.node.iter())
            .flat_map(|node| {
                let outputs = node.output.iter().enumerate();
                outputs.map(move |(slot, name)| (name.as_str(), (node, slot)))
            })
            .collect();
        let mut pending = vec![(output, value, None)];
        while let Some((name, value, reader)) = pending.pop() {
            let value = self.graph.unpinned(value);
            if let Some(&known) = attempt.values.get(name) {
                if known != value {
                    let (is, known) = (self.name(value), self.name(known));
                    let problem = format!("is read where {} reads '{known}'", self.whose());
                    attempt.differs(|| self.at(reader, is, problem));
                }
                continue;
            }
            attempt.values.insert(name, value);
            if body.input.iter().any(|input| input == name) {
                continue;
            }
            let Some(&(wanted, slot)) = makers.get(name) else {
                continue;
            };
            match self.graph.value(value).origin {
                Origin::Node(id, at) if at == slot && self.nodes.contains(&id) => {
                    attempt.seen.insert(id);
                    match self.node(&mut attempt, id, wanted) {
                        Err(problem) => attempt.differs(|| self.at(Some(id), "", problem)),
                        Ok(operands) => {
                            attempt.same += 1;
                            let operands = operands.into_iter();
                            pending.extend(operands.map(|(name, value)| (name, value, Some(id))));
                        }
                    }
                }
                _ => {
                    let problem = format!(
                        "is read where {} reads what its own {} makes",
                        self.whose(),
                        wanted.op_type()
                    );
                    attempt.differs(|| self.at(reader, self.name(value), problem));
                }
            }
        }
        attempt
    }

    /// Compares a node with one of the body, but for what they read; that is returned, by the body's names.
    fn node<'b>(
        &self,
        attempt: &mut Attempt<'b>,
        id: NodeId,
        wanted: &'b NodeProto,
    ) -> Result<Vec<(&'b str, ValueId)>, String> {
        let node = self.graph.node(id);
        let whose = self.whose();
        if (node.op(), node.domain()) != (wanted.op_type(), wanted.domain()) {
            return Err(format!("stands where {whose} has {}", wanted.op_type()));
        }
        for attribute in &wanted.attribute {
            let name = attribute.name();
            let Some(is) = node.attribute(name) else {
                return Err(format!("has no attribute '{name}', which {whose} gives it"));
            };
            let Some(reference) = &attribute.ref_attr_name else {
                if is.encode_to_vec() != attribute.encode_to_vec() {
                    return Err(match (is.i, attribute.i) {
                        (Some(is), Some(wanted)) => {
                            format!("has {name} = {is} where {whose} has {wanted}")
                        }
                        _ => format!("has another value of its attribute '{name}' than {whose}"),
                    });
                }
                continue;
            };
            // One attribute of the call has one value.
            let known = attempt.attributes.entry(reference.as_str());
            let known = known.or_insert_with(|| is.clone());
            let bits = |a: &AttributeProto| (a.i, a.f.map(f32::to_bits));
            if bits(known) != bits(is) {
                return Err(format!(
                    "has another {reference} than the rest of the expansion"
                ));
            }
        }
        if let Some(more) = (node.proto.attribute.iter())
            .find(|a| wanted.attribute.iter().all(|w| w.name() != a.name()))
        {
            return Err(format!(
                "has the attribute '{}', and none in {whose}",
                more.name()
            ));
        }
        if node.inputs.len() != wanted.input.len() || node.outputs.len() != wanted.output.len() {
            return Err(format!(
                "has more or fewer operands or outputs than in {whose}"
            ));
        }
        let operands = wanted.input.iter().zip(&node.inputs);
        let operands = operands.map(|(name, &value)| match value {
            Some(value) => Ok((name.as_str(), value)),
            None => Err(format!("lacks an operand that it has in {whose}")),
        });
        operands.collect()
    }

    fn whose(&self) -> String {
        format!("the body of {}", self.op.name())
    }

    fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    fn at(&self, node: Option<NodeId>, tensor: &str, problem: String) -> Difference {
        match node {
            Some(node) => at(self.graph, node, tensor, problem),
            None => Difference {
                node: String::new(),
                op: String::new(),
                tensor: tensor.to_owned(),
                problem,
            },
        }
    }
}

impl Attempt<'_> {
    fn differs(&mut self, difference: impl FnOnce() -> Difference) {
        if self.wrong.is_none() {
            self.wrong = Some(difference());
        }
    }
}
