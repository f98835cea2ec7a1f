//! The tables of the page, which need no script to be read.

use super::curve::curve;
use super::markup::Page;
use crate::report::table::name_op;
use crate::report::units::{UNKNOWN, Unit, number, percent, shape};
use crate::report::{Decision, Hoisted, Layer, Report, Saved, Style, View};

/// Numbers as on a terminal.
const WIDE: Style = Style {
    unicode: true,
    width: None,
    everything: true,
};

/// The sums, before and after.
pub fn totals(page: &mut Page, report: &Report, view: View) {
    let (before, after) = view.before_after();
    let shown = report.totals.shown(true);
    if shown.rows.is_empty() {
        return;
    }
    page.raw("<table class=\"totals\" aria-label=\"Totals\">\n<thead><tr><td></td>");
    for title in [before, after] {
        page.raw("<th scope=\"col\" class=\"n\">");
        page.text(title);
        page.raw("</th>");
    }
    page.raw("<td></td></tr></thead>\n<tbody>\n");
    for row in &shown.rows {
        let open = report.open.as_deref().map(|open| open.totals.compared());
        let open = { open.iter().flatten() }.find(|open| open.name == row.name);
        // The page finds it in the schedule, where it can also tell the step.
        let class = if row.name == "peak" {
            " class=\"is-peak\""
        } else {
            ""
        };
        page.raw(&format!("<tr{class}><th scope=\"row\">"));
        page.text(row.name);
        page.raw("</th>");
        let [_, before, after, ratio] = &row.cells;
        page.amount_as(before, row.unit, row.before, open.map(|open| open.before));
        page.amount_as(after, row.unit, row.after, open.map(|open| open.after));
        page.element("td", "n ratio", ratio);
        page.raw("</tr>\n");
    }
    page.raw("</tbody></table>\n");
    if let Some(note) = &shown.note {
        page.element("p", "note unscripted", note);
    }
}

/// Saved tensors, the biggest first.
pub fn saved(page: &mut Page, report: &Report) {
    page.element("h2", "", "Tensors saved for backward");
    if report.has_open_sizes() {
        let nominal = crate::report::amount::NOMINAL;
        let note = format!("Open dimensions are drawn as {nominal}; set them with --dim NAME=N.");
        page.element("p", "note unscripted", &note);
    }
    page.table(
        "Tensors saved for backward",
        &[
            ("share", "bar"),
            ("bytes", "n"),
            ("tensor", ""),
            ("shape", ""),
            ("type", ""),
            ("rewritable", ""),
            ("readers in backward", ""),
        ],
    );
    let open = report.open.as_deref();
    let mut rows: Vec<(&Saved, Option<&Saved>)> = { report.saved.iter().enumerate() }
        .map(|(place, saved)| (saved, open.and_then(|open| open.saved.get(place))))
        .collect();
    rows.sort_by_key(|(saved, _)| std::cmp::Reverse(saved.bytes.nominal()));
    let biggest = rows
        .iter()
        .find_map(|(s, _)| s.bytes.nominal())
        .unwrap_or(0);
    for (tensor, open) in rows {
        saved_row(page, tensor, open, biggest);
    }
    page.end_table();
}

fn saved_row(page: &mut Page, tensor: &Saved, open: Option<&Saved>, biggest: i64) {
    let (class, word) = match tensor.rewritable {
        true => ("free", "yes"),
        false => ("kept", "no"),
    };
    let share = match tensor.bytes.nominal() {
        Some(bytes) if biggest > 0 => bytes as f64 / biggest as f64,
        _ => 0.0,
    };
    let width = percent(share.clamp(0.0, 1.0));
    page.raw(&format!(
        "<tr class=\"{class}\"><td class=\"bar\"><div><span style=\"width: {width}\"></span></div></td>"
    ));
    page.amount(Unit::Bytes, &tensor.bytes, open.map(|open| &open.bytes));
    page.code(&tensor.tensor);
    let dims = open.map_or(&tensor.shape, |open| &open.shape);
    page.element("td", "shape", &shape(dims.as_deref(), true));
    page.element("td", "", tensor.dtype.as_deref().unwrap_or(UNKNOWN));
    page.element("td", "word", word);
    let readers = tensor.readers.iter().map(|r| name_op(&r.node, &r.op));
    page.code(&readers.collect::<Vec<_>>().join(", "));
    page.raw("</tr>\n");
}

/// What each preset would do.
pub fn presets(page: &mut Page, report: &Report) {
    if report.presets.is_empty() {
        return;
    }
    page.element("h2", "", "Presets");
    page.table(
        "Presets",
        &[
            ("--select", ""),
            ("rewritten", "n"),
            ("saved then", "n"),
            ("freed", "n"),
            ("counted per layer, as the paper does", "n"),
        ],
    );
    for preset in &report.presets {
        page.raw("<tr>");
        page.element("td", "", preset.preset);
        page.element("td", "n", &preset.sites_rewritten.to_string());
        for amount in [
            &preset.saved_bytes_after,
            &preset.freed_bytes,
            &preset.counted_per_layer,
        ] {
            page.amount(Unit::Bytes, amount, None);
        }
        page.raw("</tr>\n");
    }
    page.end_table();
    given_sizes(page, report);
}

