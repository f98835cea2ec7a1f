//! Writing protos as text.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::place::{Nested, Part, Place};
use super::{ATTRIBUTE_TYPES, ELEMENT_TYPES, is_identifier, is_type_word, name_of};
use crate::onnx::schema::tensor_shape_proto::dimension;
use crate::onnx::schema::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

/// Writes a model as text.
#[must_use]
pub fn print_model(model: &ModelProto) -> String {
    let mut p = Printer::new();
    p.model(model);
    p.out
}

/// Writes a model as text with notes as comments, each on a line of its own behind its place.
///
/// The text still parses. Control characters in notes are escaped.
#[must_use]
pub fn print_annotated<'n>(
    model: &ModelProto,
    notes: impl IntoIterator<Item = (&'n Place, &'n str)>,
) -> String {
    let mut p = Printer::new();
    for (place, note) in notes {
        p.notes.entry(place).or_default().push(note);
    }
    p.model(model);
    // What is about parts without text, such as a graph in an attribute that is declared an int.
    let mut rest: Vec<_> = std::mem::take(&mut p.notes).into_iter().collect();
    rest.sort();
    for note in rest.into_iter().flat_map(|(_, notes)| notes) {
        p.put("\n");
        p.comment(note);
    }
    p.out
}

/// Writes a graph as text.
#[must_use]
pub fn print_graph(graph: &GraphProto) -> String {
    let mut p = Printer::new();
    p.graph(graph);
    p.out
}

/// Writes a function as text.
#[must_use]
pub fn print_function(function: &FunctionProto) -> String {
    let mut p = Printer::new();
    p.function(function);
    p.out
}

/// Writes a node as text, indented and with the end of its line, as it stands in a graph.
#[must_use]
pub fn print_node(node: &NodeProto) -> String {
    let mut p = Printer::new();
    p.node(node);
    p.out
}

/// One step of indentation, as the Python printer has it.
const INDENT: usize = 3;

struct Printer<'n> {
    out: String,
    indent: usize,
    place: Place,
    notes: HashMap<&'n Place, Vec<&'n str>>,
}

