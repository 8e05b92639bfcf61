//! What may arrive at an open port: noise, requests that were tampered with, half of things, floods,
//! and clients that never take what they asked for. All of it bounded, to loopback, and from a seed.

use crate::process::{Cluster, ok};
use crate::rng::Rng;
use proto::client::Client;
use proto::v1::{GetRequest, PutRequest};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What one attacker does on one connection, again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attack {
    /// Bytes that mean nothing.
    Noise,
    /// A preface, then frames of chance.
    Frames,
    /// A recorded request with some bytes changed.
    Mutated,
    /// A recorded request that ends in the middle of something.
    Truncated,
    /// Frames and messages that say they are as long as can be said.
    Giant,
    /// Streams that are opened and reset as fast as it goes.
    Resets,
    /// Asks for much and reads nothing.
    SlowReader,
    /// Says one byte now and then.
    SlowLoris,
}

/// All of them.
pub const ATTACKS: [Attack; 8] = [
    Attack::Noise,
    Attack::Frames,
    Attack::Mutated,
    Attack::Truncated,
    Attack::Giant,
    Attack::Resets,
    Attack::SlowReader,
    Attack::SlowLoris,
];

/// Large values there are to ask for.
const LARGE: usize = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// After this an attacker lets go of a connection that nobody closes.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// One that wants to be slow holds on for so long.
const SLOW_HOLD_MAX: Duration = Duration::from_secs(12);

/// One HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What one connection said so far.
type Recording = Arc<Mutex<Vec<u8>>>;

/// What clients say to the first node of a cluster in the clear, a recording a connection: small
/// things, to tamper with; and what asks for large ones, for slow readers.
///
/// # Panics
/// If they cannot say it.
pub fn talks(cluster: &Cluster) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let large = vec![7; 1024 * 1024];
    for number in 0..LARGE {
        ok(cluster.kvctl(&["put", &format!("large{number}")]).stdin(&large));
    }
    let address = &cluster.nodes[0].address;
    let small = record(address, |proxy| talk(cluster, proxy, 64, 0));
    let large = record(address, |proxy| talk(cluster, proxy, 0, 16));
    assert!(small.iter().any(|said| said.len() > 1000), "something was recorded");
    (small, large)
}

/// A client's requests: so many puts and gets of small values, and gets of large ones.
fn talk(cluster: &Cluster, address: &str, small: usize, large: usize) {
    let address = [address.to_owned()];
    let client = cluster
        .block_on(Client::connect(&address, Duration::from_secs(10)))
        .expect("the cluster serves");
    cluster.block_on(async {
        let mut kv = client.kv();
        let get = |key: String| GetRequest { key: key.into_bytes().into(), ..Default::default() };
        for number in 0..small {
            let key = format!("r{number}").into_bytes().into();
            let value = vec![1; 100].into();
            kv.put(PutRequest { key, value, ..Default::default() })
                .await
                .expect("the cluster serves");
            kv.get(get(format!("r{number}"))).await.expect("the cluster serves");
        }
        for number in 0..large {
            kv.get(get(format!("large{}", number % LARGE))).await.expect("the cluster serves");
        }
        let ask = proto::v1::GetClusterRequest::default();
        client.admin().get_cluster(ask).await.expect("the cluster serves");
    });
}

/// What clients say to `address` while `talk` runs against the address it is given: recorded by a
/// proxy, a recording a connection.
///
/// # Panics
/// If loopback does not work.
fn record(address: &str, talk: impl FnOnce(&str)) -> Vec<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let proxy = listener.local_addr().expect("it is bound").to_string();
    let recorded: Arc<Mutex<Vec<Recording>>> = Arc::default();
    let (to, all) = (address.to_owned(), Arc::clone(&recorded));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { return };
            let Ok(server) = TcpStream::connect(&to) else { return };
            let said = Arc::new(Mutex::new(Vec::new()));
            all.lock().expect("no panic before").push(Arc::clone(&said));
            let (from_client, to_server) = (clone(&client), clone(&server));
            std::thread::spawn(move || pass(from_client, to_server, Some(&said)));
            std::thread::spawn(move || pass(server, client, None));
        }
    });
    talk(&proxy);
    let recorded = recorded.lock().expect("no panic before");
    recorded.iter().map(|said| said.lock().expect("no panic before").clone()).collect()
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a file descriptor")
}

fn pass(mut from: TcpStream, mut to: TcpStream, keep: Option<&Mutex<Vec<u8>>>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if let Some(keep) = keep {
            keep.lock().expect("no panic before").extend(&bytes[..read]);
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both); // it may be gone
}

/// Attackers at work. Dropped, they end.
pub struct Siege {
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    attackers: Vec<std::thread::JoinHandle<()>>,
}

