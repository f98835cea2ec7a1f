//! Activations counted once for each layer, as the paper's tables count them.
//!
//! VeLoRA's tables of memory (arXiv 2405.17991, Tables 3, 5 and 6) add up the inputs of the layers that are trained,
//! layer by layer: of projections that share their input each counts it again, and a compressed layer counts its z,
//! whatever else keeps the input alive. What a step really saves is `saved_bytes_*`; this is for comparisons only.

use super::Amount;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::sites::Kind;
use velora_passes::select::Decision;

/// The bytes of the inputs of all linear layers with a weight gradient, each layer for itself. Unknown where
/// one of them is.
pub fn before(analyses: &Analyses, decisions: &[Decision]) -> Amount {
    sum(decisions, |decision| input(analyses, decision))
}

/// The same with z in the place of the input where the layer is rewritten. Directions are not counted.
pub fn after(analyses: &Analyses, decisions: &[Decision]) -> Amount {
    sum(decisions, |decision| match decision.rewritten() {
        true => compressed(analyses, decision),
        false => input(analyses, decision),
    })
}

fn sum(decisions: &[Decision], bytes: impl Fn(&Decision) -> Amount) -> Amount {
    let linear = decisions.iter().filter(|d| d.kind == Kind::Linear);
    linear.fold(Amount::from(0), |sum, decision| &sum + &bytes(decision))
}

fn input(analyses: &Analyses, decision: &Decision) -> Amount {
    Amount::from(analyses.shapes.bytes(decision.activation))
}

/// The bytes of z.
fn compressed(analyses: &Analyses, decision: &Decision) -> Amount {
    let element = analyses.shapes.of(decision.activation).data_type;
    let element = element.and_then(|kind| kind.bits()).map(|bits| bits / 8);
    let known = decision.site.as_ref().zip(element);
    let bytes = known.and_then(|(site, element)| {
        let features = site.features;
        let token = decision.settings.bytes_per_token(features, element)?;
        Some(&site.tokens * &token.into())
    });
    Amount::from(bytes)
}
