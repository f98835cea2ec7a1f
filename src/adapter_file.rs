//! Files of adapters: what training moved, apart from the weights that stayed.
//!
//! A safetensors file with A of every weight W = W₀ + v ⊗ A, the directions v under the names that the graph
//! has for them, and the other trained parameters (biases, gains). Its text says how they belong together:
//! `format` is [`FORMAT`], `layers` a JSON list of [`Layer`].

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use velora_graph::analysis::roles::Roles;
use velora_graph::ir::{Graph, Model, Origin};
use velora_runtime::data::{Dataset, safetensors};
use velora_runtime::lower::constants;
use velora_runtime::program::Factor;
use velora_runtime::session::trainer::Session;
use velora_runtime::tensor::Tensor;

/// What the file says that it is.
pub const FORMAT: &str = "velora-adapter/1";

/// A weight with an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The weight, [D, O] or [O, D].
    pub param: String,
    /// The tensor that is A, [G, O] or [O, G].
    pub adapter: String,
    /// The tensor that is v, `[M]`, or [G, 1, M] where each group has its own.
    pub direction: String,
    /// G.
    pub groups: usize,
    /// Whether the weight is [O, D].
    pub features_last: bool,
}

/// The adapters of a graph.
///
/// # Errors
/// Where there are none.
pub fn layers(graph: &Graph, roles: &Roles) -> Result<Vec<Layer>> {
    let name = |value| graph.value(value).name.clone();
    let layers = roles.adapters.iter().map(|adapter| {
        // What is handed out is a copy, and of directions by group another view.
        let mut v = graph.unpinned(adapter.of.direction);
        while let Some(copied) = graph.producer(v) {
            let read = graph.node(copied).inputs.first().copied().flatten();
            v = graph.unpinned(read.context("an adapter without a direction")?);
        }
        Ok(Layer {
            param: name(adapter.of.parameter),
            adapter: name(adapter.input),
            direction: name(v),
            groups: usize::try_from(adapter.of.groups)?,
            features_last: adapter.of.features_last,
        })
    });
    let layers: Vec<Layer> = layers.collect::<Result<_>>()?;
    if layers.is_empty() {
        bail!("the graph has no adapters; --adapter makes them when it is rewritten");
    }
    Ok(layers)
}

/// Writes what a session has trained.
///
/// # Errors
/// Where the graph has no adapters, or the file cannot be written.
pub fn write(path: &Path, model: &Model, roles: &Roles, session: &Session<'_>) -> Result<()> {
    let layers = layers(&model.graph, roles)?;
    let mut tensors: BTreeMap<&str, Tensor> = BTreeMap::new();
    for kept in session.kept() {
        // A direction that a batch has filled stays as parameters do.
        if kept.trained || layers.iter().any(|layer| layer.direction == kept.name) {
            tensors.insert(&kept.name, session.read(&kept.operand)?);
        }
    }
    for layer in &layers {
        if !tensors.contains_key(layer.direction.as_str()) {
            let constant = constant(&model.graph, &layer.direction);
            let missing = || format!("the direction '{}' is no constant", layer.direction);
            tensors.insert(&layer.direction, constant.with_context(missing)?);
        }
    }
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("layers", serde_json::to_string(&layers)?),
    ];
    let metadata = metadata.map(|(key, text)| (key.to_owned(), text)).into();
    let views = tensors.iter().map(|(name, tensor)| (*name, tensor.view()));
    Ok(safetensors::write(path, &metadata, views)?)
}

fn constant(graph: &Graph, name: &str) -> Option<Tensor> {
    let tensor = graph.initializers().iter().find(|t| t.name() == name)?;
    constants::from_proto(tensor, None).ok()
}

/// Whether arrays come from a file of adapters.
pub fn is_adapter(data: &Dataset) -> bool {
    data.metadata
        .get("format")
        .is_some_and(|format| format == FORMAT)
}

/// The layers that a file has adapters of.
///
/// # Errors
/// Where it is no file of adapters, or contradicts itself.
pub fn read(data: &Dataset) -> Result<Vec<Layer>> {
    let file = data.file.display();
    if !is_adapter(data) {
        bail!("{file}: not a file of adapters; `run --save-adapter` writes one");
    }
    let text = data.metadata.get("layers").map_or("", String::as_str);
    let layers: Vec<Layer> =
        serde_json::from_str(text).with_context(|| format!("{file}: its list of layers"))?;
    for layer in &layers {
        for name in [&layer.adapter, &layer.direction] {
            if !data.arrays.contains_key(name) {
                bail!(
                    "{file}: no tensor '{name}', which the layer '{}' needs",
                    layer.param
                );
            }
        }
    }
    Ok(layers)
}

