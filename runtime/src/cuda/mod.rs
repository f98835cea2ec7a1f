//! The CUDA backend: the plan of a step on a GPU, through the driver's API.
//!
//! One file per family of operations, under the name that it has in [`crate::ops`], with its kernels beside
//! it in a `.cu` file. Nothing of CUDA is needed to build it: the driver's libraries are opened when a run
//! asks for a device, and kernels are compiled then ([`compile`]).

pub mod accumulate;
pub mod compile;
pub mod control;
pub mod dequantize;
pub mod directions;
pub mod division;
pub mod driver;
pub mod elementwise;
pub mod encode;
pub mod index;
pub mod loss;
pub mod lt;
pub mod matmul;
pub mod movement;
pub mod normalize;
pub mod optimizer;
mod pool;
mod prepared;
pub mod random;
pub mod recurrent;
pub mod reduce;
mod select;
pub mod source;
mod staging;
pub mod velora;
pub mod window;

use crate::backend::{Backend, Executable, Fault};
use crate::ops::Op;
use crate::plan::Plan;
use crate::tensor::TensorType;
use compile::{Cache, Compiler, Unit};
use driver::{Context, DeviceError};
use encode::{Call, Sink, Unsupported};
use lt::Lt;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// All sources of kernels but those that are generated, each with the element type that it is compiled for:
/// the floating-point types, and nothing where a source has kernels of all types. Those that are compiled for
/// combinations have one of them.
pub fn units() -> Vec<(&'static str, Unit)> {
    let untyped = [
        index::UNIT,
        matmul::UNIT,
        movement::UNIT,
        optimizer::UNIT,
        pool::UNIT,
        random::UNIT,
        recurrent::UNIT,
        select::UNIT,
        window::UNIT,
    ];
    let mut units: Vec<_> = untyped.map(|unit| ("", unit)).into();
    for (name, bytes) in [("float", 4), ("double", 8), ("f16", 2), ("bf16", 2)] {
        let (size, pack) = (bytes.to_string(), (16 / bytes).to_string());
        let element = ("Element", name);
        let typed = [
            directions::SOURCE,
            loss::SOURCE,
            normalize::BATCH,
            normalize::LAYER,
            normalize::SOFTMAX,
            reduce::SCAN,
            velora::SOURCE,
        ];
        let mut add = |unit| units.push((name, unit));
        for source in typed {
            add(source.with(&[element, ("ELEMENT_BYTES", &size)]));
        }
        add(accumulate::SOURCE.with(&[element, ("Added", name), ("PACK", &pack)]));
        for step in ["Sum", "SumSquare", "Max"] {
            add(reduce::SOURCE.with(&[element, ("ELEMENT_BYTES", &size), ("Step", step)]));
        }
    }
    let integers = [("Integer", "u8"), ("BITS", "4"), ("SIGN", "8")];
    let numbers = [("Scale", "float"), ("Element", "float")];
    units.push((
        "float",
        dequantize::SOURCE.with(&[integers.as_slice(), &numbers].concat()),
    ));
    units
}

/// What those sources, and generated ones, include.
pub fn headers() -> Vec<Unit> {
    compile::HEADERS.to_vec()
}

/// How a device is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which device, counted from 0.
    pub device: i32,
    /// Rounds the operands of 32-bit products to TF32 (10 bits of mantissa), which is faster.
    pub tf32: bool,
    /// The most bytes of scratch of one product.
    pub product_workspace: usize,
    /// Where compiled kernels are kept.
    pub cache: Cache,
    /// A folder whose files take the place of the kernels' sources of the same names, for trying others.
    pub sources: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            device: 0,
            tf32: false,
            product_workspace: 32 << 20,
            cache: Cache::of_user(),
            sources: None,
        }
    }
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// The driver's library is not on this machine.
    #[error("no CUDA driver found (libcuda.so)")]
    NoDriver,
    /// There is a driver, and no device.
    #[error("the CUDA driver has no device")]
    NoDevice,
    /// Something does not work.
    #[error("the CUDA device cannot be used: {0}")]
    Failed(#[from] DeviceError),
}

