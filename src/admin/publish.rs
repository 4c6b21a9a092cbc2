//! Writing a desired state to the control topic, for whoever has the token. What comes of it, this worker learns from the
//! topic, as all others do.

use std::fmt;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Served, error, told};
use crate::config::Secret;

/// Largest desired state that is read, in bytes.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// Writes the desired state of a slot, whose worker has seen this generation; returns the new one.
pub type Publish = dyn Fn(&str, u64, &[u8]) -> Result<u64, Unpublished> + Send + Sync;

/// Why a desired state was not written.
#[derive(Debug)]
pub enum Unpublished {
    /// It cannot be followed.
    Malformed(String),
    /// It is not newer than what is in force.
    Outdated(String),
    /// It did not reach the topic.
    Unwritten(String),
}

impl Unpublished {
    fn response(self) -> Response {
        match self {
            Self::Malformed(reason) => told(StatusCode::BAD_REQUEST, &reason),
            Self::Outdated(reason) => told(StatusCode::CONFLICT, &reason),
            Self::Unwritten(reason) => told(StatusCode::BAD_GATEWAY, &reason),
        }
    }
}

/// Who may write desired states, and how they are written.
#[derive(Clone)]
pub struct Publisher {
    token: Secret,
    publish: Arc<Publish>,
}

impl Publisher {
    /// Lets whoever has `token` write by `publish`, which may block.
    pub fn new(token: Secret, publish: Arc<Publish>) -> Self {
        Self { token, publish }
    }

    /// Compares hashes, so that the time taken tells nothing of the token.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(self.token.reveal()))
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("token", &self.token).finish_non_exhaustive()
    }
}

pub(super) async fn publish(
    State(served): State<Served>,
    Path(slot): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(publisher) = served.publisher else {
        return told(StatusCode::FORBIDDEN, "no token is set: admin.token_file");
    };
    if !publisher.admits(&headers) {
        return error(StatusCode::UNAUTHORIZED);
    }
    let slots = served.health.rollout();
    let Some(status) = slots.get(&slot) else { return told(StatusCode::NOT_FOUND, "this worker has no such slot") };
    let seen = status["generation"].as_u64().unwrap_or_default();
    let written = tokio::task::spawn_blocking(move || (publisher.publish)(&slot, seen, &body)).await;
    match written.unwrap_or_else(|panic| Err(Unpublished::Unwritten(panic.to_string()))) {
        Ok(generation) => (StatusCode::ACCEPTED, Json(json!({ "generation": generation }))).into_response(),
        Err(refusal) => refusal.response(),
    }
}
