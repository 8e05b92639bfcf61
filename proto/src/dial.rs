//! One connection to one node: TCP, TLS if it is to be secured, and the node's first word. Until
//! that is heard nothing is connected: a port that takes connections may belong to a stopped process,
//! or speak something else.

use crate::client::root_cause;
use crate::tls::{ClientTls, is_of_tls, words};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};

/// What every HTTP/2 client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Room to look at the first word; what is longer passes by.
const FIRST_WORD_BYTES: usize = 512;

const FRAME_HEADER_BYTES: usize = 9;
const FRAME_SETTINGS: u8 = 4;
const FRAME_GOAWAY: u8 = 7;

/// What a server that speaks TLS begins with where it hears none.
const TLS_ALERT: u8 = 21;

/// Why a client is sent away that speaks no TLS.
const INADEQUATE_SECURITY: u8 = 12;

/// How to connect.
#[derive(Clone, Debug, Default)]
pub struct Dial {
    /// What secures the connection; none: nothing does.
    pub tls: Option<ClientTls>,
    /// Where it comes from; none: whichever address the system takes.
    pub from: Option<IpAddr>,
}

/// Why a node is not connected to, in words that can follow its address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct DialError {
    /// The words.
    pub why: String,
    /// What secures the connection is at fault: trying again does not help.
    pub is_tls: bool,
}

impl DialError {
    fn tls(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_tls: true }
    }
}

impl From<String> for DialError {
    fn from(why: String) -> Self {
        Self { why, is_tls: false }
    }
}

impl Dial {
    /// A channel to the node at `address` (`host:port`), connected within `timeout`. It connects anew
    /// by itself when it is lost. `tune` sets more of it.
    ///
    /// # Errors
    /// Why not, in words that can follow the address.
    pub async fn channel(
        &self,
        address: &str,
        timeout: Duration,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, DialError> {
        // Whatever secures it is this connector's: to tonic it is a connection like any other.
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = tune(endpoint.map_err(|_| "is not host:port".to_owned())?);
        let (dial, to) = (self.clone(), address.to_owned());
        let connector = tower::service_fn(move |_| {
            let (dial, to) = (dial.clone(), to.clone());
            async move {
                let connected = dial.connect(&to, timeout).await;
                connected.map(TokioIo::new)
            }
        });
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            loop {
                if let Some(refused) = cause.downcast_ref::<DialError>() {
                    return refused.clone();
                }
                match cause.source() {
                    Some(source) => cause = source,
                    None => return root_cause(&error).into(),
                }
            }
        })
    }

    async fn connect(&self, address: &str, timeout: Duration) -> Result<Connection, DialError> {
        match tokio::time::timeout(timeout, self.greet(address)).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("did not answer within {} ms", timeout.as_millis()).into()),
        }
    }

    async fn greet(&self, address: &str) -> Result<Connection, DialError> {
        let tcp = self.tcp(address).await.map_err(|error| root_cause(&error))?;
        let Some(tls) = &self.tls else {
            let plain: Box<dyn Stream> = Box::new(tcp);
            return first_word(plain, false).await;
        };
        let connector = TlsConnector::from(tls.config());
        let name = match tls.name() {
            Some(name) => name.clone(),
            None => server_name(address)?,
        };
        let secured = connector
            .connect(name, tcp)
            .await
            .map_err(|error| DialError { why: words(&error), is_tls: is_of_tls(&error) })?;
        first_word(Box::new(secured), true).await
    }

    async fn tcp(&self, address: &str) -> io::Result<TcpStream> {
        let mut failed = None;
        for to in lookup_host(address).await? {
            match self.tcp_to(to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::other("has no address")))
    }

    async fn tcp_to(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from.filter(|from| from.is_ipv4() == to.is_ipv4()) {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(to).await?;
        // A small request would wait for the acknowledgement of the one before: 40 ms.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// The host of `host:port`, as a certificate names it.
fn server_name(address: &str) -> Result<ServerName<'static>, DialError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| {
        DialError::tls(format!("cannot be secured: no certificate can be for {host:?}"))
    })
}

