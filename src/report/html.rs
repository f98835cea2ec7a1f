//! One HTML file without scripts or references: it can be mailed, and opens offline.

use super::table::name_op;
use super::units::{UNKNOWN, Unit, number, percent, shape};
use super::{Amount, Decision, Layer, Report, Saved, Style, View};
use std::fmt::Write;

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #666c74; --page: #fff; --line: #d9dce0;
  --free: #2f7d4f; --kept: #a8621b; --track: #eef0f2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e5e8; --dim: #9aa1a9; --page: #17191c;
  --line: #363a40; --free: #5cb885; --kept: #d99a55; --track: #24272b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.bar { width: 16rem; } .bar div { background: var(--track); }
.bar span { display: block; height: .9rem; background: var(--kept); margin-top: .3rem; }
.free .bar span { background: var(--free); }
.free .word { color: var(--free); } .kept .word { color: var(--kept); }
.note { color: var(--dim); }
svg { display: block; max-width: 40rem; } svg line { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--free); stroke-width: 2; } svg circle { fill: var(--free); }
svg text { fill: var(--dim); font-size: 12px; text-anchor: middle; } svg .left { text-anchor: end; }
";

/// The report as a page; the same report gives the same bytes.
pub fn html(report: &Report, view: View) -> String {
    let mut page = Page(String::new());
    let title = format!("velora-opt: {}", report.model);
    page.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.element("title", "", &title);
    page.raw("<style>\n");
    page.raw(STYLE);
    page.raw("</style>\n</head>\n<body>\n");
    page.element("h1", "", &title);
    page.element("p", "note", &facts(report));
    totals(&mut page, report, view);
    presets(&mut page, report);
    sweep(&mut page, report);
    saved(&mut page, report);
    layers(&mut page, report, view);
    hoisted(&mut page, report, view);
    page.raw("</body>\n</html>\n");
    page.0
}

fn facts(report: &Report) -> String {
    let mut text = format!(
        "velora-opt {}; {} of {} weight gradients rewritable",
        report.tool_version, report.totals.sites_rewritten, report.totals.sites
    );
    if let Some(groups) = report.groups_default {
        text += &format!("; {groups} groups");
    }
    for (name, size) in &report.dims {
        text += &format!("; {name} = {size}");
    }
    text
}

fn totals(page: &mut Page, report: &Report, view: View) {
    let (before, after) = view.before_after();
    page.element("h2", "", "Totals");
    page.head(&[("", ""), (before, "n"), (after, "n"), ("", "n")]);
    let shown = report.totals.shown(true);
    for [name, before, after, ratio] in &shown.rows {
        page.raw("<tr>");
        page.element("td", "", name);
        for number in [before, after, ratio] {
            page.element("td", "n", number);
        }
        page.raw("</tr>\n");
    }
    page.raw("</table></div>\n");
    if let Some(note) = &shown.note {
        page.element("p", "note", note);
    }
}

fn saved(page: &mut Page, report: &Report) {
    page.element("h2", "", "Tensors saved for backward");
    if report.has_open_sizes() {
        let nominal = super::amount::NOMINAL;
        let note = format!("Open dimensions are drawn as {nominal}; set them with --dim NAME=N.");
        page.element("p", "note", &note);
    }
    page.head(&[
        ("", "bar"),
        ("bytes", "n"),
        ("tensor", ""),
        ("shape", ""),
        ("type", ""),
        ("rewritable", ""),
        ("readers in backward", ""),
    ]);
    let tensors = report.biggest_first();
    let biggest = tensors.iter().find_map(|s| s.bytes.nominal()).unwrap_or(0);
    for tensor in tensors {
        saved_row(page, tensor, biggest);
    }
    page.raw("</table></div>\n");
}

fn saved_row(page: &mut Page, tensor: &Saved, biggest: i64) {
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
    page.element("td", "n", &Unit::Bytes.amount(&tensor.bytes, true));
    page.code(&tensor.tensor);
    page.element("td", "", &shape(tensor.shape.as_deref(), true));
    page.element("td", "", tensor.dtype.as_deref().unwrap_or(UNKNOWN));
    page.element("td", "word", word);
    let readers = tensor.readers.iter().map(|r| name_op(&r.node, &r.op));
    page.code(&readers.collect::<Vec<_>>().join(", "));
    page.raw("</tr>\n");
}

