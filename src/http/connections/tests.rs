//! Connections over real sockets, by a server of a few routes.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::routing::get;
use futures::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

const IDLE: Duration = Duration::from_secs(1);
/// Bytes of the large route's answer, which no socket holds.
const LARGE: usize = 1 << 25;
/// How long the slow route takes.
const SLOW: Duration = Duration::from_millis(1500);
/// Far longer than anything here should take.
const LONG: Duration = Duration::from_secs(20);
const GET: &[u8] = b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n";

/// What a server's routes tell of themselves.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// Somebody asks.
    Asked,
    /// An endless body is let go of.
    Dropped,
}

struct Server {
    addr: SocketAddr,
    closing: CancellationToken,
    running: JoinHandle<()>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Server {
    async fn start(limits: ConnectionLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (tell, events) = mpsc::unbounded_channel();
        let endless = {
            let tell = tell.clone();
            move || {
                let guard = Told(tell.clone());
                let pieces = stream::repeat(Bytes::from(vec![b'x'; 1 << 16]));
                let body = pieces.map(move |piece| {
                    let _in_the_body = &guard;
                    Ok::<_, Infallible>(piece)
                });
                async { Body::from_stream(body) }
            }
        };
        let slow = move || {
            let _nobody_may_listen = tell.send(Event::Asked);
            async {
                sleep(SLOW).await;
                "done"
            }
        };
        let router = Router::new()
            .route("/slow", get(slow))
            .route("/large", get(|| async { vec![b'x'; LARGE] }))
            .route("/endless", get(endless));
        let closing = CancellationToken::new();
        let running = tokio::spawn(serve(listener, router, limits, closing.clone()));
        Self {
            addr,
            closing,
            running,
            events,
        }
    }

    /// One with room for many, which soon lets go of who does nothing.
    async fn impatient() -> Self {
        Self::start(ConnectionLimits { most: 9, idle: IDLE }).await
    }

    /// One with room for so many, which is patient with them.
    async fn patient(most: usize) -> Self {
        Self::start(ConnectionLimits { most, idle: LONG }).await
    }

    async fn connect_and_send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.expect("a connection");
        stream.write_all(bytes).await.expect("sent");
        stream
    }

    /// A connection whose request is being answered, slowly.
    async fn connect_and_be_busy(&mut self) -> TcpStream {
        let stream = self.connect_and_send(GET).await;
        assert_eq!(self.next_event().await, Event::Asked);
        stream
    }

    async fn next_event(&mut self) -> Event {
        let event = timeout(LONG, self.events.recv()).await;
        event.expect("in time").expect("the server runs")
    }

    async fn stop(self) {
        self.closing.cancel();
        let stopped = timeout(LONG, self.running).await;
        stopped.expect("in time").expect("no panic");
    }
}

/// Says so when it is dropped.
struct Told(mpsc::UnboundedSender<Event>);

impl Drop for Told {
    fn drop(&mut self) {
        let _nobody_may_listen = self.0.send(Event::Dropped);
    }
}

