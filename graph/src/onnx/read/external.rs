//! Checks of references to external data.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::beneath::{Found, Identity, Problem, find, open_found};
use super::{FileError, Source};
use crate::onnx::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
};
use crate::shapes::DataType;

/// Checks every reference to external data: that it stays inside `model_dir`, that the file holds the
/// range, and that no two ranges share a part only. Tensors of the same range are one, stored once. Looks at
/// metadata only; no data file is opened.
pub fn check_external_data(model: &ModelProto, model_dir: &Path) -> Result<(), FileError> {
    let mut dir = Folder {
        path: model_dir,
        ranges: BTreeMap::new(),
    };
    check_model(model, &mut dir)?;
    dir.apart()
}

/// The folder of a model, and what was found in it.
struct Folder<'a> {
    path: &'a Path,
    /// By file, the ranges that tensors refer to, and the tensors' names.
    ranges: BTreeMap<Identity, Vec<(Range<u64>, &'a str)>>,
}

impl Folder<'_> {
    /// Whether ranges are the same or have nothing in common.
    fn apart(mut self) -> Result<(), FileError> {
        for ranges in self.ranges.values_mut() {
            ranges.sort_by_key(|(range, _)| (range.start, range.end));
            let mut last: Option<&(Range<u64>, &str)> = None;
            for own in ranges.iter() {
                match last {
                    Some((before, name)) if own.0.start < before.end && own.0 != *before => {
                        return Err(FileError::ExternalData {
                            tensor: format!("tensor {:?}", own.1),
                            problem: format!(
                                "its bytes {} to {} overlap those of tensor {name:?}, {} to {}",
                                own.0.start, own.0.end, before.start, before.end
                            ),
                            hint: "expected ranges that are the same or have nothing in common",
                        });
                    }
                    // Sorted and apart so far, the last one ends last.
                    _ => last = Some(own),
                }
            }
        }
        Ok(())
    }
}

fn check_model<'a>(model: &'a ModelProto, model_dir: &mut Folder<'a>) -> Result<(), FileError> {
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

/// The data of one tensor that lies in an external file, mapped.
///
/// # Errors
/// [`FileError`] where the reference leaves `model_dir`, or the file does not hold the range.
pub fn map_external_data(tensor: &TensorProto, model_dir: &Path) -> Result<Bytes, FileError> {
    ExternalData::new(model_dir).map(tensor)
}

/// The external data of a model: each file is mapped once.
pub struct ExternalData<'a> {
    model_dir: &'a Path,
    files: BTreeMap<Identity, Source>,
}

impl<'a> ExternalData<'a> {
    /// Data below a model's folder; nothing is looked for yet.
    pub fn new(model_dir: &'a Path) -> Self {
        ExternalData {
            model_dir,
            files: BTreeMap::new(),
        }
    }

    /// The files that were mapped.
    pub fn into_sources(self) -> Vec<Source> {
        self.files.into_values().collect()
    }

    /// The data of one tensor: the bytes of its dims where these are known, and else what the reference
    /// says.
    ///
    /// # Errors
    /// [`FileError`] where the reference leaves the folder, or the file does not hold the range.
    pub fn map(&mut self, tensor: &TensorProto) -> Result<Bytes, FileError> {
        let problem = |(problem, hint)| FileError::ExternalData {
            tensor: format!("tensor {:?}", tensor.name()),
            problem,
            hint,
        };
        let (found, range) = check_reference(tensor, self.model_dir).map_err(problem)?;
        let file = match self.files.get(&found.identity) {
            Some(file) => file.bytes().clone(),
            None => {
                let path = self.model_dir.join(location(tensor));
                let opened = open_found(&found).map_err(problem)?;
                let file = Source::map(opened, &path)?;
                let bytes = file.bytes().clone();
                self.files.insert(found.identity, file);
                bytes
            }
        };
        let range = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok());
        // Of the opened file, which was as long as this when it was checked.
        match range.filter(|&(_, end)| end <= file.len()) {
            Some((start, end)) => Ok(file.slice(start..end)),
            None => Err(problem((
                "the file has become shorter".to_owned(),
                "leave the data file alone while the tool runs",
            ))),
        }
    }
}

