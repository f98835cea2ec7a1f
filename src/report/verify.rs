//! The outcome of `verify`: a table, and the certificate as JSON of the schema velora-verify/1.

use super::table::{Column, Grid, Style, clean};
use super::units::number;
use crate::io::Fingerprint;
use crate::measure::bits::{Count, Identity};
use crate::measure::fidelity::Fidelity;
use crate::measure::layers;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use velora_passes::formula::Deviation;
use velora_passes::proof::{Difference, DirectionState, Proof};

/// The name of the JSON schema.
const SCHEMA: &str = "velora-verify/1";

/// What was compared, and what came out.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The original's files.
    pub original: Fingerprint,
    /// The rewritten model's files.
    pub rewritten: Fingerprint,
    /// Sizes given with `--dim`.
    pub dims: BTreeMap<Arc<str>, i64>,
    /// The comparison of the graphs.
    pub proof: Proof,
    /// Every rewritten weight gradient.
    pub layers: Vec<Layer>,
    /// The comparison of numbers, where there was data.
    pub numbers: Option<Numbers>,
}

/// A rewritten weight gradient.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The parameter.
    pub param: String,
    /// The kind of layer.
    pub kind: &'static str,
    /// The contraction in the original.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// G.
    pub groups: i64,
    /// M.
    pub sub_token_size: i64,
    /// The kind of direction.
    pub init: String,
    /// What v is in the file.
    pub state: DirectionState,
    /// The factor on dW.
    pub scale: f64,
    /// What was measured.
    pub measured: Option<layers::Layer>,
}

/// The comparison on a batch.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// The batch.
    pub data: Data,
    /// The sizes that followed from it.
    pub sizes: BTreeMap<Arc<str>, i64>,
    /// The device.
    pub device: String,
    /// What is the same.
    pub identity: Identity,
    /// All trained parameters together.
    pub total: Fidelity,
}

/// Where a batch came from.
#[derive(Clone, Debug)]
pub struct Data {
    /// The data file.
    pub path: String,
    /// Its hash.
    pub sha256: String,
    /// The samples, the first of the file.
    pub samples: usize,
    /// The file of parameters and its hash, where one was given.
    pub parameters: Option<(String, String)>,
    /// The seed, where parameters were to be drawn.
    pub seed: Option<u64>,
}

impl Layer {
    /// What is beyond its bound.
    fn problem(&self) -> Option<Difference> {
        let measured = self.measured.as_ref()?;
        let found = [
            ("v is not its direction", measured.direction),
            ("z is not the projection of X on v", measured.compressed),
            ("dW is not the formula's", measured.formula),
        ];
        let (what, Deviation { error, tolerance }) = found
            .into_iter()
            .find(|(_, deviation)| !deviation.within())?;
        Some(Difference {
            node: self.node.clone(),
            op: self.op.clone(),
            tensor: self.param.clone(),
            problem: format!(
                "{what}: it is off by {error:.3e}, and rounding explains {tolerance:.3e}"
            ),
        })
    }
}

impl Certificate {
    /// The first thing that is not as it should be.
    pub fn first_problem(&self) -> Option<Difference> {
        let structure = self.proof.differences.first().cloned();
        let numbers = || self.numbers.as_ref()?.identity.first.clone();
        let layers = || self.layers.iter().find_map(Layer::problem);
        structure.or_else(numbers).or_else(layers)
    }

