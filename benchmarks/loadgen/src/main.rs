//! One load for two systems: clients that each wait for an answer before they ask again.
//!
//! loadgen (jobs|etcd) ENDPOINT[,ENDPOINT…] (put|get) CLIENTS SECONDS VALUE_BYTES
//! loadgen (jobs|etcd) ENDPOINT[,ENDPOINT…] probe - SECONDS VALUE_BYTES
//!
//! Each client has one connection, kept open; the clients are spread evenly over the endpoints: Unix sockets of Jobs'
//! API, or HOST:PORT of etcd. `put` and `get` print one JSON object with the rate, the latencies and what the load
//! itself cost. `probe` is one client that goes on to the next endpoint after an error or a quarter of a second without an answer,
//! and prints when each write that was accepted began and ended, in nanoseconds of the monotonic clock.

mod etcd;
mod jobs;

use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::timeout;

/// Keys that reads and writes go round.
const KEYS: u64 = 1_000;
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
const PROBE_PAUSE: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq)]
enum System {
    Jobs,
    Etcd,
}

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Put,
    Get,
}

enum Client {
    Jobs(jobs::Client),
    Etcd(etcd::Client),
}

impl Client {
    async fn connect(system: System, endpoint: &str) -> io::Result<Self> {
        Ok(match system {
            System::Jobs => Self::Jobs(jobs::Client::connect(endpoint).await?),
            System::Etcd => Self::Etcd(etcd::Client::connect(endpoint).await?),
        })
    }

    /// Does one operation; fails unless it was answered with success.
    async fn call(&mut self, operation: Operation, key: u64, value: &str) -> io::Result<()> {
        match self {
            Self::Jobs(client) => client.call(operation, key, value).await,
            Self::Etcd(client) => client.call(operation, key, value).await,
        }
    }
}

struct Plan {
    system: System,
    endpoints: Vec<String>,
    operation: String,
    clients: usize,
    length: Duration,
    value: String,
}

fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

#[allow(unsafe_code)]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer, and both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plan = Rc::new(plan(&std::env::args().skip(1).collect::<Vec<_>>())?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = LocalSet::new();
    if plan.operation == "probe" {
        work.block_on(&runtime, probe(&plan))?;
    } else {
        work.block_on(&runtime, load(plan))?;
    }
    Ok(())
}

fn plan(arguments: &[String]) -> Result<Plan, Box<dyn std::error::Error>> {
    let [system, endpoints, operation, clients, seconds, value_bytes] = arguments else {
        return Err("loadgen (jobs|etcd) ENDPOINTS (put|get|probe) CLIENTS SECONDS VALUE_BYTES".into());
    };
    Ok(Plan {
        system: match system.as_str() {
            "jobs" => System::Jobs,
            "etcd" => System::Etcd,
            other => return Err(format!("{other} is no system: jobs or etcd").into()),
        },
        endpoints: endpoints.split(',').map(str::to_owned).collect(),
        operation: operation.clone(),
        clients: if operation == "probe" { 1 } else { clients.parse()? },
        length: Duration::from_secs_f64(seconds.parse()?),
        value: "v".repeat(value_bytes.parse()?),
    })
}

/// Lets every client ask as fast as it is answered, and prints what came of it.
async fn load(plan: Rc<Plan>) -> Result<(), Box<dyn std::error::Error>> {
    let operation = match plan.operation.as_str() {
        "put" => Operation::Put,
        "get" => Operation::Get,
        other => return Err(format!("{other} is no operation: put, get or probe").into()),
    };
    let mut clients = Vec::new();
    for number in 0..plan.clients {
        let endpoint = &plan.endpoints[number % plan.endpoints.len()];
        clients.push(Client::connect(plan.system, endpoint).await?);
    }
    if let (Operation::Get, Some(client)) = (operation, clients.first_mut()) {
        for key in 0..KEYS {
            client.call(Operation::Put, key, &plan.value).await?;
        }
    }
    let began_ns = now_ns();
    let spent_before_ns = clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID);
    let end_ns = began_ns + u64::try_from(plan.length.as_nanos())?;
    let mut running = Vec::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let plan = Rc::clone(&plan);
        running.push(tokio::task::spawn_local(async move {
            let mut latencies_ns = Vec::new();
            let mut key = number as u64 * 7919;
            loop {
                let asked_ns = now_ns();
                if asked_ns >= end_ns {
                    return Ok::<_, io::Error>(latencies_ns);
                }
                client.call(operation, key % KEYS, &plan.value).await?;
                latencies_ns.push(now_ns() - asked_ns);
                key += 1;
            }
        }));
    }
    let mut latencies_ns = Vec::new();
    let mut failed = 0;
    for client in running {
        match client.await? {
            Ok(measured) => latencies_ns.extend(measured),
            Err(error) => {
                failed += 1;
                eprintln!("a client failed: {error}");
            }
        }
    }
    report(
        &mut latencies_ns,
        failed,
        now_ns() - began_ns,
        clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID) - spent_before_ns,
    );
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn report(latencies_ns: &mut [u64], failed: usize, length_ns: u64, own_ns: u64) {
    latencies_ns.sort_unstable();
    let at = |percent: usize| {
        latencies_ns
            .get(latencies_ns.len() * percent / 100)
            .copied()
            .unwrap_or(0) as f64
            / 1e6
    };
    let count = latencies_ns.len() as f64;
    println!(
        "{{\"per_s\": {:.1}, \"p50_ms\": {:.3}, \"p99_ms\": {:.3}, \"failed_clients\": {failed}, \"own_us\": {:.1}}}",
        count / (length_ns as f64 / 1e9),
        at(50),
        at(99),
        own_ns as f64 / 1e3 / count.max(1.0),
    );
}

/// Writes with one client, goes on to the next endpoint when one does not answer well, and prints each success.
async fn probe(plan: &Plan) -> io::Result<()> {
    let end_ns = now_ns() + u64::try_from(plan.length.as_nanos()).unwrap_or(u64::MAX >> 1);
    let mut out = io::stdout().lock();
    let mut client: Option<Client> = None;
    let mut turn = 0;
    while now_ns() < end_ns {
        let began_ns = now_ns();
        let endpoint = &plan.endpoints[turn % plan.endpoints.len()];
        let attempt = async {
            if client.is_none() {
                client = Some(Client::connect(plan.system, endpoint).await?);
            }
            match client.as_mut() {
                Some(open) => open.call(Operation::Put, 0, &plan.value).await,
                None => Ok(()),
            }
        };
        if let Ok(Ok(())) = timeout(PROBE_TIMEOUT, attempt).await {
            writeln!(out, "{began_ns} {}", now_ns())?;
            out.flush()?;
        } else {
            client = None;
            turn += 1;
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }
    Ok(())
}
