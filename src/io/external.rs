//! What becomes of external data when a model is written somewhere.

use super::copy::copy;
use super::{Output, folder_of, is_one_place};
use crate::cli::{ExternalData, is_stream};
use crate::progress::Progress;
use crate::report::bytes;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use velora_graph::onnx::read::ExternalData as Mapped;
use velora_graph::onnx::read::{FileError, Source, check_external_data, open_external_file};
use velora_graph::onnx::schema::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use velora_graph::onnx::write::Staged;

/// What was made for a model to find its data.
#[derive(Debug, Default)]
pub struct Placed {
    /// Data files that the model now has the content of, mapped.
    inlined: Vec<Source>,
    /// Copies, not yet in their places. Declared before the folders that they are in, and dropped before them.
    copies: Vec<Staged>,
    /// Folders for the copies.
    folders: NewFolders,
}

impl Placed {
    /// The files that payloads of the model lie in.
    pub fn inlined(&self) -> impl Iterator<Item = &Source> {
        self.inlined.iter()
    }

    /// Puts the copies in their places.
    ///
    /// # Errors
    /// Where one cannot be; those before it have been.
    pub fn commit(self) -> Result<()> {
        for copy in self.copies {
            copy.commit()?;
        }
        for folder in self.folders.0.iter() {
            // As with files, it is in place even where this fails.
            let _ = File::open(folder_of(folder)).and_then(|parent| parent.sync_all());
        }
        Ok(())
    }
}

/// Folders that are taken away again, unless something is in them.
#[derive(Debug, Default)]
struct NewFolders(Vec<PathBuf>);

impl Drop for NewFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Refused for a folder that has something in it.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Makes the external data of `model`, read from `source`, available to the model in its new place.
///
/// # Errors
/// Where that cannot be done, or would replace what the model needs.
pub fn place(model: &mut ModelProto, source: Option<&Path>, output: Output<'_>) -> Result<Placed> {
    let Output {
        path: out,
        external_data: mode,
        quiet,
    } = output;
    let mut placed = Placed::default();
    let Some(External {
        folder,
        locations,
        example,
    }) = check(model, source)?
    else {
        return Ok(placed);
    };
    let data = locations.iter().map(|location| folder.join(location));
    if let Some(data) = { data }.find(|data| !is_stream(out) && is_one_place(out, data)) {
        bail!("{}", would_replace(out, &data));
    }
    if mode == ExternalData::Inline {
        // What is mapped is checked, tensor by tensor.
        placed.inlined = inline(model, folder)?;
        return Ok(placed);
    }
    if is_stream(out) {
        bail!(
            "the weights are in other files, found from the model's folder (tensor '{example}'), and \
             standard output has none; use --external-data inline"
        );
    }
    let target = folder_of(out);
    let real = |folder: &Path| {
        let found = folder.canonicalize();
        found.with_context(|| format!("cannot find the folder {}", folder.display()))
    };
    let (from, to) = (real(folder)?, real(target)?);
    if from != to && mode == ExternalData::Keep {
        bail!(
            "the weights are in other files, found from the model's folder {} (tensor '{example}'), \
             and {} is in another; use --external-data copy or inline, or write into that folder",
            folder.display(),
            out.display()
        );
    }
    // Its copy would be there.
    let copied = out.file_name().and_then(|n| locations.get(Path::new(n)));
    if let Some(data) = copied {
        bail!("{}", would_replace(out, &folder.join(data)));
    }
    if from != to {
        for location in &locations {
            placed.copy(folder, target, location, quiet)?;
        }
        // What was copied is what was checked.
        check_external_data(model, folder)?;
    }
    Ok(placed)
}

/// External data that was checked.
pub struct External<'a> {
    /// The model's folder.
    pub folder: &'a Path,
    /// The files, below that folder.
    pub locations: BTreeSet<PathBuf>,
    /// The name of one tensor with such data.
    pub example: String,
}

/// Checks the references to external data of a model read from `source`; `None` where it has none.
///
/// # Errors
/// Where one is not acceptable, or there is no folder that they could be relative to.
pub fn check<'a>(model: &mut ModelProto, source: Option<&'a Path>) -> Result<Option<External<'a>>> {
    let (locations, example) = locations(model)?;
    if locations.is_empty() {
        return Ok(None);
    }
    let Some(source) = source else {
        bail!(
            "the model on standard input has external data (tensor '{example}'), which is found \
             from the model's folder; give the path of the model's file"
        );
    };
    let folder = folder_of(source);
    check_external_data(model, folder)?;
    Ok(Some(External {
        folder,
        locations,
        example,
    }))
}

/// Where the data of tensors lies, below the model's folder, and the name of one such tensor.
///
/// # Errors
/// Where the dims of one are the size of nothing, so that its data could be of any length.
pub fn locations(model: &mut ModelProto) -> Result<(BTreeSet<PathBuf>, String)> {
    let mut locations = BTreeSet::new();
    let mut example = String::new();
    visit(model, &mut |tensor| {
        if tensor.is_external() {
            let sizes = tensor.dims.iter().map(|&size| u64::try_from(size).ok());
            let elements = { sizes }.try_fold(1u64, |product, size| product.checked_mul(size?));
            if elements.is_none() {
                bail!(
                    "external data of tensor {:?}: the dims {:?} are the size of nothing; expected sizes \
                     that are not negative, and a product below 2^64",
                    tensor.name(),
                    tensor.dims
                );
            }
            example = tensor.name().to_owned();
            locations.insert(lexical(tensor));
        }
        Ok(())
    })?;
    Ok((locations, example))
}