fn presets(page: &mut Page, report: &Report) {
    if report.presets.is_empty() {
        return;
    }
    page.element("h2", "", "Presets");
    page.head(&[
        ("--select", ""),
        ("rewritten", "n"),
        ("saved then", "n"),
        ("freed", "n"),
        ("counted per layer, as the paper does", "n"),
    ]);
    for preset in &report.presets {
        page.raw("<tr>");
        page.element("td", "", preset.preset);
        page.element("td", "n", &preset.sites_rewritten.to_string());
        for amount in [
            &preset.saved_bytes_after,
            &preset.freed_bytes,
            &preset.counted_per_layer,
        ] {
            page.element("td", "n", &Unit::Bytes.amount(amount, true));
        }
        page.raw("</tr>\n");
    }
    page.raw("</table></div>\n");
}

fn sweep(page: &mut Page, report: &Report) {
    if report.sweep.is_empty() {
        return;
    }
    page.element("h2", "", "Groups: bytes against fidelity");
    curve(page, report);
    page.head(&[
        ("groups", "n"),
        ("rewritten", "n"),
        ("saved then", "n"),
        ("cosine", "n"),
        ("norm ratio", "n"),
    ]);
    for trial in &report.sweep {
        page.raw("<tr>");
        page.element("td", "n", &trial.groups.to_string());
        page.element("td", "n", &trial.sites_rewritten.to_string());
        page.element(
            "td",
            "n",
            &Unit::Bytes.amount(&trial.saved_bytes_after, true),
        );
        let fidelity = trial.fidelity.unwrap_or_default();
        for part in [fidelity.cosine, fidelity.norm_ratio] {
            page.element("td", "n", &number(part, WIDE));
        }
        page.raw("</tr>\n");
    }
    page.raw("</table></div>\n");
}

/// The cosine over the saved bytes, a point for each number of groups.
fn curve(page: &mut Page, report: &Report) {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 240.0;
    const LEFT: f64 = 40.0;
    const RIGHT: f64 = 24.0;
    const TOP: f64 = 16.0;
    const BOTTOM: f64 = 28.0;
    let points: Vec<(i64, f64, f64)> = (report.sweep.iter())
        .filter_map(|trial| {
            let bytes = trial.saved_bytes_after.nominal()? as f64;
            Some((trial.groups, bytes, trial.fidelity?.cosine?))
        })
        .collect();
    let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
    if most == 0.0 {
        return;
    }
    let x = |bytes: f64| LEFT + bytes / most * (WIDTH - LEFT - RIGHT);
    let y = |cosine: f64| TOP + (1.0 - cosine.clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM);
    page.raw(&format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"cosine over saved bytes\">\n"
    ));
    for cosine in [0.0, 0.5, 1.0] {
        let (y, end) = (y(cosine), WIDTH - RIGHT);
        page.raw(&format!(
            "<line x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"left\">{cosine}</text>\n",
            LEFT - 6.0,
            y + 4.0
        ));
    }
    let joined = points
        .iter()
        .map(|&(_, bytes, cosine)| format!("{:.1},{:.1}", x(bytes), y(cosine)));
    let joined = joined.collect::<Vec<_>>().join(" ");
    page.raw(&format!("<polyline points=\"{joined}\"/>\n"));
    for &(groups, bytes, cosine) in &points {
        let (x, y) = (x(bytes), y(cosine));
        page.raw(&format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\">{groups}</text>\n",
            y - 7.0
        ));
    }
    let bottom = HEIGHT - 8.0;
    page.raw(&format!("<text x=\"{LEFT}\" y=\"{bottom}\">0</text>\n"));
    page.raw(&format!(
        "<text x=\"{:.1}\" y=\"{bottom}\" class=\"left\">",
        WIDTH - RIGHT
    ));
    page.text(&Unit::Bytes.amount(&Amount::from(most as i64), true));
    page.raw("</text>\n</svg>\n");
    let open = if report.has_open_sizes() {
        format!(" with every open dimension at {}", super::amount::NOMINAL)
    } else {
        String::new()
    };
    let note = format!(
        "The cosine between approximate and exact gradient of all parameters, over the bytes saved for \
         backward{open}; each point is a number of groups."
    );
    page.element("p", "note", &note);
}

/// Numbers as on a terminal.
const WIDE: Style = Style {
    unicode: true,
    width: None,
    everything: true,
};

