//! A network of its own for a test's cluster, in which links can be cut and packets lost. Nothing
//! outside of it changes, and nothing leaves it.
//!
//! [`within`] runs a test on a thread in a private network namespace. Threads and processes that the
//! test starts are in it as well; when the last of them has ended it is gone, however they ended.
//! Node n1 listens on 127.0.0.2, n2 on 127.0.0.3, … and speaks from there, so rules can tell who
//! sends to whom. Clients and `kvctl` speak from 127.0.0.1, which no rule is about.
//!
//! What the machine lacks or refuses is told as in [`crate::faults`].

use crate::faults::{attempt, must, need, skip};
use crate::process::{Cluster, Node};
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// The port of every node.
const PORT: u16 = 7400;

/// Beyond that the last byte of their addresses would not do.
const NODES_MAX: usize = 250;

/// A private network, and what is wrong with it now: each call below adds to that.
pub struct Net {
    rules: Mutex<Vec<String>>,
}

/// Runs `test` in a private network; not at all, having said why, where there can be none.
///
/// # Panics
/// If the test does, or under CI if a tool is missing.
pub fn within(test: impl FnOnce(&Net) + Send) {
    let me = std::thread::current();
    let thread = std::thread::Builder::new().name(me.name().unwrap_or("a test").to_owned());
    // A thread of its own: the one the harness runs tests on must not stay behind in there.
    std::thread::scope(|scope| {
        let body = || {
            if let Some(net) = Net::enter() {
                test(&net);
            }
        };
        let outcome = thread.spawn_scoped(scope, body).expect("a thread").join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Net {
    /// Moves this thread into a new network.
    fn enter() -> Option<Self> {
        ["unshare", "nft", "ip"].into_iter().try_for_each(need)?;
        let holder = Holder::start()?;
        enter(&holder.link())?;
        drop(holder); // this thread keeps the network now
        must(Command::new("ip").args(["link", "set", "lo", "up"]));
        // What a packet filter needs the kernel may not have.
        attempt(Command::new("nft").args(["add", "table", "inet", "kvd"]))?;
        let net = Self { rules: Mutex::new(Vec::new()) };
        net.heal();
        Some(net)
    }

    /// `count` nodes in this network, made one cluster.
    pub fn cluster(&self, count: usize) -> Cluster {
        self.cluster_with(count, |_| {})
    }

    /// The same, each node prepared before its first start.
    pub fn cluster_with(&self, count: usize, mut prepare: impl FnMut(&mut Node)) -> Cluster {
        assert!(count <= NODES_MAX);
        let mut position = 0;
        Cluster::start_with(count, |node| {
            node.address = format!("{}:{PORT}", host(position));
            position += 1;
            prepare(node);
        })
    }

    /// From now on nothing gets from node `a` to node `b` (positions, 0 is n1) or back.
    pub fn cut(&self, a: usize, b: usize) {
        self.add([drop_between(a, b), drop_between(b, a)]);
    }

    /// From now on nothing that node `from` sends gets to node `to`. TCP needs both ways: what `to`
    /// sends arrives, and it is never told so.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.add([drop_between(from, to)]);
    }

    /// From now on no node of one side gets anything to one of the other, or back.
    pub fn split(&self, one: &[usize], other: &[usize]) {
        let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b)));
        self.add(pairs.flat_map(|(a, b)| [drop_between(a, b), drop_between(b, a)]));
    }

    /// From now on so many of a hundred packets between nodes are lost, by chance.
    pub fn lossy(&self, percent: u8) {
        let nodes = format!("{}-{}", host(0), host(NODES_MAX - 1));
        let between = format!("ip saddr {nodes} ip daddr {nodes}");
        self.add([format!("{between} numgen random mod 100 < {percent} drop")]);
    }

    /// All is well again.
    pub fn heal(&self) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.clear();
        apply(&rules);
    }

    fn add(&self, more: impl IntoIterator<Item = String>) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.extend(more);
        apply(&rules);
    }
}

/// Moves this thread into the network that a link in `/proc` stands for.
#[cfg(target_os = "linux")]
fn enter(link: &str) -> Option<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let link = fs::File::open(link).expect("the network of a process that runs");
    match move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)) {
        Ok(()) => Some(()),
        Err(rustix::io::Errno::PERM) => skip("this process may not change its network"),
        Err(error) => panic!("cannot enter the private network: {error}"),
    }
}

