//! What of the forward half to compute again in the backward half, in the place of saving it.
//!
//! - [`cost`]: what nodes take, in seconds.
//! - [`cut`]: which saved activations to keep, to compute again or to compress: a minimum cut.
//! - [`blocks`]: the repeated blocks of a model, for gradient checkpointing.
//!
//! Computing a node a second time changes no bit of what it makes, as long as the node is a function of its inputs:
//! what draws random numbers is kept.

pub mod blocks;
pub mod cost;
pub mod cut;

use crate::ir::Node;
use crate::onnx::schema::AttributeType;

/// Whether computing a node again makes the same values: it is a known operator that draws no random numbers,
/// has no nested graph, and is none of ours.
pub fn may_recompute(node: &Node) -> bool {
    let nested =
        |kind: i32| kind == AttributeType::Graph as i32 || kind == AttributeType::Graphs as i32;
    let mut attributes = node.proto.attribute.iter();
    matches!(node.domain(), "" | "com.microsoft")
        && node.velora_op().is_none()
        && !super::hoist::is_random(node)
        && node.op() != "Constant"
        && node.captures.is_empty()
        && !attributes.any(|a| a.r#type.is_some_and(nested))
}
