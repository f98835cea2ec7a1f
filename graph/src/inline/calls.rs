//! Which functions call which.

use super::{InlineError, Key, MAX_CALLS, key, nested, shown};
use crate::onnx::schema::{ModelProto, NodeProto};
use std::collections::{BTreeSet, HashMap};

/// Checks that no function calls itself, and that calls nest no deeper than they can be expanded. Takes time
/// linear in the model, however much the calls would expand to.
///
/// # Errors
/// [`InlineError::Recursion`] and [`InlineError::Depth`]; of functions of one name the first counts.
pub fn check_calls(model: &ModelProto) -> Result<(), InlineError> {
    let mut places = HashMap::new();
    let mut keys = Vec::with_capacity(model.functions.len());
    for (place, function) in model.functions.iter().enumerate() {
        let key = key(&function.domain, &function.name, &function.overload);
        places.entry(key.clone()).or_insert(place);
        keys.push(key);
    }
    if places.is_empty() {
        return Ok(());
    }
    let calls: Vec<Vec<usize>> = (model.functions.iter())
        .map(|function| {
            let mut called = BTreeSet::new();
            calls_of(&function.node, &places, &mut called);
            called.into_iter().collect()
        })
        .collect();
    // How deep calls nest in a function, once that is known.
    let mut depths: Vec<Option<usize>> = vec![None; calls.len()];
    for start in 0..calls.len() {
        // The functions on the way, and how many of each one's calls were followed.
        let mut path = vec![(start, 0)];
        while let Some((here, followed)) = path.last_mut() {
            let here = *here;
            if depths[here].is_some() {
                path.pop();
                continue;
            }
            let Some(&next) = calls[here].get(*followed) else {
                let below = calls[here].iter().filter_map(|&next| depths[next]).max();
                let depth = below.map_or(1, |below| below + 1);
                if depth > MAX_CALLS {
                    return Err(InlineError::Depth(shown(&keys[here])));
                }
                depths[here] = Some(depth);
                path.pop();
                continue;
            };
            *followed += 1;
            if depths[next].is_some() {
                continue;
            }
            // Short, as calls that nest deeper end the search.
            let cycle = path.iter().position(|(function, _)| *function == next);
            if let Some(begin) = cycle {
                let through = path[begin..].iter();
                let through: Vec<_> = through.map(|(place, _)| shown(&keys[*place])).collect();
                return Err(InlineError::Recursion(
                    shown(&keys[next]),
                    through.join(", "),
                ));
            }
            if path.len() == MAX_CALLS {
                return Err(InlineError::Depth(shown(&keys[next])));
            }
            path.push((next, 0));
        }
    }
    Ok(())
}

/// The functions that nodes call, those of graphs in their attributes included.
fn calls_of(nodes: &[NodeProto], places: &HashMap<Key, usize>, called: &mut BTreeSet<usize>) {
    for node in nodes {
        called.extend(places.get(&key(&node.domain, &node.op_type, &node.overload)));
        for graph in nested(node) {
            calls_of(&graph.node, places, called);
        }
    }
}
