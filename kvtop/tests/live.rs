//! The feed against nodes that live and die.

mod fixture;
#[path = "fixture/server.rs"]
mod server;

use kvtop::app::{App, Effect, Link};
use kvtop::args::Way;
use kvtop::event::{Event, Feed};
use kvtop::feed;
use kvtop::keymap::Action;
use kvtop::state::Millis;
use server::cluster;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as Millis
}

/// A dashboard with its feed, without a screen.
struct Session {
    app: App,
    feed: feed::Handle,
}

impl Session {
    fn start(endpoint: &str, interval: Millis) -> Self {
        let endpoints = vec![endpoint.to_owned()];
        Self {
            app: App::new(&endpoints, interval, now()),
            feed: feed::start(Way::clear(endpoints), interval),
        }
    }

    /// Goes on until `done`, for ten seconds at most.
    async fn until(&mut self, what: &str, done: impl Fn(&App) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(10), async {
            while !done(&self.app) {
                let event = self.feed.events.recv().await.expect("the feed goes on");
                self.app.update(event, now());
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not within 10 s: {what}; {:?}", self.app.link));
    }
}

fn viewpoint(app: &App) -> &str {
    app.cluster().map_or("", |cluster| &cluster.view.viewpoint)
}

#[tokio::test]
async fn it_goes_on_through_another_node_when_its_own_dies_and_survives_the_last() {
    let (mut fakes, scene) = cluster(&[]);
    let mut session = Session::start(&fakes[0].address, 250);
    session.until("rates", |app| app.cluster().is_some_and(|c| c.totals().0.is_some())).await;
    assert_eq!(viewpoint(&session.app), "n1");

    drop(fakes.remove(0));
    scene.send_modify(|scene| Arc::make_mut(scene).down = vec![1]);
    session
        .until("another viewpoint", |app| viewpoint(app) == "n2" || viewpoint(app) == "n3")
        .await;
    let cluster = session.app.cluster().expect("a cluster");
    assert!(cluster.log.newest().any(|entry| entry.text.contains("before via n1")));

    drop(fakes);
    session.until("lost", |app| matches!(app.link, Link::Lost { .. })).await;
    assert!(session.app.cluster().is_some(), "the last picture stays");
    session
        .until("it tries them all", |app| {
            app.attempt.as_ref().is_some_and(|attempt| attempt.position == 3)
        })
        .await;
}

#[tokio::test]
async fn the_interval_can_change_while_it_runs() {
    let (fakes, _scene) = cluster(&[]);
    let mut session = Session::start(&fakes[1].address, 60_000);
    session.until("a first sample before the first interval is over", |app| app.samples == 1).await;
    while session.app.interval > 250 {
        match session.app.update(Event::Key(Action::Faster), now()) {
            Effect::Interval(interval) => session.feed.pace(interval),
            other => panic!("{other:?}"),
        }
    }
    session.until("samples at the new interval", |app| app.samples >= 4).await;
}

#[tokio::test]
async fn a_node_that_takes_connections_but_never_answers_is_passed_over() {
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (fakes, _scene) = cluster(&[]);
    let endpoints = vec![frozen.local_addr().expect("bound").to_string(), fakes[2].address.clone()];
    let app = App::new(&endpoints, 1_000, now());
    let mut session = Session { app, feed: feed::start(Way::clear(endpoints), 1_000) };
    session.until("a sample", |app| app.samples > 0).await;
    assert_eq!(viewpoint(&session.app), "n3");
}

#[tokio::test]
async fn what_a_view_shows_besides_is_asked_for_only_while_it_is_open() {
    let (fakes, _scene) = cluster(&[]);
    let mut session = Session::start(&fakes[0].address, 250);
    session.until("a sample", |app| app.samples > 0).await;
    session.app.update(Event::Key(Action::Lag), now());
    session.feed.want(session.app.wants());
    let told = |app: &App| {
        let cluster = app.cluster().expect("a cluster");
        cluster.partitions(app.now).is_some() && cluster.repair(app.now).is_some()
    };
    session.until("partitions and repair", told).await;
    session.app.update(Event::Key(Action::Ring), now());
    session.feed.want(session.app.wants());
    let told = |app: &App| {
        let cluster = app.cluster().expect("a cluster");
        cluster.ring().is_some() && cluster.moves(app.now).is_some()
    };
    session.until("layout and operations", told).await;

    session.app.update(Event::Key(Action::Overview), now());
    session.feed.want(session.app.wants());
    let mut after = 0;
    let ended = tokio::time::sleep(Duration::from_secs(4));
    tokio::pin!(ended);
    loop {
        tokio::select! {
            event = session.feed.events.recv() => {
                let event = event.expect("the feed goes on");
                let asked = matches!(event, Event::Feed(Feed::Layout(_) | Feed::Ops(_)));
                after += usize::from(asked);
            }
            () = &mut ended => break,
        }
    }
    assert!(after <= 2, "one question may have been under way: {after}");
}
