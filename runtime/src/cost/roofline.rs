//! The least time of a plan on a device: the roofline model of Williams, Waterman and Patterson (2009).
//!
//! A kernel takes the larger of two times, that of its bytes at the memory's bandwidth and that of its FLOP
//! at the arithmetic's peak; a step takes the sum of its kernels. That is a model, no measurement. Launches take
//! no time; kernels do not overlap; what one has written the next reads from memory, even where it would lie in
//! a cache; every kernel reaches its peak, whatever its shape; only memory and arithmetic count.

use super::device::{Device, SingleProducts};
use super::{Arithmetic, Class, Cost, Storage, arithmetic, of_step, update};
use crate::plan::Plan;
use crate::session::optimizer::Optimizer;
use velora_graph::shapes::DataType;

/// A device, and how a plan is thought to be executed on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// The peaks.
    pub device: Device,
    /// How products of 32-bit numbers are computed.
    pub products: SingleProducts,
    /// How elements are stored. Where `float` is stored in 16 bits, products are those of 16 bits.
    pub storage: Storage,
}

/// What a kernel waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Bytes.
    Memory,
    /// FLOP.
    Arithmetic,
}

/// A kernel: a step of a plan, or the update of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kernel {
    /// Its kind.
    pub class: Class,
    /// The word that profiles and listings use.
    pub name: &'static str,
    /// The least that it moves and computes.
    pub cost: Cost,
    /// The least time.
    pub seconds: f64,
    /// What that time is made of.
    pub bound: Bound,
}

impl Roofline {
    /// FLOP per second.
    pub fn peak(&self, arithmetic: Arithmetic) -> f64 {
        match (arithmetic, self.storage) {
            (Arithmetic::Vector, _) => self.device.single,
            (Arithmetic::Product(DataType::FLOAT), Storage::Halved) => self.device.half,
            (Arithmetic::Product(ty), _) => self.device.product_peak(ty, self.products),
        }
    }

    /// The least time of a kernel in seconds, and what it is made of.
    pub fn seconds(&self, cost: &Cost, arithmetic: Arithmetic) -> (f64, Bound) {
        let memory = cost.bytes() as f64 / self.device.bandwidth;
        let computing = cost.flops as f64 / self.peak(arithmetic);
        match memory >= computing {
            true => (memory, Bound::Memory),
            false => (computing, Bound::Arithmetic),
        }
    }

    fn kernel(&self, class: Class, name: &'static str, cost: Cost, on: Arithmetic) -> Kernel {
        let (seconds, bound) = self.seconds(&cost, on);
        Kernel {
            class,
            name,
            cost,
            seconds,
            bound,
        }
    }

    /// The kernels of a plan in order, and of an optimiser where one is given.
    pub fn kernels(&self, plan: &Plan, optimizer: Option<&Optimizer>) -> Vec<Kernel> {
        let steps = plan.steps.iter().map(|step| {
            let on = arithmetic(&step.op, &step.inputs);
            let cost = of_step(step, self.storage);
            self.kernel(Class::of(&step.op), step.op.name(), cost, on)
        });
        let updates = optimizer.into_iter().flat_map(|optimizer| {
            plan.trained.iter().map(|trained| {
                let cost = update(trained, optimizer, self.storage);
                self.kernel(Class::Update, "Update", cost, Arithmetic::Vector)
            })
        });
        steps.chain(updates).collect()
    }
}

/// Some kernels together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// How many.
    pub count: usize,
    /// What they move and compute.
    pub cost: Cost,
    /// The sum of their times.
    pub seconds: f64,
    /// The part of it in which they wait for memory.
    pub memory_seconds: f64,
}

impl Total {
    /// The sum of some kernels.
    pub fn of<'k>(kernels: impl IntoIterator<Item = &'k Kernel>) -> Total {
        let mut total = Total::default();
        for kernel in kernels {
            total.count += 1;
            total.cost += kernel.cost;
            total.seconds += kernel.seconds;
            if kernel.bound == Bound::Memory {
                total.memory_seconds += kernel.seconds;
            }
        }
        total
    }
}
