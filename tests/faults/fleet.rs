//! The workers of a run: each has a name, and one that ends is started again, as an orchestrator would.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::worker::{SOON, Worker};
use crate::plan::Protocol;
use crate::stage::Topics;

/// A worker's place in the group.
struct Place {
    instance: String,
    worker: Worker,
}

/// Workers that share the partitions of a group.
pub(crate) struct Fleet {
    settings: Vec<String>,
    /// Fail points that all of them have.
    failpoints: &'static str,
    places: Vec<Place>,
    /// Names given so far.
    named: usize,
    /// SIGKILLs that have hit.
    pub(crate) kills: u32,
    /// What workers said that ended by themselves.
    pub(crate) endings: Vec<String>,
    /// Names and logs of those that are gone.
    former: Vec<(String, String)>,
}

impl Fleet {
    /// Starts `workers` of them.
    pub(crate) fn start(
        port: u16,
        topics: &Topics,
        protocol: Protocol,
        workers: usize,
        failpoints: &'static str,
    ) -> Self {
        let own = [
            format!("kafka.bootstrap_servers=127.0.0.1:{port}"),
            format!("kafka.group_id={}", topics.group),
            format!("input.topics={}", topics.input),
            format!("output.topic={}", topics.output),
        ];
        let fixed = [
            "kafka.session_timeout_ms=4000",
            // Longer than a freeze: what keeps a zombie out is the group, not the end of its transaction.
            "kafka.transaction_timeout_ms=10000",
            // An answer to JoinGroup is awaited as long.
            "kafka.max_poll_interval_ms=15000",
            "kafka.properties.socket.timeout.ms=3000",
            "kafka.properties.topic.metadata.refresh.interval.ms=1000",
            "kafka.properties.reconnect.backoff.max.ms=1000",
            "worker.drain_timeout_ms=5000",
            "commit.interval_ms=50",
            "batch.max_sequences=8",
            "lanes.count=2",
            "admin.address=",
        ];
        let fixed = fixed.iter().chain(protocol.settings()).map(|setting| (*setting).to_owned());
        let settings = own.into_iter().chain(fixed).collect();
        let mut fleet =
            Self { settings, failpoints, places: vec![], named: 0, kills: 0, endings: vec![], former: vec![] };
        (0..workers).for_each(|_| fleet.join());
        fleet
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// One more, under a new name.
    pub(crate) fn join(&mut self) {
        self.named += 1;
        let instance = format!("worker-{}", self.named);
        let worker = self.launch(&instance, None);
        self.places.push(Place { instance, worker });
    }

    fn launch(&self, instance: &str, kill_at: Option<&str>) -> Worker {
        let instance = format!("worker.instance={instance}");
        let settings = self.settings.iter().map(String::as_str).chain([instance.as_str()]);
        let mut env = vec![("FAILPOINTS", self.failpoints)];
        env.extend(kill_at.map(|death| ("VITAG_KILL_AT", death)));
        Worker::start(settings, &env)
    }

    /// Starts one again that has ended; returns the former.
    fn start_again(&mut self, place: usize) -> Worker {
        let successor = self.launch(&self.places[place].instance, None);
        self.replace(place, successor)
    }

    fn replace(&mut self, place: usize, successor: Worker) -> Worker {
        let Place { instance, worker } = &mut self.places[place];
        self.former.push((instance.clone(), worker.log()));
        std::mem::replace(worker, successor)
    }

    fn remove(&mut self, place: usize) -> Place {
        let Place { instance, worker } = self.places.remove(place);
        self.former.push((instance.clone(), worker.log()));
        Place { instance, worker }
    }

    /// Kills one, unless it has ended by itself.
    fn kill(&mut self, mut worker: Worker) {
        if worker.has_ended() {
            return self.note_ending(&worker);
        }
        worker.kill();
        self.kills += 1;
    }

    /// Notes what one said that has ended by itself.
    ///
    /// # Panics
    /// If it has panicked, or was kept out by one that is dead.
    fn note_ending(&mut self, worker: &Worker) {
        let log = worker.log();
        let wrong = ["panicked", "UnreleasedInstanceId"].into_iter().find(|word| log.contains(word));
        assert!(wrong.is_none(), "{log}");
        self.endings.push(last_line(&log));
    }

    /// Kills one, and its successor at a fail point; returns whether that was reached.
    pub(crate) fn kill_at(&mut self, place: usize, point: &str, nth: u32, hold_ms: u32) -> bool {
        let death = format!("{point}:{nth}:{hold_ms}");
        self.restart_with(place, Some(&death));
        let reached = match point {
            // Of rebalances and drains there may be just one.
            "drain" => {
                self.await_assignment(place);
                let worker = &mut self.places[place].worker;
                if !worker.has_ended() {
                    worker.terminate();
                }
                self.await_death(place)
            }
            _ => self.await_death(place),
        };
        if reached {
            self.kills += 1;
            self.start_again(place);
        } else {
            self.restart(place);
        }
        reached
    }

    /// Kills one and starts it again.
    pub(crate) fn restart(&mut self, place: usize) {
        self.restart_with(place, None);
    }

    fn restart_with(&mut self, place: usize, kill_at: Option<&str>) {
        // Killed before its successor starts: there is never a second of the name.
        let Place { instance, worker } = self.remove(place);
        self.kill(worker);
        let worker = self.launch(&instance, kill_at);
        self.places.insert(place, Place { instance, worker });
    }

    fn await_death(&mut self, place: usize) -> bool {
        let worker = &mut self.places[place].worker;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match worker.ending() {
                Some(status) => return status.signal() == Some(9),
                None if Instant::now() > deadline => return false,
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn await_assignment(&mut self, place: usize) {
        let worker = &mut self.places[place].worker;
        let deadline = Instant::now() + SOON;
        while !worker.log().contains("partition assigned") && !worker.has_ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills one in an open transaction; one of another name takes its place. Returns whether that point was reached.
    pub(crate) fn abandon(&mut self, place: usize) -> bool {
        self.restart_with(place, Some("after_produce:2:0"));
        let reached = self.await_death(place);
        self.kills += u32::from(reached);
        let Place { worker, .. } = self.remove(place);
        if !reached {
            self.kill(worker);
        }
        self.join();
        reached
    }

    /// Stops one where it is for `time`.
    pub(crate) fn freeze(&mut self, place: usize, time: Duration) {
        let worker = &self.places[place].worker;
        worker.freeze();
        thread::sleep(time);
        worker.thaw();
    }

    /// Starts a second worker under the name of one, and waits for the end of either; returns what the first said if it
    /// was the first that ended.
    pub(crate) fn start_namesake(&mut self, place: usize) -> Option<String> {
        self.await_assignment(place);
        let mut second = self.launch(&self.places[place].instance, None);
        let deadline = Instant::now() + SOON;
        let first = &mut self.places[place].worker;
        while !first.has_ended() && !second.has_ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        if !first.has_ended() {
            assert!(second.has_ended(), "two workers of one name go on:\n{}\n{}", first.log(), second.log());
            self.note_ending(&second);
            return None;
        }
        let first = self.replace(place, second);
        Some(first.log())
    }

    /// One leaves: in good order, or killed.
    pub(crate) fn leave(&mut self, place: usize, in_good_order: bool) {
        let Place { mut worker, .. } = self.remove(place);
        if !in_good_order {
            return self.kill(worker);
        }
        worker.terminate();
        worker.wait();
    }

    /// Starts those again that have ended by themselves.
    ///
    /// # Panics
    /// If one has panicked, or was kept out by one that is dead.
    pub(crate) fn mend(&mut self) {
        for place in 0..self.places.len() {
            if self.places[place].worker.has_ended() {
                let former = self.start_again(place);
                self.note_ending(&former);
            }
        }
    }

    /// Ends all in good order; returns what those said that ended otherwise, and names and logs of all there were.
    pub(crate) fn finish(mut self) -> (Vec<String>, Vec<(String, String)>) {
        self.places.iter().for_each(|place| place.worker.terminate());
        for Place { worker, .. } in &mut self.places {
            let status = worker.wait();
            if !status.success() {
                self.endings.push(format!("at the end: {}", last_line(&worker.log())));
            }
        }
        while !self.places.is_empty() {
            self.remove(0);
        }
        (self.endings, self.former)
    }

    /// All logs, for a failure.
    pub(crate) fn logs(&self) -> String {
        let log = |place: &Place| format!("== {}\n{}", place.instance, place.worker.log());
        self.places.iter().map(log).collect::<Vec<_>>().join("\n")
    }
}

fn last_line(log: &str) -> String {
    log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing").to_owned()
}