/// That an output would be written over a model's data.
pub fn would_replace(out: &Path, data: &Path) -> String {
    format!(
        "writing {} would replace the data file {} that the model needs; choose another name",
        out.display(),
        data.display()
    )
}

/// Where a tensor's data is, below the model's folder, without `.` components;
/// [`check_external_data`] refuses all others but names.
fn lexical(tensor: &TensorProto) -> PathBuf {
    let location = Path::new(entry(tensor, "location").unwrap_or_default());
    let names = location.components();
    names
        .filter(|c| matches!(c, Component::Normal(_)))
        .collect()
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    let found = tensor.external_data.iter().find(|e| e.key() == key);
    found.map(|e| e.value())
}

impl Placed {
    /// Copies one data file beside its place; folders on the way are made, links on the way refused.
    fn copy(&mut self, folder: &Path, target: &Path, location: &Path, quiet: bool) -> Result<()> {
        let from = folder.join(location);
        let mut to = target.to_path_buf();
        for component in location.parent().into_iter().flat_map(Path::components) {
            to.push(component);
            match fs::symlink_metadata(&to) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => bail!(
                    "cannot copy {} to {}: {} is not a folder (a link is not followed)",
                    from.display(),
                    target.join(location).display(),
                    to.display()
                ),
                Err(_) => match fs::create_dir(&to) {
                    Ok(()) => self.folders.0.push(to.clone()),
                    // Another process was faster; a folder it must be all the same.
                    Err(_) if fs::symlink_metadata(&to).is_ok_and(|found| found.is_dir()) => {}
                    Err(error) => {
                        return Err(error).with_context(|| format!("cannot make {}", to.display()));
                    }
                },
            }
        }
        to = target.join(location);
        let data = open(folder, location)?;
        let stamp = || data.metadata().map(|now| (now.len(), now.modified().ok()));
        let before = stamp();
        let mut progress = Progress::new(quiet);
        let staged = Staged::write(&to, |file| {
            copy(&data, file, |done, all| {
                progress.show(done, all, || {
                    format!("{} of {} of {}", bytes(done), bytes(all), from.display())
                });
            })
        });
        // First, because whatever else went wrong is the consequence.
        if !matches!((before, stamp()), (Ok(before), Ok(after)) if before == after) {
            return Err(FileError::Changed { path: from }.into());
        }
        let copying = || format!("cannot copy {} to {}", from.display(), to.display());
        self.copies.push(staged.with_context(copying)?);
        Ok(())
    }
}

/// Opens a data file below the model's folder.
///
/// # Errors
/// Where it is no longer what [`check_external_data`] found.
pub fn open(folder: &Path, location: &Path) -> Result<File> {
    // A model's locations have this separator on any system.
    let names: Vec<_> = location.iter().map(|name| name.to_string_lossy()).collect();
    let opened = open_external_file(&names.join("/"), folder);
    opened.map_err(|(problem, hint)| anyhow!("external data: {problem}; {hint}"))
}

/// Puts the payloads into the model, as slices of the mapped data files, which it gives.
fn inline(model: &mut ModelProto, folder: &Path) -> Result<Vec<Source>> {
    let mut data = Mapped::new(folder);
    visit(model, &mut |tensor| {
        if tensor.is_external() {
            tensor.raw_data = Some(data.map(tensor)?);
            tensor.external_data.clear();
            tensor.data_location = None;
        }
        Ok(())
    })?;
    Ok(data.into_sources())
}

type Visitor<'a> = &'a mut dyn FnMut(&mut TensorProto) -> Result<()>;

/// Every tensor of a model, wherever it is. Nesting is bounded by the reader.
fn visit(model: &mut ModelProto, each: Visitor<'_>) -> Result<()> {
    for training in &mut model.training_info {
        let graphs = training.initialization.iter_mut();
        for graph in graphs.chain(&mut training.algorithm) {
            visit_graph(graph, each)?;
        }
    }
    for function in &mut model.functions {
        visit_attributes(&mut function.attribute_proto, each)?;
        visit_nodes(&mut function.node, each)?;
    }
    model
        .graph
        .iter_mut()
        .try_for_each(|graph| visit_graph(graph, each))
}

fn visit_graph(graph: &mut GraphProto, each: Visitor<'_>) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *each)?;
    for sparse in &mut graph.sparse_initializer {
        let parts = sparse.values.iter_mut().chain(&mut sparse.indices);
        parts.into_iter().try_for_each(&mut *each)?;
    }
    visit_nodes(&mut graph.node, each)
}

fn visit_nodes(nodes: &mut [NodeProto], each: Visitor<'_>) -> Result<()> {
    let mut nodes = nodes.iter_mut();
    nodes.try_for_each(|node| visit_attributes(&mut node.attribute, each))
}

fn visit_attributes(attributes: &mut [AttributeProto], each: Visitor<'_>) -> Result<()> {
    for attribute in attributes {
        let tensors = (attribute.t.as_deref_mut().into_iter()).chain(&mut attribute.tensors);
        tensors.into_iter().try_for_each(&mut *each)?;
        let sparse = attribute.sparse_tensor.as_deref_mut().into_iter();
        for sparse in sparse.chain(&mut attribute.sparse_tensors) {
            let parts = sparse.values.iter_mut().chain(&mut sparse.indices);
            parts.into_iter().try_for_each(&mut *each)?;
        }
        for graph in attribute.g.iter_mut() {
            visit_graph(graph, each)?;
        }
        for graph in &mut attribute.graphs {
            visit_graph(graph, each)?;
        }
    }
    Ok(())
}
