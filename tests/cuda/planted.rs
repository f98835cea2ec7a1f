//! Faults planted in kernels, plans, caches and options: each is found, by the check named here.
//!
//! Faults of single kernels and of the driver's use are planted in the software GPU's own tests.

use super::device::{Device, options};
use super::graphs::Graph;
use super::{kernels, lifetimes, training};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tempfile::TempDir;
use velora_graph::shapes::DataType;
use velora_passes::select::Preset;
use velora_runtime::backend::{Backend, Executable, Fault};
use velora_runtime::cpu::Cpu;
use velora_runtime::cuda::compile::{Cache, Unit};
use velora_runtime::cuda::{Cuda, Options, headers, units};
use velora_runtime::ops::Op;
use velora_runtime::ops::reduce::{Fold, Group, Kind, Reduce};
use velora_runtime::plan::{Plan, Region};
use velora_runtime::tensor::TensorType;

fn digits() -> Graph {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    Graph::read(&models.join("aot/digits_mlp.onnx"))
}

/// What finds a fault: all that was reported and said when the graph was compared with the CPU.
fn found(graph: &Graph, options: Options, change: fn(&mut Plan)) -> String {
    let device = Device::new();
    let cpu = Cpu::new(2).unwrap();
    let compared = catch_unwind(AssertUnwindSafe(|| {
        let cuda = device.open(options).unwrap();
        let changed = Changed { cuda, change };
        training::compare(graph, &cpu, &changed, |_| {});
    }));
    let mut text = device.gpu.take_reports().join("\n");
    if let Err(panic) = compared {
        let said = panic.downcast_ref::<String>().cloned();
        text += &said.unwrap_or_else(|| "a panic without a text".to_owned());
    }
    text
}

/// A device that is given other plans than those made for it.
struct Changed {
    cuda: Cuda,
    change: fn(&mut Plan),
}

impl Backend for Changed {
    fn name(&self) -> String {
        self.cuda.name()
    }

    fn enter(&self, work: &mut (dyn FnMut() + Send)) {
        self.cuda.enter(work);
    }

    fn workspace(
        &self,
        op: &Op,
        inputs: &[Option<&TensorType>],
        outputs: &[Option<&TensorType>],
    ) -> usize {
        self.cuda.workspace(op, inputs, outputs)
    }

    fn prepare(&self, mut plans: Vec<Plan>) -> Result<Box<dyn Executable + '_>, Fault> {
        plans.iter_mut().for_each(self.change);
        self.cuda.prepare(plans)
    }
}

/// A text in a source, and the fault in its place.
struct Planted {
    what: &'static str,
    file: &'static str,
    text: &'static str,
    fault: &'static str,
    /// What the finding says.
    by: &'static str,
}

