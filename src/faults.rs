//! Faults of a test build, set from outside.
//!
//! `FAILPOINTS` says what happens at each fail point, as the crate `fail` reads it. `VITAG_KILL_AT=point:nth:hold_ms`
//! kills the process when it comes to a point for the nth time, after it has held still there.

use std::env;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use fail::FailScenario;

const KILL_AT: &str = "VITAG_KILL_AT";

/// Sets the fail points, as long as the scenario lives.
///
/// # Panics
/// If a variable cannot be read.
pub(crate) fn set_up() -> FailScenario<'static> {
    let scenario = FailScenario::setup();
    if let Ok(death) = env::var(KILL_AT) {
        let parts: Vec<&str> = death.split(':').collect();
        let [point, nth, hold_ms] = parts[..] else { panic!("{KILL_AT}: expected point:nth:hold_ms, found {death:?}") };
        let number = |text: &str| text.parse::<u32>().unwrap_or_else(|_| panic!("{KILL_AT}: {text:?} is no number"));
        die_at(point, number(nth), Duration::from_millis(number(hold_ms).into()));
    }
    scenario
}

fn die_at(point: &str, nth: u32, hold: Duration) {
    let seen = AtomicU32::new(0);
    let callback = move || {
        if seen.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            thread::sleep(hold);
            kill_self();
        }
    };
    fail::cfg_callback(point, callback).unwrap_or_else(|error| panic!("{KILL_AT}: {error}"));
}

/// SIGKILL, as from outside: nothing is finished, nobody is told.
fn kill_self() -> ! {
    let _ = Command::new("sh").args(["-c", r#"kill -KILL "$0""#, &std::process::id().to_string()]).status();
    unreachable!("the process was killed");
}
