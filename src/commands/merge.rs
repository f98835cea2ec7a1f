//! `merge`: adapters and what was trained with them, put into a model.

use crate::adapter_file;
use crate::cli::{ExternalData, MergeArguments};
use crate::io::{Input, Output, check_data, folder_of, write_model};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeSet;
use velora_graph::onnx::schema::TensorProto;
use velora_graph::shapes::DataType;
use velora_runtime::data;
use velora_runtime::lower::constants;

/// Writes the model with W₀ + v ⊗ A in the place of each W₀, and the other trained parameters in the
/// places of the model's.
///
/// # Errors
/// Where the model lacks a weight, or one has another shape or type; nothing is written then.
pub fn run(arguments: &MergeArguments) -> Result<()> {
    let Input {
        name,
        mut model,
        source,
        ..
    } = Input::read(&arguments.model, arguments.allow_unknown_fields)?;
    check_data(&mut model, &arguments.model)?;
    let data = data::read(&arguments.adapter).context("cannot use the adapters")?;
    let layers = adapter_file::read(&data)?;
    let folder = folder_of(&arguments.model);
    let graph = model.graph.get_or_insert_default();
    let mut own: BTreeSet<&str> = BTreeSet::new();
    for layer in &layers {
        own.extend([layer.adapter.as_str(), &layer.direction]);
        let mut tensors = graph.initializer.iter_mut();
        let Some(tensor) = tensors.find(|tensor| tensor.name() == layer.param) else {
            bail!(
                "{name}: no initialiser '{}', which an adapter belongs to; merge into a model that holds \
                 its weights",
                layer.param
            );
        };
        if tensor.data_type() != DataType::FLOAT.0 {
            bail!(
                "{name}: '{}' is of element type {}, expected 32-bit floats; merge into the model that the \
                 adapters were made from",
                layer.param,
                tensor.data_type()
            );
        }
        let of = || format!("{name}: '{}'", layer.param);
        let values = constants::from_proto(tensor, Some(folder))
            .map_err(|refusal| anyhow!(refusal.0))
            .with_context(of)?;
        let mut weight = values.to_f32().with_context(of)?;
        adapter_file::merge(&mut weight, &tensor.dims, layer, &data).with_context(of)?;
        put(
            tensor,
            weight.iter().flat_map(|w| w.to_le_bytes()).collect(),
        );
    }
    let (mut others, mut absent) = (0, Vec::new());
    for (array, value) in data
        .arrays
        .iter()
        .filter(|(array, _)| !own.contains(array.as_str()))
    {
        let mut tensors = graph.initializer.iter_mut();
        match tensors.find(|tensor| tensor.name() == array) {
            Some(tensor) => {
                let dims: Vec<i64> = value.shape.iter().map(|&size| size as i64).collect();
                if tensor.dims != dims || tensor.data_type() != value.data_type.0 {
                    bail!(
                        "{name}: '{array}' is {:?} of element type {}, and was trained as {dims:?} of {}",
                        tensor.dims,
                        tensor.data_type(),
                        value.data_type.0
                    );
                }
                put(tensor, value.bytes.to_vec());
                others += 1;
            }
            None => absent.push(array.as_str()),
        }
    }
    let output = Output {
        path: &arguments.output,
        external_data: ExternalData::Keep,
        quiet: arguments.quiet,
    };
    write_model(&mut model, source.as_ref(), output)?;
    if !arguments.quiet {
        eprintln!(
            "velora-opt: merged {} adapters and {others} other parameters",
            layers.len()
        );
        if !absent.is_empty() {
            eprintln!(
                "velora-opt: the model has no initialiser {}",
                absent.join(", ")
            );
        }
    }
    Ok(())
}

/// Gives a tensor other data of its type, in the file itself.
fn put(tensor: &mut TensorProto, bytes: Vec<u8>) {
    tensor.float_data.clear();
    tensor.external_data.clear();
    tensor.data_location = None;
    tensor.raw_data = Some(bytes.into());
}
