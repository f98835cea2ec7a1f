//! One walk over the wire format, against a table of the schema's fields.
//!
//! It also adds up the memory that the decoded messages will take, before any of it is taken: two bytes of
//! a file can ask for a message of hundreds.

use super::UnknownFields;
use crate::onnx::schema;

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

    /// The place of a field in [`Msg::fields`], and the field.
    fn field(self, number: u32) -> Option<(usize, &'static Field)> {
        let mut fields = self.fields().iter().enumerate();
        fields.find(|(_, field)| field.0 == number)
    }

    /// The bytes of a decoded message, without what it points to.
    fn size(self) -> usize {
        match self {
            Msg::Annotation => size_of::<schema::TensorAnnotation>(),
            Msg::Attribute => size_of::<schema::AttributeProto>(),
            Msg::Device => size_of::<schema::DeviceConfigurationProto>(),
            Msg::Dimension => size_of::<schema::tensor_shape_proto::Dimension>(),
            Msg::Entry => size_of::<schema::StringStringEntryProto>(),
            Msg::Function => size_of::<schema::FunctionProto>(),
            Msg::Graph => size_of::<schema::GraphProto>(),
            Msg::IntIntList => size_of::<schema::IntIntListEntryProto>(),
            Msg::MapType => size_of::<schema::type_proto::Map>(),
            Msg::Model => size_of::<schema::ModelProto>(),
            Msg::Node => size_of::<schema::NodeProto>(),
            Msg::NodeDevice => size_of::<schema::NodeDeviceConfigurationProto>(),
            Msg::Opaque => size_of::<schema::type_proto::Opaque>(),
            Msg::OpsetId => size_of::<schema::OperatorSetIdProto>(),
            Msg::Segment => size_of::<schema::tensor_proto::Segment>(),
            Msg::SequenceType => size_of::<schema::type_proto::Sequence>(),
            Msg::ShardedDim => size_of::<schema::ShardedDimProto>(),
            Msg::Sharding => size_of::<schema::ShardingSpecProto>(),
            Msg::Shape => size_of::<schema::TensorShapeProto>(),
            Msg::SimpleSharded => size_of::<schema::SimpleShardedDimProto>(),
            Msg::Sparse => size_of::<schema::SparseTensorProto>(),
            Msg::Tensor => size_of::<schema::TensorProto>(),
            Msg::TensorType => size_of::<schema::type_proto::Tensor>(),
            Msg::Training => size_of::<schema::TrainingInfoProto>(),
            Msg::Type => size_of::<schema::TypeProto>(),
            Msg::ValueInfo => size_of::<schema::ValueInfoProto>(),
        }
    }
}

/// The bytes that one more value of a field adds to the decoded model, where its message has `before` of
/// it. `length` are the value's own bytes in the file, `packed` tells whether they are several numbers.
fn decoded(kind: Kind, before: u32, length: usize, packed: bool) -> usize {
    /// A text has a block of its own, and the allocator's head before it.
    const TEXT_HEAD: usize = 16;
    let grown = |size: usize| size.saturating_mul(growth(before));
    match kind {
        Kind::Int | Kind::Float => 0,
        // The shortest number takes a byte, and eight in memory.
        Kind::Ints if packed => length.saturating_mul(8),
        Kind::Floats | Kind::Doubles if packed => length,
        Kind::Ints | Kind::Floats | Kind::Doubles => grown(8),
        Kind::Text if length == 0 => 0,
        Kind::Text => length + TEXT_HEAD,
        Kind::Texts => {
            grown(size_of::<bytes::Bytes>()) + if length == 0 { 0 } else { length + TEXT_HEAD }
        }
        Kind::One(inner) => inner.size(),
        Kind::Many(inner) => grown(inner.size()),
    }
}

