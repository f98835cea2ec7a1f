//! Every kernel against the CPU's, on the same operands.
mod accumulate;
mod dequantize;
mod directions;
mod index;
mod loss;
mod movement;
mod normalize;
mod random;
mod recurrent;
mod reduce;
mod velora;
mod window;

use super::device;
use velora_graph::shapes::DataType;
use velora_runtime::backend::{Backend, StepContext};
use velora_runtime::cpu::Cpu;
use velora_runtime::cuda::Cuda;
use velora_runtime::ops::Op;
use velora_runtime::ops::movement::Movement;
use velora_runtime::ops::movement::copy::{Axis, Copy, Origin, Part};
use velora_runtime::plan::{Region, build_unfused};
use velora_runtime::program::{Operation, Program, Source};
use velora_runtime::tensor::{Tensor, TensorType};

/// What an operation gives on both devices.
struct Both {
    cpu: Vec<Option<Tensor>>,
    cuda: Vec<Option<Tensor>>,
}

/// A step that is neither the first one nor of seed 0.
const CONTEXT: StepContext = StepContext {
    seed: 0x1234_5678_9abc_def0,
    step: 3,
};

/// The device, for the tests of one thread: what it reports belongs to them.
struct Device {
    // Dropped before the stand-in that it runs on.
    cuda: Cuda,
    #[cfg_attr(
        feature = "gpu-tests",
        expect(dead_code, reason = "a real device reports nothing")
    )]
    device: device::Device,
}

thread_local! {
    static DEVICE: Device = Device::new();
}

impl Device {
    fn new() -> Self {
        let device = device::Device::new();
        Device {
            cuda: device.open(device::options()).unwrap(),
            device,
        }
    }

    /// Refuses what the stand-in found wrong.
    fn assert_clean(&self) {
        #[cfg(not(feature = "gpu-tests"))]
        {
            let reports = self.device.gpu.take_reports();
            assert!(reports.is_empty(), "{}", reports.join("\n"));
        }
    }
}

/// A program of one operation. Inputs in `fresh` are copied first, so that they die in the operation and it
/// may write over them.
pub(super) fn program(
    op: Op,
    inputs: &[Option<Tensor>],
    outputs: &[Option<TensorType>],
    fresh: &[usize],
) -> Program {
    let mut program = Program::default();
    let mut operands = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let id = input.as_ref().map(|tensor| {
            let ty = TensorType::new(tensor.data_type, tensor.shape.clone());
            program.add(format!("input {number}"), ty, Source::Input(number))
        });
        program.inputs.push(id);
        program.input_regions.push(Region::Inputs);
        let copied = id.filter(|_| fresh.contains(&number)).map(|id| {
            let ty = program.ty(id).clone();
            let copy = program.add(format!("copy {number}"), ty.clone(), Source::Computed);
            let axis = Axis {
                size: ty.elements(),
                from: 1,
                to: 1,
            };
            let part = Part::new(Origin::Input(0), 0, [axis], 0, 0).unwrap();
            program.operations.push(Operation {
                op: Op::Movement(Movement::Copy(Copy {
                    parts: part.into_iter().collect(),
                })),
                inputs: vec![Some(id)],
                outputs: vec![Some(copy)],
                node: format!("copy {number}"),
                backward: false,
            });
            copy
        });
        operands.push(copied.or(id));
    }
    let outputs: Vec<_> = outputs
        .iter()
        .enumerate()
        .map(|(number, ty)| {
            let ty = ty.clone()?;
            Some(program.add(format!("output {number}"), ty, Source::Computed))
        })
        .collect();
    program.outputs = outputs.iter().flatten().copied().collect();
    program.operations.push(Operation {
        op,
        inputs: operands,
        outputs,
        node: "node".to_owned(),
        backward: false,
    });
    program
}

/// Executes a program on a backend twice; the second outcome must be the first one's bits.
pub(super) fn execute(
    program: &Program,
    backend: &dyn Backend,
    inputs: &[Option<Tensor>],
) -> Result<Vec<Tensor>, String> {
    let plan = build_unfused(program, backend).unwrap();
    let mut executable = backend.prepare(vec![plan]).map_err(|e| e.to_string())?;
    let mut once = || {
        for (number, input) in inputs.iter().enumerate() {
            if let (Some(tensor), Some(operand)) = (input, executable.plan().inputs[number].clone())
            {
                executable.write(operand.buffer, &tensor.bytes).unwrap();
            }
        }
        executable.run(&CONTEXT, None).map_err(|e| e.to_string())?;
        let outputs = executable.plan().outputs.clone();
        let read = outputs.into_iter().map(|operand| {
            let mut bytes = vec![0; operand.ty.bytes()];
            executable.read(operand.buffer, &mut bytes).unwrap();
            Tensor {
                data_type: operand.ty.data_type,
                shape: operand.ty.shape,
                bytes: bytes.into(),
            }
        });
        Ok::<_, String>(read.collect::<Vec<_>>())
    };
    let first = once()?;
    assert_eq!(first, once()?, "a second execution gives something else");
    Ok(first)
}

