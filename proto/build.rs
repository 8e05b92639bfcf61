//! Compiles the contract without protoc: protox parses, tonic-prost-build generates.

use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 3] = ["kv.proto", "admin.proto", "replica.proto"];
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::Compiler::new(["."])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?
        .file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?).join("kvd_descriptor.bin");
    fs::write(out, descriptors.encode_to_vec())?; // served by gRPC reflection
    // `bytes` fields become `Bytes`: a value is not copied between socket and storage.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
