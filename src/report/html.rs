//! One HTML file that needs nothing else: it can be mailed, and opens offline.
//!
//! Its tables stand in the markup; charts, sorting and other sizes are made by a script of the same file. The
//! page's policy lets nothing run but that script, and nothing be loaded at all.

mod curve;
mod data;
#[cfg(test)]
mod evaluated;
mod markup;
mod plan;
mod tables;

use super::{Report, View};
use data::{data, embedded};
use markup::{Expressions, Page};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const STYLE: &str = include_str!("html/page.css");

/// How categories are filled: each with a pattern of its own, for those who do not tell the colours apart.
const PATTERNS: &str = include_str!("html/patterns.svg");

/// One script in four files: expressions, what is alive when, drawing, and the page around it.
const SCRIPT: &str = concat!(
    "(() => {\n\"use strict\";\n",
    include_str!("html/expression.js"),
    include_str!("html/schedule.js"),
    include_str!("html/chart.js"),
    include_str!("html/page.js"),
    "})();\n"
);

/// The report as a page; the same report gives the same bytes.
pub fn html(report: &Report, view: View) -> String {
    let symbols = report.timeline.iter().flat_map(|t| t.sizes.keys());
    let given = { report.dims.iter() }.map(|(name, &size)| (Arc::from(name.as_str()), size));
    let mut page = Page {
        expressions: Expressions::new(symbols),
        given: given.collect(),
        ..Page::default()
    };
    let title = format!("velora-opt: {}", report.model);
    page.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.element("title", "", &title);
    page.raw(&format!(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'\">\n",
        base64(&Sha256::digest(SCRIPT.as_bytes()))
    ));
    page.raw("<style>\n");
    page.raw(STYLE);
    page.raw("</style>\n</head>\n<body>\n<main>\n<header>\n");
    page.element("p", "eyebrow", "Memory of a training step");
    page.element("h1", "", &report.model);
    page.element("p", "note", &facts(report));
    page.raw("</header>\n");
    tables::totals(&mut page, report, view);
    if report.timeline.is_some() {
        page.element("h2", "", "Memory over the schedule");
        let unscripted = "The charts are drawn by a script, which does not run here.";
        page.element("p", "note unscripted", unscripted);
        page.raw(PATTERNS);
        page.raw("<div id=\"schedule\"></div>\n");
    }
    plan::pareto(&mut page, report);
    plan::plan(&mut page, report);
    tables::layers(&mut page, report, view);
    tables::saved(&mut page, report);
    tables::hoisted(&mut page, report, view);
    tables::presets(&mut page, report);
    tables::sweep(&mut page, report);
    page.raw("</main>\n");
    if let Some(timeline) = &report.timeline {
        let given: Vec<&str> = report.dims.keys().map(String::as_str).collect();
        let titles = view.before_after();
        let data = data(timeline, &given, titles, &mut page.expressions);
        page.raw("<script type=\"application/json\" id=\"data\">");
        page.raw(&embedded(&data));
        page.raw("</script>\n");
    }
    page.raw("<script>");
    page.raw(SCRIPT);
    page.raw("</script>\n</body>\n</html>\n");
    page.markup
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
        text += &format!("; {name}\u{a0}=\u{a0}{size}");
    }
    text
}

/// As policies write hashes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |place: usize| u32::from(three.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            match digit <= three.len() {
                true => text.push(char::from(DIGITS[value as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::examples::{example, measured, moved};

    #[test]
    fn the_page_is_self_contained_and_the_same_each_time() {
        let page = html(&measured(), View::Inspected);
        assert_eq!(page, html(&measured(), View::Inspected));
        for reference in ["http:", "https:", "src=", "href=", "@import", "//cdn"] {
            assert!(!page.contains(reference), "{reference}");
        }
        // Patterns of the page itself are the only thing that is referred to.
        assert_eq!(page.matches("url(").count(), page.matches("url(#").count());
        let count = |tag: &str| page.matches(tag).count();
        assert_eq!(count("<span style=\"width: 100.0%\">"), 2, "{page}");
        assert_eq!((count("<svg "), count("<circle ")), (1, 2), "{page}");
        for tag in [
            "table", "thead", "tbody", "tr", "td", "th", "div", "span", "code", "svg", "text",
            "script", "style", "main",
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
        assert!(
            !page.contains("<script>alert") && !page.contains("<b>"),
            "{page}"
        );
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\u{fffd}"));
        assert!(page.contains("a&quot;&amp;b"));
        assert!(page.contains("<code>relu, &lt;b&gt;bold&lt;/b&gt;</code>"));
    }

    #[test]
    fn embedded_data_cannot_end_the_script() {
        let hostile = "</script><!--<script>\u{2028}\u{2029}&amp;";
        let text = embedded(&serde_json::json!([hostile]));
        assert!(
            !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']),
            "{text}"
        );
        let back: Vec<String> = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(back, [hostile]);
        // Nor does the script itself.
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
    }

    #[test]
    fn hashes_are_written_as_policies_want_them() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    }
}
