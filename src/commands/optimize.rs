//! The main job: read, decide, rewrite, write, report.

use super::{Loaded, deliver, planned, reported, warn_of_doubtful};
use crate::cli::{OptimizeArguments, is_stream};
use crate::io::{Output, folder_of, write_model, write_text};
use crate::plan_file::Plan;
use crate::report::View;
use crate::report::build::Sides;
use crate::settings::{plan, selection};
use crate::suggest::nearest;
use anyhow::{Context, Result, bail};
use velora_graph::analysis::Analyses;
use velora_graph::ir::Model;
use velora_graph::onnx::read::Source;
use velora_graph::text::print_model;
use velora_passes::manager::{Checks, Ran};
use velora_passes::ops::OLDEST_OPSET;
use velora_passes::pipeline::{Adapter, Options, PASSES, already_rewritten, optimise};

/// Rewrites the model into the output, and reports.
///
/// # Errors
/// Where the file cannot be read, is no training graph, a setting does not fit it, or an output
/// cannot be written. No model is written where it could not be rewritten.
pub fn run(arguments: &OptimizeArguments) -> Result<()> {
    check_pass(arguments.print_after.as_deref())?;
    let loaded = Loaded::read(&arguments.graph.source)?;
    let (name, model) = (&loaded.name, &loaded.model);
    let (graph, plan_out) = (&arguments.graph, &arguments.selection.emit_plan);
    let reports = [&graph.json, &graph.html, plan_out];
    loaded.check_spared(reports.into_iter().flatten())?;
    check_opset(model).with_context(|| name.clone())?;
    if already_rewritten(model) {
        write(arguments, loaded.source.as_ref(), model)?;
        if !arguments.graph.source.quiet {
            let asked = [&arguments.graph.json, &arguments.graph.html];
            let asked =
                asked.iter().any(|f| f.is_some()) || arguments.selection.emit_plan.is_some();
            eprintln!(
                "velora-opt: {name} is already rewritten: written unchanged{} (rewrite the original \
                 for other settings)",
                if asked {
                    ", without a report or plan"
                } else {
                    ""
                }
            );
        }
        return Ok(());
    }
    let read = arguments.selection.plan.as_ref();
    let given = read.map(|path| Plan::read(path)).transpose()?;
    if let Some(given) = &given {
        let analyses = Analyses::new(model, &loaded.settings).with_context(|| name.clone())?;
        let sites = analyses.sites.sites.iter().map(|s| s.parameter);
        let unfit = analyses.sites.unfit.iter().map(|u| u.parameter);
        let parameters = sites.chain(unfit);
        given.check_layers(parameters.map(|p| model.graph.value(p).name.as_str()))?;
    }
    let recompute = given.as_ref().and_then(|plan| plan.recompute.clone());
    let mut options = Options {
        settings: loaded.settings.clone(),
        selection: selection(&arguments.method, &arguments.selection, given)?,
        inline: arguments.inline,
        hoist: !arguments.no_hoist,
        recompute: recompute.map(|names| names.into_iter().collect()),
        pin: !arguments.no_pin,
        adapter: arguments.method.adapter.map(|base| Adapter {
            base: base.into(),
            folder: Some(folder_of(&arguments.graph.source.model).to_path_buf()),
        }),
        checks: Checks {
            verify_each: arguments.verify_each,
            keep_after: arguments.print_after.clone(),
        },
    };
    let step = match arguments.planner.is_asked() {
        true => {
            let planned = planned::options(&loaded, &arguments.planner, &options);
            let (with_plan, step) = planned.with_context(|| name.clone())?;
            options = with_plan;
            Some(step)
        }
        false => None,
    };
    let outcome = optimise(model, &options).with_context(|| name.clone())?;
    warn_of_doubtful(&arguments.graph.source, model, &outcome.before.roles);
    let after = match outcome.ran.passes.is_empty() {
        true => outcome.before.clone(),
        false => {
            Analyses::new(&outcome.ran.model, &loaded.settings).with_context(|| name.clone())?
        }
    };
    show_passes(arguments, &outcome.ran);
    let sides = Sides::new(model, &outcome, &after, &options.selection);
    let mut report = reported(&loaded, &sides, &arguments.graph)?;
    report.plan = step.map(|step| planned::report(model, &outcome, &step));

    write(arguments, loaded.source.as_ref(), &outcome.ran.model)?;
    if let Some(path) = &arguments.selection.emit_plan {
        let parameter = |v| model.graph.value(v).name.as_str();
        let layers = outcome
            .decisions
            .iter()
            .map(|d| (parameter(d.parameter), d.rewritten()));
        let mut emitted = plan(&options.selection, layers);
        let recompute = options.recompute.as_ref();
        emitted.recompute = recompute.map(|names| names.iter().cloned().collect());
        write_text(path, &emitted.to_text()?)?;
    }
    let taken = [
        Some(&arguments.output),
        arguments.selection.emit_plan.as_ref(),
    ];
    let taken = taken.into_iter().flatten().find(|path| is_stream(path));
    deliver(
        &report,
        View::Optimized,
        &arguments.graph,
        taken.map(|p| p.as_path()),
    )
}

fn write(arguments: &OptimizeArguments, source: Option<&Source>, model: &Model) -> Result<()> {
    let output = Output {
        path: &arguments.output,
        external_data: arguments.external_data,
        quiet: arguments.graph.source.quiet,
    };
    write_model(&mut model.to_proto(), source, output)?;
    if arguments.graph.source.verbose {
        eprintln!("velora-opt: wrote {}", arguments.output.display());
    }
    Ok(())
}

fn show_passes(arguments: &OptimizeArguments, ran: &Ran) {
    if let Some(kept) = &ran.kept {
        eprintln!("{}", print_model(&kept.to_proto()).trim_end());
    }
    for (pass, reason, time) in &ran.passes {
        if arguments.time_passes {
            eprintln!("velora-opt: {pass}: {:.3} ms", time.as_secs_f64() * 1e3);
        }
        if arguments.graph.source.verbose {
            eprintln!(
                "velora-opt: {pass}: {}",
                reason.as_deref().unwrap_or("nothing to change")
            );
        }
    }
}

fn check_pass(name: Option<&str>) -> Result<()> {
    match name {
        Some(name) if !PASSES.contains(&name) => bail!(
            "--print-after {name}: there is no such pass; expected {}",
            match nearest(name, PASSES).as_slice() {
                [] => PASSES.join(", "),
                near => near.join(", "),
            }
        ),
        _ => Ok(()),
    }
}

fn check_opset(model: &Model) -> Result<()> {
    let version = model.opset("");
    if version.is_some_and(|version| version >= OLDEST_OPSET) {
        return Ok(());
    }
    bail!(
        "expected the standard operator set at version {OLDEST_OPSET} or newer, found {}; export \
         the model again with a newer opset",
        version.map_or("none".to_owned(), |v| v.to_string())
    )
}
