//! What devices can do at most, by their vendors' data sheets.

use velora_graph::shapes::DataType;

/// The peaks of a device, from its data sheet: nothing that runs reaches them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// The name in reports.
    pub name: &'static str,
    /// Bytes per second between memory and processor.
    pub bandwidth: f64,
    /// FLOP per second in 32 bits, outside of units for products.
    pub single: f64,
    /// FLOP per second of products of 32-bit numbers that are rounded to TF32 first, dense.
    pub tf32: f64,
    /// FLOP per second of products of `float16` or `bfloat16`, dense.
    pub half: f64,
    /// FLOP per second of products in 64 bits.
    pub double: f64,
}

/// NVIDIA A100 80 GB, SXM: "NVIDIA A100 Tensor Core GPU" data sheet (1758950-r4): 2,039 GB/s, FP32 19.5,
/// TF32 156, BFLOAT16 and FP16 312, FP64 tensor core 19.5 TFLOPS, all without sparsity.
pub const A100_SXM: Device = Device {
    name: "A100 SXM 80 GB",
    bandwidth: 2039e9,
    single: 19.5e12,
    tf32: 156e12,
    half: 312e12,
    double: 19.5e12,
};

/// NVIDIA H100, SXM: "NVIDIA H100 Tensor Core GPU" data sheet: 3.35 TB/s, FP32 67, FP64 tensor core 67
/// teraFLOPS; TF32 989, BFLOAT16 and FP16 1,979 with sparsity, which dense products have half of.
pub const H100_SXM: Device = Device {
    name: "H100 SXM",
    bandwidth: 3.35e12,
    single: 67e12,
    tf32: 989e12 / 2.0,
    half: 1979e12 / 2.0,
    double: 67e12,
};

/// In which form products of 32-bit numbers are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SingleProducts {
    /// In 32 bits.
    #[default]
    Single,
    /// From operands rounded to TF32.
    Tf32,
}

impl Device {
    /// FLOP per second of products of a type. Integers count as 32-bit numbers.
    pub fn product_peak(&self, data_type: DataType, single: SingleProducts) -> f64 {
        match (data_type, single) {
            (DataType::DOUBLE, _) => self.double,
            (DataType::FLOAT16 | DataType::BFLOAT16, _) => self.half,
            (DataType::FLOAT, SingleProducts::Tf32) => self.tf32,
            _ => self.single,
        }
    }
}
