//! The daemon as its operator meets it: bad input ends in one clear error and the right exit code.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

fn kvd(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command.env_clear().args(args).stdin(Stdio::null());
    command
}

fn fails(args: &[&str], code: i32, expected: &[&str]) {
    let Output { status, stdout, stderr } = kvd(args).output().expect("kvd starts");
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stdout.is_empty());
    for part in expected {
        assert!(stderr.contains(part), "{args:?}: {part:?} is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// A port nobody listens on. Held until the test ends, on another address of loopback.
fn free_port() -> (TcpListener, String) {
    let held = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = held.local_addr().unwrap().port();
    (held, format!("127.0.0.1:{port}"))
}

#[test]
fn a_bad_flag_is_a_usage_error() {
    fails(&["--bogus"], 2, &["--bogus"]);
    fails(&["--listen", "nowhere"], 2, &["nowhere", "IP:PORT"]);
    fails(&["--cache-mib", "0"], 2, &["--cache-mib"]);
    fails(&["dev", "--nodes", "0"], 2, &["--nodes"]);
    fails(&["--log", "kvd=loudly"], 2, &["log filter"]);
}

#[test]
fn a_bad_config_names_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kvd.toml");
    fs::write(&file, "data_dir = \"x\"\nlissten = \"127.0.0.1:1\"\n").unwrap();
    fails(&["--config", file.to_str().unwrap()], 2, &["kvd.toml", "line 2", "lissten"]);
    fails(&["--config", "/nowhere/kvd.toml"], 2, &["/nowhere/kvd.toml", "cannot be read"]);
}

#[test]
fn a_taken_port_is_named_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let args = ["--listen", &address, "--data-dir", data.to_str().unwrap()];
    fails(&args, 1, &["cannot listen on", &address, "--listen"]);
    assert!(!data.exists());
}

#[test]
fn a_foreign_data_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("photo.jpg"), "holiday").unwrap();
    let (_held, address) = free_port();
    let args = ["--listen", &address, "--data-dir", dir.path().to_str().unwrap()];
    fails(&args, 1, &["is not a kvd data directory", "photo.jpg"]);
    assert_eq!(fs::read_to_string(dir.path().join("photo.jpg")).unwrap(), "holiday");
}

#[test]
fn a_locked_data_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lock = fs::File::create(dir.path().join("LOCK")).unwrap();
    lock.lock().unwrap();
    let (_held, address) = free_port();
    let args = ["--listen", &address, "--data-dir", dir.path().to_str().unwrap()];
    fails(&args, 1, &["is locked", "another kvd"]);
}

#[test]
fn a_directory_that_lost_its_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let facts = "format = 1\nuid = \"0000000000000000000000000000000a\"\n\
                 incarnation = \"0000000000000000000000000000000b\"\nstarts = 4\nborn = true\n";
    fs::write(dir.path().join("identity.toml"), facts).unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("store/shard-1.redb"), "").unwrap();
    let (_held, address) = free_port();
    let args = ["--listen", &address, "--data-dir", dir.path().to_str().unwrap()];
    fails(&args, 1, &["has lost store/shard-0.redb"]);
}
