//! The HTTP side of a worker: probes and metrics. No page changes the worker; one writes to the control topic, which all
//! workers follow.

mod health;
mod publish;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use health::{Beat, Check, Health, Report};
pub use publish::{Publish, Publisher, Unpublished};

/// Longest wait for open requests once the server is told to stop.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Served {
    health: Health,
    registry: Registry,
    publisher: Option<Publisher>,
}

/// Serves `/livez`, `/readyz`, `/startupz`, `/rollout` and `/metrics` on `address` (such as `0.0.0.0:9464`) until `shutdown`
/// resolves; with a publisher also `POST /rollout/SLOT`. Port 0 takes any free one; the address that was bound is returned.
///
/// # Errors
/// When the address cannot be bound; the message names the setting.
pub async fn serve(
    address: &str,
    health: Health,
    registry: Registry,
    publisher: Option<Publisher>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<(SocketAddr, JoinHandle<io::Result<()>>)> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on admin.address {address:?}: {error}"))
    })?;
    let bound = listener.local_addr()?;
    Ok((bound, tokio::spawn(run(listener, router(Served { health, registry, publisher }), shutdown))))
}

async fn run(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, mut stopped) = watch::channel(());
    let signal = async move {
        shutdown.await;
        drop(stopping);
    };
    let late = async move {
        let _ = stopped.changed().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = axum::serve(listener, router).with_graceful_shutdown(signal) => result,
        () = late => Ok(()),
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(|State(served): State<Served>| async move { report(served.health.live()) }))
        .route("/readyz", get(|State(served): State<Served>| async move { report(served.health.ready()) }))
        .route("/startupz", get(|State(served): State<Served>| async move { report(served.health.startup()) }))
        .route("/rollout", get(|State(served): State<Served>| async move { Json(served.health.rollout()) }))
        .route("/rollout/{slot}", post(publish::publish).layer(DefaultBodyLimit::max(publish::MAX_BYTES)))
        .route("/metrics", get(metrics))
        .fallback(|| async { error(StatusCode::NOT_FOUND) })
        .method_not_allowed_fallback(|| async { error(StatusCode::METHOD_NOT_ALLOWED) })
        .with_state(served)
}

async fn index() -> Response {
    let pages = ["/livez", "/readyz", "/startupz", "/rollout", "/metrics"];
    Json(json!({ "name": "vitag", "version": env!("CARGO_PKG_VERSION"), "pages": pages })).into_response()
}

async fn metrics(State(served): State<Served>) -> Response {
    match TextEncoder::new().encode_to_string(&served.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(cause) => {
            tracing::error!(error = %cause, "cannot encode the metrics");
            error(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn report(report: Report) -> Response {
    let status = if report.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

fn error(status: StatusCode) -> Response {
    told(status, &status.canonical_reason().unwrap_or("error").to_lowercase())
}

fn told(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({ "error": reason }))).into_response()
}
