//! kvtop: arguments, then the terminal, then one loop over keys, network and time.

use anyhow::{Context, Result};
use clap::Parser;
use crossterm::event::{Event as TerminalEvent, EventStream};
use futures_util::StreamExt;
use kvtop::app::{App, Effect};
use kvtop::args::{Args, Output, Way};
use kvtop::event::Event;
use kvtop::terminal::Screen;
use kvtop::view::theme::Theme;
use kvtop::{feed, keymap, once, state::Millis, view};
use std::io::{ErrorKind, IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// Ages on screen are at most this far behind.
const TICK: Duration = Duration::from_millis(500);

const EXIT_USAGE: u8 = 2;
const EXIT_UNREACHABLE: u8 = 6;
const EXIT_NOT_OK: u8 = 11;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("kvtop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<u8> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let theme = args.theme(|name| std::env::var(name).ok());
    let way = match args.way(|name| std::env::var(name).ok()) {
        Ok(way) => way,
        Err(why) => {
            eprintln!("kvtop: {why}");
            return Ok(EXIT_USAGE);
        }
    };
    let code = if args.once || !stdout().is_terminal() {
        runtime.block_on(print(args, way, theme))
    } else {
        runtime.block_on(dashboard(args, way, theme))
    };
    // A name that takes long to resolve must not delay the end.
    runtime.shutdown_background();
    code
}

async fn print(args: Args, way: Way, theme: Theme) -> Result<u8> {
    let mut app = App::new(&way.endpoints, args.interval, now());
    let feed = feed::start(way, args.interval);
    app.show(args.view.screen());
    feed.want(app.wants());
    let app = match once::collect(app, feed, args.sampling, now).await {
        Ok(app) => app,
        Err(why) => {
            eprintln!("kvtop: {why}");
            return Ok(EXIT_UNREACHABLE);
        }
    };
    let size = args.size.or_else(terminal_size).unwrap_or((80, 24));
    let printed = match args.output {
        Output::Text => once::text(&app, &theme, size),
        Output::Ansi => once::ansi(&app, &theme, size),
        Output::Json => format!("{:#}\n", once::json(&app)),
    };
    match stdout().write_all(printed.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error).context("write"),
        _ => {}
    }
    if !args.once {
        eprintln!("kvtop: not a terminal, so this was one frame; see --once");
    }
    let well = app.cluster().is_some_and(|cluster| cluster.level() == kvtop::state::Level::Ok);
    Ok(if well && !app.stale() { 0 } else { EXIT_NOT_OK })
}

async fn dashboard(args: Args, way: Way, theme: Theme) -> Result<u8> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::take().context("take over the terminal")?;
    let mut app = App::new(&way.endpoints, args.interval, now());
    app.show(args.view.screen());
    screen.draw(|area, buf| view::render(&app, &theme, area, buf))?;
    let mut feed = feed::start(way, args.interval);
    let mut keys = EventStream::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            biased;
            code = signals.next() => return Ok(code),
            key = keys.next() => match key {
                Some(key) => pressed(key.context("read keys")?),
                None => return Ok(0),
            },
            event = feed.events.recv() => event.context("the network part ended")?,
            _ = tick.tick() => Event::Tick,
        };
        match app.update(event, now()) {
            Effect::Quit => return Ok(0),
            Effect::Interval(interval) => feed.pace(interval),
            Effect::None => {}
        }
        feed.want(app.wants());
        screen.draw(|area, buf| view::render(&app, &theme, area, buf))?;
        panic_if_asked();
    }
}

fn pressed(event: TerminalEvent) -> Event {
    match event {
        TerminalEvent::Key(key) => keymap::action(key).map_or(Event::Tick, Event::Key),
        _ => Event::Tick,
    }
}

/// Signals that end the dashboard, with the exit codes they are known by.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as Millis)
}

fn terminal_size() -> Option<(u16, u16)> {
    if !stdout().is_terminal() {
        return None;
    }
    crossterm::terminal::size().ok().filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// Lets a test see that a panic leaves the terminal as it was. Not in a release.
fn panic_if_asked() {
    if cfg!(debug_assertions) && std::env::var_os("KVTOP_TEST_PANIC").is_some() {
        panic!("asked for by KVTOP_TEST_PANIC");
    }
}
