//! A plan, carried out.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::broker::Broker;
use crate::driver::Driver;
use crate::fleet::Fleet;
use crate::plan::{Fault, Plan};
use crate::proxy::Proxy;
use crate::stage::{Stage, Topics};
use crate::verify::{Verdict, open_transactions};

/// How long the stream may stand still after a fault: rebalances and time-outs of a few seconds, on a busy machine.
const STUCK: Duration = Duration::from_secs(90);

/// A fault that was set, and whether it had its effect: a fail point may not be reached, a request not be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injected {
    pub(crate) fault: Fault,
    pub(crate) took_effect: bool,
}

/// What happened in a run, and what came of it.
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) injected: Vec<Injected>,
    pub(crate) kills: u32,
    /// What workers said that ended by themselves.
    pub(crate) endings: Vec<String>,
    /// Names and logs of all workers, and of the broker.
    pub(crate) logs: Vec<(String, String)>,
    pub(crate) verdict: Verdict,
}

/// Runs a plan; `failpoints` are those of every worker.
///
/// # Panics
/// If the stream stands still.
pub(crate) fn run(stage: &mut Stage, plan: &Plan, failpoints: &'static str) -> Outcome {
    eprintln!("{plan}");
    let topics = Topics::make(&stage.broker, plan);
    let driver = Driver::start(&mut stage.broker.client(), &topics.input, plan.partitions, plan.seed);
    let fleet = Fleet::start(stage.proxy.port, &topics, plan.protocol, plan.workers, failpoints);
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut run = Run { broker: &mut stage.broker, proxy: &stage.proxy, topics, driver: Some(driver), fleet };
    run.await_progress();
    let mut injected = Vec::new();
    for &fault in &plan.faults {
        let began = Instant::now();
        let took_effect = run.inject(fault, &mut random);
        run.await_progress();
        eprintln!(
            "  {:5.1} s  {fault:?}{}",
            began.elapsed().as_secs_f64(),
            if took_effect { "" } else { ", no effect" }
        );
        injected.push(Injected { fault, took_effect });
    }
    run.end(plan.clone(), injected)
}

struct Run<'s> {
    broker: &'s mut Broker,
    proxy: &'s Proxy,
    topics: Topics,
    driver: Option<Driver>,
    fleet: Fleet,
}

impl Run<'_> {
    /// Makes a fault happen and pass; returns whether it had its effect.
    fn inject(&mut self, fault: Fault, random: &mut fastrand::Rng) -> bool {
        let place = random.usize(0..self.fleet.len());
        match fault {
            Fault::KillAt { point, nth, hold_ms } => {
                // Of rebalances and drains a worker may have just one.
                let nth = if matches!(point, "rebalance" | "drain") { 1 } else { nth };
                return self.fleet.kill_at(place, point, nth, hold_ms);
            }
            Fault::Abandon => return self.fleet.abandon(place),
            Fault::Freeze => {
                // Longer than the session: 4 s, or with `consumer` the 3 s of the broker.
                self.fleet.freeze(place, Duration::from_secs(6));
            }
            Fault::Namesake => {
                if let Some(log) = self.fleet.start_namesake(place) {
                    assert!(log.contains("worker.instance"), "the older of two must say why it ends:\n{log}");
                }
            }
            Fault::Storm { rounds, pause_ms } => self.storm(rounds, Duration::from_millis(pause_ms), random),
            Fault::RestartBroker => {
                self.broker.kill();
                self.broker.restart();
            }
            Fault::PauseBroker { ms } => {
                self.broker.pause();
                thread::sleep(Duration::from_millis(ms));
                self.broker.resume();
            }
            Fault::FullDisk => {
                self.broker.fail_writes();
                self.broker.restart();
            }
            Fault::Grow => {
                let added = self.topics.grow(self.broker);
                self.driver.as_ref().expect("it runs until the end").grow();
                // A restart of a static member before any has seen it would leave it to nobody: see docs/reliability.md.
                let read = self.wait(STUCK, |run| run.committed_of(added).is_some());
                assert!(read, "nobody reads the new partition\n{}", self.fleet.logs());
            }
            Fault::Network(aim) => {
                const TIMES: u32 = 2;
                self.proxy.arm(aim, TIMES);
                if aim.api.is_sent_at_the_start() {
                    self.fleet.restart(place);
                }
                let deadline = Instant::now() + Duration::from_secs(10);
                while self.proxy.hits() < TIMES && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(20));
                }
                self.proxy.disarm();
                return self.proxy.hits() > 0;
            }
        }
        true
    }

    fn storm(&mut self, rounds: u32, pause: Duration, random: &mut fastrand::Rng) {
        for _ in 0..rounds {
            self.fleet.join();
            thread::sleep(pause);
            let place = random.usize(0..self.fleet.len());
            self.fleet.leave(place, random.bool());
            thread::sleep(pause);
        }
    }

    /// Waits until more is committed than is now; workers that end meanwhile are started again.
    fn await_progress(&mut self) {
        let before = self.committed();
        let moves = self.wait(STUCK, |run| run.committed() > before);
        assert!(moves, "the stream stands still\n{}", self.fleet.logs());
    }

    fn committed_of(&self, partition: i32) -> Option<i64> {
        self.broker.committed(&self.topics.group, &self.topics.input).get(&partition).copied()
    }

    fn committed(&self) -> i64 {
        self.broker.committed_in_all(&self.topics.group, &self.topics.input) as i64
    }

    /// Waits for a condition; returns whether it came to hold.
    fn wait(&mut self, patience: Duration, mut condition: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        while !condition(self) {
            self.fleet.mend();
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(100));
        }
        true
    }

    /// Lets the workers finish what there is, and looks at what they made of it.
    fn end(mut self, plan: Plan, injected: Vec<Injected>) -> Outcome {
        let partitions = self.topics.input_partitions();
        let fed = self.driver.take().expect("it runs until the end").stop();
        // What is not committed by then, the verdict tells.
        self.wait(plan.patience, |run| {
            let committed = run.broker.committed(&run.topics.group, &run.topics.input);
            let end = |partition| run.broker.high_watermark(&run.topics.input, partition);
            (0..partitions).all(|partition| committed.get(&partition).is_some_and(|&offset| offset >= end(partition)))
        });
        // That of a worker that never came back ends by its time-out, and hides till then what came after it.
        self.wait(plan.patience, |run| open_transactions(run.broker, &run.topics).is_empty());
        let kills = self.fleet.kills;
        let (endings, mut logs) = self.fleet.finish();
        logs.push(("broker".into(), self.broker.log()));
        let verdict = Verdict::of(self.broker, &self.topics, fed);
        eprintln!("  {verdict}");
        endings.iter().for_each(|ending| eprintln!("  ended: {ending}"));
        Outcome { plan, injected, kills, endings, logs, verdict }
    }
}
