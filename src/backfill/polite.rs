//! Room for others: a job rests while a live group lags.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::BackfillError;
use crate::config::Settings;
use crate::kafka::Reader;
use crate::record::Partition;
use crate::worker::{connection, owned};

/// How often the lag is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// A live group that goes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The group.
    pub group: String,
    /// The topics that it reads.
    pub topics: Vec<String>,
    /// Most records that it may lag; the job goes on when it lags half of that.
    pub max_lag: u64,
}

/// Lets a job rest while a group lags, until `over` is closed. While the lag is not known, it rests too.
///
/// # Errors
/// When the group cannot be looked up at the start.
pub fn give_way(settings: &Settings, live: &Live, rest: &AtomicBool, over: &Receiver<()>) -> Result<(), BackfillError> {
    let timeout = Duration::from_millis(settings.worker.startup_timeout_ms);
    let properties = owned(&settings.kafka.consumer_properties);
    let reader = Reader::new(connection(settings), &properties, &live.group, timeout)?;
    let mut rested = rests(live, rest, lag(&reader, live)?, None);
    while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        match lag(&reader, live) {
            Ok(lag) => rested = rests(live, rest, lag, Some(rested)),
            Err(error) => {
                tracing::warn!(%error, group = live.group, "the lag cannot be looked up");
                rest.store(true, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Whether the job rests from now on, told where that is new.
fn rests(live: &Live, rest: &AtomicBool, lag: u64, before: Option<bool>) -> bool {
    let rests = lag > live.max_lag || before == Some(true) && lag > live.max_lag / 2;
    match before {
        _ if before == Some(rests) => {}
        // The job does nothing now: nobody should have to ask why.
        _ if rests => tracing::warn!(group = live.group, lag, "resting while the group lags"),
        _ => tracing::info!(group = live.group, lag, "going on"),
    }
    rest.store(rests, Ordering::Relaxed);
    rests
}

/// Offsets between where the group stands and the ends of its partitions, markers of transactions included. Where it
/// has committed nothing it does not lag.
fn lag(reader: &Reader, live: &Live) -> Result<u64, BackfillError> {
    let mut lag = 0;
    for topic in &live.topics {
        for id in 0..reader.partitions(topic, "--max-lag-of")? {
            let partition = Partition { topic: topic.as_str().into(), id };
            if let Some((next, _)) = reader.committed(&partition)? {
                lag += u64::try_from(reader.watermarks(&partition)?.end - next).unwrap_or_default();
            }
        }
    }
    Ok(lag)
}
