//! `velora-tract MODEL`: prints the first output of a model without inputs, which must be one number.
//!
//! `tests/oracle/check_runtime.py --tract` makes such models: the forward half of a training graph with its
//! inputs as constants. tract ignores domains, so the check hands over standard operators only.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::ops::konst::Const;
use tract_onnx::tract_hir::ops::source::Source;

fn main() -> TractResult<()> {
    let path = std::env::args().nth(1).expect("usage: velora-tract MODEL");
    let mut model = tract_onnx::onnx().model_for_path(path)?;
    // Parameters become inputs again: a graph of constants would be folded by the slow products that tract
    // keeps for folding, not run by its kernels.
    let (mut inputs, mut values) = (vec![], tvec!());
    for node in model.nodes_mut() {
        let Some(value) = node.op_as::<Const>().map(|c| c.val().clone()) else {
            continue;
        };
        if value.datum_type() == f32::datum_type() && value.len() > 1 {
            node.op = Box::new(Source);
            node.outputs[0].fact = InferenceFact::dt_shape(f32::datum_type(), value.shape());
            inputs.push(OutletId::new(node.id, 0));
            values.push(value.into_tvalue());
        }
    }
    model.set_input_outlets(&inputs)?;
    let outputs = model.into_optimized()?.into_runnable()?.run(values)?;
    println!("{:e}", outputs[0].cast_to_scalar::<f32>()?);
    Ok(())
}
