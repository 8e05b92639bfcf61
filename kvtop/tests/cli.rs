//! The program as scripts and shells meet it.

mod fixture;
#[path = "fixture/server.rs"]
mod server;

use fixture::Scene;
use server::{Fake, cluster};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Nothing listens there: port 1 is reserved and needs root.
const DEAD: &str = "127.0.0.1:1";

fn kvtop(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtop"));
    let variables = ["NO_COLOR", "KVCTL_ENDPOINTS", "COLORTERM", "LC_ALL", "LC_CTYPE"];
    variables.iter().for_each(|variable| {
        command.env_remove(variable);
    });
    command.args(args).env("LANG", "C.UTF-8").env("TERM", "xterm-256color").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    told(kvtop(args).output().expect("it runs"))
}

fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_and_version_go_to_stdout() {
    let (code, out, err) = run(&["--help"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for flag in [
        "--endpoint",
        "--interval",
        "--once",
        "--ascii",
        "--color",
        "--size",
        "--for",
        "KVCTL_ENDPOINTS",
    ] {
        assert!(out.contains(flag), "{flag}");
    }
    let (code, out, _) = run(&["--version"]);
    assert_eq!((code, out.as_str()), (Some(0), concat!("kvtop ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn bad_usage_exits_2() {
    for args in [
        &["--nonsense"][..],
        &["--interval", "0.1s"],
        &["--endpoint", "nowhere"],
        &["--once", "--size", "0x0"],
        &["-o", "json"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!err.is_empty());
    }
}

#[test]
fn no_node_exits_6_at_once_and_leaves_stdout_alone() {
    for args in [&["--once"][..], &["--once", "-o", "json"], &[]] {
        // A machine that stands still spoils one of three; a wait for an answer, of 5 s, spoils each.
        let at_once = || {
            let begun = Instant::now();
            let (code, out, err) = run(&[args, &["--endpoint", DEAD]].concat());
            assert_eq!((code, out.as_str()), (Some(6), ""), "{args:?}");
            assert!(err.starts_with("kvtop: no node reachable: 127.0.0.1:1 "), "{err}");
            begun.elapsed() < Duration::from_secs(4)
        };
        assert!((0..3).any(|_| at_once()), "{args:?}");
    }
}

#[test]
fn once_prints_a_frame_and_exits_by_the_verdict() {
    let (fakes, scene) = cluster(&[]);
    let once = ["--once", "--endpoint", &fakes[0].address, "--interval", "0.5s"];
    let (code, out, err) = run(&once);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("· OK  all 3 nodes up") && !out.contains('\x1b'), "{out}");
    assert_eq!(out.lines().count(), 24);
    assert!(!out.contains("get       ?"), "rates are known after two samples: {out}");

    scene.send_modify(|scene| Arc::make_mut(scene).down = vec![2]);
    let (code, out, _) = run(&[&once[..], &["--size", "120x40", "-o", "ansi"]].concat());
    assert_eq!(code, Some(11));
    assert!(out.contains("▲ DEGRADED") && out.contains("\x1b[0;1;38;5;214m"), "{out}");
    let mono = kvtop(&[&once[..], &["-o", "ansi"]].concat()).env("NO_COLOR", "1").output();
    let (_, out, _) = told(mono.expect("it runs"));
    assert!(!out.contains(";38;") && out.contains("\x1b[0;1m"), "{out}");

    let (code, out, _) = run(&[&once[..], &["-o", "json"]].concat());
    assert_eq!(code, Some(11));
    let facts: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(facts["verdict"]["level"], "DEGRADED");
    assert_eq!(facts["nodes"][0]["name"], "n2");
    assert_eq!(facts["nodes"][0]["gets_per_s"], serde_json::Value::Null, "unknown is not 0");
    assert!(facts["requests"]["gets_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{facts}");
}

#[test]
fn once_shows_any_view_with_all_it_asks_for() {
    let (fakes, scene) = cluster(&[]);
    scene.send_modify(|scene| Arc::make_mut(scene).draining = vec![2]);
    let once = ["--once", "--endpoint", &fakes[0].address, "--interval", "0.5s", "--view"];
    let (_, lag, _) = run(&[&once[..], &["lag", "--size", "120x40"]].concat());
    assert!(lag.contains("[3Lag]") && lag.contains("partitions") && lag.contains("comparing"));
    assert!(!lag.contains("not told yet"), "{lag}");
    let (_, nodes, _) = run(&[&once[..], &["nodes"]].concat());
    assert!(nodes.contains("[4Nodes]") && nodes.contains("up, no vote"), "{nodes}");
    let (_, facts, _) = run(&[&once[..], &["lag", "-o", "json"]].concat());
    let facts: serde_json::Value = serde_json::from_str(&facts).expect("JSON");
    let node = |name: &str| {
        let nodes = facts["nodes"].as_array().expect("nodes");
        nodes.iter().find(|node| node["name"] == name).expect("a member").clone()
    };
    assert_eq!((&node("n1")["lag_ms"], &node("n1")["lag_known"]), (&0.into(), &true.into()));
    assert_eq!(node("n2")["lost_data"], true);
    assert!(facts["lagging_partitions"].is_u64(), "{facts}");
}

#[test]
fn once_shows_who_holds_what_and_what_moves() {
    let (fakes, scene) = cluster(&[]);
    let once = ["--once", "--endpoint", &fakes[0].address, "--interval", "0.5s", "--view"];
    let (_, still, _) = run(&[&once[..], &["moves"]].concat());
    assert!(still.contains("nothing moves") && still.contains("op-7c10e2aa"), "{still}");
    scene.send_modify(|scene| Arc::make_mut(scene).joining = vec![3]);
    let (_, ring, _) = run(&[&once[..], &["ring"]].concat());
    assert!(ring.contains("[2Ring]") && ring.contains("128 partitions x 3 copies"), "{ring}");
    assert!(!ring.contains("not told yet") && ring.contains("Share in %"), "{ring}");
    let (_, facts, _) = run(&[&once[..], &["moves", "-o", "json"]].concat());
    let facts: serde_json::Value = serde_json::from_str(&facts).expect("JSON");
    assert_eq!(facts["ops"][0]["op"], "op-7f3a1b2c");
    assert_eq!(facts["moves"][0]["stuck"][0]["partition"], 30);
    assert_eq!(facts["moves"][1]["state"], "done");
    let joining = facts["nodes"].as_array().expect("nodes").iter();
    assert_eq!(joining.filter(|node| node["membership"] == "joining").count(), 1);
}

#[test]
fn views_change_by_key_and_back() {
    let (fakes, _scene) = cluster(&[2]);
    let session = Session::start(&format!("--endpoint {}", fakes[0].address)).shows("prod-eu");
    let session = session.types("3").shows("[3Lag]").shows("Anti-entropy");
    let session = session.types("j\r").shows("As last told").shows("live elsewhere");
    let session = session.types("2").shows("[2Ring]").shows("it is 1st 2nd 3rd copy");
    let session = session.types("7").shows("[7Moves]").shows("op-7c10e2aa");
    let out = session.types("1").shows("[1Overview]").types("q").ended();
    assert!(given_back(&out) && out.contains("exit 0"));
}

#[test]
fn a_reader_that_left_is_no_error() {
    let (fakes, _scene) = cluster(&[]);
    let args = ["--once", "--endpoint", &fakes[0].address, "--for", "0s", "--interval", "0.25s"];
    let mut child =
        kvtop(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    let (code, _, err) = told(child.wait_with_output().expect("it ends"));
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn without_a_terminal_it_is_one_frame_and_a_hint() {
    let (fakes, _scene) = cluster(&[]);
    let (code, out, err) = run(&["--endpoint", &fakes[0].address, "--interval", "0.25s"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("OK  all 3 nodes up") && !out.contains('\x1b'));
    assert!(err.contains("--once"), "{err}");
}

/// A kvtop in a terminal of its own, as `script` gives it, between two looks at the terminal's
/// settings.
struct Session {
    child: Child,
    keys: ChildStdin,
    settings: tempfile::TempDir,
    written: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Session {
    fn start(args: &str) -> Self {
        Self::start_as("", args, &[])
    }

    fn start_as(launcher: &str, args: &str, variables: &[(&str, &str)]) -> Self {
        let settings = tempfile::tempdir().expect("a directory");
        let at = settings.path().display();
        let program = env!("CARGO_BIN_EXE_kvtop");
        let line = format!(
            "stty rows 24 cols 80; stty -a >{at}/before; {launcher} {program} {args}; echo exit $?; stty -a >{at}/after"
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm-256color");
        command.env_remove("NO_COLOR").envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("script, of util-linux");
        let keys = child.stdin.take().expect("piped");
        let mut out = child.stdout.take().expect("piped");
        let written = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&written);
        let reader = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut part) {
                into.lock().expect("no panic").extend_from_slice(&part[..n]);
            }
        });
        Self { child, keys, settings, written, reader }
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().expect("no panic")).into_owned()
    }

    /// Waits until `what` was written to the terminal.
    fn shows(self, what: &str) -> Self {
        let begun = Instant::now();
        while !self.written().contains(what) {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{what:?} not in {:?}",
                self.written()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    fn types(mut self, keys: &str) -> Self {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("it listens");
        self
    }

    /// Waits for its end, and returns all that was written to the terminal.
    fn ended(mut self) -> String {
        self.child.wait().expect("it ends");
        self.reader.join().expect("it is read");
        let read = |name: &str| {
            std::fs::read_to_string(self.settings.path().join(name)).expect("stty wrote")
        };
        assert_eq!(read("before"), read("after"), "the terminal is as it was");
        String::from_utf8_lossy(&self.written.lock().expect("no panic")).into_owned()
    }
}

fn given_back(out: &str) -> bool {
    out.contains("\x1b[?1049h") && out.contains("\x1b[?1049l") && out.contains("\x1b[?25h")
}

#[test]
fn q_answers_at_once_even_when_nothing_is_reachable() {
    for (keys, endpoint) in [("q", DEAD), ("\x03", DEAD), (" q", "192.0.2.1:7400")] {
        // A machine that stands still spoils one of three; a wait for an answer spoils each.
        let at_once = || {
            let session = Session::start(&format!("--endpoint {endpoint}")).shows("connecting");
            let begun = Instant::now();
            let out = session.types(keys).ended();
            let took = begun.elapsed();
            assert!(given_back(&out) && out.contains("exit 0"), "{out}");
            took < Duration::from_secs(1)
        };
        assert!((0..3).any(|_| at_once()), "{keys:?}");
    }
}

#[test]
fn a_signal_ends_it_and_gives_the_terminal_back() {
    for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let home = tempfile::tempdir().expect("a directory");
        let pid = home.path().join("pid");
        // The shell's own id, which kvtop takes over from it.
        let launcher = format!("sh -c 'echo $$ >{}; exec \"$0\" \"$@\"'", pid.display());
        let session = Session::start_as(&launcher, &format!("--endpoint {DEAD}"), &[]);
        let session = session.shows("connecting");
        let pid = std::fs::read_to_string(&pid).expect("it has begun");
        let kill = Command::new("kill").args([&format!("-{name}"), pid.trim()]).status();
        assert!(kill.expect("kill runs").success());
        let out = session.ended();
        assert!(given_back(&out) && out.contains(&format!("exit {code}")), "{name}: {out}");
    }
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let session =
        Session::start_as("", &format!("--endpoint {DEAD}"), &[("KVTOP_TEST_PANIC", "1")]);
    let out = session.ended();
    assert!(given_back(&out) && out.contains("exit 101"), "{out}");
    let (_, after) = out.split_once("\x1b[?1049l").expect("left the alternate screen");
    assert!(after.contains("KVTOP_TEST_PANIC"), "the message is readable: {out}");
}

/// True when a select-graphic-rendition sequence sets a colour.
fn coloured(out: &str) -> bool {
    let sequences = out.split("\x1b[").filter_map(|rest| {
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        rest[end..].starts_with('m').then(|| &rest[..end])
    });
    let mut parameters =
        sequences.flat_map(|sequence| sequence.split(';')).filter_map(|p| p.parse::<u8>().ok());
    parameters.any(|p| matches!(p, 30..=38 | 40..=48 | 90..=107))
}

#[test]
fn without_colour_the_selection_is_still_reversed() {
    let (fakes, _scene) = cluster(&[2]);
    let args = format!("--endpoint {}", fakes[0].address);
    let session = Session::start_as("", &args, &[("NO_COLOR", "1")]).shows("prod-eu");
    let out = session.types("j").shows("\x1b[7m>").types("q").ended();
    assert!(!out.contains("\x1b[m") && !out.contains("\x1b[;m"), "a bare reset would erase it");
    assert!(!coloured(&out), "{out:?}");
}

/// For looking at it: `cargo test -p kvtop --test cli -- --ignored --nocapture`, then kvtop in
/// another terminal. Node 2 is down every other half minute.
#[test]
#[ignore = "serves for five minutes"]
fn serve() {
    let nodes = std::env::var("NODES").ok().and_then(|nodes| nodes.parse().ok()).unwrap_or(3);
    let (sender, scene) = watch::channel(Arc::new(Scene::new(nodes, &[])));
    let fakes: Vec<Fake> = (1..=nodes)
        .map(|node| Fake::start(&format!("127.0.0.1:{}", 7500 + node), node, scene.clone()))
        .collect();
    let addresses: Vec<String> = fakes.iter().map(|fake| fake.address.clone()).collect();
    for half_minute in 0..10 {
        let down = if half_minute % 2 == 1 { vec![2] } else { vec![] };
        sender.send_replace(Arc::new(Scene {
            addresses: addresses.clone(),
            ..Scene::new(nodes, &down)
        }));
        std::thread::sleep(Duration::from_secs(30));
    }
}