/// A GPU.
pub struct Cuda {
    // Dropped before the context that it was opened in.
    lt: Lt,
    compiler: Compiler,
    context: Arc<Context>,
}

impl Cuda {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Unavailable`] where there is none, or a library is missing.
    pub fn open(options: Options) -> Result<Self, Unavailable> {
        // SAFETY: looks for a library by its name; loading the driver's runs no code of ours.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(Unavailable::NoDriver);
        }
        match driver::device_count() {
            Ok(0) => return Err(Unavailable::NoDevice),
            Err(error) if error.code.starts_with("CUDA_ERROR_NO_DEVICE") => {
                return Err(Unavailable::NoDevice);
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let context = Context::open(options.device)?;
        Ok(Cuda {
            compiler: Compiler::new(&context, options.cache, options.sources)?,
            lt: Lt::open(options.tf32, options.product_workspace)?,
            context,
        })
    }

    /// The device in words.
    fn describe(&self) -> String {
        let facts = self.context.facts();
        let (major, minor) = (facts.architecture / 10, facts.architecture % 10);
        format!("cuda, {}, compute capability {major}.{minor}", facts.name)
    }

    /// What a failed call means for a run.
    fn fault(&self, error: DeviceError) -> Fault {
        Fault::Device {
            device: self.describe(),
            message: error.to_string(),
        }
    }

    /// Puts what the device is told for a step into a sink.
    fn encode(&self, op: &Op, call: &Call<'_>, sink: &mut Sink<'_>) -> Result<(), Unsupported> {
        match op {
            Op::MatMul(op) => matmul::encode(op, call, sink),
            Op::Elementwise(op) => elementwise::encode(op, call, sink),
            Op::Reduce(op) => reduce::encode(op, call, sink),
            Op::Normalize(op) => normalize::encode(op, call, sink),
            Op::Loss(op) => loss::encode(op, call, sink),
            Op::Velora(op) => velora::encode(op, call, sink),
            Op::Directions(op) => directions::encode(op, call, sink),
            Op::Movement(op) => movement::encode(op, call, sink),
            Op::Index(op) => index::encode(op, call, sink),
            Op::Random(op) => random::encode(op, call, sink),
            Op::Accumulate(op) => accumulate::encode(op, call, sink),
            Op::Window(op) => window::encode(op, call, sink),
            Op::Recurrent(op) => recurrent::encode(op, call, sink),
            Op::Dequantize(op) => dequantize::encode(op, call, sink),
        }
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.describe()
    }

    fn enter(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    fn workspace(
        &self,
        op: &Op,
        inputs: &[Option<&TensorType>],
        outputs: &[Option<&TensorType>],
    ) -> usize {
        match op {
            Op::MatMul(op) => matmul::workspace(op, &self.lt, outputs),
            Op::Elementwise(_) => 0,
            Op::Reduce(op) => reduce::workspace(op, inputs, outputs),
            Op::Normalize(op) => normalize::workspace(op, inputs, outputs),
            Op::Loss(op) => loss::workspace(op, inputs, outputs),
            Op::Velora(op) => velora::workspace(op, inputs, outputs),
            Op::Directions(op) => directions::workspace(op, inputs, outputs),
            Op::Movement(_) => 0,
            Op::Index(op) => index::workspace(op, inputs, outputs),
            Op::Random(_) => 0,
            Op::Accumulate(_) => 0,
            Op::Window(op) => window::workspace(op, &self.lt, inputs, outputs),
            Op::Recurrent(op) => recurrent::workspace(op, &self.lt, inputs, outputs),
            Op::Dequantize(_) => 0,
        }
    }

    fn prepare(&self, plans: Vec<Plan>) -> Result<Box<dyn Executable + '_>, Fault> {
        Ok(Box::new(prepared::Prepared::new(self, plans)?))
    }
}