impl Siege {
    /// One attacker for each of `attacks`, on all these addresses in turn, with these recordings to
    /// tamper with, and these of `large` answers to ask for.
    pub fn begin(
        attacks: &[Attack],
        addresses: Vec<String>,
        recorded: Vec<Vec<u8>>,
        large: Vec<Vec<u8>>,
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicU64::new(0));
        let addresses = Arc::new(addresses);
        let (recorded, large) = (Arc::new(recorded), Arc::new(large));
        let attack = |(number, attack): (usize, &Attack)| {
            let attack = *attack;
            let (stop, connections) = (Arc::clone(&stop), Arc::clone(&connections));
            let addresses = Arc::clone(&addresses);
            let recorded = match attack {
                Attack::SlowReader => Arc::clone(&large),
                _ => Arc::clone(&recorded),
            };
            let mut rng = Rng::new(seed + number as u64);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let address = &addresses[rng.below(addresses.len())];
                    // What the node thinks of it is the node's business.
                    let _ = once(attack, address, &recorded, &mut rng, &stop);
                    connections.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let attackers = attacks.iter().enumerate().map(attack).collect();
        Self { stop, connections, attackers }
    }

    /// Connections made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for attacker in self.attackers.drain(..) {
            let _ = attacker.join(); // one that panicked has said so
        }
    }
}

fn once(
    attack: Attack,
    address: &str,
    recorded: &[Vec<u8>],
    rng: &mut Rng,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(HOLD_MAX))?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    match attack {
        Attack::Noise => stream.write_all(&noise(rng, 4096))?,
        Attack::Frames => {
            stream.write_all(PREFACE)?;
            stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
            for _ in 0..rng.below(64) {
                let (kind, flags) = (rng.below(12) as u8, rng.below(256) as u8);
                let stream_id = rng.below(16) as u32;
                stream.write_all(&frame(kind, flags, stream_id, &noise(rng, 256)))?;
            }
        }
        Attack::Mutated => {
            let mut said = pick(recorded, rng);
            for _ in 0..=rng.below(8) {
                if !said.is_empty() {
                    let at = rng.below(said.len());
                    said[at] = rng.below(256) as u8;
                }
            }
            stream.write_all(&said)?;
        }
        Attack::Truncated => {
            let said = pick(recorded, rng);
            let end = rng.below(said.len() + 1);
            stream.write_all(&said[..end])?;
            if rng.below(2) == 0 {
                stream.shutdown(Shutdown::Write)?;
            }
        }
        Attack::Giant => {
            stream.write_all(PREFACE)?;
            stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
            match rng.below(2) {
                // A frame of 16 MiB, of which there is little.
                0 => stream.write_all(&[255, 255, 255, rng.below(10) as u8, 0, 0, 0, 0, 1])?,
                // A message of 4 GiB in the stream of a recorded request.
                _ => {
                    let (headers, stream_id) = headers_of(recorded, rng);
                    stream.write_all(&frame(HEADERS, 4, stream_id, &headers))?;
                    stream.write_all(&frame(0, 0, stream_id, &[0, 255, 255, 255, 255, 1, 2, 3]))?;
                }
            }
            stream.write_all(&noise(rng, 1024))?;
        }
        Attack::Resets => {
            stream.write_all(PREFACE)?;
            stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
            let (headers, _) = headers_of(recorded, rng);
            for number in 0..2000 {
                let stream_id = number * 2 + 1;
                let mut both = frame(HEADERS, 4, stream_id, &headers);
                both.extend(frame(RST_STREAM, 0, stream_id, &8_u32.to_be_bytes()));
                stream.write_all(&both)?;
            }
        }
        Attack::SlowReader => {
            ask_for_all(&mut stream, recorded)?;
            hold(&stream, SLOW_HOLD_MAX, stop);
            return Ok(());
        }
        Attack::SlowLoris => {
            for byte in PREFACE.iter().take(20) {
                stream.write_all(&[*byte])?;
                hold(&stream, Duration::from_secs(1), stop);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            return Ok(());
        }
    }
    let until = Instant::now() + HOLD_MAX;
    let mut heard = [0; 4096];
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        match stream.read(&mut heard) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Asks for all that was asked for in these recordings, and says that it may come.
///
/// # Errors
/// The node did not wait for the end of it.
pub fn ask_for_all(stream: &mut TcpStream, recorded: &[Vec<u8>]) -> io::Result<()> {
    stream.write_all(PREFACE)?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &0x3fff_0000_u32.to_be_bytes()))?;
    for said in recorded {
        // All that was asked there, of this connection's first streams.
        stream.write_all(said.strip_prefix(PREFACE).unwrap_or(said))?;
    }
    Ok(())
}

/// Stays connected, and reads nothing.
fn hold(_: &TcpStream, at_most: Duration, stop: &AtomicBool) {
    let until = Instant::now() + at_most;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn noise(rng: &mut Rng, most: usize) -> Vec<u8> {
    (0..rng.below(most)).map(|_| rng.below(256) as u8).collect()
}

fn pick(recorded: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    recorded[rng.below(recorded.len())].clone()
}

/// The header block of some recorded request, and its stream.
fn headers_of(recorded: &[Vec<u8>], rng: &mut Rng) -> (Vec<u8>, u32) {
    let said = pick(recorded, rng);
    let mut rest = said.strip_prefix(PREFACE).unwrap_or(&said);
    while let Some((header, more)) = rest.split_at_checked(9) {
        let length =
            usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let Some((payload, after)) = more.split_at_checked(length) else { break };
        if header[3] == HEADERS && header[4] & 0x28 == 0 {
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            return (payload.to_vec(), stream);
        }
        rest = after;
    }
    (Vec::new(), 1)
}
