//! Reading a model by reference out of a mapped file.
//!
//! Payloads (`raw_data`, strings of attributes) become [`Bytes`] slices of the mapping, so decoding
//! costs memory for the graph only. Before decoding, the wire format is walked once against a table
//! of the fields of [`schema`](super::schema): prost drops fields that it does not know, and
//! rewriting such a file would lose them silently.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use prost::Message;

use super::schema::tensor_proto::DataLocation;
use super::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
};

/// What to do with fields that the schema does not describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// Stop with [`FileError::UnknownField`].
    Refuse,
    /// Drop them.
    Allow,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, a pipe or a device where a file is needed.
    #[error("{} is not a regular file; give the path of a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Nothing in it that makes a model.
    #[error("{}: {found}, expected a graph, a function or an ir_version; is this an ONNX model?", file.display())]
    NotAModel {
        /// The file.
        file: PathBuf,
        /// What it holds instead.
        found: &'static str,
    },
    /// The bytes are not a protobuf message of the ONNX schema.
    #[error("{}: at byte {offset}, in {place}: {problem}; is this an ONNX model, and complete?", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Where in the file.
        offset: usize,
        /// The path of the message there, as `graph.node[3]`.
        place: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The bytes were well-formed, but prost could not decode them.
    #[error("{}: {source}; is this an ONNX model, and complete?", file.display())]
    Decode {
        /// The file.
        file: PathBuf,
        /// What prost said.
        source: prost::DecodeError,
    },
    /// A field newer than the schema.
    #[error(
        "{}: unknown field at {place}: it is not in the ONNX schema up to IR version {}, and \
         rewriting the file would lose it; pass --allow-unknown-fields to drop it",
        file.display(), super::schema::IR_VERSION
    )]
    UnknownField {
        /// The file.
        file: PathBuf,
        /// The path of the field, as `graph.node[3].attribute[0] field 99`.
        place: String,
    },
    /// The reference to a tensor's external data is not acceptable.
    #[error("external data of {tensor}: {problem}; {hint}")]
    ExternalData {
        /// Which tensor.
        tensor: String,
        /// What is wrong, with the value found.
        problem: String,
        /// What would be right.
        hint: &'static str,
    },
    /// The encoded model is larger than any protobuf reader accepts.
    #[error(
        "cannot write {}: the model takes {bytes} bytes, and protobuf allows {} at most; keep the \
         weights in external data", path.display(), super::write::MAX_BYTES
    )]
    TooLarge {
        /// The target.
        path: PathBuf,
        /// The encoded length.
        bytes: u64,
    },
}

/// A file mapped into memory; slices of it live as long as anything refers to them.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: Bytes,
    path: PathBuf,
}

impl Source {
    /// Maps a file. Nothing is read yet.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io_error = |action| {
            move |source| FileError::Io {
                action,
                path: path.to_path_buf(),
                source,
            }
        };
        // Asked before opening, because opening a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(io_error("read"))?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        let file = File::open(path).map_err(io_error("open"))?;
        let bytes = if metadata.len() == 0 {
            Bytes::new()
        } else {
            // SAFETY: the mapping is read-only and private to this process; nothing here writes to
            // an input file (outputs are new files renamed into place, which leaves a mapped one
            // alone). As with every mapped file, another process that truncates or rewrites it in
            // place while the tool runs breaks it; that is a documented limit of the tool.
            let map = unsafe { Mmap::map(&file) }.map_err(io_error("map"))?;
            Bytes::from_owner(map)
        };
        Ok(Self {
            bytes,
            path: path.to_path_buf(),
        })
    }

    /// The whole file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Decodes the model in the file; its payloads are slices of the mapping.
    pub fn decode(&self, unknown: UnknownFields) -> Result<ModelProto, FileError> {
        decode_named(self.bytes.clone(), &self.path, unknown)
    }
}

/// Maps a file and decodes the model in it; its payloads are slices of the mapping.
pub fn read(path: &Path, unknown: UnknownFields) -> Result<ModelProto, FileError> {
    Source::open(path)?.decode(unknown)
}

