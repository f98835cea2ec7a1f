//! `--dim NAME=N`: sizes for the symbols of a graph's inputs.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::sync::Arc;
use velora_graph::analysis::symbols;
use velora_graph::ir::Graph;

/// The sizes given on the command line, by symbol.
///
/// # Errors
/// Where a name is no symbol of the graph's inputs; the message lists those that are.
pub fn sizes(graph: &Graph, given: &[(String, i64)]) -> Result<BTreeMap<Arc<str>, i64>> {
    let known = symbols(graph);
    for (name, size) in given {
        if known.contains(name.as_str()) {
            continue;
        }
        let known: Vec<&str> = known.iter().map(|name| &**name).collect();
        match known.as_slice() {
            [] => bail!(
                "--dim {name}={size}: every dimension of the graph's inputs is a number already"
            ),
            names => bail!(
                "--dim {name}={size}: no input of the graph has a dimension of that name; expected {}",
                names.join(" or ")
            ),
        }
    }
    Ok(given
        .iter()
        .map(|(name, size)| (Arc::from(name.as_str()), *size))
        .collect())
}