#[cfg(not(target_os = "linux"))]
fn enter(_: &str) -> Option<()> {
    skip("only Linux has private networks")
}

/// The address of the node at a position.
fn host(position: usize) -> String {
    format!("127.0.0.{}", position + 2)
}

fn drop_between(from: usize, to: usize) -> String {
    format!("ip saddr {} ip daddr {} drop", host(from), host(to))
}

/// Puts these rules in place of all others, in one step. On the way in: a packet that is refused on
/// its way out is noticed by who sends it.
fn apply(rules: &[String]) {
    let mut script = "delete table inet kvd\ntable inet kvd {\n chain input {\n".to_owned();
    script += "  type filter hook input priority 0; policy accept;\n";
    rules.iter().for_each(|rule| script += &format!("  {rule}\n"));
    script += " }\n}\n";
    let mut nft = Command::new("nft");
    let nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut nft = nft.spawn().expect("nft was found before");
    let mut stdin = nft.stdin.take().expect("its standard input is a pipe");
    stdin.write_all(script.as_bytes()).expect("nft reads");
    drop(stdin);
    let done = nft.wait_with_output().expect("nft ends");
    assert!(done.status.success(), "nft: {}\n{script}", String::from_utf8_lossy(&done.stderr));
}

/// A process that has a network of its own, until this thread has entered it.
struct Holder(Child);

impl Holder {
    fn start() -> Option<Self> {
        let mut cat = Command::new("unshare");
        // Ends with its standard input, so also when this process is killed.
        cat.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut holder =
            Self(cat.stderr(Stdio::piped()).spawn().expect("unshare was found before"));
        let ours = fs::read_link("/proc/self/ns/net").expect("a network");
        let entered = crate::eventually("a private network", || {
            if holder.0.try_wait().expect("it is our child").is_some() {
                return Some(false);
            }
            (fs::read_link(holder.link()).ok()? != ours).then_some(true)
        });
        if entered {
            return Some(holder);
        }
        let mut why = String::new();
        let mut stderr = holder.0.stderr.take().expect("its standard error is a pipe");
        let _ = std::io::Read::read_to_string(&mut stderr, &mut why); // what there is of it
        assert!(why.contains("not permitted"), "unshare ended: {why}");
        skip(why.trim())
    }

    fn link(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    /// Of so many packets from one node's address to another's, how many arrive.
    fn arrive(from: usize, to: usize, count: usize) -> usize {
        let sender = UdpSocket::bind((host(from), 0)).expect("an address of loopback");
        let receiver = UdpSocket::bind((host(to), 0)).expect("an address of loopback");
        let address = receiver.local_addr().expect("it is bound");
        receiver.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        // Loopback delivers before sending returns, so what has not come by then is lost.
        (0..count)
            .filter(|_| {
                sender.send_to(b"x", address).expect("sending is not refused");
                receiver.recv(&mut [0]).is_ok()
            })
            .count()
    }

    #[test]
    fn what_is_cut_is_cut_that_way_alone_and_heals() {
        within(|net| {
            assert_eq!(arrive(0, 1, 5), 5);
            net.cut_one_way(0, 1);
            assert_eq!([arrive(0, 1, 5), arrive(1, 0, 5), arrive(0, 2, 5)], [0, 5, 5]);
            net.cut(1, 2);
            assert_eq!([arrive(0, 1, 5), arrive(1, 2, 5), arrive(2, 1, 5)], [0, 0, 0]);
            net.heal();
            assert_eq!([arrive(0, 1, 5), arrive(1, 2, 5), arrive(2, 1, 5)], [5, 5, 5]);
            net.split(&[0, 1], &[2]);
            assert_eq!([arrive(0, 1, 5), arrive(0, 2, 5), arrive(2, 1, 5)], [5, 0, 0]);
        });
    }

    #[test]
    fn about_as_many_packets_are_lost_as_is_said() {
        within(|net| {
            net.lossy(20);
            let lost = 400 - arrive(0, 1, 400);
            assert!((40..=120).contains(&lost), "{lost} of 400 were lost"); // 5 deviations
        });
    }

    #[test]
    fn nothing_outside_is_changed() {
        let networks = || fs::read_link("/proc/thread-self/ns/net").expect("a network");
        let before = networks();
        let mut inside = None;
        within(|net| {
            net.cut(0, 1);
            inside = Some(networks());
        });
        assert_eq!(networks(), before);
        assert_ne!(inside, Some(before));
    }
}
