//! Tables of requests that must be refused, each with its own status and code, by a server that goes on answering.

use reqwest::RequestBuilder;

use crate::caller::{Answer, Caller};
use crate::pictures::png;
use crate::scene::CLASSIFY;
use crate::test_app::TestApp;

/// What the refusals of a group have in common, and the requests with what is wrong with them.
pub(crate) type Group = (u16, &'static str, Vec<(&'static str, RequestBuilder)>);

/// Sends every request and fails unless each is refused as said and the server still classifies after each.
pub(crate) async fn assert_refused(app: &TestApp, groups: Vec<Group>) {
    for (status, code, requests) in groups {
        for (what, request) in requests {
            let answer = Answer::to(request).await;
            assert_eq!(answer.status, status, "{what}: {}", answer.text);
            let problem = answer.problem(status, code);
            let detail = problem["detail"].as_str().expect("text");
            assert!(detail.len() < 1000, "{what}: {problem}");
            assert_alive(app, what).await;
        }
    }
}

/// Fails unless the server still classifies.
pub(crate) async fn assert_alive(app: &Caller, after: &str) {
    let request = app
        .post(CLASSIFY)
        .query(&[("labels", "a,b")])
        .body(png("poppy", 1));
    assert_eq!(Answer::to(request).await.status, 200, "after {after}");
}

/// The head of a PNG file that claims these dimensions, with nothing behind it.
pub(crate) fn png_of(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut sum = u32::MAX;
        for byte in kind.iter().chain(data) {
            sum ^= u32::from(*byte);
            for _ in 0..8 {
                sum = (sum >> 1) ^ (0xEDB8_8320 * (sum & 1));
            }
        }
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], kind, data, &(!sum).to_be_bytes()].concat()
    };
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&size[..], &[8, 2, 0, 0, 0]].concat();
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    [
        signature,
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &[]),
        chunk(b"IEND", &[]),
    ]
    .concat()
}