/// Decodes a model; its payloads are slices of `bytes`.
pub fn decode(bytes: Bytes, unknown: UnknownFields) -> Result<ModelProto, FileError> {
    decode_named(bytes, Path::new("<memory>"), unknown)
}

fn decode_named(
    bytes: Bytes,
    file: &Path,
    unknown: UnknownFields,
) -> Result<ModelProto, FileError> {
    let not_a_model = |found| FileError::NotAModel {
        file: file.to_path_buf(),
        found,
    };
    if bytes.is_empty() {
        return Err(not_a_model("the file is empty"));
    }
    Walk::new(&bytes, unknown).run().map_err(|fault| {
        let file = file.to_path_buf();
        match fault {
            Fault::Unknown { place } => FileError::UnknownField { file, place },
            Fault::Malformed {
                offset,
                place,
                problem,
            } => FileError::Malformed {
                file,
                offset,
                place,
                problem,
            },
        }
    })?;
    let model = ModelProto::decode(bytes).map_err(|source| FileError::Decode {
        file: file.to_path_buf(),
        source,
    })?;
    if model.graph.is_none() && model.functions.is_empty() && model.ir_version.is_none() {
        return Err(not_a_model("neither graph nor functions nor ir_version"));
    }
    Ok(model)
}

/// The message types of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Msg {
    Annotation,
    Attribute,
    Device,
    Dimension,
    Entry,
    Function,
    Graph,
    IntIntList,
    MapType,
    Model,
    Node,
    NodeDevice,
    Opaque,
    OpsetId,
    Segment,
    SequenceType,
    ShardedDim,
    Sharding,
    Shape,
    SimpleSharded,
    Sparse,
    Tensor,
    TensorType,
    Training,
    Type,
    ValueInfo,
}

/// How a field is encoded; the plural kinds are repeated fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Ints,
    Float,
    Floats,
    Doubles,
    Text,
    Texts,
    One(Msg),
    Many(Msg),
}

