//! Faults for tests: a death at a fail point, and rules that are switched off. A build without the feature `failpoints`
//! has none of it.

/// Sets the fail points of `FAILPOINTS`, as the crate `fail` reads them, and that of `VITAG_KILL_AT=point:nth:hold_ms`:
/// where the process comes to that point for the nth time, it holds still and then kills itself.
///
/// # Panics
/// If one of the two cannot be read.
#[cfg(feature = "failpoints")]
pub fn set_up() -> fail::FailScenario<'static> {
    let scenario = fail::FailScenario::setup();
    if let Ok(death) = std::env::var(KILL_AT) {
        let parts: Vec<&str> = death.split(':').collect();
        let [point, nth, hold_ms] = parts[..] else { panic!("{KILL_AT}: expected point:nth:hold_ms, found {death:?}") };
        let number = |text: &str| text.parse::<u32>().unwrap_or_else(|_| panic!("{KILL_AT}: {text:?} is no number"));
        die_at(point, number(nth), std::time::Duration::from_millis(number(hold_ms).into()));
    }
    scenario
}

#[cfg(feature = "failpoints")]
const KILL_AT: &str = "VITAG_KILL_AT";

#[cfg(feature = "failpoints")]
fn die_at(point: &str, nth: u32, hold: std::time::Duration) {
    let seen = std::sync::atomic::AtomicU32::new(0);
    let callback = move || {
        if seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == nth {
            std::thread::sleep(hold);
            kill_self();
        }
    };
    fail::cfg_callback(point, callback).unwrap_or_else(|error| panic!("{KILL_AT}: {error}"));
}

/// SIGKILL, as from outside: nothing is finished, nobody is told.
#[cfg(feature = "failpoints")]
fn kill_self() -> ! {
    let number = std::process::id().to_string();
    let status = std::process::Command::new("sh").args(["-c", r#"kill -KILL "$0""#, &number]).status();
    unreachable!("the process was killed: {status:?}");
}

/// Whether a test has switched a rule of delivery off, to see that it is noticed.
pub(crate) fn is_off(rule: &str) -> bool {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(rule, |_| true);
    let _ = rule;
    false
}
