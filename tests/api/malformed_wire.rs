//! Bytes that are no HTTP, and requests that nobody here asked for.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use reqwest::Method;

use crate::caller::Answer;
use crate::database::Database;
use crate::refusals::{assert_alive, assert_refused};
use crate::test_app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_sites_change_nothing() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let teach = || app.post("/v1/models/default/tasks?name=birds").body("x");
    let groups = vec![(
        403,
        "foreign_origin",
        vec![
            ("another site", teach().header("sec-fetch-site", "cross-site")),
            ("an older browser", teach().header("origin", "http://elsewhere")),
        ],
    )];
    assert_refused(&app, groups).await;
    let own = teach().header("origin", &app.origin);
    assert_ne!(Answer::to(own).await.status, 403);
    let read = app
        .request(Method::GET, "/v1/models")
        .header("sec-fetch-site", "cross-site");
    assert_eq!(Answer::to(read).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_http() {
    let app = TestApp::start(&Database::sqlite(), &[]).await;
    let megabyte = vec![b'x'; 1 << 20];
    let get = b"GET /healthz HTTP/1.1\r\n";
    let post = b"POST /v1/embed HTTP/1.1\r\nhost: x\r\n";
    let exchanges = [
        (
            "noise",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        ),
        ("a header of a megabyte", [&get[..], b"x: ", &megabyte].concat()),
        (
            "a thousand headers",
            [&get[..], &b"a: b\r\n".repeat(1000), b"\r\n"].concat(),
        ),
        (
            "a path of a megabyte",
            [b"GET /", &megabyte[..], b" HTTP/1.1\r\n\r\n"].concat(),
        ),
        (
            "a length in words",
            [&post[..], b"content-length: many\r\n\r\n"].concat(),
        ),
        (
            "two lengths",
            [&post[..], b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"].concat(),
        ),
        (
            "a body that ends early",
            [&post[..], b"content-length: 100\r\n\r\nabc"].concat(),
        ),
        (
            "a chunk of a broken size",
            [
                &post[..],
                b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
            ]
            .concat(),
        ),
    ];
    for (what, bytes) in exchanges {
        let address = app.origin.trim_start_matches("http://").to_owned();
        let exchange = tokio::task::spawn_blocking(move || exchange(&address, &bytes));
        let answer = exchange.await.expect("no panic");
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused, "{what}: {answer}");
        assert_alive(&app, what).await;
    }
}

/// Sends the bytes and reads until the server hangs up.
fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    stream
        .set_read_timeout(Some(Duration::from_mins(1)))
        .expect("a timeout");
    let mut answer = Vec::new();
    // The server may hang up before it has read everything; what counts is what it said until then.
    let _ = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