type Field = (u32, &'static str, Kind);

impl Kind {
    fn repeated(self) -> bool {
        use Kind::{Doubles, Floats, Ints, Many, Texts};
        matches!(self, Ints | Floats | Doubles | Texts | Many(_))
    }

    /// Whether prost accepts the field in this wire type.
    fn accepts(self, wire: u8) -> bool {
        match self {
            Kind::Int => wire == VARINT,
            Kind::Ints => wire == VARINT || wire == LEN,
            Kind::Float => wire == FIXED32,
            Kind::Floats => wire == FIXED32 || wire == LEN,
            Kind::Doubles => wire == FIXED64 || wire == LEN,
            Kind::Text | Kind::Texts | Kind::One(_) | Kind::Many(_) => wire == LEN,
        }
    }
}

impl Msg {
    #[rustfmt::skip]
    fn fields(self) -> &'static [Field] {
        use Kind::{Doubles, Float, Floats, Int, Ints, Many, One, Text, Texts};
        match self {
            Msg::Annotation => &[(1, "tensor_name", Text), (2, "quant_parameter_tensor_names", Many(Msg::Entry))],
            Msg::Attribute => &[
                (1, "name", Text), (2, "f", Float), (3, "i", Int), (4, "s", Text),
                (5, "t", One(Msg::Tensor)), (6, "g", One(Msg::Graph)), (7, "floats", Floats),
                (8, "ints", Ints), (9, "strings", Texts), (10, "tensors", Many(Msg::Tensor)),
                (11, "graphs", Many(Msg::Graph)), (13, "doc_string", Text), (14, "tp", One(Msg::Type)),
                (15, "type_protos", Many(Msg::Type)), (20, "type", Int), (21, "ref_attr_name", Text),
                (22, "sparse_tensor", One(Msg::Sparse)), (23, "sparse_tensors", Many(Msg::Sparse)),
            ],
            Msg::Device => &[(1, "name", Text), (2, "num_devices", Int), (3, "device", Texts)],
            Msg::Dimension => &[(1, "dim_value", Int), (2, "dim_param", Text), (3, "denotation", Text)],
            Msg::Entry => &[(1, "key", Text), (2, "value", Text)],
            Msg::Function => &[
                (1, "name", Text), (4, "input", Texts), (5, "output", Texts), (6, "attribute", Texts),
                (7, "node", Many(Msg::Node)), (8, "doc_string", Text),
                (9, "opset_import", Many(Msg::OpsetId)), (10, "domain", Text),
                (11, "attribute_proto", Many(Msg::Attribute)), (12, "value_info", Many(Msg::ValueInfo)),
                (13, "overload", Text), (14, "metadata_props", Many(Msg::Entry)),
            ],
            Msg::Graph => &[
                (1, "node", Many(Msg::Node)), (2, "name", Text), (5, "initializer", Many(Msg::Tensor)),
                (10, "doc_string", Text), (11, "input", Many(Msg::ValueInfo)),
                (12, "output", Many(Msg::ValueInfo)), (13, "value_info", Many(Msg::ValueInfo)),
                (14, "quantization_annotation", Many(Msg::Annotation)),
                (15, "sparse_initializer", Many(Msg::Sparse)), (16, "metadata_props", Many(Msg::Entry)),
            ],
            Msg::IntIntList => &[(1, "key", Int), (2, "value", Ints)],
            Msg::MapType => &[(1, "key_type", Int), (2, "value_type", One(Msg::Type))],
            Msg::Model => &[
                (1, "ir_version", Int), (2, "producer_name", Text), (3, "producer_version", Text),
                (4, "domain", Text), (5, "model_version", Int), (6, "doc_string", Text),
                (7, "graph", One(Msg::Graph)), (8, "opset_import", Many(Msg::OpsetId)),
                (14, "metadata_props", Many(Msg::Entry)), (20, "training_info", Many(Msg::Training)),
                (25, "functions", Many(Msg::Function)), (26, "configuration", Many(Msg::Device)),
            ],
            Msg::Node => &[
                (1, "input", Texts), (2, "output", Texts), (3, "name", Text), (4, "op_type", Text),
                (5, "attribute", Many(Msg::Attribute)), (6, "doc_string", Text), (7, "domain", Text),
                (8, "overload", Text), (9, "metadata_props", Many(Msg::Entry)),
                (10, "device_configurations", Many(Msg::NodeDevice)),
            ],
            Msg::NodeDevice => &[
                (1, "configuration_id", Text), (2, "sharding_spec", Many(Msg::Sharding)),
                (3, "pipeline_stage", Int),
            ],
            Msg::Opaque => &[(1, "domain", Text), (2, "name", Text)],
            Msg::OpsetId => &[(1, "domain", Text), (2, "version", Int)],
            Msg::Segment => &[(1, "begin", Int), (2, "end", Int)],
            Msg::SequenceType => &[(1, "elem_type", One(Msg::Type))],
            Msg::ShardedDim => &[(1, "axis", Int), (2, "simple_sharding", Many(Msg::SimpleSharded))],
            Msg::Sharding => &[
                (1, "tensor_name", Text), (2, "device", Ints),
                (3, "index_to_device_group_map", Many(Msg::IntIntList)),
                (4, "sharded_dim", Many(Msg::ShardedDim)),
            ],
            Msg::Shape => &[(1, "dim", Many(Msg::Dimension))],
            Msg::SimpleSharded => &[(1, "dim_value", Int), (2, "dim_param", Text), (3, "num_shards", Int)],
            Msg::Sparse => &[(1, "values", One(Msg::Tensor)), (2, "indices", One(Msg::Tensor)), (3, "dims", Ints)],
            Msg::Tensor => &[
                (1, "dims", Ints), (2, "data_type", Int), (3, "segment", One(Msg::Segment)),
                (4, "float_data", Floats), (5, "int32_data", Ints), (6, "string_data", Texts),
                (7, "int64_data", Ints), (8, "name", Text), (9, "raw_data", Text),
                (10, "double_data", Doubles), (11, "uint64_data", Ints), (12, "doc_string", Text),
                (13, "external_data", Many(Msg::Entry)), (14, "data_location", Int),
                (16, "metadata_props", Many(Msg::Entry)),
            ],
            Msg::TensorType => &[(1, "elem_type", Int), (2, "shape", One(Msg::Shape))],
            Msg::Training => &[
                (1, "initialization", One(Msg::Graph)), (2, "algorithm", One(Msg::Graph)),
                (3, "initialization_binding", Many(Msg::Entry)), (4, "update_binding", Many(Msg::Entry)),
            ],
            // Optional types have the fields of sequence types, sparse tensors those of tensors.
            Msg::Type => &[
                (1, "tensor_type", One(Msg::TensorType)), (4, "sequence_type", One(Msg::SequenceType)),
                (5, "map_type", One(Msg::MapType)), (6, "denotation", Text),
                (7, "opaque_type", One(Msg::Opaque)), (8, "sparse_tensor_type", One(Msg::TensorType)),
                (9, "optional_type", One(Msg::SequenceType)),
            ],
            Msg::ValueInfo => &[
                (1, "name", Text), (2, "type", One(Msg::Type)), (3, "doc_string", Text),
                (4, "metadata_props", Many(Msg::Entry)),
            ],
        }
    }

    fn field(self, number: u32) -> Option<&'static Field> {
        self.fields().iter().find(|field| field.0 == number)
    }
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const FIXED32: u8 = 5;

