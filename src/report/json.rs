//! The JSON of schema `velora-report/1`: every key of it, in its order.
//!
//! An amount is a number, or null with a `<key>_symbolic` string behind it while a dimension is open.
//! A size in a shape is a number or an expression; a shape of unknown rank is null.

use super::timeline::rows;
use super::{Amount, Held, Hoisted, Layer, Preset, Report, SCHEMA, Saved, Totals, Trial};
use crate::measure::fidelity::Fidelity;
use anyhow::{Context, Result};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;
use velora_graph::dim::Dim;

/// The report as JSON, one trailing line end.
///
/// # Errors
/// Where the encoder fails, which no report makes it do.
pub fn json(report: &Report) -> Result<String> {
    let mut text =
        serde_json::to_string_pretty(report).context("cannot write the report as JSON")?;
    if let Some(timeline) = &report.timeline {
        // The last key, in lines of its own making: one for each row.
        let open = text.strip_suffix("\n}").unwrap_or(&text).len();
        text.truncate(open);
        text += &format!(",\n  \"timeline\": {}\n}}", rows(timeline)?);
    }
    text.push('\n');
    Ok(text)
}

pub(super) fn amount<M: SerializeMap>(
    map: &mut M,
    key: &str,
    amount: &Amount,
) -> Result<(), M::Error> {
    map.serialize_entry(key, &amount.exact())?;
    match amount.symbolic() {
        Some(expression) => map.serialize_entry(&format!("{key}_symbolic"), &expression),
        None => Ok(()),
    }
}

/// One axis.
pub(super) struct Size<'a>(&'a Dim);

impl Serialize for Size<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0.as_const() {
            Some(number) => to.serialize_i64(number),
            None => to.collect_str(self.0),
        }
    }
}

pub(super) fn sizes(shape: Option<&[Dim]>) -> Option<Vec<Size<'_>>> {
    shape.map(|dims| dims.iter().map(Size).collect())
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Report {
            tool_version,
            model,
            dims,
            groups_default,
            totals,
            layers,
            hoisted,
            saved: _,
            plan,
            pareto,
            presets,
            sweep,
            batch,
            timeline: _,
            open: _,
        } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("schema", SCHEMA)?;
        map.serialize_entry("tool_version", tool_version)?;
        map.serialize_entry("model", model)?;
        map.serialize_entry("dims", dims)?;
        map.serialize_entry("groups_default", groups_default)?;
        map.serialize_entry("totals", totals)?;
        map.serialize_entry("layers", layers)?;
        map.serialize_entry("hoisted", hoisted)?;
        map.serialize_entry("saved", &self.biggest_first())?;
        if let Some(plan) = plan {
            map.serialize_entry("plan", plan)?;
        }
        if !pareto.is_empty() {
            map.serialize_entry("pareto", pareto)?;
        }
        if !presets.is_empty() {
            map.serialize_entry("presets", presets)?;
        }
        if !sweep.is_empty() {
            map.serialize_entry("sweep", sweep)?;
        }
        if let Some((path, samples)) = batch {
            map.serialize_entry("data", &json!({ "path": path, "samples": samples }))?;
        }
        map.end()
    }
}