impl Printer<'_> {
    fn new() -> Self {
        Self {
            out: String::new(),
            indent: INDENT,
            place: Place::default(),
            notes: HashMap::new(),
        }
    }

    /// The notes for the current place.
    fn note(&mut self) {
        for note in self.notes.remove(&self.place).unwrap_or_default() {
            self.pad(self.indent);
            self.comment(note);
            self.put("\n");
        }
    }

    fn comment(&mut self, text: &str) {
        self.put("# ");
        for c in text.chars() {
            if c.is_control() {
                self.display(c.escape_default());
            } else {
                self.out.push(c);
            }
        }
    }

    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn display(&mut self, value: impl std::fmt::Display) {
        // Writing to a `String` cannot fail.
        let _ = write!(self.out, "{value}");
    }

    fn pad(&mut self, width: usize) {
        self.out.extend(std::iter::repeat_n(' ', width));
    }

    /// Writes every item between the brackets.
    fn set<T>(
        &mut self,
        [open, separator, close]: [&str; 3],
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.put(open);
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.put(separator);
            }
            each(self, item);
        }
        self.put(close);
    }

    fn quoted(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            if c == '\\' || c == '"' {
                self.out.push('\\');
            }
            self.out.push(c);
        }
        self.out.push('"');
    }

    fn quoted_bytes(&mut self, bytes: &[u8]) {
        self.quoted(&String::from_utf8_lossy(bytes));
    }

    fn id(&mut self, name: &str) {
        if is_identifier(name) {
            self.put(name);
        } else {
            self.quoted(name);
        }
    }

    /// A name at a place where a type may stand too.
    fn id_not_type(&mut self, name: &str) {
        if is_type_word(name) {
            self.quoted(name);
        } else {
            self.id(name);
        }
    }

    fn entries(&mut self, entries: &[StringStringEntryProto]) {
        self.set(["[", ", ", "]"], entries, |p, e| {
            p.quoted(e.key.as_deref().unwrap_or_default());
            p.put(": ");
            p.quoted(e.value.as_deref().unwrap_or_default());
        });
    }

    fn opset(&mut self, opset: &OperatorSetIdProto) {
        self.quoted(opset.domain.as_deref().unwrap_or_default());
        self.put(" : ");
        self.display(opset.version.unwrap_or_default());
    }

    fn key_text(&mut self, key: &str, value: Option<&String>) {
        if let Some(value) = value {
            self.put(",\n   ");
            self.put(key);
            self.put(": ");
            self.quoted(value);
        }
    }

    fn model(&mut self, model: &ModelProto) {
        self.put("<\n   ");
        if let Some(version) = model.ir_version {
            self.put("ir_version: ");
            self.display(version);
            self.put(",\n   ");
        }
        self.put("opset_import: ");
        self.set(["[", ", ", "]"], &model.opset_import, Self::opset);
        self.key_text("producer_name", model.producer_name.as_ref());
        self.key_text("producer_version", model.producer_version.as_ref());
        self.key_text("domain", model.domain.as_ref());
        if let Some(version) = model.model_version {
            self.put(",\n   model_version: ");
            self.display(version);
        }
        self.key_text("doc_string", model.doc_string.as_ref());
        if !model.metadata_props.is_empty() {
            self.put(",\n   metadata_props: ");
            self.entries(&model.metadata_props);
        }
        self.put("\n>\n");
        self.note();
        self.place.part = Part::Graph;
        match &model.graph {
            Some(graph) => self.graph(graph),
            None => self.graph(&GraphProto::default()),
        }
        for (i, function) in model.functions.iter().enumerate() {
            self.place.part = Part::Function(i);
            self.put("\n");
            self.function(function);
        }
    }

    fn graph(&mut self, graph: &GraphProto) {
        self.id(graph.name.as_deref().unwrap_or_default());
        self.set([" (", ", ", ")"], &graph.input, Self::value_info);
        self.set([" => (", ", ", ") "], &graph.output, Self::value_info);
        if !graph.initializer.is_empty() || !graph.value_info.is_empty() {
            self.put("\n");
            self.pad(self.indent);
            self.set(["<", ", ", ""], &graph.initializer, Self::initializer);
            if !graph.initializer.is_empty() && !graph.value_info.is_empty() {
                self.put(", ");
            }
            self.set(["", ", ", ">\n"], &graph.value_info, Self::value_info);
        }
        self.nodes(&graph.node);
    }

    fn nodes(&mut self, nodes: &[NodeProto]) {
        self.put("{\n");
        self.note();
        for (i, node) in nodes.iter().enumerate() {
            self.place.node = Some(i);
            self.node(node);
            self.note();
        }
        self.place.node = None;
        self.pad(self.indent - INDENT);
        self.put("}");
    }

    fn function(&mut self, function: &FunctionProto) {
        self.put("<\n  ");
        for (key, value) in [
            ("domain", function.domain.as_ref()),
            ("overload", function.overload.as_ref()),
            ("doc_string", function.doc_string.as_ref()),
        ] {
            if let Some(value) = value {
                self.put(key);
                self.put(": ");
                self.quoted(value);
                self.put(",\n  ");
            }
        }
        self.put("opset_import: ");
        self.set(["[", ",", "]"], &function.opset_import, Self::opset);
        self.put("\n>\n");
        self.id(function.name.as_deref().unwrap_or_default());
        self.put(" ");
        if !function.attribute.is_empty() || !function.attribute_proto.is_empty() {
            self.set(["<", ",", ""], &function.attribute, |p, a| p.id(a));
            if !function.attribute.is_empty() && !function.attribute_proto.is_empty() {
                self.put(",");
            }
            let defaults = function.attribute_proto.iter().enumerate();
            self.set(["", ",", ">"], defaults, Self::attribute);
        }
        self.set(["(", ", ", ")"], &function.input, |p, n| p.id_not_type(n));
        self.set([" => (", ", ", ")\n"], &function.output, |p, n| {
            p.id_not_type(n);
        });
        if !function.value_info.is_empty() {
            self.set(["<", ", ", ">\n"], &function.value_info, Self::value_info);
        }
        self.nodes(&function.node);
    }

    fn node(&mut self, node: &NodeProto) {
        self.pad(self.indent);
        if let Some(name) = &node.name {
            self.put("[");
            self.id(name);
            self.put("] ");
        }
        self.set(["", ", ", " = "], &node.output, |p, n| p.id(n));
        if let Some(domain) = node.domain.as_deref().filter(|d| !d.is_empty()) {
            if domain.split('.').all(is_identifier) {
                self.put(domain);
            } else {
                self.quoted(domain);
            }
            self.put(".");
        }
        self.id(node.op_type.as_deref().unwrap_or_default());
        if let Some(overload) = node.overload.as_deref().filter(|o| !o.is_empty()) {
            self.put(":");
            self.id(overload);
        }
        let subgraphs = node
            .attribute
            .iter()
            .any(|a| a.g.is_some() || !a.graphs.is_empty());
        if !subgraphs {
            self.attributes(&node.attribute);
        }
        self.set([" (", ", ", ")"], &node.input, |p, n| p.id(n));
        if subgraphs {
            self.attributes(&node.attribute);
        }
        self.put("\n");
    }

    fn attributes(&mut self, attributes: &[AttributeProto]) {
        if !attributes.is_empty() {
            self.set(
                [" <", ", ", ">"],
                attributes.iter().enumerate(),
                Self::attribute,
            );
        }
    }

    /// The graph at a position among those of an attribute.
    fn nested_graph(&mut self, attribute: usize, graph: usize, proto: &GraphProto) {
        let node = self.place.node.take();
        self.place.nested.push(Nested {
            node,
            attribute,
            graph,
        });
        self.indent += INDENT;
        self.graph(proto);
        self.indent -= INDENT;
        self.place.nested.pop();
        self.place.node = node;
    }

    fn attribute(&mut self, (position, attribute): (usize, &AttributeProto)) {
        self.id(attribute.name.as_deref().unwrap_or_default());
        let kind = attribute_type(attribute);
        if let Some(name) = name_of(&ATTRIBUTE_TYPES, kind as i32) {
            self.put(": ");
            self.put(name);
        }
        self.put(" = ");
        if let Some(name) = &attribute.ref_attr_name {
            self.put("@");
            self.id(name);
            return;
        }
        let list = ["[", ", ", "]"];
        match kind {
            AttributeType::Int => self.display(attribute.i.unwrap_or_default()),
            AttributeType::Ints => self.set(list, &attribute.ints, Self::display),
            AttributeType::Float => self.put(&attribute_float(attribute.f.unwrap_or_default())),
            AttributeType::Floats => {
                self.set(list, &attribute.floats, |p, v| p.put(&attribute_float(*v)));
            }
            AttributeType::String => self.quoted_bytes(attribute.s.as_deref().unwrap_or_default()),
            AttributeType::Strings => {
                self.set(list, &attribute.strings, |p, s| p.quoted_bytes(s));
            }
            AttributeType::Graph => match &attribute.g {
                Some(graph) => self.nested_graph(position, 0, graph),
                None => self.nested_graph(position, 0, &GraphProto::default()),
            },
            AttributeType::Graphs => {
                let graphs = attribute.graphs.iter().enumerate();
                self.set(list, graphs, |p, (i, g)| p.nested_graph(position, i, g));
            }
            AttributeType::Tensor => match &attribute.t {
                Some(tensor) => self.attribute_tensor(tensor),
                None => self.attribute_tensor(&TensorProto::default()),
            },
            AttributeType::Tensors => self.set(list, &attribute.tensors, Self::attribute_tensor),
            AttributeType::TypeProto => {
                self.put(
                    &attribute
                        .tp
                        .as_deref()
                        .and_then(type_text)
                        .unwrap_or_default(),
                );
            }
            AttributeType::TypeProtos => self.set(list, &attribute.type_protos, |p, t| {
                p.put(&type_text(t).unwrap_or_default());
            }),
            // There is no syntax for these: a text that does not parse is better than one that
            // silently lacks a value.
            AttributeType::SparseTensor
            | AttributeType::SparseTensors
            | AttributeType::Undefined => self.put("..."),
        }
    }

    fn value_info(&mut self, info: &ValueInfoProto) {
        let name = info.name.as_deref().unwrap_or_default();
        match info.r#type.as_ref().and_then(type_text) {
            Some(text) => {
                self.put(&text);
                self.put(" ");
                self.id(name);
            }
            None => self.id_not_type(name),
        }
    }

    fn tensor_type(&mut self, tensor: &TensorProto) {
        let kind = tensor.data_type.unwrap_or_default();
        self.put(name_of(&ELEMENT_TYPES, kind).unwrap_or("undefined"));
        if !tensor.dims.is_empty() {
            self.set(["[", ",", "]"], &tensor.dims, Self::display);
        }
    }

    fn initializer(&mut self, tensor: &TensorProto) {
        self.tensor_type(tensor);
        self.put(" ");
        self.id(tensor.name.as_deref().unwrap_or_default());
        self.put(" = ");
        if tensor.is_external() {
            self.entries(&tensor.external_data);
        } else {
            self.payload(tensor);
        }
    }

    fn attribute_tensor(&mut self, tensor: &TensorProto) {
        self.tensor_type(tensor);
        if let Some(name) = tensor.name.as_deref().filter(|n| is_identifier(n)) {
            self.put(" ");
            self.put(name);
        }
        if tensor.is_external() {
            self.put(" = ");
            self.entries(&tensor.external_data);
        } else {
            self.payload(tensor);
        }
    }

    /// The elements, decoded from whichever field holds them.
    fn payload(&mut self, tensor: &TensorProto) {
        let list = [" {", ",", "}"];
        let raw = tensor.raw_data.as_deref();
        match (tensor.data_type.unwrap_or_default(), raw) {
            (8, _) => self.set(["{", ", ", "}"], &tensor.string_data, |p, s| {
                p.quoted_bytes(s);
            }),
            (1 | 14, None) => self.set(list, &tensor.float_data, |p, v| p.put(&float32(*v))),
            (11 | 15, None) => self.set(list, &tensor.double_data, |p, v| p.put(&float64(*v))),
            (7, None) => self.set(list, &tensor.int64_data, Self::display),
            (12 | 13, None) => self.set(list, &tensor.uint64_data, Self::display),
            (_, None) => self.set(list, &tensor.int32_data, Self::display),
            (1 | 14, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.put(&float32(f32::from_le_bytes(*b)));
            }),
            (11 | 15, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.put(&float64(f64::from_le_bytes(*b)));
            }),
            (7, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.display(i64::from_le_bytes(*b));
            }),
            (13, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.display(u64::from_le_bytes(*b));
            }),
            (12, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.display(u32::from_le_bytes(*b));
            }),
            (6, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.display(i32::from_le_bytes(*b));
            }),
            (5, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.display(i16::from_le_bytes(*b));
            }),
            (4 | 10 | 16, Some(raw)) => self.set(list, raw.as_chunks().0, |p, b| {
                p.display(u16::from_le_bytes(*b));
            }),
            (3, Some(raw)) => self.set(list, raw, |p, b| p.display(b.cast_signed())),
            (_, Some(raw)) => self.set(list, raw, Self::display),
        }
    }
}

