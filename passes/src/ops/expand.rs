//! A call as the nodes of its body.

use super::function::body;
use super::{Op, Variant};
use crate::proto::metadata;
use std::collections::HashMap;
use velora_graph::onnx::schema::{AttributeProto, AttributeType, NodeProto};
use velora_graph::text::ParseError;

/// The nodes of the body that a call stands for: attributes filled in, inner values named by
/// `fresh`, the call's own inputs, outputs, name and metadata kept.
///
/// # Errors
/// Only where a body's text is broken, which a test excludes.
pub fn expand(
    op: Op,
    variant: Variant,
    call: &NodeProto,
    mut fresh: impl FnMut(&str) -> String,
) -> Result<Vec<NodeProto>, ParseError> {
    let function = body(op, variant)?;
    let mut names: HashMap<String, String> = HashMap::new();
    names.extend(
        function
            .input
            .iter()
            .cloned()
            .zip(call.input.iter().cloned()),
    );
    names.extend(
        function
            .output
            .iter()
            .cloned()
            .zip(call.output.iter().cloned()),
    );
    let mut nodes = Vec::with_capacity(function.node.len());
    for mut node in function.node {
        for name in &mut node.output {
            let known = names.get(name).cloned();
            let new = known.unwrap_or_else(|| fresh(name));
            names.insert(std::mem::take(name), new.clone());
            *name = new;
        }
        for name in &mut node.input {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        }
        for attribute in &mut node.attribute {
            fill(attribute, &call.attribute);
        }
        let role = node.output.first().cloned().unwrap_or_default();
        node.name = Some(role);
        node.metadata_props.push(metadata("op", op.name()));
        node.metadata_props
            .extend(call.metadata_props.iter().cloned());
        nodes.push(node);
    }
    Ok(nodes)
}

/// Puts the call's attribute in the place of a reference to it.
fn fill(attribute: &mut AttributeProto, given: &[AttributeProto]) {
    let Some(reference) = attribute.ref_attr_name.take() else {
        return;
    };
    let Some(value) = given.iter().find(|a| a.name() == reference) else {
        return;
    };
    attribute.i = value.i;
    attribute.f = value.f;
    attribute.r#type = value.r#type.or(Some(AttributeType::Undefined as i32));
}