/// All that arrives until the connection is closed.
async fn read_to_end(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    match timeout(LONG, stream.read_to_end(&mut text)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => {}
        read => drop(read.expect("closed in time").expect("read")),
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// One answer of the slow route.
async fn read_answer(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"done") {
        let read = timeout(LONG, stream.read_buf(&mut answer)).await;
        assert!(read.expect("in time").expect("read") > 0, "{answer:?}");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
}

#[tokio::test]
async fn who_asks_nothing_is_let_go_of() {
    let server = Server::impatient().await;
    for begun in [
        &b""[..],
        b"GET /slow HTT",
        b"GET /slow HTTP/1.1\r\nhost: here\r\n",
    ] {
        assert_eq!(read_to_end(server.connect_and_send(begun).await).await, "");
    }
    server.stop().await;
}

#[tokio::test]
async fn answers_may_take_longer_and_connections_are_used_again() {
    let server = Server::impatient().await;
    let mut stream = server.connect_and_send(GET).await;
    for _ in 0..2 {
        read_answer(&mut stream).await;
        stream.write_all(GET).await.expect("sent");
    }
    // The third is answered, then nothing more is asked.
    assert!(read_to_end(stream).await.ends_with("done"));
    server.stop().await;
}

#[tokio::test]
async fn who_stops_reading_is_let_go_of() {
    let mut server = Server::impatient().await;
    let endless = b"GET /endless HTTP/1.1\r\nhost: here\r\n\r\n";
    let stream = server.connect_and_send(endless).await;
    assert_eq!(server.next_event().await, Event::Dropped);
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn the_oldest_makes_room_for_one_more() {
    let server = Server::patient(2).await;
    let mut oldest = server.connect_and_send(GET).await;
    sleep(2 * CROWDED).await;
    let mut newer = server.connect_and_send(GET).await;
    tokio::join!(read_answer(&mut oldest), read_answer(&mut newer));
    let mut last = server.connect_and_send(GET).await;
    assert_eq!(read_to_end(oldest).await, "", "it is closed");
    newer.write_all(GET).await.expect("sent");
    tokio::join!(read_answer(&mut newer), read_answer(&mut last));
    server.stop().await;
}

#[tokio::test]
async fn who_is_busy_makes_room_once_it_is_answered_and_the_next_may_take_its_time() {
    let mut server = Server::patient(1).await;
    let busy = server.connect_and_be_busy().await;
    let mut last = server.connect_and_send(b"").await;
    assert!(read_to_end(busy).await.ends_with("done"));
    sleep(SLOW).await;
    last.write_all(GET).await.expect("sent");
    read_answer(&mut last).await;
    server.stop().await;
}

#[tokio::test]
async fn half_a_head_keeps_nobody_out() {
    let server = Server::patient(2).await;
    let mut once_answered = server.connect_and_send(GET).await;
    read_answer(&mut once_answered).await;
    once_answered.write_all(b"GET /slow HTT").await.expect("sent");
    let _never_answered = server.connect_and_send(b"GET /slow HTTP/1.1\r\nhos").await;
    let [mut first, mut second] = [
        server.connect_and_send(GET).await,
        server.connect_and_send(GET).await,
    ];
    // Far sooner than those are let go of for doing nothing.
    for answered in [&mut first, &mut second] {
        timeout(LONG / 2, read_answer(answered)).await.expect("in time");
    }
    server.stop().await;
}

#[tokio::test]
async fn who_reads_slowly_gets_all_of_an_answer() {
    let server = Server::patient(1).await;
    let mut slow = server
        .connect_and_send(b"GET /large HTTP/1.1\r\nhost: here\r\n\r\n")
        .await;
    sleep(2 * CROWDED).await;
    slow.write_all(b"GET /slow HTT").await.expect("sent");
    let mut last = server.connect_and_send(GET).await;
    sleep(2 * HALF_A_HEAD).await;
    assert!(read_to_end(slow).await.len() > LARGE);
    read_answer(&mut last).await;
    server.stop().await;
}

#[tokio::test]
async fn closing_ends_what_is_idle_at_once_and_lets_the_rest_finish() {
    let mut server = Server::patient(9).await;
    let (idle, busy) = (
        server.connect_and_send(b"").await,
        server.connect_and_be_busy().await,
    );
    server.closing.cancel();
    assert_eq!(read_to_end(idle).await, "");
    let early = timeout(Duration::ZERO, busy.readable()).await;
    assert!(early.is_err(), "the other one is still being answered");
    assert!(read_to_end(busy).await.ends_with("done"));
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_dropped_cuts_off_what_is_under_way() {
    let mut server = Server::patient(9).await;
    let busy = server.connect_and_be_busy().await;
    server.running.abort();
    assert_eq!(read_to_end(busy).await, "");
}
