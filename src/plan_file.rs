//! The TOML file of per-layer settings that `--emit-plan` writes and `--plan` reads.
//!
//! ```toml
//! version = 1
//!
//! [defaults]                   # for layers that say nothing else, below the command line
//! groups = 32                  # or sub_token_size
//! init = "batch-average"       # as on the command line
//! scale = 1.0
//! seed = 0
//! storage = "activation"       # activation, f16, bf16, int8
//! rank = 1
//! directions = "shared"        # shared, group
//! decay = 0.9
//! gradients = "full"           # full, factored
//!
//! recompute = ["softmax_3"]    # computed again in backward, by the first outputs of the nodes; even an empty list
//!                              # lets transposed weights be derived again (a key before the tables)
//! [[layer]]
//! param = "fc1.weight"         # the parameter's name in the graph
//! rewrite = true               # without it, --select decides
//! groups = 16                  # any of the keys of [defaults]
//! ```

use crate::cli::{Directions, Gradients, Init, Storage};
use crate::suggest::nearest;
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The version of the format that is written, and the only one that is read.
pub const VERSION: i64 = 1;

/// The longest plan that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// A plan as it stands in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`VERSION`].
    pub version: i64,
    /// The first outputs of the nodes that are computed again; `None` where no plan of the whole step was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Vec<String>>,
    /// Settings of layers that say nothing else.
    #[serde(default)]
    pub defaults: Defaults,
    /// Settings by layer.
    #[serde(default, rename = "layer")]
    pub layers: Vec<LayerPlan>,
}

/// The table `[defaults]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// G, not together with `sub_token_size`.
    pub groups: Option<i64>,
    /// M.
    pub sub_token_size: Option<i64>,
    /// The kind of direction.
    pub init: Option<Init>,
    /// The factor on weight gradients.
    pub scale: Option<f64>,
    /// The seed of random directions.
    pub seed: Option<u64>,
    /// How z is stored.
    pub storage: Option<Storage>,
    /// R, the directions of a sub-token.
    pub rank: Option<i64>,
    /// Which sub-tokens share directions.
    pub directions: Option<Directions>,
    /// How much of a running average stays in a step.
    pub decay: Option<f64>,
    /// How gradients leave the graph.
    pub gradients: Option<Gradients>,
}

/// One `[[layer]]`.
// The settings are repeated: `deny_unknown_fields` does not work through `flatten`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerPlan {
    /// The name of the layer's parameter.
    pub param: String,
    /// Whether to rewrite it; `None` leaves that to the selection.
    pub rewrite: Option<bool>,
    /// As in [`Defaults`].
    pub groups: Option<i64>,
    /// As in [`Defaults`].
    pub sub_token_size: Option<i64>,
    /// As in [`Defaults`].
    pub init: Option<Init>,
    /// As in [`Defaults`].
    pub scale: Option<f64>,
    /// As in [`Defaults`].
    pub seed: Option<u64>,
    /// As in [`Defaults`].
    pub storage: Option<Storage>,
    /// As in [`Defaults`].
    pub rank: Option<i64>,
    /// As in [`Defaults`].
    pub directions: Option<Directions>,
    /// As in [`Defaults`].
    pub decay: Option<f64>,
    /// As in [`Defaults`].
    pub gradients: Option<Gradients>,
}

impl Plan {
    /// Reads a plan; the path `-` reads standard input.
    ///
    /// # Errors
    /// Where the file cannot be read or is no plan; the message names line and key.
    pub fn read(path: &Path) -> Result<Plan> {
        if crate::cli::is_stream(path) {
            let text = std::io::read_to_string(std::io::stdin());
            return Plan::parse("<stdin>", &text.context("cannot read standard input")?);
        }
        // Plans are short; what has no end must not fill the memory.
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
            .with_context(|| format!("cannot read {}", path.display()))?;
        if text.len() as u64 > MAX_BYTES {
            bail!(
                "{}: longer than {MAX_BYTES} bytes, which no plan is",
                path.display()
            );
        }
        Plan::parse(&path.display().to_string(), &text)
    }

