//! Threads of their own for what clients ask. What nodes say to each other runs on others, which get
//! the greater share of a core that both want: however many clients there are and whatever they do,
//! a node hears its peers and answers them.

use rustix::process::{getpriority_process, setpriority_process};
use std::io;
use tokio::runtime::{Builder, Handle, Runtime};

/// How much less a client's request counts than a peer's where both wait for a processor, in steps of
/// niceness: a third of its share.
const NICER_BY: i32 = 5;

/// The threads for clients, as long as this lives.
pub struct ClientThreads(Option<Runtime>);

impl ClientThreads {
    /// Starts them, as many as there are processors.
    ///
    /// # Errors
    /// The system has none left.
    pub fn start() -> io::Result<Self> {
        // Said once and for all: a thread inherits it from whichever thread starts it.
        let niceness = (getpriority_process(None).unwrap_or(0) + NICER_BY).min(19);
        let mut threads = Builder::new_multi_thread();
        threads.enable_all().thread_name("kvd-clients").on_thread_start(move || {
            // Where it is refused, threads alone keep the two apart.
            let _ = setpriority_process(Some(rustix::thread::gettid()), niceness);
        });
        threads.build().map(|runtime| Self(Some(runtime)))
    }

    /// To spawn on them.
    ///
    /// # Panics
    /// Never: they are there until this is dropped.
    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("taken when dropped").handle()
    }
}

impl Drop for ClientThreads {
    fn drop(&mut self) {
        // Whoever drops it must not wait, and need not: all that counts was drained before.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