    /// The certificate as JSON, one trailing line end.
    ///
    /// # Errors
    /// Where a number has no JSON, which none here has.
    pub fn json(&self) -> Result<String> {
        let problem = |difference: &Difference| {
            json!({
                "node": difference.node,
                "op": difference.op,
                "tensor": difference.tensor,
                "problem": difference.problem,
            })
        };
        let proof = &self.proof;
        let identity = self.numbers.as_ref().map(|numbers| &numbers.identity);
        let identical = |count: Option<Count>| count.map(|count| count.different == 0);
        let compared = identity.map(|identity| {
            json!({
                "forward": identity.forward.compared,
                "input_gradients": identity.input_gradients.compared,
                "untouched": identity.untouched.compared,
            })
        });
        let layers: Vec<Value> = self.layers.iter().map(layer).collect();
        let numbers = self.numbers.as_ref();
        let dims = |sizes: &BTreeMap<Arc<str>, i64>| -> BTreeMap<String, i64> {
            sizes
                .iter()
                .map(|(name, &size)| (name.to_string(), size))
                .collect()
        };
        let certificate = json!({
            "schema": SCHEMA,
            "tool_version": env!("CARGO_PKG_VERSION"),
            "files": { "original": self.original, "rewritten": self.rewritten },
            "dims": dims(numbers.map_or(&self.dims, |numbers| &numbers.sizes)),
            "data": numbers.map(|numbers| data(&numbers.data)),
            "device": numbers.map(|numbers| &numbers.device),
            "structure": {
                "ok": proof.differences.is_empty(),
                "nodes_same": proof.same,
                "nodes_moved": proof.moved,
                "nodes_removed": proof.removed,
                "nodes_added": proof.added,
                "nodes_of_pins": proof.pins,
                "nodes_again": proof.copies,
                "differences": proof.differences.iter().map(problem).collect::<Vec<_>>(),
            },
            "forward_identical": identical(identity.map(|i| i.forward)),
            "input_gradients_identical": identical(identity.map(|i| i.input_gradients)),
            "untouched_identical": identical(identity.map(|i| i.untouched)),
            "values_compared": compared,
            "layers": layers,
            "total": numbers.map(|numbers| numbers.total),
            "first_problem": self.first_problem().as_ref().map(problem),
            "ok": self.first_problem().is_none(),
        });
        Ok(serde_json::to_string_pretty(&certificate)? + "\n")
    }
}

fn data(data: &Data) -> Value {
    json!({
        "path": data.path,
        "sha256": data.sha256,
        "samples": data.samples,
        "params": data.parameters.as_ref().map(|(path, sha256)| json!({ "path": path, "sha256": sha256 })),
        "init_params_seed": data.seed,
    })
}

fn layer(layer: &Layer) -> Value {
    let measured = layer.measured.as_ref();
    let deviation = |deviation: Deviation| json!({ "error": deviation.error, "tolerance": deviation.tolerance });
    json!({
        "param": layer.param,
        "node": layer.node,
        "kind": layer.kind,
        "groups": layer.groups,
        "sub_token_size": layer.sub_token_size,
        "init": layer.init,
        "direction_state": layer.state.name(),
        "scale": layer.scale,
        "formula_max_error": measured.map(|m| m.formula.error),
        "tolerance": measured.map(|m| m.formula.tolerance),
        "compressed": measured.map(|m| deviation(m.compressed)),
        "direction": measured.map(|m| deviation(m.direction)),
        "direction_checked": measured.map(|m| if m.defined { "definition" } else { "unit-vector" }),
        "direction_cosine": measured.and_then(|m| m.direction_cosine),
        "cosine": measured.and_then(|m| m.fidelity.cosine),
        "norm_ratio": measured.and_then(|m| m.fidelity.norm_ratio),
    })
}

