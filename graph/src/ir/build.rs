//! Names to ids, and back.

use super::{Graph, GraphError, Node, NodeId, Origin, Use, Value, ValueId};
use crate::onnx::schema::{GraphProto, NodeProto};
use std::collections::{BTreeSet, HashMap};

/// No exporter nests graphs this deep; a file that does is hostile.
const NESTING_LIMIT: usize = 32;

/// The next dense id, or an error where ids run out.
fn next_id(len: usize, what: &'static str) -> Result<u32, GraphError> {
    u32::try_from(len)
        .ok()
        .filter(|&id| id < u32::MAX)
        .ok_or(GraphError::TooLarge { what })
}

struct Builder {
    values: Vec<Value>,
    by_name: HashMap<String, ValueId>,
}

impl Builder {
    fn define(&mut self, name: &str, origin: Origin) -> Result<ValueId, GraphError> {
        let id = ValueId(next_id(self.values.len(), "values")?);
        if let Some(&first) = self.by_name.get(name) {
            return Err(GraphError::Redefined {
                tensor: name.to_owned(),
                first: describe(self.values[first.index()].origin),
                second: describe(origin),
            });
        }
        self.by_name.insert(name.to_owned(), id);
        self.values.push(Value {
            name: name.to_owned(),
            origin,
            users: Vec::new(),
            is_output: false,
        });
        Ok(id)
    }
}

fn describe(origin: Origin) -> String {
    match origin {
        Origin::Node(node, slot) => format!("output {slot} of node {}", node.index()),
        Origin::Input(index) => format!("graph input {index}"),
        Origin::Initializer(index) => format!("initialiser {index}"),
        Origin::SparseInitializer(index) => format!("sparse initialiser {index}"),
        Origin::Outer => "an enclosing graph".to_owned(),
    }
}

fn reader(index: usize, node: &NodeProto) -> String {
    format!("node {index} '{}' ({})", node.name(), node.op_type())
}

/// The names that graphs nested in `node` read but do not define, in sorted order.
fn captured(node: &NodeProto, depth: usize, free: &mut BTreeSet<String>) -> Result<(), GraphError> {
    for attribute in &node.attribute {
        for graph in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
            if depth >= NESTING_LIMIT {
                return Err(GraphError::TooDeep {
                    node: node.name().to_owned(),
                    limit: NESTING_LIMIT,
                });
            }
            let mut inner = BTreeSet::new();
            for nested in &graph.node {
                inner.extend(nested.input.iter().filter(|n| !n.is_empty()).cloned());
                captured(nested, depth + 1, &mut inner)?;
            }
            inner.extend(graph.output.iter().map(|o| o.name().to_owned()));
            let defined: BTreeSet<&str> = (graph.input.iter().map(|i| i.name()))
                .chain(graph.initializer.iter().map(|t| t.name()))
                .chain(sparse_names(graph))
                .chain(
                    graph
                        .node
                        .iter()
                        .flat_map(|n| &n.output)
                        .map(String::as_str),
                )
                .collect();
            free.extend(inner.into_iter().filter(|n| !defined.contains(n.as_str())));
        }
    }
    Ok(())
}

fn sparse_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let values = graph.sparse_initializer.iter().map(|s| s.values.as_ref());
    values.map(|values| values.map_or("", |v| v.name()))
}

impl Graph {
    /// Indexes a graph.
    ///
    /// # Errors
    /// [`GraphError`] where a name is read but never defined or is defined twice, where graphs are
    /// nested without end, or where nodes form a cycle. Nodes may stand in any order.
    pub fn from_proto(mut shell: GraphProto) -> Result<Self, GraphError> {
        let made: usize = shell.node.iter().map(|n| n.output.len()).sum();
        let count = shell.input.len() + shell.initializer.len() + made;
        let mut builder = Builder {
            values: Vec::with_capacity(count),
            by_name: HashMap::with_capacity(count),
        };
        let mut inputs = Vec::with_capacity(shell.input.len());
        for (index, info) in shell.input.iter().enumerate() {
            inputs.push(builder.define(info.name(), Origin::Input(index))?);
        }
        for (index, tensor) in shell.initializer.iter().enumerate() {
            // An initialiser named like an input is that input's default, not a second definition.
            let input = builder.by_name.get(tensor.name()).copied();
            if input.is_none_or(|v| !matches!(builder.values[v.index()].origin, Origin::Input(_))) {
                builder.define(tensor.name(), Origin::Initializer(index))?;
            }
        }
        for (index, name) in sparse_names(&shell).enumerate() {
            if !builder.by_name.contains_key(name) {
                builder.define(name, Origin::SparseInitializer(index))?;
            }
        }

        let protos = std::mem::take(&mut shell.node);
        let mut outputs_of = Vec::with_capacity(protos.len());
        for (index, proto) in protos.iter().enumerate() {
            let id = NodeId(next_id(index, "nodes")?);
            let mut made = Vec::with_capacity(proto.output.len());
            for (slot, name) in proto.output.iter().enumerate() {
                made.push(match name.as_str() {
                    "" => None,
                    name => Some(builder.define(name, Origin::Node(id, slot))?),
                });
            }
            outputs_of.push(made);
        }

        let mut nodes = Vec::with_capacity(protos.len());
        for (index, (mut proto, outputs)) in protos.into_iter().zip(outputs_of).enumerate() {
            let find = |name: &str| {
                let found = builder.by_name.get(name).copied();
                found.ok_or_else(|| GraphError::Undefined {
                    tensor: name.to_owned(),
                    reader: reader(index, &proto),
                })
            };
            let mut reads = Vec::with_capacity(proto.input.len());
            for name in &proto.input {
                reads.push(if name.is_empty() {
                    None
                } else {
                    Some(find(name)?)
                });
            }
            let mut free = BTreeSet::new();
            captured(&proto, 0, &mut free)?;
            let captures = free
                .iter()
                .map(|n| find(n))
                .collect::<Result<Vec<_>, _>>()?;
            proto.input.clear();
            proto.output.clear();
            nodes.push(Node {
                proto,
                inputs: reads,
                outputs,
                captures,
            });
        }

        let mut outputs = Vec::with_capacity(shell.output.len());
        for info in &shell.output {
            let found = builder.by_name.get(info.name()).copied();
            let value = found.ok_or_else(|| GraphError::Undefined {
                tensor: info.name().to_owned(),
                reader: "the list of graph outputs".to_owned(),
            })?;
            builder.values[value.index()].is_output = true;
            outputs.push(value);
        }

        let order = (0..nodes.len() as u32).map(NodeId).collect();
        let mut graph = Graph {
            shell,
            nodes,
            order,
            values: builder.values,
            inputs,
            outputs,
        };
        graph.index_users();
        graph.topological_order()?;
        Ok(graph)
    }

    fn index_users(&mut self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let id = NodeId(index as u32);
            for (slot, value) in node.inputs.iter().enumerate() {
                if let Some(value) = value {
                    let slot = Some(slot);
                    self.values[value.index()]
                        .users
                        .push(Use { node: id, slot });
                }
            }
            for value in &node.captures {
                self.values[value.index()].users.push(Use {
                    node: id,
                    slot: None,
                });
            }
        }
    }

    /// The message that this graph stands for, nodes in [`Graph::order`].
    pub fn to_proto(&self) -> GraphProto {
        let mut proto = self.shell.clone();
        proto.node = self.order.iter().map(|&id| self.node_proto(id)).collect();
        proto
    }
}
