//! Connections: as many as may be at a time, let go of when nothing goes on in them, and closed in order.

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::serve::Listener;
use futures::FutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::metrics;

/// How long a new connection waits for a place before one more of the others is asked to end; and how long one that has
/// a place is not asked.
const CROWDED: Duration = Duration::from_millis(20);

/// How long one that was asked to end may have half of the head of its first request. Half of another one counts for nothing.
const HALF_A_HEAD: Duration = Duration::from_secs(1);

/// Bounds on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at a time.
    pub most: usize,
    /// How long nothing may go on in one.
    pub idle: Duration,
}

/// Answers requests until `closing` is cancelled, and then until those under way have ended. Dropped, it cuts them off.
///
/// A connection is closed when for [`ConnectionLimits::idle`] no request's head has arrived whole, or nobody has taken anything
/// of an answer; a request under way may take as long as its handler lets it. Where all places are taken and one more
/// arrives, the oldest are asked, one after another, to end when they have answered: at once where nothing has arrived of a
/// next request, or not all of its head. One that still waits for a place when `closing` is cancelled is not answered.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    closing: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.most.min(Semaphore::MAX_PERMITS)));
    let connection = Connection {
        router: router.with_state(()),
        idle: limits.idle,
        crowded: Arc::new(Notify::new()),
        closing: closing.clone(),
    };
    let mut open = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = closing.cancelled() => break,
        };
        while open.try_join_next().is_some() {}
        let place = tokio::select! {
            place = place(&places, &connection.crowded) => place,
            () = closing.cancelled() => break,
        };
        let connection = connection.clone();
        open.spawn(async move {
            let _open = Open::new(place);
            connection.answer(stream).await;
        });
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// A place for one more connection.
async fn place(places: &Arc<Semaphore>, crowded: &Notify) -> OwnedSemaphorePermit {
    let mut free = pin!(Arc::clone(places).acquire_owned());
    let mut need = interval(CROWDED);
    // One at a time, also where this comes late.
    need.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let place = loop {
        tokio::select! {
            biased;
            place = &mut free => break place,
            _ = need.tick() => crowded.notify_one(),
        }
    };
    // Where all had been asked, the last word is still to be heard: not by the one that comes in now.
    let _unheard = crowded.notified().now_or_never();
    place.expect("nobody closes the semaphore")
}

/// A connection's place, and its part of the metrics.
struct Open {
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(place: OwnedSemaphorePermit) -> Self {
        metrics::connection_opened();
        Self { _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::connection_closed();
    }
}

/// What every connection has.
#[derive(Clone)]
struct Connection {
    router: Router,
    idle: Duration,
    /// Tells the one that has listened longest that its place is needed.
    crowded: Arc<Notify>,
    closing: CancellationToken,
}

impl Connection {
    /// Answers what is asked on a stream, to its end.
    async fn answer(self, stream: TcpStream) {
        // What is written is all there is to say for now.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is gone");
            return;
        }
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.idle));
        let router = self.router;
        let has_asked = AtomicBool::new(false);
        let service = service_fn(|request: Request<Incoming>| {
            has_asked.store(true, Ordering::Relaxed);
            router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut connection = pin!(connection);
        let asked_to_end = async {
            sleep(CROWDED).await;
            self.crowded.notified().await;
        };
        let ended = tokio::select! {
            // A request that has arrived is answered.
            biased;
            ended = connection.as_mut() => ended,
            () = asked_to_end => {
                connection.as_mut().graceful_shutdown();
                match timeout(HALF_A_HEAD, connection.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) if has_asked.load(Ordering::Relaxed) => connection.await,
                    Err(_) => Ok(()),
                }
            }
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}