/// Executes an operation on both devices.
fn try_both(
    op: Op,
    inputs: &[Option<Tensor>],
    outputs: &[Option<TensorType>],
    fresh: &[usize],
) -> (Result<Vec<Tensor>, String>, Result<Vec<Tensor>, String>) {
    let program = program(op, inputs, outputs, fresh);
    let cpu = execute(&program, &Cpu::new(1).unwrap(), inputs);
    let cuda = DEVICE.with(|device| {
        let found = execute(&program, &device.cuda, inputs);
        device.assert_clean();
        found
    });
    (cpu, cuda)
}

/// The same, where neither may fail; outputs in their places.
fn both(op: Op, inputs: &[Option<Tensor>], outputs: &[Option<TensorType>]) -> Both {
    both_over(op, inputs, outputs, &[])
}

/// The same, of inputs that may be written over.
fn both_over(
    op: Op,
    inputs: &[Option<Tensor>],
    outputs: &[Option<TensorType>],
    fresh: &[usize],
) -> Both {
    let (cpu, cuda) = try_both(op, inputs, outputs, fresh);
    let place = |tensors: Vec<Tensor>| {
        let mut tensors = tensors.into_iter();
        let each = outputs
            .iter()
            .map(|ty| ty.as_ref().and_then(|_| tensors.next()));
        each.collect()
    };
    Both {
        cpu: place(cpu.unwrap()),
        cuda: place(cuda.unwrap()),
    }
}

/// Refuses outputs that differ in a bit.
fn assert_same(both: &Both, what: &str) {
    assert!(
        both.cpu == both.cuda,
        "{what}: {:?} on the CPU, {:?} on the device",
        both.cpu,
        both.cuda
    );
}

/// Numbers of any type as doubles.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    let bytes = &tensor.bytes[..];
    macro_rules! all {
        ($type:ty, $convert:expr) => {
            bytemuck::pod_collect_to_vec::<u8, $type>(bytes)
                .into_iter()
                .map($convert)
                .collect()
        };
    }
    match tensor.data_type.0 {
        1 => all!(f32, f64::from),
        11 => all!(f64, |n| n),
        10 => all!(half::f16, half::f16::to_f64),
        16 => all!(half::bf16, half::bf16::to_f64),
        2 | 9 => all!(u8, f64::from),
        3 => all!(i8, f64::from),
        4 => all!(u16, f64::from),
        5 => all!(i16, f64::from),
        6 => all!(i32, f64::from),
        7 => all!(i64, |n| n as f64),
        12 => all!(u32, f64::from),
        13 => all!(u64, |n| n as f64),
        other => panic!("no test has type {other}"),
    }
}

/// A tensor of any type from doubles.
pub(super) fn tensor(data_type: DataType, shape: &[usize], numbers: &[f64]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), numbers.len());
    macro_rules! all {
        ($convert:expr) => {
            numbers
                .iter()
                .flat_map(|&n| $convert(n).to_le_bytes())
                .collect::<Vec<u8>>()
        };
    }
    let bytes = match data_type.0 {
        1 => all!(|n| n as f32),
        11 => all!(|n: f64| n),
        10 => all!(half::f16::from_f64),
        16 => all!(half::bf16::from_f64),
        2 | 9 => all!(|n| n as u8),
        3 => all!(|n| n as i8),
        4 => all!(|n| n as u16),
        5 => all!(|n| n as i16),
        6 => all!(|n| n as i32),
        7 => all!(|n| n as i64),
        12 => all!(|n| n as u32),
        13 => all!(|n| n as u64),
        other => panic!("no test has type {other}"),
    };
    Tensor {
        data_type,
        shape: shape.to_vec(),
        bytes: bytes.into(),
    }
}

/// Numbers between -1 and 1 that look random, and are the same every time.
fn random_numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    std::iter::repeat_with(number).take(count).collect()
}

/// Random numbers of a type and shape; whole ones up to ±100 for integers.
fn random_tensor(data_type: DataType, shape: &[usize], seed: u64) -> Tensor {
    let mut numbers = random_numbers(shape.iter().product(), seed);
    if !data_type.is_float() {
        numbers.iter_mut().for_each(|n| *n = (*n * 100.0).round());
    }
    tensor(data_type, shape, &numbers)
}

/// Half a unit in the last place of a type, relative to the number.
fn epsilon(data_type: DataType) -> f64 {
    match data_type.0 {
        1 => f64::from(f32::EPSILON) / 2.0,
        11 => f64::EPSILON / 2.0,
        10 => 2f64.powi(-11),
        16 => 2f64.powi(-8),
        _ => 0.0,
    }
}

/// Refuses differences beyond `bound` of an element, by its position.
fn assert_close(cpu: &Tensor, cuda: &Tensor, bound: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(
        (cpu.data_type, &cpu.shape),
        (cuda.data_type, &cuda.shape),
        "{what}"
    );
    for (place, (a, b)) in numbers(cpu).into_iter().zip(numbers(cuda)).enumerate() {
        let bound = bound(place);
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= bound;
        assert!(
            same,
            "{what}: element {place} is {b}, on the CPU {a}: more than {bound} apart"
        );
    }
}
