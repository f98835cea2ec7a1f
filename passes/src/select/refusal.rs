//! Why a site is left alone, whatever the user wants, or where it is not worth it.

use super::{Init, LayerSettings, Reason, Selection, Storage, sub_token_size};
use crate::ops::OLDEST_OPSET_OF_ANY_FLOAT;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::sites::{Form, Kind, Site};
use velora_graph::dim::Dim;
use velora_graph::ir::{Graph, Origin};
use velora_graph::shapes::DataType;

/// How a site reads its activation; those of one activation share its compressed form.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cut {
    features: i64,
    /// What lies behind the features: places, where they are channels.
    behind: Option<Vec<Dim>>,
    channels: bool,
}

impl Cut {
    pub(super) fn of(analyses: &Analyses, site: &Site) -> Self {
        let shape = analyses.shapes.of(site.input).shape.as_ref();
        Cut {
            features: site.features,
            behind: shape.and_then(|s| Some(s.get(site.axis + 1..)?.to_vec())),
            channels: site.kind == Kind::Conv,
        }
    }

    fn words(&self) -> String {
        match self.channels {
            true => format!("{} channels", self.features),
            false => format!("{} features", self.features),
        }
    }
}

/// Why a site cannot be rewritten, whatever the user wants.
pub(super) fn refusal(
    graph: &Graph,
    analyses: &Analyses,
    selection: &Selection,
    site: &Site,
    cuts: &[Cut],
) -> Option<(Reason, String)> {
    let says = |reason, message: &str| Some((reason, message.to_owned()));
    match graph.value(site.activation).origin {
        Origin::Node(..) if graph.is_constant(site.activation) => {
            return says(
                Reason::Constant,
                "its input is a constant, alive in any case",
            );
        }
        Origin::Node(..) => {}
        Origin::Input(_) => {
            return says(
                Reason::GraphInput,
                "its input is a graph input, alive in any case",
            );
        }
        _ => {
            return says(
                Reason::Constant,
                "its input is a constant, alive in any case",
            );
        }
    }
    let members = analyses.buffers.members(site.activation);
    if members.iter().any(|&v| graph.value(v).is_output) {
        return says(
            Reason::GraphOutput,
            "its input is an output of the graph, alive in any case",
        );
    }
    if let Some(message) = unfit_type(analyses, site) {
        return says(Reason::DataType, message);
    }
    let own = Cut::of(analyses, site);
    if let Some(other) = cuts.iter().find(|&cut| *cut != own) {
        let elsewhere = match other.channels == own.channels {
            true => other.features.to_string(),
            false => other.words(),
        };
        let message = format!(
            "its input is read with {} here and {elsewhere} elsewhere",
            own.words()
        );
        return Some((Reason::MixedFeatures, message));
    }
    if matches!(site.form, Form::Weight(_)) && site.outputs.as_const().is_none() {
        return says(Reason::Layout, "its number of output features is open");
    }
    let settings = selection.settings(&graph.value(site.parameter).name);
    let groups = settings.grouping.groups(site.features);
    let size = sub_token_size(site.features, groups);
    if groups.checked_mul(size).is_none() {
        return says(Reason::Layout, "its padded width does not fit 64 bits");
    }
    if settings.rank > size {
        let message = format!(
            "{} directions are more than the {size} features of a sub-token",
            settings.rank
        );
        return Some((Reason::NoSaving, message));
    }
    let data_type = analyses.shapes.of(site.input).data_type;
    if let Some(message) = unfit_settings(site, data_type, &settings) {
        return says(Reason::Settings, message);
    }
    let length = settings.direction_length(site.features);
    let constant = settings.init != Init::BatchAverage;
    if length.is_none_or(|length| constant && length > LONGEST_CONSTANT) {
        let message = format!(
            "constant directions for {groups} groups of {size} are larger than any file needs"
        );
        return Some((Reason::Layout, message));
    }
    let element = element_bytes(analyses, site);
    let (width, bytes) = (
        settings.width(site.features),
        settings.bytes_per_token(site.features, element),
    );
    let (Some(width), Some(per_token)) = (width, bytes) else {
        return says(Reason::Layout, "its compressed width does not fit 64 bits");
    };
    if !smaller(site, &settings, element, per_token) {
        let message = match per_token >= site.features.saturating_mul(element) {
            true if settings.storage == Storage::Activation => format!(
                "{width} scalars in the place of {} features would save nothing",
                site.features
            ),
            true => format!(
                "{per_token} bytes in the place of the {} of a token would save nothing",
                site.features.saturating_mul(element)
            ),
            false => "the compressed form and its direction would not be smaller than its input"
                .to_owned(),
        };
        return Some((Reason::NoSaving, message));
    }
    let bytes = analyses
        .shapes
        .bytes(site.activation)
        .and_then(|b| b.as_const());
    if bytes.is_some_and(|b| b < selection.min_bytes) {
        let message = format!("its input has fewer than {} bytes", selection.min_bytes);
        return Some((Reason::TooSmall, message));
    }
    None
}

