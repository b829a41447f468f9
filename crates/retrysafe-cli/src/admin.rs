//! What operators ask the proxy: `/livez`, `/readyz` and `/metrics`, on an address of their own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use retrysafe::store::{DynInspect, StoreErrorKind};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::Failure;

/// How long the store may take to show that it is there.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// What is said of a store that takes longer.
const LATE: &str = "the store does not answer in time";
/// How often histograms are drained, so that they don't grow when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

const SECONDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
];
const BYTES: [f64; 9] =
    [64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Answers operators.
#[derive(Clone)]
pub(crate) struct Admin {
    inspect: Arc<dyn DynInspect>,
    stopping: CancellationToken,
    metrics: PrometheusHandle,
}

impl Admin {
    /// Begins to count. Once per process.
    ///
    /// # Errors
    ///
    /// If something else counts already.
    pub(crate) fn new(
        inspect: Arc<dyn DynInspect>,
        stopping: CancellationToken,
    ) -> Result<Self, Failure> {
        let metrics = record_metrics()?;
        let upkeep = metrics.clone();
        tokio::spawn(async move {
            let mut ticks = interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        Ok(Self { inspect, stopping, metrics })
    }

    /// Answers one request.
    pub(crate) async fn answer<B>(self, request: Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "alive\n"),
            "/readyz" => match self.readiness().await {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics.render());
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
                );
                response
            }
            _ => text(StatusCode::NOT_FOUND, "/livez, /readyz or /metrics\n"),
        }
    }

    /// Ready is who accepts requests and reaches the store.
    async fn readiness(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("stopping".to_owned());
        }
        match timeout(READY_WITHIN, self.inspect.answers()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::chain(&error), "not ready: the store failed");
                Err(match error.kind() {
                    StoreErrorKind::Unreachable => "the store can't be reached",
                    StoreErrorKind::Timeout => LATE,
                    StoreErrorKind::Misconfigured => {
                        "the store is not set up as it has to be: see the log"
                    }
                    _ => "the store failed: see the log",
                }
                .to_owned())
            }
            Err(_) => Err(LATE.to_owned()),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn record_metrics() -> Result<PrometheusHandle, Failure> {
    let failed = |error| Failure::Run(format!("metrics can't be recorded: {error}"));
    let buckets = |builder: PrometheusBuilder, metric: &str, bounds: &[f64]| {
        builder.set_buckets_for_metric(Matcher::Full(metric.to_owned()), bounds)
    };
    let builder = buckets(PrometheusBuilder::new(), "retrysafe_store_seconds", &SECONDS)
        .and_then(|builder| buckets(builder, "retrysafe_kept_bytes", &BYTES))
        .map_err(failed)?;
    let handle = builder.install_recorder().map_err(failed)?;
    describe();
    Ok(handle)
}

/// DESIGN, Observability. What an alarm watches is there from the start, at zero: an alarm on a
/// counter that appears with its first event misses that event.
fn describe() {
    use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
    describe_counter!("retrysafe_requests_total", "Guarded requests, by what became of them");
    describe_histogram!("retrysafe_store_seconds", Unit::Seconds, "Time that store calls took");
    describe_counter!("retrysafe_store_errors_total", "Store calls that failed");
    describe_gauge!("retrysafe_in_flight", "Executions in flight");
    describe_gauge!("retrysafe_waiters", "Requests that wait for another's outcome");
    describe_counter!("retrysafe_lost_leases_total", "Attempts that lost their lease");
    describe_counter!("retrysafe_unrecorded_total", "Outcomes that could not be recorded");
    describe_counter!("retrysafe_panics_total", "Handlers that panicked");
    describe_histogram!("retrysafe_kept_bytes", Unit::Bytes, "Sizes of kept records");
    describe_counter!("retrysafe_swept_total", "Expired records that were removed");
    for name in [
        "retrysafe_lost_leases_total",
        "retrysafe_unrecorded_total",
        "retrysafe_panics_total",
        "retrysafe_swept_total",
    ] {
        counter!(name).absolute(0);
    }
    for name in ["retrysafe_in_flight", "retrysafe_waiters"] {
        gauge!(name).increment(0.0);
    }
}
