//! Every command of the README's tour, run as written against the cluster its first command starts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::process::{binary, free_address};
use tests::{eventually, readme};

/// `kvd dev`, interrupted when dropped: its nodes stop with it.
struct Dev {
    child: Child,
    log: PathBuf,
}

impl Dev {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let log = dir.join("dev.log");
        let child = Command::new(binary("kvd"))
            .current_dir(dir)
            .arg("dev")
            .args(args)
            .env("KVD_DISK_FULL_PERCENT", "101") // the machine may be nearly full
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut dev = Self { child, log };
        eventually("kvd dev to say that the cluster is up", || {
            assert!(dev.child.try_wait().unwrap().is_none(), "it ended: {}", dev.log());
            dev.log().contains("Ctrl-C stops all nodes").then_some(())
        });
        dev
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As Ctrl-C does; the exit code it ends with.
    fn interrupt(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        eventually("kvd dev to end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.interrupt();
        }
        if std::thread::panicking() {
            eprintln!("--- log of kvd dev:\n{}", self.log());
        }
    }
}

/// The node the tour starts by hand, told to stop when dropped.
struct Restarted(PathBuf);

impl Drop for Restarted {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // it may not have come so far
        }
    }
}

fn base_port() -> String {
    free_address().rsplit_once(':').unwrap().1.to_owned()
}

/// A shell in `dir` that finds our binaries and reaches the cluster at `port`.
fn shell(dir: &Path, port: &str, command: &str) -> String {
    let path = binary("kvctl").parent().unwrap().display().to_string();
    let output = Command::new("bash")
        .args(["-c", &format!("{{ {command}\n}} 2>&1")])
        .current_dir(dir)
        .env_clear()
        .env("PATH", format!("{path}:/usr/local/bin:/usr/bin:/bin"))
        .env("HOME", dir)
        .env("KVD_DISK_FULL_PERCENT", "101")
        .env("LANG", "C.UTF-8")
        .env("KVCTL_ENDPOINTS", format!("127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_command_of_the_tour_prints_what_the_readme_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("README.md")).unwrap();
    let steps = readme::steps(&text);
    assert!(steps.len() >= 12, "the tour has only {} steps", steps.len());
    let dir = tempfile::tempdir().unwrap();
    let port = base_port();
    let _dev = Dev::start(dir.path(), &["--nodes", "3", "--base-port", &port]);
    let _restarted = Restarted(dir.path().join(".kvd-dev/n2/LOCK"));
    // The tour speaks of the default ports, 7400 to 7402.
    let here: Vec<String> =
        (0..3).map(|i| (port.parse::<u16>().unwrap() + i).to_string()).collect();
    for step in &steps {
        let mut command = step.command.clone();
        for (at, port) in here.iter().enumerate() {
            command = command.replace(&format!("740{at}"), port);
        }
        // What a cluster notices by itself it notices in its own time: the last try counts.
        let mut printed = String::new();
        let seen = (0..20).any(|attempt| {
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(250));
            }
            printed = shell(dir.path(), &port, &command);
            for (at, port) in here.iter().enumerate() {
                printed = printed.replace(&format!(":{port}"), &format!(":740{at}"));
            }
            let lines: Vec<&str> = printed.lines().collect();
            readme::matches(&step.expected, &lines)
                || !command.starts_with("kvctl status") && !command.starts_with("kvtop")
        });
        let lines: Vec<&str> = printed.lines().collect();
        assert!(
            seen && readme::matches(&step.expected, &lines),
            "$ {}\n--- the README says:\n{}\n--- it printed:\n{printed}",
            step.command,
            step.expected.join("\n"),
        );
    }
}

#[test]
fn a_dev_cluster_stops_on_ctrl_c_and_starts_again_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let port = base_port();
    let args = ["--nodes", "3", "--dir", "data", "--base-port", &port, "--zones", "3"];
    let mut dev = Dev::start(dir.path(), &args);
    assert_eq!(shell(dir.path(), &port, "kvctl put k v"), "");
    assert!(shell(dir.path(), &port, "kvctl nodes list").contains("z3"));
    assert_eq!(dev.interrupt(), Some(0), "{}", dev.log());
    assert!(shell(dir.path(), &port, "kvctl get k").contains("error[UNREACHABLE]"));

    let mut dev = Dev::start(dir.path(), &args);
    assert_eq!(shell(dir.path(), &port, "kvctl get k"), "v");

    // It restarts nothing by itself, but says what ended and how to start it again.
    shell(dir.path(), &port, "kill -9 $(cat data/n2/LOCK)");
    eventually("kvd dev to say that n2 was killed", || {
        dev.log()
            .contains("n2 was killed by signal 9. To start it again:  kvd --data-dir data/n2")
            .then_some(())
    });
    assert_eq!(shell(dir.path(), &port, "kvctl get k"), "v");

    // A node told to stop ends, though it also waits for the end of its standard input.
    shell(dir.path(), &port, "kill -TERM $(cat data/n3/LOCK)");
    eventually("kvd dev to say that n3 ended", || {
        dev.log().contains("n3 ended with exit code 0").then_some(())
    });
    assert_eq!(dev.interrupt(), Some(0), "{}", dev.log());
}

#[test]
fn a_dev_directory_is_not_started_with_other_flags() {
    let dir = tempfile::tempdir().unwrap();
    let port = base_port();
    let mut dev = Dev::start(dir.path(), &["--nodes", "1", "--base-port", &port]);
    dev.interrupt();
    let other = Command::new(binary("kvd"))
        .current_dir(dir.path())
        .args(["dev", "--nodes", "2"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(1));
    assert!(error.contains("made with --nodes 1"), "{error}");
}
