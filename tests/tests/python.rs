//! Other languages need nothing of ours but the contract: a client of grpcio and `proto/*.proto`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use tests::faults::need_module;
use tests::process::{Cluster, text};

#[test]
fn a_python_client_puts_gets_sees_siblings_and_deletes_over_tls() {
    let Some(python) = need_module(&["grpc", "grpc_tools"]) else { return };
    let cluster = Cluster::secured_with(3, |_| {});
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = &cluster.files;
    let ran = Command::new(python)
        .arg(root.join("tests/python_client.py"))
        .arg(root.join("../proto"))
        .arg(&cluster.nodes[0].address)
        .args([&files.ca, &files.cert, &files.key].map(|file| file.clone().unwrap()))
        .output()
        .unwrap();
    let said = text(&ran.stdout) + &text(&ran.stderr);
    assert!(ran.status.success() && said.contains("delete errors: ok"), "{said}");
    assert!(said.contains("speaks TLS: connect over https"), "why it is not served in the clear");
}
