//! The plan of a whole step, and the choice between plans.

use super::markup::Page;
use crate::report::plan::Candidate;
use crate::report::units::{Unit, percent};
use crate::report::{Amount, Report};

/// What becomes of each saved tensor.
pub fn plan(page: &mut Page, report: &Report) {
    let Some(plan) = &report.plan else {
        return;
    };
    page.element("h2", "", "Plan");
    let (before, after) = (&plan.before, &plan.after);
    let shown = |bytes: i64| Unit::Bytes.amount(&Amount::from(bytes), true);
    let time = match before.seconds > 0.0 {
        true => percent(after.seconds / before.seconds),
        false => "all".to_owned(),
    };
    let note = format!(
        "The peak falls from {} to {}; a step takes {time} of its time by the cost model ({} rates). {} nodes run twice.",
        shown(before.peak_bytes),
        shown(after.peak_bytes),
        plan.rates,
        plan.recomputed
    );
    page.element("p", "note", &note);
    page.table(
        "Plan",
        &[
            ("saved tensor", ""),
            ("made by", ""),
            ("bytes", "n"),
            ("plan", ""),
            ("because", ""),
        ],
    );
    for tensor in &plan.tensors {
        page.raw("<tr>");
        page.code(&tensor.tensor);
        page.element("td", "", &tensor.op);
        page.amount(Unit::Bytes, &Amount::from(tensor.bytes), None);
        page.element("td", "word", tensor.decision.word());
        page.element("td", "why", &tensor.reason);
        page.raw("</tr>\n");
    }
    page.end_table();
}

/// Memory against time, a point for each plan.
pub fn pareto(page: &mut Page, report: &Report) {
    if report.pareto.is_empty() {
        return;
    }
    page.element("h2", "", "Plans: memory against time");
    drawing(page, &report.pareto);
    let note = "Peak (across) against the time of a step by the cost model (upwards), as parts of the original's. Filled \
                points are exact, hollow ones compress; the line joins those that no plan is better than.";
    page.element("p", "note", note);
    page.table(
        "Plans",
        &[
            ("plan", ""),
            ("exact", ""),
            ("run twice", "n"),
            ("compressed", "n"),
            ("saved", "n"),
            ("peak", "n"),
            ("of the original's", "n"),
            ("time", "n"),
            ("least cosine", "n"),
            ("best", ""),
        ],
    );
    for candidate in &report.pareto {
        page.raw("<tr>");
        page.element("td", "", &candidate.plan);
        page.element("td", "", if candidate.exact { "yes" } else { "no" });
        page.element("td", "n", &candidate.recomputed.to_string());
        page.element("td", "n", &candidate.compressed.to_string());
        for bytes in [
            candidate.estimate.saved_bytes,
            candidate.estimate.peak_bytes,
        ] {
            page.amount(Unit::Bytes, &Amount::from(bytes), None);
        }
        page.element("td", "n", &percent(candidate.peak_ratio));
        page.element("td", "n", &percent(candidate.time_ratio));
        let cosine = candidate.least_cosine.map(|x| format!("{x:.4}"));
        page.element("td", "n", &cosine.unwrap_or_default());
        page.element("td", "word", if candidate.pareto { "yes" } else { "" });
        page.raw("</tr>\n");
    }
    page.end_table();
}

fn drawing(page: &mut Page, candidates: &[Candidate]) {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 280.0;
    const LEFT: f64 = 52.0;
    const RIGHT: f64 = 24.0;
    const TOP: f64 = 16.0;
    const BOTTOM: f64 = 32.0;
    let most = |of: fn(&Candidate) -> f64| candidates.iter().map(of).fold(1.0, f64::max);
    let (widest, slowest) = (most(|c| c.peak_ratio), most(|c| c.time_ratio));
    let x = |ratio: f64| LEFT + ratio / widest * (WIDTH - LEFT - RIGHT);
    let y = |ratio: f64| TOP + (1.0 - ratio / slowest) * (HEIGHT - TOP - BOTTOM);
    page.raw(&format!(
        "<svg class=\"curve\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"time over peak memory\">\n"
    ));
    for ratio in [0.0, 0.5, 1.0] {
        let (across, up) = (x(ratio), y(ratio));
        page.raw(&format!(
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{up:.1}\" y2=\"{up:.1}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"left\">{}</text>\n\
             <text x=\"{across:.1}\" y=\"{:.1}\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 6.0,
            up + 4.0,
            percent(ratio),
            HEIGHT - 10.0,
            percent(ratio)
        ));
    }
    let best = candidates.iter().filter(|c| c.pareto);
    let joined = best.map(|c| format!("{:.1},{:.1}", x(c.peak_ratio), y(c.time_ratio)));
    let joined = joined.collect::<Vec<_>>().join(" ");
    page.raw(&format!("<polyline points=\"{joined}\"/>\n"));
    for candidate in candidates {
        let class = if candidate.exact {
            ""
        } else {
            " class=\"hollow\""
        };
        page.raw(&format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"{class}><title>",
            x(candidate.peak_ratio),
            y(candidate.time_ratio)
        ));
        page.text(&format!(
            "{}: peak {}, time {}",
            candidate.plan,
            percent(candidate.peak_ratio),
            percent(candidate.time_ratio)
        ));
        page.raw("</title></circle>\n");
    }
    page.raw("</svg>\n");
}