/// The table.
pub fn table(certificate: &Certificate, style: Style) -> String {
    let proof = &certificate.proof;
    let mut text = format!(
        "graph: {} nodes are the original's, {} of its nodes are gone, {} are new and {} are of pins\n",
        proof.same, proof.removed, proof.added, proof.pins
    );
    if proof.copies > 0 {
        text += &format!(
            "computed again: {} nodes are copies of forward nodes\n",
            proof.copies
        );
    }
    if let Some(more) = proof.differences.len().checked_sub(1) {
        let shown = if style.everything { usize::MAX } else { 5 };
        for difference in proof.differences.iter().take(shown) {
            text += &clean(&format!("  {difference}"));
            text.push('\n');
        }
        if let Some(more) = (more + 1).checked_sub(shown).filter(|&more| more > 0) {
            text += &format!("  and {more} more differences (-v lists them)\n");
        }
    }
    match &certificate.numbers {
        Some(numbers) => {
            let Identity {
                forward,
                input_gradients,
                untouched,
                ..
            } = &numbers.identity;
            for (what, count) in [
                ("forward values", forward),
                ("input gradients", input_gradients),
                ("other values that no rewritten gradient feeds", untouched),
            ] {
                text += &match count.different {
                    0 => format!("{what}: all {} bit-identical\n", count.compared),
                    n => format!("{what}: {n} of {} differ\n", count.compared),
                };
            }
        }
        None if proof.differences.is_empty() => {
            text += "numbers: not compared; --data F runs both graphs on a batch\n";
        }
        None => text += "numbers: not compared, because the graphs differ\n",
    }
    text.push('\n');
    text += &layers_table(certificate, style);
    if let Some(numbers) = &certificate.numbers {
        let Fidelity { cosine, norm_ratio } = numbers.total;
        text += &format!(
            "all trained parameters together: cosine {}, norm ratio {}\n",
            number(cosine, style),
            number(norm_ratio, style)
        );
    }
    text += match certificate.first_problem() {
        None => "verified\n",
        Some(_) => "NOT verified\n",
    };
    text
}

