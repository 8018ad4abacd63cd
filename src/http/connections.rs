//! Connections: as many as may be at a time, let go of when nothing goes on in them, and closed in order.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::metrics;

/// Bounds on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at a time; more wait to be accepted.
    pub most: usize,
    /// How long nothing may go on in one.
    pub idle: Duration,
}

/// Answers requests until `closing` is cancelled, and then until those under way have ended.
///
/// A connection is closed when for [`ConnectionLimits::idle`] no request's head has arrived whole, nobody has taken anything of
/// an answer, or an HTTP/2 ping was not answered. A request under way may take as long as its handler lets it.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    closing: CancellationToken,
) {
    let connection = Connection {
        router: router.with_state(()),
        idle: limits.idle,
        tasks: TaskTracker::new(),
        closing: closing.clone(),
    };
    let tasks = connection.tasks.clone();
    let places = Arc::new(Semaphore::new(limits.most));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (Listener::accept(&mut listener).await, place)
        };
        let ((stream, _), place) = tokio::select! {
            accepted = accepted => accepted,
            () = closing.cancelled() => break,
        };
        let connection = connection.clone();
        tasks.spawn(async move {
            metrics::connection_opened();
            connection.answer(stream).await;
            metrics::connection_closed();
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// What every connection has.
#[derive(Clone)]
struct Connection {
    router: Router,
    idle: Duration,
    /// HTTP/2 answers several requests of a connection at a time: each is a task, too.
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Connection {
    /// Answers what is asked on a stream, to its end.
    async fn answer(self, stream: TcpStream) {
        // Answers are written whole: there is nothing to wait for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is gone");
            return;
        }
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.idle));

        let has_asked = Arc::new(AtomicBool::new(false));
        let service = service_fn({
            let (router, has_asked) = (self.router, Arc::clone(&has_asked));
            move |request: Request<Incoming>| {
                has_asked.store(true, Ordering::Relaxed);
                let answer = router.clone().oneshot(request);
                async { answer.await as Result<Response, Infallible> }
            }
        });
        let mut builder = Builder::new(Tracked(self.tasks));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.idle)
            .keep_alive_timeout(self.idle);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(Box::pin(stream)), service));

        // Which of the protocols it is, is read without a bound on the time.
        let mut first = pin!(tokio::time::sleep(self.idle));
        let mut is_first_due = true;
        let mut is_open = true;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection broke off");
                    }
                    return;
                }
                () = &mut first, if is_first_due => {
                    if !has_asked.load(Ordering::Relaxed) {
                        tracing::debug!("a connection asked nothing");
                        return;
                    }
                    is_first_due = false;
                }
                () = self.closing.cancelled(), if is_open => {
                    connection.as_mut().graceful_shutdown();
                    is_open = false;
                }
            }
        }
    }
}

/// Has the server wait for what connections begin.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