const IN_SOURCES: &[Planted] = &[
    Planted {
        what: "numbers of the first step captured with the launch",
        file: "optimizer.cu",
        text: "float* s, float* t, u64 n) {\n  const Numbers k = *numbers;",
        fault: "float* s, float* t, u64 n) {\n  Numbers k = *numbers; k.root = 0.0316227766016838f; k.step = -0.01f;",
        by: "an update of step 2",
    },
    Planted {
        what: "a barrier that is missing",
        file: "common.cuh",
        text: "  if (lane == 0u) shared[warp] = x;\n  __syncthreads();\n  x = lane < warps ? shared[lane] : (T)0;",
        fault: "  if (lane == 0u) shared[warp] = x;\n  x = lane < warps ? shared[lane] : (T)0;",
        by: "race",
    },
    Planted {
        what: "a sum of squares that forgets what was there",
        file: "optimizer.cu",
        text: "*total += sum;",
        fault: "*total = sum;",
        by: "norm of the gradients",
    },
    Planted {
        what: "the elements behind the last four left out",
        file: "optimizer.cu",
        text: "for (u64 i = fours * 4 + start; i < n; i += stride) {\n    float wi",
        fault: "for (u64 i = n; i < n; i += stride) {\n    float wi",
        by: "an update of step 1",
    },
    Planted {
        what: "a parameter narrower than its argument",
        file: "optimizer.cu",
        text: "float* t, u64 n) { \\\n    update<RULE",
        fault: "float* t, u32 n) { \\\n    update<RULE",
        by: "arguments",
    },
    Planted {
        what: "two parameters of one type exchanged",
        file: "optimizer.cu",
        text: "update<RULE, STATES>(numbers, w, g, s, t, n);",
        fault: "update<RULE, STATES>(numbers, w, g, t, s, n);",
        by: "an update of step 1",
    },
    Planted {
        what: "all blocks add to one place without an atomic",
        file: "optimizer.cu",
        text: "if (threadIdx.x == 0u) partials[blockIdx.x] = sum;\n}\n\n// Adds",
        fault: "if (threadIdx.x == 0u) partials[0] = sum;\n}\n\n// Adds",
        by: "race",
    },
    Planted {
        what: "a loop that does not end",
        file: "optimizer.cu",
        text: "for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];",
        fault: "for (u32 i = threadIdx.x; i < count;) sum += partials[0] * 0.0;",
        by: "endless",
    },
    Planted {
        what: "a bound that is one too large",
        file: "elementwise.cuh",
        text: "return *reinterpret_cast<const Four<T>*>(from);",
        fault: "return *reinterpret_cast<const Four<T>*>(from + 1);",
        by: "misaligned",
    },
];

impl Planted {
    /// A folder with the source that has the fault.
    fn folder(&self) -> TempDir {
        let sources: Vec<Unit> = headers();
        let own: Vec<Unit> = units().into_iter().map(|(_, unit)| unit).collect();
        let unit = (sources.iter().chain(&own)).find(|unit| unit.name == self.file);
        let text = &unit.unwrap().text;
        let times = text.matches(self.text).count();
        assert_eq!(times, 1, "{}: the text in {}", self.what, self.file);
        let folder = tempfile::tempdir().unwrap();
        let faulty = text.replace(self.text, self.fault);
        fs::write(folder.path().join(self.file), faulty).unwrap();
        folder
    }

    /// Options that take the source from the folder.
    fn options(&self, folder: &Path) -> Options {
        Options {
            sources: Some(folder.to_owned()),
            cache: Cache::default(),
            ..options()
        }
    }
}

#[test]
fn faults_in_sources_are_found() {
    let graph = digits();
    for planted in IN_SOURCES {
        let folder = planted.folder();
        let found = found(&graph, planted.options(folder.path()), |_| {});
        assert!(found.contains(planted.by), "{}: {found}", planted.what);
    }
    // What is not changed is not found to be wrong.
    assert_eq!(found(&graph, options(), |_| {}), "");
}

/// Numbers of 16 bits, whose sum 16 bits do not hold and whose mean they do.
#[test]
fn a_sum_in_half_precision_is_found() {
    let groups = vec![Group {
        size: 8192,
        reduced: true,
    }];
    let op = Op::Reduce(Reduce::Fold(Fold {
        kind: Kind::Mean,
        groups,
    }));
    let half = DataType::FLOAT16;
    let inputs = [Some(kernels::tensor(half, &[8192], &[30000.0; 8192]))];
    let outputs = [Some(TensorType::new(half, vec![1]))];
    let program = kernels::program(op, &inputs, &outputs, &[]);
    let mean = |options| {
        let device = Device::new();
        let cuda = device.open(options).unwrap();
        let found = kernels::execute(&program, &cuda, &inputs).unwrap();
        found[0].to_f64().unwrap()[0]
    };
    assert_eq!(mean(options()), 30000.0);
    let planted = Planted {
        what: "a sum in the type of its terms",
        file: "reduce.cu",
        text: "      for (int e = 0; e < V; e++) sums[e] = Step::step(sums[e], N::lane(pack.at[e]));\n    }\n#pragma unroll\n    for (int half",
        fault: "      for (int e = 0; e < V; e++) sums[e] = N::lane(N::narrow(Step::step(sums[e], N::lane(pack.at[e]))));\n    }\n#pragma unroll\n    for (int half",
        by: "",
    };
    let folder = planted.folder();
    assert_eq!(mean(planted.options(folder.path())), f64::INFINITY);
}