/// Why a site's types cannot be handled.
fn unfit_type(analyses: &Analyses, site: &Site) -> Option<&'static str> {
    let type_of = |value| analyses.shapes.of(value).data_type;
    let gradient = match &site.form {
        Form::Weight(of) => type_of(of.gradient),
        Form::Scale(of) => type_of(of.gradient),
        Form::Reconstructed => Some(DataType::FLOAT),
    };
    let short = |data_type| matches!(data_type, DataType::FLOAT16 | DataType::BFLOAT16);
    match (type_of(site.input), gradient) {
        (Some(DataType::FLOAT), Some(DataType::FLOAT)) => None,
        (Some(x), Some(dy)) if [x, dy].iter().all(|&t| t == DataType::FLOAT || short(t)) => {
            (analyses.opset < OLDEST_OPSET_OF_ANY_FLOAT).then_some(
                "its input or its gradient is of 16 bits, which takes operator set 15 or newer",
            )
        }
        _ => Some("its input or its gradient is not a tensor of floats of 32 or 16 bits"),
    }
}

/// Why a kind of layer, or a type, cannot be compressed with settings that others can.
fn unfit_settings(
    site: &Site,
    data_type: Option<DataType>,
    settings: &LayerSettings,
) -> Option<&'static str> {
    let (short, conv) = (data_type != Some(DataType::FLOAT), site.kind == Kind::Conv);
    if !settings.has_one_direction() {
        match site.kind {
            Kind::Scale => {
                return Some("the gradient of a scale takes one direction for all groups");
            }
            Kind::Conv => return Some("channels take one direction for all groups"),
            _ if short => return Some("an input of 16 bits takes one direction for all groups"),
            _ => {}
        }
    }
    if settings.storage == Storage::Int8 && (short || conv) {
        return Some("neither channels nor an input of 16 bits are stored as int8");
    }
    (settings.init.is_calibrated() && (short || conv))
        .then_some("directions of channels and of an input of 16 bits are not taken from a batch")
}

/// The entries of a direction that is written into the file: 64 MiB, beyond which a declared size is a
/// mistake or an attack.
const LONGEST_CONSTANT: i64 = 1 << 24;

/// Memory comes in pages: a saving below one shows up nowhere, and its nodes cost time.
pub(crate) const PAGE: i64 = 4096;

/// What compressing a tensor would free, where that is known and less than a page.
pub(super) fn less_than_a_page(
    analyses: &Analyses,
    selection: &Selection,
    graph: &Graph,
    site: &Site,
) -> Option<i64> {
    let settings = selection.settings(&graph.value(site.parameter).name);
    let before = analyses.shapes.bytes(site.activation)?.as_const()?;
    let element = element_bytes(analyses, site);
    let directions = (settings.direction_length(site.features)?).checked_mul(element)?;
    let tokens = site.tokens.as_const()?;
    let after = tokens
        .checked_mul(settings.bytes_per_token(site.features, element)?)?
        .checked_add(directions)?;
    before.checked_sub(after).filter(|&freed| freed < PAGE)
}

/// The bytes of an element of X.
pub(crate) fn element_bytes(analyses: &Analyses, site: &Site) -> i64 {
    match analyses.shapes.of(site.input).data_type {
        Some(DataType::FLOAT16 | DataType::BFLOAT16) => 2,
        _ => 4,
    }
}

/// Whether z and v together have fewer bytes than X, at the number of tokens that is known, or at many.
fn smaller(site: &Site, settings: &LayerSettings, element: i64, per_token: i64) -> bool {
    let before = i128::from(site.features) * i128::from(element);
    let directions = settings.direction_length(site.features).unwrap_or(i64::MAX);
    match site.tokens.as_const() {
        Some(tokens) => {
            let (tokens, directions) = (i128::from(tokens), i128::from(directions));
            let after = tokens * i128::from(per_token) + directions * i128::from(element);
            after < tokens * before
        }
        None => i128::from(per_token) < before,
    }
}
