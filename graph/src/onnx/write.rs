//! Writing a model: atomically, and the same bytes for the same model.
//!
//! The bytes are those of prost's `encode_to_vec`, but only small messages are encoded in memory:
//! a payload goes from its mapping straight to the file. Each struct on the way is taken apart
//! without `..`, so that a field added to the schema cannot be forgotten here.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{self, WireType};

use super::read::FileError;
pub use super::replace::{Staged, check_replaceable, replace};
use super::schema::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto, TrainingInfoProto,
};

/// The most bytes that a protobuf message may take; other readers refuse larger files.
pub const MAX_BYTES: u64 = i32::MAX as u64;

/// Writes a model to a file: the file appears complete, or not at all.
///
/// An existing file is replaced; whoever has it mapped keeps the old content.
pub fn write(model: &ModelProto, path: &Path) -> Result<(), FileError> {
    stage(model, path)?.commit()
}

/// Writes a model beside the file that it is to be.
///
/// # Errors
/// Where the model is too large for a file, and those of [`Staged::write`].
pub fn stage(model: &ModelProto, path: &Path) -> Result<Staged, FileError> {
    let bytes = model.encoded_len() as u64;
    if bytes > MAX_BYTES {
        return Err(FileError::TooLarge {
            path: path.to_path_buf(),
            bytes,
        });
    }
    Staged::write(path, |file| {
        let mut writer = BufWriter::new(file);
        write_to(model, &mut writer).and_then(|()| writer.flush())
    })
}

/// Writes the bytes of a model.
pub fn write_to(model: &ModelProto, writer: &mut impl Write) -> io::Result<()> {
    let mut sink = Sink {
        writer,
        buffer: Vec::new(),
    };
    sink.model(model)?;
    sink.flush()
}

/// How much is collected before it is handed on.
const CHUNK: usize = 1 << 16;

struct Sink<'a, W> {
    writer: &'a mut W,
    buffer: Vec<u8>,
}

