//! The drawing of a sweep: fidelity against bytes.

use super::markup::Page;
use crate::report::units::Unit;
use crate::report::{Amount, Report};

/// The cosine over the saved bytes, a point for each number of groups.
pub fn curve(page: &mut Page, report: &Report) {
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
        "<svg class=\"curve\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"cosine over saved bytes\">\n"
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
        format!(
            " with every open dimension at {}",
            crate::report::amount::NOMINAL
        )
    } else {
        String::new()
    };
    let note = format!(
        "The cosine between approximate and exact gradient of all parameters, over the bytes saved for \
         backward{open}; each point is a number of groups."
    );
    page.element("p", "note", &note);
}