/// Whether a comparison with the CPU found it.
fn is_compared(text: &str) -> bool {
    let found = ["gradient of", "norm of the gradients", "loss"];
    found.iter().any(|what| text.contains(what)) && text.contains("allowed")
}

/// Two buffers that live at once, the first of which is written before the second is read.
fn overlap(plan: &mut Plan) {
    let activations: Vec<usize> = (0..plan.buffers.len())
        .filter(|&b| plan.buffers[b].region == Region::Activations)
        .collect();
    let pair = activations.iter().find_map(|&a| {
        let first = &plan.buffers[a];
        let second = activations.iter().copied().find(|&b| {
            let second = &plan.buffers[b];
            second.lifetime.0 > first.lifetime.0
                && second.lifetime.0 < first.lifetime.1
                && second.bytes <= first.bytes
                && second.bytes > 64
        })?;
        Some((a, second))
    });
    let (first, second) = pair.unwrap();
    plan.buffers[second].offset = plan.buffers[first].offset;
}

#[test]
fn faults_in_plans_are_found() {
    let graph = digits();
    let text = found(&graph, options(), overlap);
    assert!(is_compared(&text), "{text}");

    // A life that ends a step too early.
    let device = Device::new();
    let cuda = device.open(options()).unwrap();
    let changed = Changed {
        cuda,
        change: |plan| {
            let steps = plan.steps.len();
            let mut lives = plan.buffers.iter_mut();
            let long = lives.find(|buffer| {
                let (start, end) = buffer.lifetime;
                buffer.region == Region::Activations && end > start + 1 && end < steps
            });
            long.unwrap().lifetime.1 -= 1;
        },
    };
    let reaped = lifetimes::reap(&graph, &device.gpu, &changed);
    let reports = device.gpu.take_reports().join("\n");
    assert!(reports.contains("uninitialised"), "{reaped:?} {reports}");
}

#[test]
fn a_cache_with_other_code_in_it_is_found() {
    let graph = digits();
    let folder = tempfile::tempdir().unwrap();
    let cached = || Options {
        cache: Cache::in_folder(folder.path()),
        ..options()
    };
    assert_eq!(found(&graph, cached(), |_| {}), "");
    let mut files: Vec<_> = (fs::read_dir(folder.path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() > 3);

    // Damaged: compiled anew.
    for file in &files {
        let mut bytes = fs::read(file).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(file, bytes).unwrap();
    }
    assert_eq!(found(&graph, cached(), |_| {}), "");

    // Whole, but another unit's: it has no such kernels.
    let contents: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for (number, file) in files.iter().enumerate() {
        fs::write(file, &contents[(number + 1) % files.len()]).unwrap();
    }
    let text = found(&graph, cached(), |_| {});
    assert!(text.contains("CUDA_ERROR_NOT_FOUND"), "{text}");
}

#[test]
fn operands_of_fewer_bits_are_found() {
    let fewer = Options {
        tf32: true,
        ..options()
    };
    let text = found(&digits(), fewer, |_| {});
    assert!(is_compared(&text), "{text}");
}

/// Results do not depend on the order in which blocks and threads run.
#[test]
fn orders_do_not_matter() {
    let rewritten = digits().rewrite(Preset::Freeable, false);
    let mut all = Vec::new();
    for seed in 0..4 {
        let device = Device::new();
        device.gpu.set_seed(seed);
        let cuda = device.open(options()).unwrap();
        let mut ready = rewritten.prepare(&cuda, 3, 0);
        all.push(ready.run());
    }
    for other in &all[1..] {
        assert!(
            *other == all[0],
            "results depend on the order of blocks and threads"
        );
    }
}