fn layers(page: &mut Page, report: &Report, view: View) {
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
    columns.push(("why", ""));
    page.head(&columns);
    for layer in &report.layers {
        layer_row(page, layer, measured);
    }
    page.raw("</table></div>\n");
}

fn layer_row(page: &mut Page, layer: &Layer, measured: bool) {
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
    page.element("td", "n", &Unit::Bytes.amount(&layer.freed_bytes, true));
    if measured {
        let fidelity = layer.fidelity.unwrap_or_default();
        for part in [fidelity.cosine, fidelity.norm_ratio] {
            page.element("td", "n", &number(part, WIDE));
        }
    }
    page.element("td", "", &layer.message);
    page.raw("</tr>\n");
}

fn hoisted(page: &mut Page, report: &Report, view: View) {
    if report.hoisted.is_empty() {
        return;
    }
    page.element("h2", "", "Backward work in the forward half");
    page.head(&[
        (view.moved(), ""),
        ("frees", ""),
        ("of", "n"),
        ("saves", ""),
        ("left", "n"),
    ]);
    for hoisted in &report.hoisted {
        page.raw("<tr>");
        let nodes = hoisted.nodes.iter().map(|n| name_op(&n.node, &n.op));
        page.code(&nodes.collect::<Vec<_>>().join(", "));
        page.code(&hoisted.unlocked.join(", "));
        page.element("td", "n", &Unit::Bytes.amount(&hoisted.bytes_before, true));
        page.code(&hoisted.tensor);
        page.element("td", "n", &Unit::Bytes.amount(&hoisted.bytes_after, true));
        page.raw("</tr>\n");
    }
    page.raw("</table></div>\n");
}

/// A page under construction; all text from a model goes through [`Page::text`].
struct Page(String);

impl Page {
    fn raw(&mut self, markup: &str) {
        self.0 += markup;
    }

    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '<' => self.0 += "&lt;",
                '>' => self.0 += "&gt;",
                '&' => self.0 += "&amp;",
                '"' => self.0 += "&quot;",
                '\'' => self.0 += "&#39;",
                // HTML has no way to write most control characters.
                c if c.is_control() => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
    }

    fn element(&mut self, tag: &str, class: &str, text: &str) {
        // Writing to a string cannot fail.
        let _ = match class {
            "" => write!(self.0, "<{tag}>"),
            class => write!(self.0, "<{tag} class=\"{class}\">"),
        };
        self.text(text);
        let _ = write!(self.0, "</{tag}>");
        if tag != "td" && tag != "th" {
            self.0.push('\n');
        }
    }

    fn code(&mut self, text: &str) {
        self.raw("<td><code>");
        self.text(text);
        self.raw("</code></td>");
    }

    fn head(&mut self, columns: &[(&str, &str)]) {
        self.raw("<div class=\"scroll\"><table>\n<tr>");
        for (title, class) in columns {
            self.element("th", class, title);
        }
        self.raw("</tr>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::build::{example, measured, moved};

    #[test]
    fn the_page_is_self_contained_and_the_same_each_time() {
        let page = html(&measured(), View::Inspected);
        assert_eq!(page, html(&measured(), View::Inspected));
        for reference in ["http", "<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(reference), "{reference}");
        }
        let count = |tag: &str| page.matches(tag).count();
        assert_eq!(count("<span style=\"width: 100.0%\">"), 2, "{page}");
        assert_eq!((count("<svg "), count("<circle ")), (1, 2), "{page}");
        for tag in [
            "table", "tr", "td", "th", "div", "span", "code", "svg", "text",
        ] {
            let open = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(open, count(&format!("</{tag}>")), "{tag}");
        }
    }

    #[test]
    fn names_are_text() {
        let mut report = example();
        report.layers[0].param = "<script>alert('x')</script>\u{0}".to_owned();
        report.saved[0].tensor = "a\"&b".to_owned();
        report.model = "</title><b>".to_owned();
        report.hoisted = vec![moved()];
        report.hoisted[0].unlocked.push("<b>bold</b>".to_owned());
        let page = html(&report, View::Inspected);
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\u{fffd}"));
        assert!(page.contains("a&quot;&amp;b"));
        assert!(page.contains("<code>relu, &lt;b&gt;bold&lt;/b&gt;</code>"));
    }
}