    /// Parses a plan; `name` is how messages call it.
    ///
    /// # Errors
    /// As for [`Plan::read`].
    pub fn parse(name: &str, text: &str) -> Result<Plan> {
        let plan: Plan = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.bytes().take(start);
            let line = 1 + before.filter(|&b| b == b'\n').count();
            anyhow!(
                "{name}: line {line}: {}",
                error.message().replace('\n', " ")
            )
        })?;
        if plan.version != VERSION {
            bail!(
                "{name}: version {} of the plan format is not known; expected {VERSION}",
                plan.version
            );
        }
        let defaults = &plan.defaults;
        check(
            defaults.groups,
            defaults.sub_token_size,
            defaults.scale,
            defaults.seed,
        )
        .with_context(|| format!("{name}: [defaults]"))?;
        let mut seen = BTreeSet::new();
        for layer in &plan.layers {
            let place = || format!("{name}: layer '{}'", layer.param);
            check(layer.groups, layer.sub_token_size, layer.scale, layer.seed)
                .with_context(place)?;
            if !seen.insert(&layer.param) {
                bail!("{} is given twice", place());
            }
        }
        Ok(plan)
    }

    /// Checks that every layer of the plan is one of the graph's.
    ///
    /// # Errors
    /// Where one is not; the message lists the nearest names.
    pub fn check_layers<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let unknown = |layer: &&LayerPlan| !names.contains(layer.param.as_str());
        let Some(layer) = self.layers.iter().find(unknown) else {
            return Ok(());
        };
        let near = nearest(&layer.param, names);
        let hint = match near.as_slice() {
            [] => "the graph has no layer that could be rewritten".to_owned(),
            near => format!("the nearest are '{}'", near.join("', '")),
        };
        bail!(
            "the plan's layer '{}' is no layer of the graph; {hint}",
            layer.param
        )
    }

    /// The file's text.
    ///
    /// # Errors
    /// Where a number does not fit TOML.
    pub fn to_text(&self) -> Result<String> {
        let body = toml::to_string(self).context("cannot write the plan as TOML")?;
        Ok(format!(
            "# Settings by layer for `velora-opt --plan`; a layer without `rewrite` is left to --select.\n{body}"
        ))
    }
}

fn check(
    groups: Option<i64>,
    sub_token_size: Option<i64>,
    scale: Option<f64>,
    seed: Option<u64>,
) -> Result<()> {
    if groups.is_some() && sub_token_size.is_some() {
        bail!("groups and sub_token_size exclude each other; give one of them");
    }
    for (key, number) in [("groups", groups), ("sub_token_size", sub_token_size)] {
        if let Some(number) = number.filter(|&n| n < 1) {
            bail!("{key} is {number}; expected a whole number of at least 1");
        }
    }
    if let Some(scale) = scale.filter(|s| !s.is_finite()) {
        bail!("scale is {scale}; expected a finite number");
    }
    if let Some(seed) = seed.filter(|&s| i64::try_from(s).is_err()) {
        bail!("seed is {seed}; expected at most {}", i64::MAX);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plan_reads_back_as_it_was_written() {
        let plan = Plan {
            version: VERSION,
            recompute: Some(vec!["x".to_owned(), String::new()]),
            defaults: Defaults {
                sub_token_size: Some(16),
                init: Some(Init::None),
                scale: Some(0.1),
                ..Defaults::default()
            },
            layers: vec![
                LayerPlan {
                    param: "a \"quoted\"\nname".to_owned(),
                    rewrite: Some(false),
                    groups: Some(8),
                    init: Some(Init::BatchAverage),
                    scale: Some(-1.5e-7),
                    seed: Some(i64::MAX as u64),
                    ..LayerPlan::default()
                },
                LayerPlan {
                    param: "b".to_owned(),
                    ..LayerPlan::default()
                },
            ],
        };
        let text = plan.to_text().unwrap();
        assert_eq!(Plan::parse("p", &text).unwrap(), plan, "{text}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let layer = |rest: &str| format!("version = 1\n[[layer]]\nparam = \"w\"\n{rest}\n");
        for (text, message) in [
            ("", "missing field `version`"),
            ("version = 2", "version 2"),
            ("version = 1\n[default]\n", "unknown field `default`"),
            (
                "version = 1\n[defaults]\ngroup = 2\n",
                "p: line 3: unknown field `group`",
            ),
            (&layer("rewrte = true"), "p: line 4: unknown field `rewrte`"),
            (&layer("groups = 0"), "layer 'w': groups is 0"),
            (
                &layer("groups = 2\nsub_token_size = 2"),
                "exclude each other",
            ),
            (&layer("scale = nan"), "scale is NaN"),
            (&layer("init = \"mean\""), "unknown variant `mean`"),
            (&layer("seed = -1"), "line 4"),
            (
                &layer("[[layer]]\nparam = \"w\""),
                "layer 'w' is given twice",
            ),
            ("version = 1\n[[layer]]\n", "missing field `param`"),
        ] {
            let error = format!("{:#}", Plan::parse("p", text).unwrap_err());
            assert!(error.contains(message), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_unknown_layer_gets_the_nearest_names() {
        let plan = Plan::parse("p", "version = 1\n[[layer]]\nparam = \"fc1.wieght\"").unwrap();
        let names = ["head.weight", "fc2.weight", "fc1.weight"];
        let error = plan.check_layers(names).unwrap_err().to_string();
        assert!(error.contains("'fc1.weight', 'fc2.weight'"), "{error}");
        assert!(
            plan.check_layers([])
                .unwrap_err()
                .to_string()
                .contains("no layer")
        );
        let plan = Plan::parse("p", "version = 1\n[[layer]]\nparam = \"fc2.weight\"").unwrap();
        plan.check_layers(names).unwrap();
    }
}
