//! Prints a model file as text: `print_text model.onnx`.

use prost::Message;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::text::print_model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: print_text FILE")?;
    let model = ModelProto::decode(bytes::Bytes::from(std::fs::read(path)?))?;
    println!("{}", print_model(&model));
    Ok(())
}
