//! Checks of references to external data.

use bytes::Bytes;
use std::fs;
use std::path::{Component, Path};

use super::{FileError, Source};
use crate::onnx::schema::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
};
use crate::shapes::DataType;

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

/// The data of one tensor that lies in an external file, mapped.
///
/// # Errors
/// [`FileError`] where the reference leaves `model_dir`, or the file does not hold the range.
pub fn map_external_data(tensor: &TensorProto, model_dir: &Path) -> Result<Bytes, FileError> {
    let problem = |problem, hint| FileError::ExternalData {
        tensor: format!("tensor {:?}", tensor.name()),
        problem,
        hint,
    };
    check_reference(tensor, model_dir).map_err(|(text, hint)| problem(text, hint))?;
    let entry = |key: &str| {
        let entry = tensor.external_data.iter().find(|e| e.key() == key);
        entry.map(|e| e.value())
    };
    let number = |key| entry(key).and_then(|text| text.parse::<usize>().ok());
    let file = Source::map(&model_dir.join(entry("location").unwrap_or_default()))?;
    let start = number("offset").unwrap_or(0);
    let length = number("length").or_else(|| usize::try_from(payload(tensor)?).ok());
    let end = length.map_or(Some(file.bytes().len()), |length| start.checked_add(length));
    match end.filter(|&end| start <= end && end <= file.bytes().len()) {
        Some(end) => Ok(file.bytes().slice(start..end)),
        // It held the range when it was checked.
        None => Err(problem(
            "the file has become shorter".to_owned(),
            "leave the data file alone while the tool runs",
        )),
    }
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
    if !tensor.is_external() {
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
    let (held, needed) = (length.unwrap_or(size - offset), payload(tensor));
    // Without a length, data of other tensors may follow.
    if needed.is_some_and(|n| n > held.into() || length.is_some() && n < held.into()) {
        let needed = needed.unwrap_or_default();
        let dims = &tensor.dims;
        return Err((
            format!("the dims {dims:?} take {needed} bytes, and the reference holds {held}"),
            "expected as many; is the data file that of this model?",
        ));
    }
    Ok(())
}

/// The bytes that a tensor takes, where its type and dims tell.
fn payload(tensor: &TensorProto) -> Option<u128> {
    let bits = DataType(tensor.data_type?).bits()?;
    let size = |dim: &i64| u128::try_from(*dim).ok();
    let elements = { tensor.dims.iter() }.try_fold(1u128, |n, dim| n.checked_mul(size(dim)?))?;
    let bits = elements.checked_mul(u128::try_from(bits).ok()?)?;
    Some(bits.div_ceil(8))
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
