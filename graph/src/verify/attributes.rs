//! Attributes: name, type, value.

use super::{Checker, tensors};
use crate::onnx::schema::{AttributeProto, AttributeType};
use crate::text::attribute_type_name;
use std::collections::HashSet;

/// The fields that can hold a value: name, type, whether it is set, and whether it is always
/// written (a list may be empty, and proto3 writers omit default scalars).
fn fields(a: &AttributeProto) -> [(&'static str, AttributeType, bool, bool); 14] {
    use AttributeType as T;
    [
        ("f", T::Float, a.f.is_some(), false),
        ("i", T::Int, a.i.is_some(), false),
        ("s", T::String, a.s.is_some(), false),
        ("t", T::Tensor, a.t.is_some(), true),
        ("g", T::Graph, a.g.is_some(), true),
        ("floats", T::Floats, !a.floats.is_empty(), false),
        ("ints", T::Ints, !a.ints.is_empty(), false),
        ("strings", T::Strings, !a.strings.is_empty(), false),
        ("tensors", T::Tensors, !a.tensors.is_empty(), false),
        ("graphs", T::Graphs, !a.graphs.is_empty(), false),
        ("tp", T::TypeProto, a.tp.is_some(), true),
        (
            "type_protos",
            T::TypeProtos,
            !a.type_protos.is_empty(),
            false,
        ),
        (
            "sparse_tensor",
            T::SparseTensor,
            a.sparse_tensor.is_some(),
            true,
        ),
        (
            "sparse_tensors",
            T::SparseTensors,
            !a.sparse_tensors.is_empty(),
            false,
        ),
    ]
}

impl<'a> Checker<'a> {
    /// Checks the attributes of a node, or the defaults of a function's attributes.
    pub(super) fn attributes(&mut self, attributes: &'a [AttributeProto]) {
        // Pairs are compared where they are few, as almost always.
        let many = attributes.len() > 8;
        let mut names = HashSet::new();
        for (index, attribute) in attributes.iter().enumerate() {
            let name = attribute.name();
            if name.is_empty() {
                self.report(format!("attribute {index} has no name"));
            } else if match many {
                true => !names.insert(name),
                false => attributes[..index].iter().any(|a| a.name() == name),
            } {
                self.report(format!("attribute '{name}' is given twice"));
            }
            self.attribute_value(attribute);
            self.attribute_content(index, attribute);
        }
    }

    fn attribute_value(&mut self, attribute: &AttributeProto) {
        let name = attribute.name();
        let declared = attribute.r#type.unwrap_or_default();
        let Ok(kind) = AttributeType::try_from(declared) else {
            self.report(format!(
                "attribute '{name}' has the unknown type {declared}"
            ));
            return;
        };
        let fields = fields(attribute);
        let set = fields.iter().filter(|(_, _, set, _)| *set);
        if let Some(outer) = &attribute.ref_attr_name {
            if let Some((field, ..)) = { set }.next() {
                self.report(format!(
                    "attribute '{name}' refers to '{outer}' and has a value in {field}; expected \
                     one of the two"
                ));
            }
            match &self.root.attributes {
                None => self.report(format!(
                    "attribute '{name}' refers to the attribute '{outer}' of a function, and stands \
                     in none"
                )),
                Some(known) if !known.contains(outer.as_str()) => self.report(format!(
                    "attribute '{name}' refers to '{outer}', which the function does not declare"
                )),
                Some(_) => {}
            }
            return;
        }
        if kind == AttributeType::Undefined {
            let count = set.count();
            if self.model.ir_version() > 1 {
                self.report(format!("attribute '{name}' has no type; expected one"));
            } else if count != 1 {
                self.report(format!(
                    "attribute '{name}' has no type and {count} values; expected one value"
                ));
            }
            return;
        }
        let text = attribute_type_name(declared).unwrap_or_default();
        let other: Vec<_> = { set }.filter(|f| f.1 != kind).map(|f| f.0).collect();
        if !other.is_empty() {
            let other = other.join(", ");
            self.report(format!(
                "attribute '{name}' of type {text} has a value in {other}"
            ));
        }
        let own = fields.iter().find(|(_, k, ..)| *k == kind);
        if let Some((field, _, false, true)) = own {
            self.report(format!(
                "attribute '{name}' of type {text} has no value in {field}"
            ));
        }
    }

    fn attribute_content(&mut self, index: usize, attribute: &'a AttributeProto) {
        let name = attribute.name();
        for tensor in (attribute.t.as_deref().into_iter()).chain(&attribute.tensors) {
            for problem in tensors::problems(tensor) {
                self.report(format!("attribute '{name}': {problem}"));
            }
        }
        for sparse in
            (attribute.sparse_tensor.as_deref().into_iter()).chain(&attribute.sparse_tensors)
        {
            for problem in tensors::sparse_problems(sparse) {
                self.report(format!("attribute '{name}': {problem}"));
            }
        }
        for kind in (attribute.tp.as_deref().into_iter()).chain(&attribute.type_protos) {
            if let Some(problem) = tensors::type_problem(kind, 0) {
                self.report(format!("attribute '{name}': {problem}"));
            }
        }
        for (position, graph) in (attribute.g.as_deref().into_iter().enumerate())
            .chain(attribute.graphs.iter().enumerate())
        {
            self.nested(index, name, position, graph);
        }
    }
}