/// Checks that a file's adapters are those of a graph: the same weights, cut alike, along the same
/// directions.
///
/// # Errors
/// Where they are not.
pub fn check(data: &Dataset, model: &Model, roles: &Roles) -> Result<()> {
    let file = data.file.display();
    let (theirs, ours) = (read(data)?, layers(&model.graph, roles)?);
    for layer in &theirs {
        let same = |own: &&Layer| own.param == layer.param;
        let Some(own) = ours.iter().find(same) else {
            bail!("{file}: the graph has no adapter of '{}'", layer.param);
        };
        if own != layer {
            bail!(
                "{file}: '{}' is cut into {} groups there and into {} in the graph, or otherwise; rewrite \
                 the model as it was for these adapters",
                layer.param,
                layer.groups,
                own.groups
            );
        }
        let value = model
            .graph
            .values()
            .find(|&v| model.graph.value(v).name == own.direction);
        let fixed = value
            .is_some_and(|value| matches!(model.graph.value(value).origin, Origin::Initializer(_)));
        let (is, was) = (
            constant(&model.graph, &own.direction).filter(|_| fixed),
            data.arrays.get(&own.direction),
        );
        if let (Some(is), Some(was)) = (is, was)
            && is.bytes != was.bytes
        {
            bail!(
                "{file}: the direction '{}' is another one than the graph's; adapters belong to the \
                 directions that they were trained with",
                own.direction
            );
        }
    }
    Ok(())
}

/// `W₀ + v ⊗ A`, in 32-bit floats.
///
/// # Errors
/// Where the shapes do not fit.
pub fn merge(weight: &mut [f32], dims: &[i64], layer: &Layer, data: &Dataset) -> Result<()> {
    let array = |name: &str| -> Result<Vec<f32>> {
        let tensor = data
            .arrays
            .get(name)
            .with_context(|| format!("no tensor '{name}'"))?;
        let numbers = tensor.to_f32();
        numbers.with_context(|| format!("'{name}' is not of floating-point numbers"))
    };
    let (a, v) = (array(&layer.adapter)?, array(&layer.direction)?);
    let sizes: Vec<usize> = dims
        .iter()
        .filter_map(|&d| usize::try_from(d).ok())
        .collect();
    let cut = match (sizes.as_slice(), layer.features_last) {
        (&[outputs, features], true) | (&[features, outputs], false) => Some(Factor {
            direction: v.as_slice(),
            groups: layer.groups,
            features,
            outputs,
            features_last: layer.features_last,
        }),
        _ => None,
    };
    let size = |cut: &Factor<&[f32]>| cut.features.div_ceil(cut.groups.max(1));
    let fits = |cut: &Factor<&[f32]>| {
        let m = size(cut);
        // The number of groups is the file's word.
        let (rows, all) = (
            cut.groups.checked_mul(cut.outputs),
            cut.groups.checked_mul(m),
        );
        cut.groups > 0
            && rows == Some(a.len())
            && (v.len() == m || all == Some(v.len()))
            && cut.features.checked_mul(cut.outputs) == Some(weight.len())
    };
    let Some(cut) = cut.filter(fits) else {
        bail!(
            "the weight is {dims:?}, and its adapter has {} numbers in {} groups and {} of direction",
            a.len(),
            layer.groups,
            v.len()
        );
    };
    let (m, own) = (size(&cut), v.len() > size(&cut));
    for feature in 0..cut.features {
        let (group, within) = (feature / m, feature % m);
        let along = v[if own { feature } else { within }];
        for output in 0..cut.outputs {
            let (at, from) = match cut.features_last {
                true => (output * cut.features + feature, output * cut.groups + group),
                false => (feature * cut.outputs + output, group * cut.outputs + output),
            };
            weight[at] += along * a[from];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Times two outputs, the number of groups is that of the adapter's elements, but for what does not fit.
    #[test]
    fn a_number_of_groups_that_wraps_is_refused() {
        let arrays = [("a", vec![0.0; 4]), ("v", vec![1.0])];
        let arrays = arrays.map(|(name, elements)| {
            let tensor = Tensor::from_f32(&[elements.len()], &elements);
            (name.to_owned(), tensor)
        });
        let data = Dataset {
            file: "adapter".into(),
            arrays: arrays.into(),
            metadata: BTreeMap::new(),
        };
        let mut layer = Layer {
            param: "w".to_owned(),
            adapter: "a".to_owned(),
            direction: "v".to_owned(),
            groups: (1 << 63) + 2,
            features_last: false,
        };
        let error = merge(&mut [0.0; 8], &[4, 2], &layer, &data).unwrap_err();
        assert!(error.to_string().contains("4 numbers in"), "{error}");
        layer.groups = 2;
        assert!(
            merge(&mut [0.0; 8], &[4, 2], &layer, &data).is_err(),
            "v has two numbers then"
        );
        layer.groups = 4;
        assert!(
            merge(&mut [0.0; 8], &[4, 1], &layer, &data).is_err(),
            "the weight has four"
        );
    }
}
