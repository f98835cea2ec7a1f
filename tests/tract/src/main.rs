//! `velora-tract MODEL`: prints the first output of a model without inputs, which must be one number.
//!
//! `tests/oracle/check_runtime.py --tract` makes such models: the forward half of a training graph with its
//! inputs as constants. tract ignores domains, so the check hands over standard operators only.

use tract_onnx::prelude::*;

fn main() -> TractResult<()> {
    let path = std::env::args().nth(1).expect("usage: velora-tract MODEL");
    let model = tract_onnx::onnx().model_for_path(path)?.into_typed()?;
    let outputs = model.into_runnable()?.run(tvec!())?;
    println!("{:e}", outputs[0].cast_to_scalar::<f32>()?);
    Ok(())
}