/// The declared type, or (as before IR version 3) the one that the filled field implies.
fn attribute_type(a: &AttributeProto) -> AttributeType {
    let declared = a.r#type.and_then(|t| AttributeType::try_from(t).ok());
    if let Some(kind) = declared.filter(|k| *k != AttributeType::Undefined) {
        return kind;
    }
    let candidates = [
        (a.f.is_some(), AttributeType::Float),
        (a.i.is_some(), AttributeType::Int),
        (a.s.is_some(), AttributeType::String),
        (a.t.is_some(), AttributeType::Tensor),
        (a.g.is_some(), AttributeType::Graph),
        (a.tp.is_some(), AttributeType::TypeProto),
        (a.sparse_tensor.is_some(), AttributeType::SparseTensor),
        (!a.floats.is_empty(), AttributeType::Floats),
        (!a.ints.is_empty(), AttributeType::Ints),
        (!a.strings.is_empty(), AttributeType::Strings),
        (!a.tensors.is_empty(), AttributeType::Tensors),
        (!a.graphs.is_empty(), AttributeType::Graphs),
        (!a.type_protos.is_empty(), AttributeType::TypeProtos),
    ];
    let filled = candidates.into_iter().find(|(filled, _)| *filled);
    filled.map_or(AttributeType::Undefined, |(_, kind)| kind)
}