/// How deep messages may nest in a model; prost's own limit.
const MAX_DEPTH: usize = 100;

/// A message being walked: its type, its bytes, and where its current field begins.
struct Frame {
    msg: Msg,
    start: usize,
    field: usize,
    end: usize,
}

enum Fault {
    Unknown {
        place: String,
    },
    Malformed {
        offset: usize,
        place: String,
        problem: String,
    },
}

/// One pass over the wire format. Lengths are checked, payloads are stepped over.
struct Walk<'a> {
    bytes: &'a [u8],
    unknown: UnknownFields,
    stack: Vec<Frame>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], unknown: UnknownFields) -> Self {
        let root = Frame {
            msg: Msg::Model,
            start: 0,
            field: 0,
            end: bytes.len(),
        };
        Self {
            bytes,
            unknown,
            stack: vec![root],
        }
    }

    fn run(mut self) -> Result<(), Fault> {
        let mut at = 0;
        while let Some(frame) = self.stack.last_mut() {
            let (msg, end) = (frame.msg, frame.end);
            if at == end {
                self.stack.pop();
                continue;
            }
            frame.field = at;
            let Some((number, wire, value)) = key(self.bytes, at, end) else {
                return Err(self.malformed("expected the key of a field".into()));
            };
            let field = msg.field(number);
            if field.is_none() && self.unknown == UnknownFields::Refuse {
                let place = self.place();
                let space = if place.is_empty() { "" } else { " " };
                let place = format!("{place}{space}field {number}");
                return Err(Fault::Unknown { place });
            }
            if let Some((_, name, kind)) = field
                && !kind.accepts(wire)
            {
                return Err(self.malformed(format!("field {name} has the wire type {wire}")));
            }
            let Some((start, stop)) = value_span(self.bytes, wire, value, end) else {
                // Groups occur in unknown fields only; prost skips those, within its depth limit.
                if field.is_none() && (wire == 3 || wire == 4) {
                    return Ok(());
                }
                let name = field.map_or("unknown", |field| field.1);
                return Err(self.malformed(format!("field {name} does not end in its message")));
            };
            at = stop;
            if let Some((_, _, Kind::One(inner) | Kind::Many(inner))) = field {
                if self.stack.len() > MAX_DEPTH {
                    let problem = format!("messages nest deeper than {MAX_DEPTH}");
                    return Err(self.malformed(problem));
                }
                self.stack.push(Frame {
                    msg: *inner,
                    start,
                    field: start,
                    end: stop,
                });
                at = start;
            }
        }
        Ok(())
    }

    fn malformed(&self, problem: String) -> Fault {
        let place = self.place();
        Fault::Malformed {
            offset: self.stack.last().map_or(0, |frame| frame.field),
            place: if place.is_empty() {
                "the model".into()
            } else {
                place
            },
            problem,
        }
    }

    /// The path of the innermost message. Indices are counted here, once, rather than kept.
    fn place(&self) -> String {
        let mut place = String::new();
        for frame in self.stack.iter().take(self.stack.len().saturating_sub(1)) {
            let Some((number, _, _)) = key(self.bytes, frame.field, frame.end) else {
                break;
            };
            let Some((_, name, kind)) = frame.msg.field(number) else {
                break;
            };
            if !place.is_empty() {
                place.push('.');
            }
            place.push_str(name);
            if kind.repeated() {
                place.push_str(&format!("[{}]", self.index(frame, number)));
            }
        }
        place
    }

    /// How many fields of this number precede the current one in its message.
    fn index(&self, frame: &Frame, number: u32) -> usize {
        let (mut at, mut count) = (frame.start, 0);
        while at < frame.field {
            let Some((other, wire, value)) = key(self.bytes, at, frame.end) else {
                break;
            };
            let Some((_, stop)) = value_span(self.bytes, wire, value, frame.end) else {
                break;
            };
            count += usize::from(other == number);
            at = stop;
        }
        count
    }
}