/// By how many elements a vector of `before` grows when one is pushed: it begins with 4 and doubles.
fn growth(before: u32) -> usize {
    match before {
        0 => 4,
        n if n >= 4 && n.is_power_of_two() => n as usize,
        _ => 0,
    }
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const FIXED32: u8 = 5;

/// How deep messages may nest in a model; prost's own limit.
const MAX_DEPTH: usize = 100;

/// The most memory that a file's messages may take for each of its bytes. Nodes with the shortest names
/// that can be told apart take 57; what any exporter writes takes far less.
const MEMORY_PER_BYTE: usize = 64;
/// What a file of any length may take besides.
const MEMORY_OF_ANY: usize = 32 << 20;

/// The most fields that a message has in the table.
const MAX_FIELDS: usize = 18;

/// A message being walked: its type, its bytes, where its current field begins, and how many of each
/// field it has had.
struct Frame {
    msg: Msg,
    start: usize,
    field: usize,
    end: usize,
    counts: [u32; MAX_FIELDS],
}

/// Why the walk stopped.
pub(super) enum Fault {
    /// A field that the table lacks.
    Unknown { place: String },
    /// Bytes that are no message of the schema.
    Malformed {
        offset: usize,
        place: String,
        problem: String,
    },
}

/// One pass over the wire format. Lengths are checked, payloads are stepped over.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    unknown: UnknownFields,
    stack: Vec<Frame>,
    /// The memory that what was walked takes when it is decoded.
    memory: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8], unknown: UnknownFields) -> Self {
        let root = Frame {
            msg: Msg::Model,
            start: 0,
            field: 0,
            end: bytes.len(),
            counts: [0; MAX_FIELDS],
        };
        Self {
            bytes,
            unknown,
            stack: vec![root],
            memory: 0,
        }
    }

    pub(super) fn run(mut self) -> Result<(), Fault> {
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
                // Writers put the oldest fields first: newer ones stand behind those, not alone.
                if at == 0 {
                    let problem =
                        format!("the file begins with field {number}, which no model has");
                    return Err(self.malformed(problem));
                }
                let place = self.place();
                let space = if place.is_empty() { "" } else { " " };
                let place = format!("{place}{space}field {number}");
                return Err(Fault::Unknown { place });
            }
            if let Some((_, (_, name, kind))) = field
                && !kind.accepts(wire)
            {
                return Err(self.malformed(format!("field {name} has the wire type {wire}")));
            }
            let Some((start, stop)) = value_span(self.bytes, wire, value, end) else {
                // Only an unknown field can be one. The schema has none, and what follows could hide in it.
                if wire == 3 || wire == 4 {
                    let problem = format!("field {number} is a group, which no model has");
                    return Err(self.malformed(problem));
                }
                let name = field.map_or("unknown", |(_, field)| field.1);
                return Err(self.malformed(format!("field {name} does not end in its message")));
            };
            at = stop;
            let Some((place, (_, name, kind))) = field else {
                continue;
            };
            let before = frame.counts[place];
            frame.counts[place] = before.saturating_add(1);
            let packed = wire == LEN;
            let taken = decoded(*kind, before, stop - start, packed);
            self.memory = self.memory.saturating_add(taken);
            let most =
                (self.bytes.len().saturating_mul(MEMORY_PER_BYTE)).saturating_add(MEMORY_OF_ANY);
            if self.memory > most {
                let problem = format!(
                    "field {name}: with it, the messages take more than {most} bytes of memory, and the \
                     file has {} ({MEMORY_PER_BYTE} for each is the most)",
                    self.bytes.len()
                );
                return Err(self.malformed(problem));
            }
            if let Kind::One(inner) | Kind::Many(inner) = kind {
                if self.stack.len() > MAX_DEPTH {
                    let problem = format!("messages nest deeper than {MAX_DEPTH}");
                    return Err(self.malformed(problem));
                }
                self.stack.push(Frame {
                    msg: *inner,
                    start,
                    field: start,
                    end: stop,
                    counts: [0; MAX_FIELDS],
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
            let Some((_, (_, name, kind))) = frame.msg.field(number) else {
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