/// Has the node say its first word, and judges it.
async fn first_word(mut stream: Box<dyn Stream>, secured: bool) -> Result<Connection, DialError> {
    let mut word = Vec::with_capacity(FIRST_WORD_BYTES);
    // A server says it unasked, but one that speaks TLS alone must first see that this side does not.
    let asked = async {
        stream.write_all(PREFACE).await?;
        stream.flush().await?;
        // It may come in parts.
        while !is_whole(&word) && stream.read_buf(&mut word).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // In TLS 1.3 this is where a certificate of this side's is refused. Who leaves our preface unread
    // and closes resets the connection: what he said before counts.
    if let Err(error) = asked.await
        && word.is_empty()
    {
        return Err(DialError { why: words(&error), is_tls: is_of_tls(&error) });
    }
    match word.get(3) {
        Some(&FRAME_SETTINGS) => {
            // A server that sends this side away at once says both in one breath.
            let next = word.get(FRAME_HEADER_BYTES + length(&word)..).unwrap_or_default();
            if next.get(3) == Some(&FRAME_GOAWAY) {
                return Err(farewell(next));
            }
        }
        Some(&FRAME_GOAWAY) => return Err(farewell(&word)),
        _ if word.is_empty() && secured => {
            let why = "closed the connection: it is full, or stops";
            return Err(why.to_owned().into());
        }
        _ if word.is_empty() => return Err("closed the connection".to_owned().into()),
        _ if word[0] == TLS_ALERT => {
            return Err(DialError::tls("speaks TLS: name the CA that signed its certificate"));
        }
        _ => return Err("is no kvd: it does not speak HTTP/2".to_owned().into()),
    }
    Ok(Connection { stream, heard: word.into(), said: 0 })
}

/// Whether a first word tells what it is: of what may be a frame of HTTP/2, all of it.
fn is_whole(word: &[u8]) -> bool {
    match word {
        [TLS_ALERT, ..] => true,
        [_, _, _, FRAME_SETTINGS | FRAME_GOAWAY, ..] => {
            word.len() >= FRAME_HEADER_BYTES + length(word).min(FIRST_WORD_BYTES / 2)
        }
        _ => word.len() > 3,
    }
}

/// How long the payload of the frame is that begins here.
fn length(frame: &[u8]) -> usize {
    frame.iter().take(3).fold(0, |length, byte| length << 8 | usize::from(*byte))
}

/// What a server says that sends a client away with these words: its settings, and a farewell.
pub fn sending_away(words: &str) -> Vec<u8> {
    let words = &words.as_bytes()[..words.len().min(FIRST_WORD_BYTES / 2)];
    let length = (8 + words.len()) as u16;
    let mut said = vec![0, 0, 0, FRAME_SETTINGS, 0, 0, 0, 0, 0];
    said.extend([0]);
    said.extend(length.to_be_bytes());
    said.extend([FRAME_GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, INADEQUATE_SECURITY]);
    said.extend(words);
    said
}

/// The words that a node gave for sending this side away.
fn farewell(goaway: &[u8]) -> DialError {
    // Behind the header: the last stream, the code.
    let end = goaway.len().min(FRAME_HEADER_BYTES + length(goaway));
    let words = goaway.get(FRAME_HEADER_BYTES + 8..end);
    let words = String::from_utf8_lossy(words.unwrap_or_default());
    let why = if words.is_empty() { "closed the connection".into() } else { words.into_owned() };
    let is_tls = goaway.get(FRAME_HEADER_BYTES + 7) == Some(&INADEQUATE_SECURITY);
    DialError { why, is_tls }
}

/// A stream in either direction.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection whose first word was heard, to be read again. What an HTTP/2 client says first it
/// has said already, and swallows when it is said again.
struct Connection {
    stream: Box<dyn Stream>,
    heard: Bytes,
    said: usize,
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.heard.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, into);
        }
        let again = this.heard.len().min(into.remaining());
        into.put_slice(&this.heard.split_to(again));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let again = bytes.len().min(PREFACE.len() - this.said);
        if again > 0 {
            this.said += again;
            return Poll::Ready(Ok(again));
        }
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.said < PREFACE.len() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(context, first.map_or(&[], |slice| slice));
        }
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.get_mut().stream).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const SETTINGS: &[u8] = &[0, 0, 0, FRAME_SETTINGS, 0, 0, 0, 0, 0];

    /// What comes of connecting to a port where `said` is said.
    async fn connect_where(said: &'static [u8]) -> Result<Connection, DialError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut preface = vec![0; PREFACE.len()];
            stream.read_exact(&mut preface).await.unwrap();
            // In two parts, the first too short to tell anything.
            let (first, rest) = said.split_at(said.len().min(2));
            stream.set_nodelay(true).unwrap();
            stream.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            stream.write_all(rest).await.unwrap();
        };
        let dial = Dial::default();
        let connect = dial.connect(&address, Duration::from_secs(10));
        tokio::join!(connect, serve).0
    }

    #[tokio::test]
    async fn only_a_port_where_http2_is_spoken_is_connected_to() {
        assert!(connect_where(SETTINGS).await.is_ok());
        let why = async |said| connect_where(said).await.err().unwrap().why;
        assert!(why(b"HTTP/1.1 400 Bad Request\r\n").await.contains("no kvd"));
        assert!(why(b"\x15\x03\x01\0\x02\x02\x46").await.contains("speaks TLS"));
        assert!(why(b"").await.contains("closed the connection"));
        let goaway = b"\0\0\x0d\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cwords";
        assert_eq!(why(goaway).await, "words");
        assert_eq!(why(sending_away("TLS is spoken here").leak()).await, "TLS is spoken here");
    }

    #[tokio::test]
    async fn the_preface_is_said_once_however_it_is_said_again() {
        let (near, mut far) = tokio::io::duplex(64);
        let heard = Bytes::from_static(b"heard");
        let mut connection = Connection { stream: Box::new(near), heard, said: 0 };
        for part in PREFACE.chunks(7) {
            connection.write_all(part).await.unwrap();
        }
        connection.write_all(b"and on").await.unwrap();
        let mut heard = [0; 6];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"and on");
        far.write_all(b" it all").await.unwrap();
        let mut heard = [0; 12];
        connection.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"heard it all");
    }

    #[test]
    fn a_certificate_is_asked_for_the_host_alone() {
        let name = |address| server_name(address).map(|name| name.to_str().into_owned());
        assert_eq!(name("db1.example.net:7400").unwrap(), "db1.example.net");
        assert_eq!(name("127.0.0.1:7400").unwrap(), "127.0.0.1");
        assert_eq!(name("[::1]:7400").unwrap(), "::1");
        assert!(name("not a host:1").is_err());
    }
}
