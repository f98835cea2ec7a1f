//! What compilers make of the kernels: registers, spills, shared memory.

use super::device;
use super::graphs::{Graph, files};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use velora_passes::select::Preset;
use velora_runtime::cpu::Cpu;
use velora_runtime::cuda::compile::{Unit, ptx};
use velora_runtime::cuda::{elementwise, units};
use velora_runtime::ops::Op;
use velora_runtime::ops::elementwise::Elementwise;

/// An architecture, and what limits how many blocks run on one of its multiprocessors.
struct Architecture {
    number: u32,
    warps: u32,
    blocks: u32,
    shared: u32,
}

/// CUDA C++ Programming Guide 12.9, table of technical specifications per compute capability.
const ARCHITECTURES: [Architecture; 3] = [
    Architecture {
        number: 80,
        warps: 64,
        blocks: 32,
        shared: 164 << 10,
    },
    Architecture {
        number: 90,
        warps: 64,
        blocks: 32,
        shared: 228 << 10,
    },
    Architecture {
        number: 100,
        warps: 64,
        blocks: 32,
        shared: 228 << 10,
    },
];

/// Registers of a multiprocessor, the step in which a warp gets them, and threads of our blocks.
const REGISTERS: u32 = 65536;
const REGISTER_STEP: u32 = 256;
const THREADS: u32 = 256;

/// What ptxas says of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Resources {
    registers: u32,
    stack: u32,
    spilled: u32,
    shared: u32,
}

impl Resources {
    /// Warps that run at once, as a part of those that could: blocks of [`THREADS`] threads.
    fn occupancy(&self, on: &Architecture) -> f64 {
        let warps = THREADS / 32;
        let per_warp = (self.registers * 32).next_multiple_of(REGISTER_STEP);
        let by_registers = REGISTERS / per_warp.max(1) / warps;
        // A block takes 1 KiB of shared memory beside its own.
        let by_shared = on.shared / (self.shared + 1024);
        let blocks = by_registers
            .min(by_shared)
            .min(on.blocks)
            .min(on.warps / warps);
        f64::from(blocks * warps) / f64::from(on.warps)
    }
}

/// The resources of all kernels of a unit, by name.
fn resources(unit: &Unit, architecture: u32) -> BTreeMap<String, Resources> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("unit.ptx");
    fs::write(&file, ptx(unit, architecture).unwrap()).unwrap();
    let output = Command::new(device::packages().join("cuda_nvcc/bin/ptxas"))
        .arg(format!("-arch=sm_{architecture}"))
        .arg("-v")
        .arg("-o")
        .arg(folder.path().join("unit.cubin"))
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {text}", unit.name);
    let mut found = BTreeMap::new();
    let mut kernel = None;
    let mut now = Resources::default();
    for line in text.lines() {
        let number_before = |what: &str| -> Option<u32> {
            let before = line.split(what).next().filter(|before| *before != line)?;
            before.split_whitespace().last()?.parse().ok()
        };
        if let Some(rest) = line.split("Function properties for ").nth(1) {
            kernel = Some(rest.trim().to_owned());
            now = Resources::default();
        }
        if let Some(stack) = number_before(" bytes stack frame") {
            now.stack = stack;
            now.spilled = number_before(" bytes spill stores").unwrap()
                + number_before(" bytes spill loads").unwrap();
        }
        if let Some(registers) = number_before(" registers") {
            now.registers = registers;
            now.shared = number_before(" bytes smem").unwrap_or(0);
            found.extend(kernel.take().map(|name| (name, now)));
        }
    }
    found
}

/// All kernels that are generated for the graphs, original and rewritten, batch 3.
fn generated() -> Unit {
    let cpu = Cpu::new(1).unwrap();
    let mut texts = Vec::new();
    for file in files() {
        let original = Graph::read(&file);
        let rewritten = original.rewrite(Preset::Freeable, false);
        for graph in [original, rewritten] {
            for step in &graph.plan(&cpu, 3, 0).0.steps {
                if let Op::Elementwise(Elementwise::Expression(expression)) = &step.op {
                    texts.push(elementwise::text(expression));
                }
            }
        }
    }
    elementwise::merged(texts.iter().map(|text| &text[..]).collect())
}

/// `docs/cuda-kernels.md` says what ptxas says, so that a new spill is a failure. `BLESS=1` writes it anew.
#[test]
fn resources_are_as_committed() {
    device::load_nvrtc();
    let mut table = "\
# What the compiler makes of the CUDA kernels

Made by `BLESS=1 cargo test --features softgpu --test cuda resources`; CI compares it, so that a kernel that begins to
spill, or to take more registers, is seen. NVRTC 12.9 to PTX, ptxas 12.9 to machine code; occupancy is theoretical, of
blocks of 256 threads. By architecture: registers / bytes of shared memory / occupancy, and the bytes spilled where there
are any.

| source | element | kernel | sm_80 | sm_90 | sm_100 |
|---|---|---|---|---|---|
"
    .to_owned();
    let mut spilling = Vec::new();
    let mut rows = BTreeSet::new();
    for (element, unit) in units() {
        let found = ARCHITECTURES
            .each_ref()
            .map(|on| resources(&unit, on.number));
        for name in found[0].keys() {
            let mut cells = Vec::new();
            for (on, found) in ARCHITECTURES.iter().zip(&found) {
                let used = found[name];
                let occupancy = 100.0 * used.occupancy(on);
                let mut cell = format!("{} / {} / {occupancy:.0} %", used.registers, used.shared);
                if used.spilled > 0 {
                    write!(cell, ", spills {}", used.spilled).unwrap();
                    spilling.push(format!("{name} of {element} on sm_{}", on.number));
                }
                cells.push(cell);
            }
            let cells = cells.join(" | ");
            // Kernels of a source that do not depend on what it is compiled for are the same.
            rows.insert(format!("| {} | {element} | {name} | {cells} |", unit.name));
        }
    }
    for row in rows {
        writeln!(table, "{row}").unwrap();
    }
    writeln!(
        table,
        "\nSpilling: {}.",
        match spilling.len() {
            0 => "none".to_owned(),
            _ => spilling.join(", "),
        }
    )
    .unwrap();
    // What training in 32 bits runs does not spill.
    let single = spilling
        .iter()
        .find(|kernel| kernel.contains("of float on") || kernel.contains("of  on"));
    assert_eq!(single, None);
    let unit = generated();
    writeln!(table, "\n## Generated element-wise kernels\n").unwrap();
    writeln!(
        table,
        "Of the graphs of `models/`, original and rewritten.\n"
    )
    .unwrap();
    for on in &ARCHITECTURES {
        let found = resources(&unit, on.number);
        let spilled = found.iter().find(|(_, used)| used.spilled != 0);
        assert_eq!(spilled, None);
        let registers = found.values().map(|used| used.registers);
        let least = found.values().map(|used| used.occupancy(on));
        writeln!(
            table,
            "- sm_{}: {} kernels, at most {} registers, occupancy at least {:.0} %",
            on.number,
            found.len(),
            registers.max().unwrap(),
            100.0 * least.fold(1.0, f64::min)
        )
        .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cuda-kernels.md");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &table).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), table);
}