impl Serialize for Totals {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Totals {
            saved_bytes_before,
            saved_bytes_after,
            counted_per_layer_before,
            counted_per_layer_after,
            peak_bytes_before,
            peak_bytes_after,
            weight_grad_flops_before,
            weight_grad_flops_after,
            held_before,
            held_after,
            sites,
            sites_rewritten,
            fidelity,
        } = self;
        let mut map = to.serialize_map(None)?;
        amount(&mut map, "saved_bytes_before", saved_bytes_before)?;
        amount(&mut map, "saved_bytes_after", saved_bytes_after)?;
        amount(&mut map, "peak_bytes_before", peak_bytes_before)?;
        amount(&mut map, "peak_bytes_after", peak_bytes_after)?;
        amount(
            &mut map,
            "weight_grad_flops_before",
            weight_grad_flops_before,
        )?;
        amount(&mut map, "weight_grad_flops_after", weight_grad_flops_after)?;
        for (when, counted) in [
            ("before", counted_per_layer_before),
            ("after", counted_per_layer_after),
        ] {
            amount(
                &mut map,
                &format!("counted_per_layer_bytes_{when}"),
                counted,
            )?;
        }
        for (when, held) in [("before", held_before), ("after", held_after)] {
            let Held {
                parameters,
                gradients,
                optimizer,
                step,
            } = held;
            amount(&mut map, &format!("parameter_bytes_{when}"), parameters)?;
            amount(&mut map, &format!("gradient_bytes_{when}"), gradients)?;
            amount(&mut map, &format!("adamw_bytes_{when}"), optimizer)?;
            amount(&mut map, &format!("step_bytes_{when}"), step)?;
        }
        map.serialize_entry("sites", sites)?;
        map.serialize_entry("sites_rewritten", sites_rewritten)?;
        measured(&mut map, fidelity.as_ref())?;
        map.end()
    }
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Layer {
            param,
            kind,
            node,
            activation,
            shape,
            dtype,
            features_outputs: _,
            decision,
            reason,
            message,
            groups,
            sub_token_size,
            init,
            gradient,
            saved_bytes_before,
            saved_bytes_after,
            freed_bytes,
            kept_alive_by,
            fidelity,
        } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("param", param)?;
        map.serialize_entry("kind", kind.word())?;
        map.serialize_entry("node", node)?;
        map.serialize_entry("activation", activation)?;
        map.serialize_entry("shape", &sizes(shape.as_deref()))?;
        map.serialize_entry("dtype", dtype)?;
        map.serialize_entry("decision", decision.word())?;
        map.serialize_entry("reason", reason)?;
        map.serialize_entry("message", message)?;
        map.serialize_entry("groups", groups)?;
        map.serialize_entry("sub_token_size", sub_token_size)?;
        map.serialize_entry("init", init)?;
        map.serialize_entry("gradient", gradient)?;
        amount(&mut map, "saved_bytes_before", saved_bytes_before)?;
        amount(&mut map, "saved_bytes_after", saved_bytes_after)?;
        amount(&mut map, "freed_bytes", freed_bytes)?;
        map.serialize_entry("kept_alive_by", kept_alive_by)?;
        measured(&mut map, fidelity.as_ref())?;
        map.end()
    }
}

/// A fidelity, where it was measured.
fn measured<M: SerializeMap>(map: &mut M, fidelity: Option<&Fidelity>) -> Result<(), M::Error> {
    match fidelity {
        Some(fidelity) => map.serialize_entry("fidelity", fidelity),
        None => Ok(()),
    }
}

impl Serialize for Preset {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Preset {
            preset,
            sites_rewritten,
            saved_bytes_after,
            freed_bytes,
            counted_per_layer,
        } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("preset", preset)?;
        map.serialize_entry("sites_rewritten", sites_rewritten)?;
        amount(&mut map, "saved_bytes_after", saved_bytes_after)?;
        amount(&mut map, "freed_bytes", freed_bytes)?;
        amount(&mut map, "counted_per_layer_bytes", counted_per_layer)?;
        map.end()
    }
}

impl Serialize for Trial {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Trial {
            groups,
            sites_rewritten,
            saved_bytes_after,
            fidelity,
            layers,
        } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("groups", groups)?;
        map.serialize_entry("sites_rewritten", sites_rewritten)?;
        amount(&mut map, "saved_bytes_after", saved_bytes_after)?;
        map.serialize_entry("cosine", &fidelity.and_then(|f| f.cosine))?;
        map.serialize_entry("norm_ratio", &fidelity.and_then(|f| f.norm_ratio))?;
        let layers = layers.iter().map(|(param, node, Fidelity { cosine, norm_ratio })| {
            json!({ "param": param, "node": node, "cosine": cosine, "norm_ratio": norm_ratio })
        });
        map.serialize_entry("layers", &layers.collect::<Vec<_>>())?;
        map.end()
    }
}

impl Serialize for Hoisted {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Hoisted {
            nodes,
            tensor,
            bytes_before,
            bytes_after,
            unlocked,
        } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("nodes", nodes)?;
        map.serialize_entry("tensor", tensor)?;
        amount(&mut map, "bytes_before", bytes_before)?;
        amount(&mut map, "bytes_after", bytes_after)?;
        map.serialize_entry("unlocked", unlocked)?;
        map.end()
    }
}

impl Serialize for Saved {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Saved {
            tensor,
            shape,
            dtype,
            bytes,
            readers,
            rewritable,
        } = self;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("tensor", tensor)?;
        map.serialize_entry("shape", &sizes(shape.as_deref()))?;
        map.serialize_entry("dtype", dtype)?;
        amount(&mut map, "bytes", bytes)?;
        map.serialize_entry("readers", readers)?;
        map.serialize_entry("rewritable", rewritable)?;
        map.end()
    }
}