impl<W: Write> Sink<'_, W> {
    fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    fn header(&mut self, tag: u32, length: usize) -> io::Result<()> {
        encoding::encode_key(tag, WireType::LengthDelimited, &mut self.buffer);
        encoding::encode_varint(length as u64, &mut self.buffer);
        self.settle()
    }

    fn bytes<'b>(
        &mut self,
        tag: u32,
        values: impl IntoIterator<Item = &'b Bytes>,
    ) -> io::Result<()> {
        for value in values {
            self.header(tag, value.len())?;
            if value.len() < CHUNK {
                self.buffer.extend_from_slice(value);
            } else {
                self.flush()?;
                self.writer.write_all(value)?;
            }
        }
        self.settle()
    }

    fn text<'b>(
        &mut self,
        tag: u32,
        values: impl IntoIterator<Item = &'b String>,
    ) -> io::Result<()> {
        for value in values {
            encoding::string::encode(tag, value, &mut self.buffer);
            self.settle()?;
        }
        Ok(())
    }

    fn int(&mut self, tag: u32, values: &[i64]) {
        for value in values {
            encoding::int64::encode(tag, value, &mut self.buffer);
        }
    }

    fn int32(&mut self, tag: u32, value: &Option<i32>) {
        if let Some(value) = value {
            encoding::int32::encode(tag, value, &mut self.buffer);
        }
    }

    /// Messages without payloads, each encoded in memory.
    fn small<'b, M: Message + 'b>(
        &mut self,
        tag: u32,
        messages: impl IntoIterator<Item = &'b M>,
    ) -> io::Result<()> {
        for message in messages {
            encoding::message::encode(tag, message, &mut self.buffer);
            self.settle()?;
        }
        Ok(())
    }

    /// Messages that may hold payloads, each written in parts by `body`.
    fn large<'b, M: Message + 'b>(
        &mut self,
        tag: u32,
        messages: impl IntoIterator<Item = &'b M>,
        body: impl Fn(&mut Self, &M) -> io::Result<()>,
    ) -> io::Result<()> {
        for message in messages {
            self.header(tag, message.encoded_len())?;
            body(self, message)?;
        }
        Ok(())
    }

    fn model(&mut self, model: &ModelProto) -> io::Result<()> {
        let ModelProto {
            ir_version,
            producer_name,
            producer_version,
            domain,
            model_version,
            doc_string,
            graph,
            opset_import,
            metadata_props,
            training_info,
            functions,
            configuration,
        } = model;
        self.int(1, ir_version.as_slice());
        self.text(2, producer_name)?;
        self.text(3, producer_version)?;
        self.text(4, domain)?;
        self.int(5, model_version.as_slice());
        self.text(6, doc_string)?;
        self.large(7, graph, Self::graph)?;
        self.small(8, opset_import)?;
        self.small(14, metadata_props)?;
        self.large(20, training_info, Self::training)?;
        self.large(25, functions, Self::function)?;
        self.small(26, configuration)
    }

    fn training(&mut self, training: &TrainingInfoProto) -> io::Result<()> {
        let TrainingInfoProto {
            initialization,
            algorithm,
            initialization_binding,
            update_binding,
        } = training;
        self.large(1, initialization, Self::graph)?;
        self.large(2, algorithm, Self::graph)?;
        self.small(3, initialization_binding)?;
        self.small(4, update_binding)
    }

    fn function(&mut self, function: &FunctionProto) -> io::Result<()> {
        let FunctionProto {
            name,
            input,
            output,
            attribute,
            node,
            doc_string,
            opset_import,
            domain,
            attribute_proto,
            value_info,
            overload,
            metadata_props,
        } = function;
        self.text(1, name)?;
        self.text(4, input)?;
        self.text(5, output)?;
        self.text(6, attribute)?;
        self.large(7, node, Self::node)?;
        self.text(8, doc_string)?;
        self.small(9, opset_import)?;
        self.text(10, domain)?;
        self.large(11, attribute_proto, Self::attribute)?;
        self.small(12, value_info)?;
        self.text(13, overload)?;
        self.small(14, metadata_props)
    }

    fn graph(&mut self, graph: &GraphProto) -> io::Result<()> {
        let GraphProto {
            node,
            name,
            initializer,
            doc_string,
            input,
            output,
            value_info,
            quantization_annotation,
            sparse_initializer,
            metadata_props,
        } = graph;
        self.large(1, node, Self::node)?;
        self.text(2, name)?;
        self.large(5, initializer, Self::tensor)?;
        self.text(10, doc_string)?;
        self.small(11, input)?;
        self.small(12, output)?;
        self.small(13, value_info)?;
        self.small(14, quantization_annotation)?;
        self.large(15, sparse_initializer, Self::sparse)?;
        self.small(16, metadata_props)
    }

    fn node(&mut self, node: &NodeProto) -> io::Result<()> {
        let NodeProto {
            input,
            output,
            name,
            op_type,
            attribute,
            doc_string,
            domain,
            overload,
            metadata_props,
            device_configurations,
        } = node;
        self.text(1, input)?;
        self.text(2, output)?;
        self.text(3, name)?;
        self.text(4, op_type)?;
        self.large(5, attribute, Self::attribute)?;
        self.text(6, doc_string)?;
        self.text(7, domain)?;
        self.text(8, overload)?;
        self.small(9, metadata_props)?;
        self.small(10, device_configurations)
    }

    fn attribute(&mut self, attribute: &AttributeProto) -> io::Result<()> {
        let AttributeProto {
            name,
            f,
            i,
            s,
            t,
            g,
            floats,
            ints,
            strings,
            tensors,
            graphs,
            doc_string,
            tp,
            type_protos,
            r#type,
            ref_attr_name,
            sparse_tensor,
            sparse_tensors,
        } = attribute;
        self.text(1, name)?;
        if let Some(f) = f {
            encoding::float::encode(2, f, &mut self.buffer);
        }
        self.int(3, i.as_slice());
        self.bytes(4, s)?;
        self.large(5, t.as_deref(), Self::tensor)?;
        self.large(6, g.as_deref(), Self::graph)?;
        encoding::float::encode_repeated(7, floats, &mut self.buffer);
        self.int(8, ints);
        self.bytes(9, strings)?;
        self.large(10, tensors, Self::tensor)?;
        self.large(11, graphs, Self::graph)?;
        self.text(13, doc_string)?;
        self.small(14, tp.as_deref())?;
        self.small(15, type_protos)?;
        self.int32(20, r#type);
        self.text(21, ref_attr_name)?;
        self.large(22, sparse_tensor.as_deref(), Self::sparse)?;
        self.large(23, sparse_tensors, Self::sparse)
    }

    fn sparse(&mut self, sparse: &SparseTensorProto) -> io::Result<()> {
        let SparseTensorProto {
            values,
            indices,
            dims,
        } = sparse;
        self.large(1, values, Self::tensor)?;
        self.large(2, indices, Self::tensor)?;
        self.int(3, dims);
        self.settle()
    }

    fn tensor(&mut self, tensor: &TensorProto) -> io::Result<()> {
        let TensorProto {
            dims,
            data_type,
            segment,
            float_data,
            int32_data,
            string_data,
            int64_data,
            name,
            raw_data,
            double_data,
            uint64_data,
            doc_string,
            external_data,
            data_location,
            metadata_props,
        } = tensor;
        self.int(1, dims);
        self.int32(2, data_type);
        self.small(3, segment)?;
        encoding::float::encode_packed(4, float_data, &mut self.buffer);
        encoding::int32::encode_packed(5, int32_data, &mut self.buffer);
        self.bytes(6, string_data)?;
        encoding::int64::encode_packed(7, int64_data, &mut self.buffer);
        self.text(8, name)?;
        self.bytes(9, raw_data)?;
        encoding::double::encode_packed(10, double_data, &mut self.buffer);
        encoding::uint64::encode_packed(11, uint64_data, &mut self.buffer);
        self.text(12, doc_string)?;
        self.small(13, external_data)?;
        self.int32(14, data_location);
        self.small(16, metadata_props)
    }
}
