//! The committed PTX is what NVRTC makes of the committed kernels. With `VELORA_WRITE_PTX` set this writes it.
#![cfg(feature = "nvrtc")]
#![allow(clippy::unwrap_used)]

mod common;

/// Files of kernels, and the architectures whose PTX is committed.
const COMMITTED: [(&str, &[u32], &[&str]); 4] = [
    ("faults", &[80, 100], &["-lineinfo"]),
    ("features", &[80, 90, 100], &["-lineinfo"]),
    ("layers", &[80, 100], &["-lineinfo"]),
    ("math", &[90], &["-lineinfo", "-DSHORT"]),
];

#[test]
fn committed_ptx_is_current() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    for (name, architectures, options) in COMMITTED {
        let source = std::fs::read_to_string(format!("{root}/{name}.cu")).unwrap();
        for arch in architectures {
            let made = common::nvrtc::compile(&source, &format!("{name}.cu"), *arch, options);
            // The debug section holds the directory that the compiler ran in.
            let made = made.split("\t.file").next().unwrap().trim_end().to_owned() + "\n";
            let path = format!("{root}/ptx/{name}.{arch}.ptx");
            if std::env::var_os("VELORA_WRITE_PTX").is_some() {
                std::fs::write(&path, &made).unwrap();
            }
            assert!(
                std::fs::read_to_string(&path).unwrap() == made,
                "{path} is not what NVRTC makes"
            );
        }
    }
}