/// Some amounts are found by trying, and stay what they are at the given sizes.
fn given_sizes(page: &mut Page, report: &Report) {
    if report.open.is_some() {
        page.element("p", "note", "At the sizes given with --dim.");
    }
}

/// What other numbers of groups would do.
pub fn sweep(page: &mut Page, report: &Report) {
    if report.sweep.is_empty() {
        return;
    }
    page.element("h2", "", "Groups: bytes against fidelity");
    curve(page, report);
    page.table(
        "Groups",
        &[
            ("groups", "n"),
            ("rewritten", "n"),
            ("saved then", "n"),
            ("cosine", "n"),
            ("norm ratio", "n"),
        ],
    );
    for trial in &report.sweep {
        page.raw("<tr>");
        page.element("td", "n", &trial.groups.to_string());
        page.element("td", "n", &trial.sites_rewritten.to_string());
        page.amount(Unit::Bytes, &trial.saved_bytes_after, None);
        let fidelity = trial.fidelity.unwrap_or_default();
        for part in [fidelity.cosine, fidelity.norm_ratio] {
            page.element("td", "n", &number(part, WIDE));
        }
        page.raw("</tr>\n");
    }
    page.end_table();
    given_sizes(page, report);
}

/// The layers, in the graph's order.
pub fn layers(page: &mut Page, report: &Report, view: View) {
    page.element("h2", "", "Layers");
    if let Some((data, samples)) = &report.batch {
        let total = report.totals.fidelity.unwrap_or_default();
        let note = format!(
            "Cosine and norm ratio of approximate to exact gradients, on {samples} samples of {data}; of all \
             parameters together {} and {}.",
            number(total.cosine, WIDE),
            number(total.norm_ratio, WIDE)
        );
        page.element("p", "note", &note);
    }
    let measured = report.batch.is_some();
    let mut columns = vec![
        ("parameter", ""),
        ("kind", ""),
        ("D × O", "n"),
        ("saved tensor", ""),
        ("decision", ""),
        (view.freed(), "n"),
    ];
    if measured {
        columns.extend([("cosine", "n"), ("norm ratio", "n")]);
    }
    columns.extend([("kept alive by", ""), ("why", "")]);
    page.table("Layers", &columns);
    for (place, layer) in report.layers.iter().enumerate() {
        let open = report.open.as_deref();
        let open = open.and_then(|open| open.layers.get(place));
        layer_row(page, layer, open, measured);
    }
    page.end_table();
}

fn layer_row(page: &mut Page, layer: &Layer, open: Option<&Layer>, measured: bool) {
    let class = match layer.decision {
        Decision::Rewritten => "free",
        Decision::Skipped => "kept",
    };
    page.raw(&format!("<tr class=\"{class}\">"));
    page.code(&layer.param);
    page.element("td", "", layer.kind.word());
    let sizes = layer.features_outputs;
    let sizes = sizes.map_or(UNKNOWN.to_owned(), |(d, o)| format!("{d} × {o}"));
    page.element("td", "n", &sizes);
    page.code(&layer.activation);
    page.element("td", "word", layer.decision.word());
    let open = open.map(|open| &open.freed_bytes);
    page.amount(Unit::Bytes, &layer.freed_bytes, open);
    if measured {
        let fidelity = layer.fidelity.unwrap_or_default();
        for part in [fidelity.cosine, fidelity.norm_ratio] {
            page.element("td", "n", &number(part, WIDE));
        }
    }
    let keepers = layer.kept_alive_by.iter().map(|k| match k.node.as_str() {
        "" => k.why.clone(),
        node => name_op(node, &k.op),
    });
    page.code(&keepers.collect::<Vec<_>>().join(", "));
    page.element("td", "why", &layer.message);
    page.raw("</tr>\n");
}

/// Backward work that moved.
pub fn hoisted(page: &mut Page, report: &Report, view: View) {
    if report.hoisted.is_empty() {
        return;
    }
    page.element("h2", "", "Backward work in the forward half");
    page.table(
        "Backward work in the forward half",
        &[
            (view.moved(), ""),
            ("frees", ""),
            ("of", "n"),
            ("saves", ""),
            ("left", "n"),
        ],
    );
    for (place, hoisted) in report.hoisted.iter().enumerate() {
        let open = report.open.as_deref();
        let open = open.and_then(|open| open.hoisted.get(place));
        hoisted_row(page, hoisted, open);
    }
    page.end_table();
}

fn hoisted_row(page: &mut Page, hoisted: &Hoisted, open: Option<&Hoisted>) {
    page.raw("<tr>");
    let nodes = hoisted.nodes.iter().map(|n| name_op(&n.node, &n.op));
    page.code(&nodes.collect::<Vec<_>>().join(", "));
    page.code(&hoisted.unlocked.join(", "));
    let before = open.map(|open| &open.bytes_before);
    page.amount(Unit::Bytes, &hoisted.bytes_before, before);
    page.code(&hoisted.tensor);
    let after = open.map(|open| &open.bytes_after);
    page.amount(Unit::Bytes, &hoisted.bytes_after, after);
    page.raw("</tr>\n");
}
