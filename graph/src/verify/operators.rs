//! Calls of functions, `ai.velora`'s operators, and the arity of standard ones.

use super::graphs::NodeRef;
use super::{Checker, arity, domain, short};
use crate::onnx::schema::{AttributeProto, AttributeType};

/// The domain of the operators that the rewrites add.
const VELORA: &str = "ai.velora";

/// What one attribute of an operator may be.
struct Attribute {
    name: &'static str,
    kind: AttributeType,
    required: bool,
    expected: &'static str,
    allowed: fn(&AttributeProto) -> bool,
}

const GROUPS: Attribute = positive("groups");
const FEATURES: Attribute = positive("features");
const TRANSPOSED: Attribute = Attribute {
    name: "transposed",
    kind: AttributeType::Int,
    required: false,
    expected: "0 or 1",
    allowed: |a| matches!(a.i(), 0 | 1),
};
const AXIS: Attribute = Attribute {
    name: "axis",
    kind: AttributeType::Int,
    required: false,
    expected: "-1 or 1",
    allowed: |a| matches!(a.i(), -1 | 1),
};
const SCALE: Attribute = Attribute {
    name: "scale",
    kind: AttributeType::Float,
    required: false,
    expected: "a finite float",
    allowed: |a| a.f().is_finite(),
};

const DECAY: Attribute = Attribute {
    name: "decay",
    kind: AttributeType::Float,
    required: true,
    expected: "a float from 0 to below 1",
    allowed: |a| (0.0..1.0).contains(&a.f()),
};

const fn positive(name: &'static str) -> Attribute {
    Attribute {
        name,
        kind: AttributeType::Int,
        required: true,
        expected: "an int of at least 1",
        allowed: |a| a.i() >= 1,
    }
}

/// Inputs, outputs and attributes of the operators of `ai.velora`, version 1.
fn velora(op: &str) -> Option<(usize, usize, &'static [Attribute])> {
    Some(match op {
        "Compress" => (2, 1, &[GROUPS, AXIS]),
        "MeanDirection" => (1, 1, &[GROUPS, AXIS]),
        "MeanDirections" => (1, 1, &[GROUPS]),
        "RunningDirection" => (2, 1, &[DECAY]),
        "Quantize" => (1, 2, &[]),
        "Dequantize" => (2, 1, &[]),
        "Reconstruct" => (2, 1, &[GROUPS, FEATURES, AXIS]),
        "FactoredWeightGrad" => (3, 1, &[GROUPS, FEATURES, TRANSPOSED, SCALE]),
        "FactoredScaleGrad" => (3, 1, &[GROUPS, SCALE]),
        _ => return None,
    })
}

impl<'a> Checker<'a> {
    pub(super) fn operator(&mut self, node: &NodeRef<'a>) {
        let space = domain(node.proto.domain());
        let op = node.proto.op_type();
        let called = self.functions.called(node.proto);
        if let Some(index) = called {
            self.root.calls.push(index);
            self.call(node, index);
        } else if !node.proto.overload().is_empty() {
            let overload = node.proto.overload();
            self.report(format!(
                "calls the overload '{overload}' of '{space}.{op}', and the model has no such \
                 function"
            ));
        }
        if space == VELORA {
            match velora(op) {
                Some((inputs, outputs, attributes)) => {
                    self.velora_arity(node, inputs, outputs);
                    self.velora_attributes(node, attributes);
                }
                None if called.is_none() => self.report(format!(
                    "'{op}' is no operator of {VELORA}; expected Compress, MeanDirection, \
                     MeanDirections, RunningDirection, Quantize, Dequantize, Reconstruct, \
                     FactoredWeightGrad or FactoredScaleGrad"
                )),
                None => {}
            }
        } else if space.is_empty() && called.is_none() {
            self.arity(node);
        }
    }

    fn call(&mut self, node: &NodeRef<'a>, index: usize) {
        let Some(function) = self.model.functions.get(index) else {
            return;
        };
        let lists = [
            ("inputs", node.inputs.len(), function.input.len()),
            ("outputs", node.outputs.len(), function.output.len()),
        ];
        for (what, given, most) in lists {
            if given > most {
                let name = short(function.name());
                self.report(format!("{given} {what}; the function '{name}' has {most}"));
            }
        }
    }

    fn velora_arity(&mut self, node: &NodeRef<'a>, inputs: usize, outputs: usize) {
        let op = node.proto.op_type();
        for (what, names, expected) in [
            ("input", node.inputs, inputs),
            ("output", node.outputs, outputs),
        ] {
            let given = names.given().count();
            if names.len() != expected || given != expected {
                let plural = if expected == 1 { "" } else { "s" };
                self.report(format!(
                    "{given} {what}s; {op} has {expected} {what}{plural}"
                ));
            }
        }
    }

    fn velora_attributes(&mut self, node: &NodeRef<'a>, known: &[Attribute]) {
        let op = node.proto.op_type();
        for attribute in &node.proto.attribute {
            let name = attribute.name();
            let Some(rule) = known.iter().find(|k| k.name == name) else {
                self.report(format!("{op} has no attribute '{name}'"));
                continue;
            };
            let wrong_type = attribute.r#type() != rule.kind;
            let value = attribute.ref_attr_name.is_none();
            if wrong_type || value && !(rule.allowed)(attribute) {
                self.report(format!(
                    "attribute '{name}' of {op}: expected {}",
                    rule.expected
                ));
            }
        }
        for rule in known.iter().filter(|k| k.required) {
            if !node.proto.attribute.iter().any(|a| a.name() == rule.name) {
                self.report(format!("{op} lacks the attribute '{}'", rule.name));
            }
        }
    }

    fn arity(&mut self, node: &NodeRef<'a>) {
        let op = node.proto.op_type();
        let arity = *self.arities.entry(op).or_insert_with(|| arity::arity(op));
        let Some([fewest_inputs, most_inputs, fewest_outputs, most_outputs]) = arity else {
            return;
        };
        for (what, given, fewest, most) in [
            ("inputs", node.inputs.len(), fewest_inputs, most_inputs),
            ("outputs", node.outputs.len(), fewest_outputs, most_outputs),
        ] {
            if given < fewest || given > most {
                let expected = match most {
                    usize::MAX => format!("{fewest} or more"),
                    most if most == fewest => format!("{fewest}"),
                    most => format!("{fewest} to {most}"),
                };
                self.report(format!("{given} {what}; {op} has {expected}"));
            }
        }
    }
}
