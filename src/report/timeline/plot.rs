//! The timeline as text: bytes over the steps, stacked by category.

use super::{Category, Course, Shares, Timeline};
use crate::report::table::{Style, clean};
use crate::report::units::Unit;
use crate::report::{Amount, View, amount::NOMINAL};

/// Rows of each chart.
const HEIGHT: usize = 6;
/// Columns where nothing says how wide the stream is.
const WIDTH: usize = 78;
/// More than this is harder to read, not easier.
const WIDEST: usize = 100;
/// Left of a chart: a number of bytes and the axis.
const MARGIN: usize = 12;

/// Both charts on one scale, and what their letters mean. Empty where there is nothing to draw.
pub fn plot(timeline: &Timeline, view: View, style: Style) -> String {
    let after = timeline.after.as_ref();
    let most = after.map_or(0, |course| course.peak().0);
    let most = most.max(timeline.before.peak().0);
    if most == 0 {
        return String::new();
    }
    let width = style.width.unwrap_or(WIDTH).min(WIDEST);
    let width = width.saturating_sub(MARGIN).max(1);
    let (before_title, after_title) = view.before_after();
    let mut text = format!("\nbytes alive over the schedule{}\n", assumed(timeline));
    let mut used = [false; Category::ALL.len()];
    for (title, course) in [(before_title, Some(&timeline.before)), (after_title, after)] {
        if let Some(course) = course {
            text += &chart(title, course, most, width, style, &mut used);
        }
    }
    let legend = Category::ALL.into_iter().filter(|&c| used[c as usize]);
    let legend = legend.map(|category| format!("{} {}", ink(category, style), category.title()));
    text += &format!("{:MARGIN$}{}\n", "", legend.collect::<Vec<_>>().join("  "));
    text
}

/// At which sizes it is drawn, where some are open.
fn assumed(timeline: &Timeline) -> String {
    let mut buffers = timeline.before.buffers.iter();
    match buffers.any(|buffer| buffer.tensor.bytes.symbolic().is_some()) {
        true => format!(", with every open dimension at {NOMINAL}"),
        false => String::new(),
    }
}

/// How a category is drawn.
fn ink(category: Category, style: Style) -> char {
    let (block, letter) = match category {
        Category::SavedLinear => ('█', 'L'),
        Category::SavedOther => ('▓', 'S'),
        Category::Gradients => ('▒', 'G'),
        Category::Temporaries => ('░', 't'),
        Category::Optimizer => ('▚', 'O'),
        Category::Parameters => ('▞', 'P'),
        Category::Inputs => ('·', 'i'),
    };
    if style.unicode { block } else { letter }
}

fn chart(
    title: &str,
    course: &Course,
    most: i64,
    width: usize,
    style: Style,
    used: &mut [bool; Category::ALL.len()],
) -> String {
    let (peak, peak_step) = course.peak();
    let bytes = |number| Unit::Bytes.amount(&Amount::from(number), style.unicode);
    let columns = columns(&course.live(), width);
    let node = course.steps.get(peak_step);
    let node = node.map_or(String::new(), |step| {
        crate::report::table::name_op(&clean(&step.node), &clean(&step.op))
    });
    let mut text = format!(
        "{title}: peak {} at step {} of {}, {node}\n",
        bytes(peak),
        peak_step + 1,
        course.steps.len()
    );
    let (axis, corner, line, mark) = match style.unicode {
        true => ('│', '└', '─', '▲'),
        false => ('|', '+', '-', '^'),
    };
    for row in (0..HEIGHT).rev() {
        // The bytes in the middle of the row's height.
        let level = most as f64 * (row as f64 + 0.5) / HEIGHT as f64;
        let cells: String = columns
            .iter()
            .map(|shares| match category_at(shares, level) {
                Some(category) => {
                    used[category as usize] = true;
                    ink(category, style)
                }
                None => ' ',
            })
            .collect();
        let label = match row == HEIGHT - 1 {
            true => bytes(most),
            false => String::new(),
        };
        let line = format!("{label:>10} {axis}{cells}");
        text += line.trim_end();
        text.push('\n');
    }
    let place = column_of(peak_step, course.steps.len(), columns.len());
    let base = (0..columns.len()).map(|column| if column == place { mark } else { line });
    text += &format!("{:>10} {corner}{}\n", 0, base.collect::<String>());
    text
}

/// The category that is at a height of a stack.
fn category_at(shares: &Shares, level: f64) -> Option<Category> {
    let mut top = 0;
    Category::ALL.into_iter().find(|&category| {
        top += shares[category as usize];
        level < top as f64
    })
}

/// The column in whose middle a step is drawn.
fn column_of(step: usize, steps: usize, columns: usize) -> usize {
    (2 * step + 1) * columns / (2 * steps.max(1))
}

/// For each column the step with the most bytes in it, so that no peak is lost between columns; fewer steps
/// than columns are drawn wider.
fn columns(live: &[Shares], width: usize) -> Vec<Shares> {
    let mut columns = vec![Shares::default(); width];
    for (column, shares) in columns.iter_mut().enumerate() {
        let start = column * live.len() / width;
        let end = ((column + 1) * live.len() / width).max(start + 1);
        let here = live.iter().take(end).skip(start);
        *shares = here
            .max_by_key(|shares| shares.iter().sum::<i64>())
            .copied()
            .unwrap_or_default();
    }
    columns
}
