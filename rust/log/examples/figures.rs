//! How fast the log is beside its own disk: `cargo run --release -p jobs-log --example figures -- DIRECTORY`.
//!
//! The disk's own rate is that of the same bytes by write and fdatasync into a file that is already full of zeros. Both
//! run in turns, so that they meet the same disturbances.

use std::error::Error;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use jobs_log::format::record_bytes;
use jobs_log::{Log, Options, RealDisk};

const OPTIONS: Options = Options {
    segment_bytes: 64 << 20,
    salt: 0,
};
const PAYLOAD: [u8; 200] = [7; 200];
const MANY: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args()
        .nth(1)
        .ok_or("give a directory on the disk to measure")?;
    let directory = Path::new(&directory).join("jobs-log-figures");
    fs::create_dir(&directory)?;
    let measured = measure(&directory);
    fs::remove_dir_all(&directory)?;
    measured
}

fn measure(directory: &Path) -> Result<(), Box<dyn Error>> {
    durable_appends(directory, 1, 5_000)?;
    durable_appends(directory, 16, 2_000)?;
    durable_appends(directory, 256, 1_000)?;
    many(directory)
}

/// Time `rounds` batches of entries, each synced.
fn durable_appends(directory: &Path, batch: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let bytes = vec![7; batch * record_bytes(PAYLOAD.len())];
    let raw = fs::File::create(directory.join("raw"))?;
    for _ in 0..=rounds {
        std::io::Write::write_all(&mut &raw, &vec![0; bytes.len()])?;
    }
    raw.sync_all()?;
    let mut log = Log::open(RealDisk::open(&directory.join("appends"))?, OPTIONS)?;
    let (mut of_disk, mut of_log) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let started = Instant::now();
        raw.write_all_at(&bytes, (round * bytes.len()) as u64)?;
        raw.sync_data()?;
        of_disk.push(started.elapsed());

        let started = Instant::now();
        for _ in 0..batch {
            log.append(log.last_index() + 1, 1, &PAYLOAD)?;
        }
        log.sync()?;
        of_log.push(started.elapsed());
    }
    println!(
        "{batch} x {} B, write + fdatasync of the disk: {}",
        PAYLOAD.len(),
        summary(&mut of_disk, batch)
    );
    println!(
        "{batch} x {} B, append + sync of the log:      {}",
        PAYLOAD.len(),
        summary(&mut of_log, batch)
    );
    Ok(())
}

/// Time the opening and the reading of a million entries, found in the page cache as after a restart of the process.
fn many(directory: &Path) -> Result<(), Box<dyn Error>> {
    let home = directory.join("many");
    let mut log = Log::open(RealDisk::open(&home)?, OPTIONS)?;
    let started = Instant::now();
    for index in 1..=MANY {
        log.append(index, 1, &PAYLOAD)?;
    }
    log.sync()?;
    println!(
        "{MANY} x {} B appended, one sync: {:.0?}",
        PAYLOAD.len(),
        started.elapsed()
    );
    drop(log);
    let started = Instant::now();
    let log = Log::open(RealDisk::open(&home)?, OPTIONS)?;
    println!(
        "opened again: {:.0?} for {} MB",
        started.elapsed(),
        log.size_bytes() / 1_000_000
    );
    let started = Instant::now();
    let mut index = 1;
    while index <= MANY {
        index += log.entries(index, 1_000, 1 << 20)?.len() as u64;
    }
    println!("read in pages of 1000: {:.0?}", started.elapsed());
    Ok(())
}

fn summary(times: &mut [Duration], batch: usize) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100];
    let total: Duration = times.iter().sum();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = (times.len() * batch) as f64 / total.as_secs_f64();
    format!("p50 {:.0?}, p99 {:.0?}, {rate:.0} entries/s", at(50), at(99))
}
