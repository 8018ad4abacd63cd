//! Every metric's name and meaning, one function an event.
//!
//! Base units and OpenTelemetry names. No label carries a value that a caller chooses, except the model's name,
//! which exists because an operator created it.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::domain::{JobState, ModelName, Summary, VersionNumber};

const HTTP_DURATION: &str = "http_server_request_duration_seconds";
const HTTP_CONNECTIONS: &str = "clipkeep_connections";
const HTTP_SHED: &str = "clipkeep_requests_shed_total";
const QUEUE_WAIT: &str = "clipkeep_queue_wait_seconds";
const QUEUE_DEPTH: &str = "clipkeep_queue_depth";
const DECODE_WAIT: &str = "clipkeep_decode_wait_seconds";
const DECODE: &str = "clipkeep_decode_seconds";
const FEATURE_CACHE: &str = "clipkeep_feature_cache_requests_total";
const ENCODE: &str = "clipkeep_encode_seconds";
const HEAD: &str = "clipkeep_head_seconds";
const KNOWN_WAIT: &str = "clipkeep_known_head_wait_seconds";
const KNOWN_HEAD: &str = "clipkeep_known_head_seconds";
const BATCH: &str = "clipkeep_batch_size";
const JOBS: &str = "clipkeep_jobs_total";
const JOB_DURATION: &str = "clipkeep_job_duration_seconds";
const ACTIVE: &str = "clipkeep_active_version";
const ACCURACY: &str = "clipkeep_accuracy_ratio";
const FORGETTING: &str = "clipkeep_forgetting_ratio";

/// How often what histograms were told is summed up.
const UPKEEP: Duration = Duration::from_secs(5);

const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const JOB_SECONDS: [f64; 9] = [0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0];
const IMAGES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Installs the process's recorder and describes every metric.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&SECONDS)?
        .set_buckets_for_metric(Matcher::Full(JOB_DURATION.to_owned()), &JOB_SECONDS)?
        .set_buckets_for_metric(Matcher::Full(BATCH.to_owned()), &IMAGES)?
        .install_recorder()?;
    describe_histogram!(
        HTTP_DURATION,
        Unit::Seconds,
        "Time from a request's head to its response's head"
    );
    describe_gauge!(HTTP_CONNECTIONS, "Connections that are open");
    describe_counter!(HTTP_SHED, "Requests refused because the server was at a limit");
    describe_histogram!(
        QUEUE_WAIT,
        Unit::Seconds,
        "Time an image or text waited for the device, by who waits for it"
    );
    describe_gauge!(
        QUEUE_DEPTH,
        "Images and texts that wait for the device, by who waits for them"
    );
    describe_histogram!(
        DECODE_WAIT,
        Unit::Seconds,
        "Time an image waited for a thread to decode it, or for one that decodes the same image, by who waits for it"
    );
    describe_histogram!(
        DECODE,
        Unit::Seconds,
        "Time to decode and resize one image, by who waits for it"
    );
    describe_counter!(
        FEATURE_CACHE,
        "Images looked up among those whose features are remembered, by outcome and by who asked; one that is remembered only by the time its turn comes is a miss"
    );
    describe_histogram!(
        ENCODE,
        Unit::Seconds,
        "Time of one batch in the backbone, by who waits for it"
    );
    describe_histogram!(
        HEAD,
        Unit::Seconds,
        "Time of one batch in its heads, by who waits for it"
    );
    describe_histogram!(
        KNOWN_WAIT,
        Unit::Seconds,
        "Time a request's images that were remembered when they were looked up waited for a head that was at others"
    );
    describe_histogram!(
        KNOWN_HEAD,
        Unit::Seconds,
        "Time of a head for images that were remembered when they were looked up, of all that waited for it"
    );
    describe_histogram!(BATCH, "Images or texts in a batch, by who waits for it");
    describe_counter!(JOBS, "Jobs that ended, by outcome");
    describe_histogram!(JOB_DURATION, Unit::Seconds, "Time a job ran");
    describe_gauge!(ACTIVE, "The version that answers");
    describe_gauge!(
        ACCURACY,
        "The active version's accuracy on all held-out images; NaN without any"
    );
    describe_gauge!(
        FORGETTING,
        "The active version's mean forgetting; NaN where it is not known"
    );
    Ok(handle)
}

