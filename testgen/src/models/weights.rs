//! Weights in an external file that has their size and no content.

use crate::tape::{Element, Generated};
use velora_graph::onnx::schema::{ModelProto, StringStringEntryProto, TensorProto};

/// Where in the file a tensor may begin, in bytes: processors load such addresses at once.
const ALIGNMENT: u64 = 64;

/// A model whose weights are in a file.
#[derive(Clone, Debug)]
pub struct WithWeights {
    /// The model.
    pub model: ModelProto,
    /// The size of the file of weights, in bytes.
    pub bytes: u64,
}

/// Gives every weight a default value in the file `location` beside the model: an initialiser of its name, as
/// exporters write it. All bytes may be zeros, so that a sparse file takes no room.
pub fn with_weights(made: &Generated, element: Element, location: &str) -> WithWeights {
    let mut model = made.model.clone();
    let mut end = 0u64;
    let tensors = made.weights.iter().map(|weight| {
        let dims: Vec<i64> = weight.shape.iter().map(|axis| axis.size).collect();
        let offset = end.next_multiple_of(ALIGNMENT);
        let length = (dims.iter().product::<i64>() * element.bytes()) as u64;
        end = offset + length;
        let entries = [
            ("location", location.to_owned()),
            ("offset", offset.to_string()),
            ("length", length.to_string()),
        ];
        TensorProto {
            name: Some(weight.name.clone()),
            dims,
            data_type: Some(element.code()),
            external_data: entries.map(|(key, value)| entry(key, value)).into(),
            data_location: Some(1),
            ..Default::default()
        }
    });
    let tensors: Vec<TensorProto> = tensors.collect();
    if let Some(graph) = &mut model.graph {
        graph.initializer.extend(tensors);
    }
    WithWeights { model, bytes: end }
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    }
}