/// The text of a type, or `None` where the syntax has none for it.
fn type_text(proto: &TypeProto) -> Option<String> {
    use type_proto::Value;
    let inner = |t: &Option<Box<TypeProto>>| t.as_deref().and_then(type_text);
    let element = |t: Option<i32>| name_of(&ELEMENT_TYPES, t.unwrap_or_default());
    Some(match proto.value.as_ref()? {
        Value::TensorType(t) => format!("{}{}", element(t.elem_type)?, shape_text(&t.shape)),
        Value::SparseTensorType(t) => format!(
            "sparse_tensor({}{})",
            element(t.elem_type)?,
            shape_text(&t.shape)
        ),
        Value::SequenceType(t) => format!("seq({})", inner(&t.elem_type)?),
        Value::OptionalType(t) => format!("optional({})", inner(&t.elem_type)?),
        Value::MapType(t) => {
            format!("map({}, {})", element(t.key_type)?, inner(&t.value_type)?)
        }
        Value::OpaqueType(_) => return None,
    })
}

/// The text of a shape: nothing for a scalar, `[]` for an unknown rank.
fn shape_text(shape: &Option<TensorShapeProto>) -> String {
    let Some(shape) = shape else {
        return "[]".to_owned();
    };
    if shape.dim.is_empty() {
        return String::new();
    }
    let mut p = Printer::new();
    p.set(["[", ",", "]"], &shape.dim, |p, dim| match &dim.value {
        Some(dimension::Value::DimValue(v)) => p.display(v),
        Some(dimension::Value::DimParam(name)) => p.id(name),
        None => p.put("?"),
    });
    p.out
}