/// The varint at `at`, and where it stops.
fn varint(bytes: &[u8], at: usize, end: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (i, byte) in bytes.get(at..end)?.iter().take(10).enumerate() {
        if i == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

/// The field number and wire type at `at`, and where the value begins.
fn key(bytes: &[u8], at: usize, end: usize) -> Option<(u32, u8, usize)> {
    let (key, value) = varint(bytes, at, end)?;
    let key = u32::try_from(key).ok()?;
    (key >> 3 != 0).then_some((key >> 3, (key & 7) as u8, value))
}

/// Where the content of a value begins and stops; `None` if not before `end`.
fn value_span(bytes: &[u8], wire: u8, at: usize, end: usize) -> Option<(usize, usize)> {
    let (start, stop) = match wire {
        VARINT => (at, varint(bytes, at, end)?.1),
        FIXED64 => (at, at.checked_add(8)?),
        FIXED32 => (at, at.checked_add(4)?),
        LEN => {
            let (length, start) = varint(bytes, at, end)?;
            (start, start.checked_add(usize::try_from(length).ok()?)?)
        }
        _ => return None,
    };
    (stop <= end).then_some((start, stop))
}

/// Checks every reference to external data: that it stays inside `model_dir`, and that the file
/// holds the range. Looks at metadata only; no data file is opened.
pub fn check_external_data(model: &ModelProto, model_dir: &Path) -> Result<(), FileError> {
    let mut graphs: Vec<&GraphProto> = model.graph.iter().collect();
    for training in &model.training_info {
        graphs.extend(training.initialization.iter().chain(&training.algorithm));
    }
    for function in &model.functions {
        let owner = |_: &AttributeProto| format!("function {:?}", function.name());
        check_attributes(&function.attribute_proto, owner, model_dir, &mut graphs)?;
        check_nodes(&function.node, model_dir, &mut graphs)?;
    }
    while let Some(graph) = graphs.pop() {
        for tensor in &graph.initializer {
            check_tensor(tensor, || "graph initializers".into(), model_dir)?;
        }
        for sparse in &graph.sparse_initializer {
            check_sparse(sparse, || "sparse initializers".into(), model_dir)?;
        }
        check_nodes(&graph.node, model_dir, &mut graphs)?;
    }
    Ok(())
}

fn check_nodes<'a>(
    nodes: &'a [NodeProto],
    dir: &Path,
    graphs: &mut Vec<&'a GraphProto>,
) -> Result<(), FileError> {
    for node in nodes {
        let owner = |attribute: &AttributeProto| {
            let output = node.output.first().map_or("", String::as_str);
            let (op, name) = (node.op_type(), attribute.name());
            format!("attribute {name:?} of {op} node producing {output:?}")
        };
        check_attributes(&node.attribute, owner, dir, graphs)?;
    }
    Ok(())
}

fn check_attributes<'a>(
    attributes: &'a [AttributeProto],
    owner: impl Fn(&AttributeProto) -> String,
    dir: &Path,
    graphs: &mut Vec<&'a GraphProto>,
) -> Result<(), FileError> {
    for attribute in attributes {
        for tensor in attribute.t.iter().chain(&attribute.tensors) {
            check_tensor(tensor, || owner(attribute), dir)?;
        }
        for sparse in attribute
            .sparse_tensor
            .iter()
            .chain(&attribute.sparse_tensors)
        {
            check_sparse(sparse, || owner(attribute), dir)?;
        }
        graphs.extend(attribute.g.as_deref());
        graphs.extend(&attribute.graphs);
    }
    Ok(())
}