/// Keeps the recorder's memory bounded until `stop` is cancelled: what histograms were told waits in a buffer, which
/// otherwise only grows for as long as nobody reads the metrics.
pub async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(UPKEEP) => handle.run_upkeep(),
        }
    }
}

/// A request was answered, or given up. `route` is the matched pattern, never the path.
pub fn request_ended(method: &'static str, route: &str, status: u16, took: Duration) {
    histogram!(HTTP_DURATION, "http_request_method" => method, "http_route" => route.to_owned(),
        "http_response_status_code" => status.to_string())
    .record(took);
}

/// A connection was accepted.
pub fn connection_opened() {
    gauge!(HTTP_CONNECTIONS).increment(1);
}

/// A connection is closed.
pub fn connection_closed() {
    gauge!(HTTP_CONNECTIONS).decrement(1);
}

/// A request was refused because the server was at a limit.
pub fn request_shed() {
    counter!(HTTP_SHED).increment(1);
}

/// An image or text of some priority is answered that waited so long.
pub fn queue_waited(priority: &'static str, time: Duration) {
    histogram!(QUEUE_WAIT, "priority" => priority).record(time);
}

/// What waits for the device now, of some priority.
pub fn queue_depth(priority: &'static str, depth: usize) {
    gauge!(QUEUE_DEPTH, "priority" => priority).set(depth as f64);
}

/// An image of some priority waited so long for a thread to decode it, or for one that decodes the same image.
pub fn decode_waited(priority: &'static str, time: Duration) {
    histogram!(DECODE_WAIT, "priority" => priority).record(time);
}

/// An image of some priority was decoded and resized.
pub fn image_decoded(priority: &'static str, took: Duration) {
    histogram!(DECODE, "priority" => priority).record(took);
}

/// An image of some priority was looked up among those whose features are remembered: a `hit` or a `miss`.
pub fn features_looked_up(priority: &'static str, outcome: &'static str) {
    counter!(FEATURE_CACHE, "priority" => priority, "outcome" => outcome).increment(1);
}

/// A batch of some priority went through the backbone and its heads.
pub fn batch_encoded(priority: &'static str, size: usize, encode: Duration, head: Duration) {
    histogram!(BATCH, "priority" => priority).record(size as f64);
    histogram!(ENCODE, "priority" => priority).record(encode);
    histogram!(HEAD, "priority" => priority).record(head);
}

/// A request's images whose features are remembered waited so long for their head.
pub fn known_waited(time: Duration) {
    histogram!(KNOWN_WAIT).record(time);
}

/// A head scored images whose features are remembered, all who waited for it.
pub fn known_scored(took: Duration) {
    histogram!(KNOWN_HEAD).record(took);
}

/// A job came to its end.
pub fn job_ended(outcome: JobState) {
    counter!(JOBS, "outcome" => outcome.as_str()).increment(1);
}

/// A job ran to its end.
pub fn job_ran(time: Duration) {
    histogram!(JOB_DURATION).record(time);
}

/// A version answers from now on.
pub fn version_activated(model: &ModelName, version: VersionNumber) {
    gauge!(ACTIVE, "model" => model.to_string()).set(f64::from(version.0));
}

/// What the active version reaches on the held-out images. What is not known is no number: the figures of the version before would
/// be those of another one.
pub fn accuracy_measured(model: &ModelName, summary: Option<Summary>) {
    let known = |figure: fn(Summary) -> Option<f64>| summary.and_then(figure).unwrap_or(f64::NAN);
    gauge!(ACCURACY, "model" => model.to_string()).set(known(|summary| summary.last));
    gauge!(FORGETTING, "model" => model.to_string()).set(known(|summary| summary.forgetting));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn upkeep_ends_when_it_is_told_to() {
        let handle = PrometheusBuilder::new().build_recorder().handle();
        let stop = CancellationToken::new();
        let upkeep = tokio::spawn(upkeep(handle, stop.clone()));
        stop.cancel();
        upkeep.await.expect("no panic");
    }
}
