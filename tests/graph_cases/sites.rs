//! Weight-gradient contractions: one line for each, in the order of their products.

use super::case::{Case, Found, Kind, made, name};
use velora_graph::analysis::sites::Site;
use velora_graph::ir::{Graph, NodeId};

pub struct Sites;

impl Kind for Sites {
    fn name(&self) -> &'static str {
        "sites"
    }

    fn run(&self, case: &Case) -> Result<Found, String> {
        Ok(case.analyses().map(|analyses| {
            let graph = &case.model.graph;
            let sites = analyses.sites.sites.iter();
            let mut lines: Vec<(NodeId, String)> =
                { sites }.map(|s| (s.product, line(graph, s))).collect();
            lines.extend(analyses.sites.unfit.iter().map(|unfit| {
                let text = format!(
                    "{}: no site: {} reads {}: {}",
                    name(graph, unfit.parameter),
                    made(graph, unfit.product),
                    name(graph, unfit.activation),
                    unfit.why
                );
                (unfit.product, text)
            }));
            lines.sort();
            match lines.is_empty() {
                true => "no contraction".to_owned(),
                false => { lines.into_iter() }.map(|(_, line)| line + "\n").collect(),
            }
        }))
    }
}

/// `w: dw = X'·dY, X = h (input 0), dY = dy, N = 6, D = 8, O = 4`, and what is special.
fn line(graph: &Graph, site: &Site) -> String {
    let product = match site.transposed {
        false => "X'·dY [D, O]",
        true => "dY'·X [O, D]",
    };
    let mut text = format!(
        "{}: {} = {product}, X = {} (input {}), dY = {}, N = {}, D = {}, O = {}",
        name(graph, site.parameter),
        made(graph, site.product),
        name(graph, site.input),
        site.slot,
        name(graph, site.gradient),
        site.tokens,
        site.features,
        site.outputs
    );
    if site.activation != site.input {
        text += &format!("; a view of {}", name(graph, site.activation));
    }
    if site.gradient_flipped {
        text += "; dY has its tokens last";
    }
    if site.result != site.product {
        text += &format!("; summed over the batch by {}", made(graph, site.result));
    }
    if site.scale != 1.0 {
        text += &format!("; times {}", site.scale);
    }
    if !site.plain {
        text += "; and more is added: needs the reconstructed X";
    }
    text
}