/// A float with a point: from an integer the Python parser makes an attribute with two values.
fn attribute_float(value: f32) -> String {
    let mut text = float32(value);
    if text.ends_with(|c: char| c.is_ascii_digit()) && !text.contains(['.', 'e']) {
        text.push_str(".0");
    }
    text
}

/// The shortest decimal that parses back to `value`, for the Python parser too: that one refuses
/// inexact decimals of subnormal numbers, and takes `-0` in an attribute for the integer 0.
fn float32(value: f32) -> String {
    if value.is_subnormal() {
        // 149 binary places; the exact decimal has at most 105 significant digits.
        return exact(format!("{value:.120e}"));
    }
    float_text(f64::from(value), &format!("{value:?}"))
}

fn float64(value: f64) -> String {
    if value.is_subnormal() {
        return exact(format!("{value:.800e}"));
    }
    float_text(value, &format!("{value:?}"))
}

/// Drops the zeros behind the last digit of a decimal with an exponent.
fn exact(text: String) -> String {
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{}e{exponent}", digits.trim_end_matches('0')),
        None => text,
    }
}

fn float_text(value: f64, debug: &str) -> String {
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_nan() {
        return format!("{sign}nan");
    }
    if value == 0.0 {
        return if sign.is_empty() { "0" } else { "-0.0" }.to_owned();
    }
    // `{:?}` is the shortest form with an exponent outside 1e-5..1e16, else with a point.
    debug.strip_suffix(".0").unwrap_or(debug).to_owned()
}