fn check_sparse(
    sparse: &SparseTensorProto,
    owner: impl Fn() -> String,
    dir: &Path,
) -> Result<(), FileError> {
    for tensor in sparse.values.iter().chain(&sparse.indices) {
        check_tensor(tensor, &owner, dir)?;
    }
    Ok(())
}

fn check_tensor(
    tensor: &TensorProto,
    owner: impl Fn() -> String,
    dir: &Path,
) -> Result<(), FileError> {
    if tensor.data_location != Some(DataLocation::External as i32) {
        return Ok(());
    }
    check_reference(tensor, dir).map_err(|(problem, hint)| FileError::ExternalData {
        tensor: format!("tensor {:?} in {}", tensor.name(), owner()),
        problem,
        hint,
    })
}

fn check_reference(tensor: &TensorProto, dir: &Path) -> Result<(), (String, &'static str)> {
    const NUMBER: &str = "expected a decimal number of bytes";
    let value = |key: &str| {
        let mut found = tensor.external_data.iter().filter(|e| e.key() == key);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err((format!("key {key:?} is given twice"), "give each key once")),
            (first, None) => Ok(first.map(|e| e.value())),
        }
    };
    let number = |key: &str| match value(key)? {
        None => Ok(None),
        Some(text) if !text.bytes().all(|b| b.is_ascii_digit()) => {
            Err((format!("{key} is {text:?}"), NUMBER))
        }
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err((format!("{key} is {text:?}"), NUMBER)),
        },
    };
    let location = value("location")?.unwrap_or("");
    let size = file_size(location, dir)?;
    let offset = number("offset")?.unwrap_or(0);
    let length = number("length")?;
    if offset > size || length.is_some_and(|length| length > size - offset) {
        let length = length.map_or("the rest".into(), |length| format!("{length} bytes"));
        return Err((
            format!("{location:?} has {size} bytes, and {length} at offset {offset} is needed"),
            "expected a range inside the file; is the data file complete?",
        ));
    }
    Ok(())
}

/// The size of the file at `location`, if that is a plain file of its own under `dir`.
fn file_size(location: &str, dir: &Path) -> Result<u64, (String, &'static str)> {
    const INSIDE: &str = "expected a relative path inside the model's folder";
    const PLAIN: &str = "expected a plain file in the model's folder; copy the data there";
    if location.is_empty() {
        return Err(("no location is given".into(), INSIDE));
    }
    // A backslash separates folders for readers on Windows, where this check must hold too.
    let relative = Path::new(location);
    let normal = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    if location.contains(['\\', '\0']) || !relative.components().all(normal) {
        return Err((
            format!("the location {location:?} may leave the folder"),
            INSIDE,
        ));
    }
    let mut path = dir.to_path_buf();
    let mut last = None;
    for component in relative.components() {
        path.push(component);
        let metadata = fs::symlink_metadata(&path)
            .map_err(|error| (format!("cannot find {}: {error}", path.display()), PLAIN))?;
        if metadata.file_type().is_symlink() {
            return Err((format!("{} is a symbolic link", path.display()), PLAIN));
        }
        last = Some(metadata);
    }
    let Some(metadata) = last.filter(fs::Metadata::is_file) else {
        return Err((format!("{} is not a regular file", path.display()), PLAIN));
    };
    #[cfg(unix)]
    if std::os::unix::fs::MetadataExt::nlink(&metadata) > 1 {
        return Err((format!("{} has several hard links", path.display()), PLAIN));
    }
    Ok(metadata.len())
}
