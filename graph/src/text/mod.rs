//! The ONNX textual syntax: parser and printer.
