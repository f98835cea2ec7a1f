//! A plan as JSON, schema `velora-plan/1`.

use super::{Operand, Plan, Region};
use serde_json::{Value, json};

/// The plan as JSON: regions, buffers with their places and lifetimes, steps with their operands.
///
/// # Errors
/// Where serialisation fails.
pub fn json(plan: &Plan) -> Result<String, serde_json::Error> {
    let operands = |operands: &[Option<Operand>]| -> Vec<Value> {
        let shown = operands.iter().map(|operand| match operand {
            Some(operand) => json!({ "buffer": operand.buffer.0, "type": operand.ty.to_string() }),
            None => Value::Null,
        });
        shown.collect()
    };
    let regions = Region::ALL.iter().zip(&plan.regions);
    let regions: Vec<Value> = regions
        .map(|(region, (offset, bytes))| {
            json!({ "name": region.name(), "offset": offset, "bytes": bytes })
        })
        .collect();
    let buffers: Vec<Value> = (plan.buffers.iter())
        .map(|buffer| {
            json!({
                "name": buffer.name,
                "region": buffer.region.name(),
                "offset": buffer.offset,
                "bytes": buffer.bytes,
                "first": buffer.lifetime.0,
                "last": buffer.lifetime.1,
            })
        })
        .collect();
    let steps: Vec<Value> = (plan.steps.iter())
        .map(|step| {
            json!({
                "op": step.op.name(),
                "node": step.node,
                "half": if step.backward { "backward" } else { "forward" },
                "inputs": operands(&step.inputs),
                "outputs": operands(&step.outputs),
                "workspace": step.workspace.map(|id| id.0),
            })
        })
        .collect();
    let footprint = plan.footprint;
    let shown = json!({
        "schema": "velora-plan/1",
        "arena": {
            "bytes": footprint.arena,
            "lower_bound": footprint.lower_bound,
            "file_order": footprint.file_order,
            "method": footprint.method,
        },
        "regions": regions,
        "buffers": buffers,
        "steps": steps,
    });
    Ok(serde_json::to_string_pretty(&shown)? + "\n")
}
