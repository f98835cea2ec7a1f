//! A whole file: the graph with its index, and everything around it.

use super::{Graph, GraphError};
use crate::onnx::schema::ModelProto;

/// A model whose main graph is indexed.
#[derive(Clone, Debug)]
pub struct Model {
    /// The file without its graph: operator sets, functions, metadata.
    pub shell: ModelProto,
    /// The main graph.
    pub graph: Graph,
}

impl Model {
    /// Indexes the main graph of a file; a file without one has an empty graph.
    ///
    /// # Errors
    /// [`GraphError`] where it is no graph.
    pub fn from_proto(mut proto: ModelProto) -> Result<Self, GraphError> {
        let graph = Graph::from_proto(proto.graph.take().unwrap_or_default())?;
        Ok(Model {
            shell: proto,
            graph,
        })
    }

    /// The message that this model stands for.
    pub fn to_proto(&self) -> ModelProto {
        ModelProto {
            graph: Some(self.graph.to_proto()),
            ..self.shell.clone()
        }
    }

    /// The version of an operator set that the model imports; the standard one is the empty domain.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let same = |d: &str| d == domain || (domain.is_empty() && d == "ai.onnx");
        let found = (self.shell.opset_import.iter()).find(|o| same(o.domain()));
        found.map(|o| o.version())
    }
}
