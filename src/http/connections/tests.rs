//! Connections over real sockets, by a server of a few routes.

use std::io::ErrorKind;
use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::routing::get;
use futures::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;

const IDLE: Duration = Duration::from_millis(400);
/// Far longer than anything here should take.
const LONG: Duration = Duration::from_secs(20);
const GET: &[u8] = b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n";

struct Server {
    addr: SocketAddr,
    closing: CancellationToken,
    running: JoinHandle<()>,
    /// Is told of every endless body that is let go of.
    dropped: mpsc::UnboundedReceiver<()>,
}

impl Server {
    async fn start(most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (drop_told, dropped) = mpsc::unbounded_channel();
        let endless = move || {
            let guard = Told(drop_told.clone());
            let pieces = stream::repeat(Bytes::from(vec![b'x'; 1 << 16]));
            let body = pieces.map(move |piece| {
                let _in_the_body = &guard;
                Ok::<_, Infallible>(piece)
            });
            async { Body::from_stream(body) }
        };
        let slow = || async {
            sleep(3 * IDLE).await;
            "done"
        };
        let router = Router::new()
            .route("/slow", get(slow))
            .route("/endless", get(endless));
        let closing = CancellationToken::new();
        let running = tokio::spawn(serve(
            listener,
            router,
            ConnectionLimits { most, idle: IDLE },
            closing.clone(),
        ));
        Self {
            addr,
            closing,
            running,
            dropped,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("a connection")
    }

    async fn connect_and_send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.expect("sent");
        stream
    }

    async fn stop(self) {
        self.closing.cancel();
        let stopped = timeout(LONG, self.running).await;
        stopped.expect("in time").expect("no panic");
    }
}

/// Says so when it is dropped.
struct Told(mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _nobody_may_listen = self.0.send(());
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

#[tokio::test]
async fn who_asks_nothing_is_let_go_of() {
    let server = Server::start(9).await;
    for begun in [
        &b""[..],
        b"PRI",
        b"GET /slow HTT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let text = read_to_end(server.connect_and_send(begun).await).await;
        assert!(!text.contains("done"), "{text}");
    }
    server.stop().await;
}

#[tokio::test]
async fn answers_may_take_longer_and_connections_are_used_again() {
    let server = Server::start(9).await;
    let mut stream = server.connect_and_send(GET).await;
    for _ in 0..2 {
        let mut answer = vec![0; 1024];
        let read = timeout(LONG, stream.read(&mut answer))
            .await
            .expect("in time")
            .expect("read");
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"),
            "{answer}"
        );
        stream.write_all(GET).await.expect("sent");
    }
    // The third is answered, then nothing more is asked.
    assert!(read_to_end(stream).await.ends_with("done"));
    server.stop().await;
}

#[tokio::test]
async fn who_stops_reading_is_let_go_of() {
    let mut server = Server::start(9).await;
    let stream = server
        .connect_and_send(b"GET /endless HTTP/1.1\r\nhost: here\r\n\r\n")
        .await;
    let dropped = timeout(LONG, server.dropped.recv()).await;
    assert_eq!(dropped.expect("in time"), Some(()));
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn no_more_than_may_be_at_a_time() {
    let server = Server::start(1).await;
    let first = server.connect_and_send(GET).await;
    let second = server
        .connect_and_send(b"GET /slow HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        .await;
    // The first has been answered and let go of before the second gets a place: it takes its time and its idleness.
    let started = tokio::time::Instant::now();
    let (first, second) = tokio::join!(read_to_end(first), read_to_end(second));
    assert!(first.ends_with("done") && second.ends_with("done"));
    assert!(started.elapsed() >= 6 * IDLE, "one after the other");
    server.stop().await;
}

#[tokio::test]
async fn closing_ends_what_is_idle_at_once_and_lets_the_rest_finish() {
    let server = Server::start(9).await;
    let (idle, busy) = (server.connect().await, server.connect_and_send(GET).await);
    sleep(IDLE / 4).await;
    let (answer, ()) = tokio::join!(read_to_end(busy), server.stop());
    assert!(answer.ends_with("done"), "{answer}");
    assert_eq!(read_to_end(idle).await, "");
}