fn layers_table(certificate: &Certificate, style: Style) -> String {
    if certificate.layers.is_empty() {
        return "no weight gradient is rewritten\n".to_owned();
    }
    let mut grid = Grid::new([
        ("parameter", Column::Name),
        ("kind", Column::Word),
        ("groups", Column::Number),
        ("direction", Column::Word),
        ("scale", Column::Number),
        ("cosine of v", Column::Number),
        ("formula error", Column::Number),
        ("tolerance", Column::Number),
        ("cosine", Column::Number),
        ("norm ratio", Column::Number),
    ]);
    for layer in &certificate.layers {
        let measured = layer.measured.as_ref();
        let small = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.2e}"));
        let fidelity = |x: Option<Option<f64>>| x.map_or(String::new(), |x| number(x, style));
        grid.row([
            layer.param.clone(),
            layer.kind.to_owned(),
            layer.groups.to_string(),
            match layer.state {
                DirectionState::Unfilled => format!("{}, unfilled", layer.init),
                _ => layer.init.clone(),
            },
            match layer.scale == 1.0 {
                true => String::new(),
                false => layer.scale.to_string(),
            },
            match measured.and_then(|m| m.direction_cosine) {
                Some(cosine) => number(Some(cosine), style),
                None => String::new(),
            },
            small(measured.map(|m| m.formula.error)),
            small(measured.map(|m| m.formula.tolerance)),
            fidelity(measured.map(|m| m.fidelity.cosine)),
            fidelity(measured.map(|m| m.fidelity.norm_ratio)),
        ]);
    }
    grid.draw(style) + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::io::Hashed;

    const PLAIN: Style = Style {
        unicode: false,
        width: None,
        everything: false,
    };

    fn certificate(error: f64) -> Certificate {
        let files = |path: &str| Fingerprint {
            model: Hashed {
                path: path.to_owned(),
                sha256: "00".to_owned(),
            },
            external_data: vec![],
        };
        let deviation = |error| Deviation {
            error,
            tolerance: 1e-7,
        };
        let fidelity = Fidelity {
            cosine: Some(0.5),
            norm_ratio: None,
        };
        let count = |compared| Count {
            compared,
            different: 0,
        };
        Certificate {
            original: files("a.onnx"),
            rewritten: files("b.onnx"),
            dims: BTreeMap::new(),
            proof: Proof {
                same: 7,
                removed: 2,
                added: 3,
                ..Proof::default()
            },
            layers: vec![Layer {
                param: "fc.weight".to_owned(),
                kind: "linear",
                node: "mm".to_owned(),
                op: "MatMul".to_owned(),
                groups: 4,
                sub_token_size: 16,
                init: "none".to_owned(),
                state: DirectionState::Constant,
                scale: 0.5,
                measured: Some(layers::Layer {
                    formula: deviation(error),
                    compressed: deviation(0.0),
                    direction: deviation(0.0),
                    defined: true,
                    direction_cosine: None,
                    fidelity,
                }),
            }],
            numbers: Some(Numbers {
                data: Data {
                    path: "d.npz".to_owned(),
                    sha256: "11".to_owned(),
                    samples: 8,
                    parameters: None,
                    seed: None,
                },
                sizes: BTreeMap::new(),
                device: "cpu".to_owned(),
                identity: Identity {
                    forward: count(5),
                    input_gradients: count(4),
                    untouched: count(3),
                    first: None,
                },
                total: fidelity,
            }),
        }
    }

    #[test]
    fn the_table_says_what_was_compared() {
        assert_eq!(
            table(&certificate(5e-8), PLAIN),
            "\
graph: 7 nodes are the original's, 2 of its nodes are gone, 3 are new and 0 are of pins
forward values: all 5 bit-identical
input gradients: all 4 bit-identical
other values that no rewritten gradient feeds: all 3 bit-identical

parameter  kind    groups  direction  scale  formula error  tolerance  cosine  norm ratio
fc.weight  linear       4  none         0.5        5.00e-8    1.00e-7  0.5000           -

all trained parameters together: cosine 0.5000, norm ratio -
verified
"
        );
    }

    #[test]
    fn copies_are_counted() {
        let mut certificate = certificate(0.0);
        let again = |certificate: &Certificate| {
            let json: Value = serde_json::from_str(&certificate.json().unwrap()).unwrap();
            json["structure"]["nodes_again"].as_u64().unwrap()
        };
        assert_eq!(again(&certificate), 0);
        certificate.proof.copies = 5;
        assert_eq!(again(&certificate), 5);
        let text = table(&certificate, PLAIN);
        let line = text.lines().nth(1).unwrap();
        assert_eq!(line, "computed again: 5 nodes are copies of forward nodes");
    }

    #[test]
    fn whatever_is_wrong_is_the_first_problem() {
        let ok = |certificate: &Certificate| {
            let json: Value = serde_json::from_str(&certificate.json().unwrap()).unwrap();
            let ok = json["ok"].as_bool().unwrap();
            assert_eq!(ok, certificate.first_problem().is_none());
            assert_eq!(ok, !table(certificate, PLAIN).contains("NOT"));
            assert_eq!(ok, json["first_problem"].is_null());
            ok
        };
        let text = |certificate: &Certificate| certificate.first_problem().unwrap().to_string();
        assert!(ok(&certificate(1e-7)));
        for error in [2e-7, f64::NAN, f64::INFINITY] {
            let wrong = certificate(error);
            assert!(!ok(&wrong));
            assert!(text(&wrong).contains("node 'mm' (MatMul), tensor 'fc.weight': dW is not"));
        }
        let difference = |problem: &str| Difference {
            node: "n".to_owned(),
            op: "Op".to_owned(),
            tensor: "t".to_owned(),
            problem: problem.to_owned(),
        };
        let mut wrong = certificate(2e-7);
        let identity = &mut wrong.numbers.as_mut().unwrap().identity;
        identity.untouched.different = 1;
        identity.first = Some(difference("bits"));
        assert!(!ok(&wrong));
        assert!(text(&wrong).ends_with("'t': bits"));
        wrong.proof.differences.push(difference("structure"));
        assert!(!ok(&wrong));
        assert!(text(&wrong).ends_with("'t': structure"));
    }
}
