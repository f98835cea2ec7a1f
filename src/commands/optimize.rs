//! The main job: read, decide, rewrite, write, report.

use super::{Loaded, deliver};
use crate::cli::{Init, OptimizeArguments, Select, is_stream};
use crate::io::{write_model, write_text};
use crate::plan_file::Plan;
use crate::report::View;
use crate::report::build::{Analyses, report};
use crate::settings::{Choice, Grouping, LayerSettings, Settings};
use anyhow::{Context, Result, bail};
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::sites::sites;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::shapes::infer;
use velora_passes::compress::{self, Options};

/// Below this, `ReduceSum` takes its axes as an attribute, which the rewrite does not write.
const OLDEST_OPSET: i64 = 13;

/// Rewrites the model into the output, and reports.
///
/// # Errors
/// Where the file cannot be read, is no training graph, a setting does not fit it, or an output
/// cannot be written. No model is written where it could not be rewritten.
pub fn run(arguments: &OptimizeArguments) -> Result<()> {
    if let Some(option) = not_connected(arguments) {
        bail!("{option} is not available yet");
    }
    let mut loaded = Loaded::read(&arguments.graph)?;
    check_opset(&loaded.shell).with_context(|| loaded.name.clone())?;
    let graph = &loaded.graph;
    let shapes = infer(graph, &loaded.context());
    let partition = Partition::new(graph, &loaded.roles);
    let sites = sites(graph, &loaded.roles, &partition);
    let parameter = |site: &velora_graph::analysis::sites::Site| {
        let value = graph.value(site.parameter);
        value.name.as_str()
    };
    let plan = match &arguments.selection.plan {
        Some(path) => {
            let plan = Plan::read(path)?;
            plan.check_layers(sites.sites.iter().map(parameter))?;
            Some(plan)
        }
        None => None,
    };
    let settings = Settings::new(&arguments.method, &arguments.selection, plan);
    let layers = sites
        .sites
        .iter()
        .map(|site| settings.layer(parameter(site)));
    let options = options(settings.defaults(), layers)?;
    let decisions = compress::decide(graph, &sites, &options);
    let found = Analyses {
        graph,
        shapes: &shapes,
        partition: &partition,
        sites: &sites,
        decisions: &decisions,
        settings: &settings,
    };
    let report = report(&loaded.name, &loaded.sizes, &found);
    let rewritten = decisions
        .iter()
        .map(|d| (parameter(&d.site), d.groups.is_some()));
    let emitted = settings.plan(rewritten);
    loaded.shell.graph = Some(compress::rewrite(graph, &decisions, &options));

    let model = &arguments.graph.model;
    let source = (!is_stream(model)).then_some(model.as_path());
    let out = &arguments.output;
    write_model(&mut loaded.shell, source, out, arguments.external_data)?;
    if arguments.graph.verbose {
        eprintln!("velora-opt: wrote {}", out.display());
    }
    if let Some(path) = &arguments.selection.emit_plan {
        write_text(path, &emitted.to_text()?)?;
    }
    let taken = [Some(out), arguments.selection.emit_plan.as_ref()];
    let taken = taken.into_iter().flatten().find(|path| is_stream(path));
    deliver(
        &report,
        View::Optimized,
        &arguments.graph,
        taken.map(|p| p.as_path()),
    )
}

/// An option that nothing behind the command line obeys yet.
fn not_connected(arguments: &OptimizeArguments) -> Option<&'static str> {
    let selection = &arguments.selection;
    let given = [
        (
            "--sub-token-size",
            arguments.method.sub_token_size.is_some(),
        ),
        ("--scale", arguments.method.scale.is_some_and(|s| s != 1.0)),
        ("--select", selection.select != Select::Freeable),
        ("--include", !selection.include.is_empty()),
        ("--exclude", !selection.exclude.is_empty()),
        ("--min-bytes", selection.min_bytes > 0),
        ("--inline", arguments.inline),
        ("--no-pin", arguments.no_pin),
        ("--verify-each", arguments.verify_each),
        ("--print-after", arguments.print_after.is_some()),
        ("--time-passes", arguments.time_passes),
    ];
    given
        .into_iter()
        .find(|(_, given)| *given)
        .map(|(option, _)| option)
}

/// The settings of the rewrite, which knows one for all layers so far.
fn options(
    defaults: &LayerSettings,
    mut layers: impl Iterator<Item = LayerSettings>,
) -> Result<Options> {
    let uniform = layers.all(|layer| layer == *defaults) && defaults.choice == Choice::Selection;
    let (Grouping::Groups(groups), true) = (defaults.grouping, uniform && defaults.scale == 1.0)
    else {
        bail!("settings by layer, sub_token_size and scale are not available yet");
    };
    Ok(Options {
        groups,
        init: match defaults.init {
            Init::BatchAverage => compress::Init::BatchAverage,
            Init::Random => compress::Init::Random,
            Init::None => compress::Init::None,
        },
        seed: defaults.seed,
    })
}

fn check_opset(model: &ModelProto) -> Result<()> {
    let standard = (model.opset_import.iter()).find(|o| matches!(o.domain(), "" | "ai.onnx"));
    let version = standard.map(|o| o.version());
    if version.is_some_and(|version| version >= OLDEST_OPSET) {
        return Ok(());
    }
    bail!(
        "expected the standard operator set at version {OLDEST_OPSET} or newer, found {}; export \
         the model again with a newer opset",
        version.map_or("none".to_owned(), |v| v.to_string())
    )
}
