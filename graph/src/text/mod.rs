//! The ONNX textual syntax: parser and printer.
//!
//! The syntax is that of Python's `onnx.parser` and `onnx.printer` (1.22). Comments start with `#`.
//! Names that are no simple identifiers are quoted.
//!
//! # What the text does not carry
//!
//! Documentation strings and metadata of anything but the model (and the documentation of
//! functions), training information, device configurations, sparse initialisers and sparse
//! attributes, quantisation annotations, type and axis denotations, opaque types (the value is
//! printed without a type), tensor segments, names of attribute tensors that are no simple
//! identifiers, and bytes of strings that are not UTF-8. Whether a tensor's payload was raw or
//! typed is lost too: a parsed tensor always has the typed field. A NaN keeps its sign only.
//! Absent and empty are one for the domains of nodes and operator sets and for the names of graphs.
//!
//! # Differences from the Python printer
//!
//! Floats are printed in the shortest form that parses back to the same bits (subnormals exactly,
//! as the Python parser refuses others; in attributes always as a float literal, as it makes an
//! attribute with both an int and a float of `f: float = 1`); every element type is printed,
//! 16-bit and smaller floats as their bit patterns, as the Python parser wants them; the defaults of
//! function attributes, the value infos and the documentation of functions are printed, which the
//! Python parser reads; an empty list of strings is `[]`.
//!
//! # Extensions, which Python does not read
//!
//! Quoted names of attributes, operators, operator domains, overloads and attribute graphs (printed
//! only where the name is no identifier), and lists of tensors, graphs and types (which the Python
//! parser drops).

mod lexer;
mod parser;
mod place;
mod printer;
mod types;

pub use parser::{parse_function, parse_graph, parse_model, parse_node};
pub use place::{Nested, Part, Place};
pub use printer::{print_annotated, print_function, print_graph, print_model, print_node};

/// Why a text is not a model, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// The line of the offending token, counted from 1.
    pub line: usize,
    /// The column of the offending token in characters, counted from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
}

/// The names of tensor element types, with their numbers.
const ELEMENT_TYPES: [(&str, i32); 26] = [
    ("float", 1),
    ("uint8", 2),
    ("int8", 3),
    ("uint16", 4),
    ("int16", 5),
    ("int32", 6),
    ("int64", 7),
    ("string", 8),
    ("bool", 9),
    ("float16", 10),
    ("double", 11),
    ("uint32", 12),
    ("uint64", 13),
    ("complex64", 14),
    ("complex128", 15),
    ("bfloat16", 16),
    ("float8e4m3fn", 17),
    ("float8e4m3fnuz", 18),
    ("float8e5m2", 19),
    ("float8e5m2fnuz", 20),
    ("uint4", 21),
    ("int4", 22),
    ("float4e2m1", 23),
    ("float8e8m0", 24),
    ("uint2", 25),
    ("int2", 26),
];

/// The name that the textual syntax has for an element type (`TensorProto.DataType`).
pub fn element_type_name(number: i32) -> Option<&'static str> {
    name_of(&ELEMENT_TYPES, number)
}

/// The names of attribute types, with their numbers.
const ATTRIBUTE_TYPES: [(&str, i32); 14] = [
    ("float", 1),
    ("int", 2),
    ("string", 3),
    ("tensor", 4),
    ("graph", 5),
    ("floats", 6),
    ("ints", 7),
    ("strings", 8),
    ("tensors", 9),
    ("graphs", 10),
    ("sparse_tensor", 11),
    ("sparse_tensors", 12),
    ("type_proto", 13),
    ("type_protos", 14),
];

/// The number that `table` has for `name`.
fn number_of(table: &[(&str, i32)], name: &str) -> Option<i32> {
    table.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
}

/// The name that `table` has for `number`.
fn name_of<'a>(table: &[(&'a str, i32)], number: i32) -> Option<&'a str> {
    table.iter().find(|(_, v)| *v == number).map(|(n, _)| *n)
}

/// How the text names a tensor element type.
pub(crate) fn element_name(number: i32) -> Option<&'static str> {
    name_of(&ELEMENT_TYPES, number)
}

/// How the text names an attribute type.
pub(crate) fn attribute_type_name(number: i32) -> Option<&'static str> {
    name_of(&ATTRIBUTE_TYPES, number)
}

/// Whether a type starts with this word.
fn is_type_word(word: &str) -> bool {
    number_of(&ELEMENT_TYPES, word).is_some()
        || matches!(word, "seq" | "map" | "optional" | "sparse_tensor")
}

/// Whether `name` can be written without quotes.
fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
