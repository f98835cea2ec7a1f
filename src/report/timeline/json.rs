//! The key `timeline` of the report: a line for each step and each buffer, so that a graph of many thousand
//! nodes stays a few megabytes, and one can be found with a text search.

use super::{Buffer, Course, Described, Resident, Step, Timeline};
use crate::report::json::{amount, sizes};
use anyhow::{Context, Result};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;
use velora_graph::analysis::partition::Half;

/// The timeline as JSON, its lines indented as a value of the report's outermost object.
///
/// # Errors
/// Where the encoder fails, which no timeline makes it do.
pub fn rows(timeline: &Timeline) -> Result<String> {
    let sizes: BTreeMap<&str, i64> = { timeline.sizes.iter() }
        .map(|(name, &size)| (&**name, size))
        .collect();
    let sizes = one(&sizes)?;
    let before = course(&timeline.before)?;
    let after = (timeline.after.as_ref()).map_or(Ok("null".to_owned()), course)?;
    Ok(format!(
        "{{\n    \"sizes\": {sizes},\n    \"before\": {before},\n    \"after\": {after}\n  }}"
    ))
}

fn course(course: &Course) -> Result<String> {
    let steps = list(&course.steps)?;
    let buffers = list(&course.buffers)?;
    let held = list(&course.held)?;
    let (_, peak) = course.peak();
    Ok(format!(
        "{{\n      \"peak_step\": {peak},\n      \"steps\": {steps},\n      \"buffers\": {buffers},\n      \
         \"held\": {held}\n    }}"
    ))
}

fn list<T: Serialize>(rows: &[T]) -> Result<String> {
    if rows.is_empty() {
        return Ok("[]".to_owned());
    }
    let lines: Result<Vec<String>> = rows.iter().map(one).collect();
    Ok(format!(
        "[\n        {}\n      ]",
        lines?.join(",\n        ")
    ))
}

fn one<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).context("cannot write the timeline as JSON")
}

/// The word of the schema.
fn half(half: Half) -> &'static str {
    match half {
        Half::Forward => "forward",
        Half::Backward => "backward",
        Half::Dead => "none",
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("node", &self.node)?;
        map.serialize_entry("op", &self.op)?;
        map.serialize_entry("half", half(self.half))?;
        map.end()
    }
}

fn described<M: SerializeMap>(map: &mut M, tensor: &Described) -> Result<(), M::Error> {
    map.serialize_entry("tensor", &tensor.tensor)?;
    map.serialize_entry("category", tensor.category.word())?;
    map.serialize_entry("shape", &sizes(tensor.shape.as_deref()))?;
    map.serialize_entry("dtype", &tensor.dtype)?;
    amount(map, "bytes", &tensor.bytes)
}

impl Serialize for Buffer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        described(&mut map, &self.tensor)?;
        map.serialize_entry("born", &self.born)?;
        map.serialize_entry("last", &self.last)?;
        map.serialize_entry("over", &self.over)?;
        map.serialize_entry("readers", &self.readers)?;
        map.end()
    }
}

impl Serialize for Resident {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        described(&mut map, &self.tensor)?;
        map.serialize_entry("trained", &self.trained)?;
        map.end()
    }
}