/// Opens a file of external data below a model's folder, without following a link.
///
/// # Errors
/// Where it is no plain file of its own there; what is wrong, and a hint.
pub fn open_external_file(
    location: &str,
    model_dir: &Path,
) -> Result<File, (String, &'static str)> {
    open_found(&find(location, model_dir)?)
}

fn location(tensor: &TensorProto) -> &str {
    let entry = tensor.external_data.iter().find(|e| e.key() == "location");
    entry.map_or("", |entry| entry.value())
}

fn check_nodes<'a>(
    nodes: &'a [NodeProto],
    dir: &mut Folder<'a>,
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
    dir: &mut Folder<'a>,
    graphs: &mut Vec<&'a GraphProto>,
) -> Result<(), FileError> {
    for attribute in attributes {
        for tensor in (attribute.t.as_deref().into_iter()).chain(&attribute.tensors) {
            check_tensor(tensor, || owner(attribute), dir)?;
        }
        for sparse in attribute
            .sparse_tensor
            .as_deref()
            .into_iter()
            .chain(&attribute.sparse_tensors)
        {
            check_sparse(sparse, || owner(attribute), dir)?;
        }
        graphs.extend(attribute.g.as_deref());
        graphs.extend(&attribute.graphs);
    }
    Ok(())
}

fn check_sparse<'a>(
    sparse: &'a SparseTensorProto,
    owner: impl Fn() -> String,
    dir: &mut Folder<'a>,
) -> Result<(), FileError> {
    for tensor in sparse.values.iter().chain(&sparse.indices) {
        check_tensor(tensor, &owner, dir)?;
    }
    Ok(())
}

fn check_tensor<'a>(
    tensor: &'a TensorProto,
    owner: impl Fn() -> String,
    dir: &mut Folder<'a>,
) -> Result<(), FileError> {
    if !tensor.is_external() {
        return Ok(());
    }
    let checked = check_reference(tensor, dir.path);
    let (found, range) = checked.map_err(|(problem, hint)| FileError::ExternalData {
        tensor: format!("tensor {:?} in {}", tensor.name(), owner()),
        problem,
        hint,
    })?;
    if !range.is_empty() {
        let ranges = dir.ranges.entry(found.identity).or_default();
        ranges.push((range, tensor.name()));
    }
    Ok(())
}

/// The file that a tensor refers to, and the range of it that holds the tensor's data.
fn check_reference(tensor: &TensorProto, dir: &Path) -> Result<(Found, Range<u64>), Problem> {
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
    let found = find(location, dir)?;
    let size = found.size;
    let offset = number("offset")?.unwrap_or(0);
    let length = number("length")?;
    if offset > size || length.is_some_and(|length| length > size - offset) {
        let length = length.map_or("the rest".into(), |length| format!("{length} bytes"));
        return Err((
            format!("{location:?} has {size} bytes, and {length} at offset {offset} is needed"),
            "expected a range inside the file; is the data file complete?",
        ));
    }
    // Without a length, data of other tensors may follow.
    let (held, needed) = (length.unwrap_or(size - offset), payload(tensor));
    if needed.is_some_and(|n| n > held.into() || length.is_some() && n < held.into()) {
        let needed = needed.unwrap_or_default();
        let dims = &tensor.dims;
        return Err((
            format!("the dims {dims:?} take {needed} bytes, and the reference holds {held}"),
            "expected as many; is the data file that of this model?",
        ));
    }
    let own = needed.and_then(|needed| u64::try_from(needed).ok());
    let end = offset + own.unwrap_or(held).min(held);
    Ok((found, offset..end))
}

/// The bytes that a tensor takes, where its type and dims tell.
fn payload(tensor: &TensorProto) -> Option<u128> {
    let bits = DataType(tensor.data_type?).bits()?;
    let size = |dim: &i64| u128::try_from(*dim).ok();
    let elements = { tensor.dims.iter() }.try_fold(1u128, |n, dim| n.checked_mul(size(dim)?))?;
    let bits = elements.checked_mul(u128::try_from(bits).ok()?)?;
    Some(bits.div_ceil(8))
}
